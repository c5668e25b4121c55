"""Fine-tuning: encoder and linear head trained together on labels."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from simsiam.augment import AugmentSettings, random_view
from simsiam.checkpoint import Store
from simsiam.data import CLASSES, Labels, split
from simsiam.engine import Record, Result, TrainSettings, train
from simsiam.features import extract
from simsiam.metrics import top_k
from simsiam.models import Classifier, Encoder, Space, seeded


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned classifier and how its learning rate was chosen."""

    classifier: Classifier
    lr: float
    held_out_top1: dict[float, float]  # of each candidate; empty when there was only one
    result: Result


def finetune(
    encoder: Encoder,
    images: Tensor,
    labels: Labels,
    *,
    augment: AugmentSettings,
    settings: TrainSettings,
    lrs: list[float],
    held_out: int,
    space: Space = "latent",
    store_for: Callable[[dict[str, Any]], AbstractContextManager[Store | None]] = lambda trial: nullcontext(),
    on_epoch: Callable[[list[Record]], None] = lambda records: None,
) -> Finetuned:
    """Train a copy of `encoder` and a new linear head on its `space` with cross-entropy; `encoder` itself is not touched.

    images: (N, 3, S, S) uint8 on the device to train on; labels (N,). Of several candidate learning rates the one with
    the best top-1 on a held-out slice of the given images, after training on the rest, is used to train on all of them.
    store_for: gives each training, by its learning rate and the images it is trained on, the place of its checkpoints.
    """
    accuracies: dict[float, float] = {}
    targets = torch.from_numpy(labels).long().to(images.device)

    def fit(
        indices: NDArray[np.int64], lr: float, name: str, report: Callable[[list[Record]], None]
    ) -> tuple[Classifier, Result]:
        with seeded(settings.seed):
            head = nn.Linear(encoder.backbone.dim if space == "backbone" else encoder.settings.latent_dim, len(CLASSES))
        classifier = Classifier(copy.deepcopy(encoder), head, space)
        classifier.to(images.device).to(memory_format=torch.channels_last)
        chosen = torch.from_numpy(indices).to(images.device)

        def loss_of(network: nn.Module, batch: Tensor, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
            batch = chosen[batch]
            logits = network(random_view(images[batch], generator, augment)).float()
            loss = F.cross_entropy(logits, targets[batch])
            return loss, {"top1": (logits.argmax(1) == targets[batch]).float().mean()}

        with store_for({"lr": lr, "images": len(indices)}) as store:
            result = train(
                classifier,
                loss_of,
                examples=len(indices),
                settings=replace(settings, lr=lr),
                device=images.device,
                name=name,
                store=store,
                on_epoch=report,
            )
        return classifier, result

    if len(lrs) > 1:
        kept, held = split(labels, held_out, settings.seed)
        for lr in lrs:
            trial, _ = fit(kept, lr, f"finetune lr {lr!r}", lambda records: None)
            accuracies[lr] = top_k(predict(trial, images[torch.from_numpy(held)])[0], labels[held], 1)
    best = max(accuracies, key=accuracies.__getitem__) if accuracies else lrs[0]
    classifier, result = fit(np.arange(len(labels)), best, "finetune", on_epoch)
    return Finetuned(classifier, best, accuracies, result)


def predict(classifier: Classifier, images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits (N, classes), and what the head reads, of images (N, 3, S, S) uint8, in evaluation mode.

    The head reads latents (N, latent_dim), or features (N, 8 * width) where the classifier's space is the backbone.
    """
    features, latents = extract(classifier.encoder, images, name="predict")
    read = features if classifier.space == "backbone" else latents
    with torch.inference_mode():
        logits = classifier.head(torch.from_numpy(read).to(images.device)).cpu().numpy()
    return logits, read

"""Fine-tuning: encoder and linear head trained together on labels."""

import copy
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from simsiam.augment import random_views
from simsiam.engine import Diverged, Record, Result, StoreFor, train
from simsiam.errors import UserError
from simsiam.features import extract
from simsiam.images import Labels, split
from simsiam.metrics import top_k
from simsiam.networks import Classifier, Encoder, seeded
from simsiam.settings import Finetune

DOUBLINGS = 6  # of the epochs at most, where the budget may grow


@dataclass(frozen=True)
class Finetuned:
    """A fine-tuned classifier, its budget, and how learning rate and budget were chosen."""

    classifier: Classifier
    lr: float
    epochs: int
    batch_size: int
    images: int  # labelled training images that were used
    trials: list[dict[str, float | None]]  # lr, epochs and top-1 on the held-out slice, None where the loss diverged
    result: Result


def finetune(
    encoder: Encoder,
    images: Tensor,
    labels: Labels,
    *,
    classes: int,
    settings: Finetune,
    seed: int,
    name: str,
    about: dict[str, Any] | None = None,
    store_for: StoreFor = lambda identity: nullcontext(),
    on_epoch: Callable[[list[Record]], None] = lambda records: None,
) -> Finetuned:
    """Train a copy of `encoder` and a new linear head on its `settings.space` with cross-entropy; `encoder` is not touched.

    images: (N, 3, S, S) uint8 on the device to train on; labels (N,). With a share of the labels, the same share of each
    class is used, for about as many steps as with all of them. Of several learning rates the one with the best top-1 on a
    held-out part of the used images, after training on the rest, is taken; one that diverges is passed over. A budget that
    may grow is doubled as long as that top-1 rises. The final training is on all used images.
    about: what identifies encoder and images, for the checkpoints.
    Raises Diverged where every learning rate diverges, UserError for a share of less than two images a class.
    """
    used = np.arange(len(labels))
    if settings.labels < 1:
        count, fewest = (
            round(settings.labels * len(labels)),
            int(settings.labels * np.bincount(labels, minlength=classes).min()),
        )
        if count < 8 or fewest < 2:
            few = f"{count} of {len(labels)} images, {fewest} of the smallest class"
            raise UserError(f"{name}: labels is {settings.labels:g}, {few}: it takes 8 at least, and two of each class")
        used = split(labels, count, seed)[1]
    batch_size = min(settings.batch_size, len(used) // 2)
    steps = settings.epochs * (len(labels) // settings.batch_size)
    epochs = max(1, round(steps / (len(used) // batch_size)))
    targets = torch.from_numpy(labels).to(images.device)

    def fit(
        indices: NDArray[np.int64], lr: float, epochs: int, name: str, report: Callable[[list[Record]], None]
    ) -> tuple[Classifier, Result]:
        classifier = Classifier(copy.deepcopy(encoder), new_head(encoder, classes, settings, seed), settings.space)
        classifier.to(images.device).to(memory_format=torch.channels_last)
        chosen = torch.from_numpy(indices).to(images.device)

        def loss_of(network: nn.Module, batch: Tensor, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
            batch = chosen[batch]
            logits = network(*random_views(images[batch], generator, [settings.augment])).float()
            loss = F.cross_entropy(logits, targets[batch])
            return loss, {"top1": (logits.argmax(1) == targets[batch]).float().mean()}

        here = {"images": len(indices), "of": len(used), "space": settings.space, "augment": settings.augment.model_dump()}
        result = train(
            classifier,
            loss_of,
            examples=len(indices),
            settings=settings.model_copy(update={"epochs": epochs, "batch_size": batch_size}),
            lr=lr,
            seed=seed,
            device=images.device,
            name=name,
            about=(about or {}) | here,
            store_for=store_for,
            on_epoch=report,
        )
        return classifier, result

    trials: list[dict[str, float | None]] = []
    held_out = max(1, min(round(settings.labels * settings.held_out), len(used) // 2))
    kept, held = (used[part] for part in split(labels[used], held_out, seed))

    def trial(lr: float, epochs: int) -> float:
        try:
            words = f"{name}, trial of lr {lr:g}, {epochs} epoch{'s' * (epochs > 1)}"
            classifier, _ = fit(kept, lr, epochs, words, lambda records: None)
        except Diverged as error:
            print(f"{error} (passed over)", file=sys.stderr)
            trials.append({"lr": lr, "epochs": epochs, "top1": None})
            return -1.0
        top1 = top_k(predict(classifier, images[torch.from_numpy(held)])[0], labels[held], 1)
        trials.append({"lr": lr, "epochs": epochs, "top1": top1})
        return top1

    lr = settings.lr[0]
    if len(settings.lr) > 1 or settings.budget == "grow":
        found = {lr: trial(lr, epochs) for lr in settings.lr}
        lr = max(found, key=found.__getitem__)
        if found[lr] < 0:
            raise Diverged(f"{name}: the loss diverges at every learning rate of {settings.lr}: try smaller ones")
        if settings.budget == "grow":
            best = found[lr]
            for _ in range(DOUBLINGS):
                if (longer := trial(lr, 2 * epochs)) <= best:
                    break
                best, epochs = longer, 2 * epochs
    classifier, result = fit(used, lr, epochs, name, on_epoch)
    return Finetuned(classifier, lr, epochs, batch_size, len(used), trials, result)


def new_head(encoder: Encoder, classes: int, settings: Finetune, seed: int) -> nn.Linear:
    """The linear layer that fine-tuning begins with."""
    with seeded(seed):
        return nn.Linear(encoder.backbone.dim if settings.space == "backbone" else encoder.settings.latent_dim, classes)


def predict(classifier: Classifier, images: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits (N, classes), and what the head reads, of images (N, 3, S, S) uint8, in evaluation mode.

    The head reads latents (N, latent_dim), or features (N, 8 * width) where the classifier's space is the backbone.
    """
    features, latents = extract(classifier.encoder, images, name="predict")
    read = features if classifier.space == "backbone" else latents
    with torch.inference_mode():
        logits = classifier.head(torch.from_numpy(read).to(images.device)).cpu().numpy()
    return logits, read

"""Linear evaluation: how much a linear classifier reads out of frozen features."""

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from simsiam.data import Floats, Labels, split
from simsiam.engine import Record, TrainSettings, train
from simsiam.metrics import top_k
from simsiam.models import seeded


@dataclass(frozen=True)
class Probe:
    """A trained linear classifier: logits = features @ weight.T + bias."""

    weight: NDArray[np.float32]  # (classes, d)
    bias: NDArray[np.float32]  # (classes,)
    lr: float  # the rate that was chosen on the held-out slice
    held_out_top1: float  # what the slice said of it, trained without the slice
    records: list[Record]

    def scores(self, features: Floats) -> Floats:
        """Logits (N, classes)."""
        return features @ self.weight.T + self.bias


def linear_probe(
    features: Floats,
    labels: Labels,
    *,
    settings: TrainSettings,
    lrs: list[float],
    held_out: int,
    device: torch.device,
    name: str,
) -> Probe:
    """Fit a linear classifier to features (N, d) and labels (N,).

    The learning rate is the one of `lrs` with the best top-1 on `held_out` of the given examples after training on the
    others; the classifier is then trained on all of them. Features are standardised by their own mean and deviation
    first, which is folded into the weights and so changes nothing about what is linear.
    """
    kept, held = split(labels, held_out, settings.seed)
    accuracies = {}
    for lr in lrs:
        trial = _fit(features[kept], labels[kept], replace(settings, lr=lr), device, f"{name} lr {lr:g}")
        accuracies[lr] = top_k(trial.scores(features[held]), labels[held], 1)
    best = max(accuracies, key=accuracies.__getitem__)
    probe = _fit(features, labels, replace(settings, lr=best), device, f"{name} all")
    return replace(probe, held_out_top1=accuracies[best])


def _fit(features: Floats, labels: Labels, settings: TrainSettings, device: torch.device, name: str) -> Probe:
    mean, std = features.mean(0), np.maximum(features.std(0), 1e-3 * features.std() + 1e-12)
    x = torch.from_numpy((features - mean) / std).float().to(device)
    y = torch.from_numpy(labels).long().to(device)
    with seeded(settings.seed):
        head = nn.Linear(x.shape[1], int(labels.max()) + 1)
    head.to(device)

    def loss_of(network: nn.Module, batch: Tensor, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        logits = network(x[batch])
        return F.cross_entropy(logits, y[batch]), {"top1": (logits.argmax(1) == y[batch]).float().mean()}

    result = train(head, loss_of, examples=len(x), settings=settings, device=device, name=name)
    weight = head.weight.detach().cpu().numpy() / std
    bias = head.bias.detach().cpu().numpy() - weight @ mean
    return Probe(weight.astype(np.float32), bias.astype(np.float32), settings.lr, float("nan"), result.records)

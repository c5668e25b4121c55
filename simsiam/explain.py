"""SHAP values of an image classifier, with proof that they add up."""

import copy
from dataclasses import dataclass

import numpy as np
import shap
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from simsiam.errors import UserError
from simsiam.networks import BasicBlock, Classifier


@dataclass(frozen=True)
class Explanation:
    """What each channel of each pixel adds to each logit, compared with the background."""

    values: NDArray[np.float32]  # (N, 3, H, W, classes)
    expected: NDArray[np.float32]  # (classes,): mean logits of the background
    logits: NDArray[np.float32]  # (N, classes)
    residual: float  # largest |sum of values + expected - logit|, over images and classes


class MaxPoolOfRelus(nn.Module):
    """3x3 max-pooling with stride 2 of non-negative (N, C, H, W), written as max(a, b) = a + relu(b - a).

    shap's own rule for max-pooling loses what overlapping windows share, so its values do not add up; through ReLUs they do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.relus = nn.ModuleList(nn.ReLU() for _ in range(4))  # one for each use, as shap wants them

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, fourth = self.relus
        x = nn.functional.pad(x, (1, 1, 1, 1))
        x = _max_of_three(x, first, second).transpose(2, 3)
        return _max_of_three(x, third, fourth).transpose(2, 3)


def _max_of_three(x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    """Maxima of rows 2n, 2n + 1 and 2n + 2 of (N, C, H, W)."""
    a, b, c = x[:, :, :-2:2], x[:, :, 1:-1:2], x[:, :, 2::2]
    a = a + first(b - a)
    return a + second(c - a)


def explain(classifier: Classifier, images: Tensor, background: Tensor, *, name: str, stock: bool = False) -> Explanation:
    """DeepExplainer values (Lundberg & Lee 2017, section 4.2) of every logit for images (N, 3, H, W) in [0, 1].

    background: (B, 3, H, W), a sample of what images look like. Raises UserError when shap finds that the values do not
    add up to the logits. stock: explain the network as it is usually written, with one ReLU module used twice in each block
    and with max-pooling: the same function, but shap then gives values that do not add up.
    """
    # shap hooks modules one by one and wants each to return a tensor, so it gets the parts in a row.
    read = [classifier.encoder.projector] if classifier.space == "latent" else []
    network = nn.Sequential(classifier.encoder.backbone, *read, classifier.head)
    network = copy.deepcopy(network).eval()
    for parent in list(network.modules()):
        if stock and isinstance(parent, BasicBlock):
            parent.relu2 = parent.relu1
        for child, module in parent.named_children():
            if isinstance(module, nn.MaxPool2d) and not stock:
                setattr(parent, child, MaxPoolOfRelus())
    explainer = shap.DeepExplainer(network, background)
    values = []
    try:
        for image in tqdm(images, desc=f"explain {name}", unit=" images"):
            values.append(explainer.shap_values(image.unsqueeze(0), check_additivity=not stock)[0])
    except AssertionError as error:
        raise UserError(f"explain: the SHAP values of the {name} network do not add up: {error}") from None
    with torch.inference_mode():
        logits = network(images).cpu().numpy()
        expected = network(background).mean(0).cpu().numpy()
    stacked = np.stack(values).astype(np.float32)
    residual = np.abs(stacked.sum((1, 2, 3), dtype=np.float64) + expected - logits).max()
    return Explanation(stacked, expected, logits, float(residual))


def mass_by_quadrant(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Shares of an image's SHAP mass in its top left, top right, bottom left and bottom right: (N, 4), rows sum to 1.

    values: (N, 3, H, W, classes); of an odd size the middle goes to the top and the left. A pixel's
    mass is its value's magnitude, summed over the classes.
    """
    mass = _mass(values)
    rows, columns = (-(-size // 2) for size in mass.shape[1:])
    quadrants = [mass[:, y, x] for y in (slice(rows), slice(rows, None)) for x in (slice(columns), slice(columns, None))]
    return np.stack([quadrant.sum((1, 2)) for quadrant in quadrants], axis=1)


def mass_radius(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean distance of an image's SHAP mass from its middle, in pixels: (N,). Spread evenly, a 32x32 image has 12.2."""
    mass = _mass(values)
    y, x = np.indices(mass.shape[1:])
    radius = np.hypot(y - (mass.shape[1] - 1) / 2, x - (mass.shape[2] - 1) / 2)
    return (mass * radius).sum((1, 2))


def _mass(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Each pixel's share of its image's mass, (N, H, W)."""
    mass = np.abs(values.sum(1, dtype=np.float64)).sum(-1)
    return mass / np.maximum(mass.sum((1, 2), keepdims=True), 1e-300)

"""The networks: a ResNet backbone, the projector on it, the encoder made of both, and a classifier on an encoder.

Every ReLU is a module of its own, not in place, and residuals are added out of place: `shap.DeepExplainer` hooks
modules, and with a shared or functional ReLU its values silently stop adding up.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from simsiam.checkpoint import load_weights, save_weights
from simsiam.errors import UserError
from simsiam.settings import EncoderSettings

BLOCKS_PER_STAGE = {10: 1, 18: 2}  # depth -> basic blocks in each of the four stages
FIRST_KERNEL = {"imagenet": 7, "cifar": 3, "strided": 3}  # stem -> side of the first convolution's filters
Space = Literal["backbone", "latent"]  # an encoder's two outputs


class Conv2d(nn.Conv2d):
    """torch's convolution, computed as a matrix product where that is faster: for a small map that goes in.

    With a 1x1 kernel that is up to 16x16 pixels. With a larger one it is up to 2x2: most taps of the kernel meet padding
    there, and only those that meet the input count. The result is the same but for rounding; on a CPU the gradient of the
    weight is up to 20 times faster, and with it the last stages of a ResNet on small images. For what a ResNet has: no bias,
    and a padding of half the kernel. Maps that are not square, and a GPU, which gains nothing, get torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        size, stride, kernel = x.shape[-1], self.stride[0], self.kernel_size[0]
        if x.is_cuda or x.shape[-2] != size or size > (16 if kernel == 1 else 2):
            return super().forward(x)
        if kernel == 1:
            pixels = x[:, :, ::stride, ::stride].permute(0, 2, 3, 1)
            return nn.functional.linear(pixels, self.weight.flatten(1)).permute(0, 3, 1, 2)
        first = int(self.padding[0])  # for the first pixel that comes out, this tap meets the first of x
        out = -(-size // stride)
        met = min(size, kernel - first)  # taps that meet the input, in each direction
        weight = self.weight.permute(0, 2, 3, 1)
        ranges = [slice(first - i, first - i + met) for i in range(out)]
        matrix = torch.stack([weight[:, rows, columns] for rows in ranges for columns in ranges]).flatten(2).flatten(0, 1)
        pixels = x[:, :, :met, :met].permute(0, 2, 3, 1).flatten(1)
        return nn.functional.linear(pixels, matrix).view(len(x), out, out, -1).permute(0, 3, 1, 2)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class ResNet(nn.Module):
    """Images (N, 3, H, W) in [0, 1] -> pooled features (N, 8 * width), non-negative.

    It standardises the channels itself, so callers always hand over plain images. Initialised as torchvision's, with
    zero as the last BatchNorm weight of each block, so that a block starts as its shortcut; the first convolution with the
    settings' own filters, where there are some.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        width = settings.width
        self.dim = 8 * width
        self.register_buffer("mean", torch.tensor(settings.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(settings.std).view(1, -1, 1, 1), persistent=False)
        kernel = FIRST_KERNEL[settings.stem]
        first = nn.Conv2d(3, width, kernel, 1 if settings.stem == "cifar" else 2, kernel // 2, bias=False)
        layers: list[nn.Module] = [first, nn.BatchNorm2d(width), nn.ReLU()]
        if settings.stem == "imagenet":
            layers.append(nn.MaxPool2d(3, 2, 1))
        inputs = width
        for stage in range(4):
            outputs = width * 2**stage
            for block in range(BLOCKS_PER_STAGE[settings.depth]):
                layers.append(BasicBlock(inputs, outputs, stride=2 if stage > 0 and block == 0 else 1))
                inputs = outputs
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)
        if settings.filters:
            filters = torch.tensor(settings.filters).view(-1, *first.weight.shape[1:])[:width]
            first.weight.data[: len(filters)] = filters

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers((images - self.mean) / self.std)
        return features


def projector(inputs: int, hidden: int, latent_dim: int, layers: int, latent_norm: bool, hidden_norm: bool) -> nn.Sequential:
    """(N, inputs) -> latent (N, latent_dim): linear layers with ReLU, and with hidden_norm BatchNorm, between.

    latent_norm: BatchNorm without affine on the latent too, as Chen & He 2020, section 4.4, "default"; without it, their
    "hidden-only", which they found nearly as good. The two collapse differently (`simsiam.collapse`).
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += hidden_layer(inputs, hidden, hidden_norm)
        inputs = hidden
    modules.append(nn.Linear(inputs, latent_dim, bias=not latent_norm))
    if latent_norm:
        modules.append(nn.BatchNorm1d(latent_dim, affine=False))
    return nn.Sequential(*modules)


def predictor(latent_dim: int, hidden: int, hidden_norm: bool) -> nn.Sequential:
    """Latent (N, d) -> prediction (N, d): one hidden layer, and no BatchNorm on the output (Chen & He, section 4.4)."""
    return nn.Sequential(*hidden_layer(latent_dim, hidden, hidden_norm), nn.Linear(hidden, latent_dim))


def hidden_layer(inputs: int, hidden: int, norm: bool) -> list[nn.Module]:
    """(N, inputs) -> (N, hidden): linear, BatchNorm where there is to be one, and ReLU."""
    return [nn.Linear(inputs, hidden, bias=not norm), *([nn.BatchNorm1d(hidden)] if norm else []), nn.ReLU()]


class Encoder(nn.Module):
    """Backbone and projector: images (N, 3, H, W) in [0, 1] -> features (N, 8 * width) and latent (N, latent_dim)."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        with seeded(settings.seed):
            self.backbone = ResNet(settings)
            self.projector = projector(
                self.backbone.dim,
                settings.projector_hidden,
                settings.latent_dim,
                settings.projector_layers,
                settings.latent_norm,
                settings.hidden_norm,
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return features, self.projector(features)


class Classifier(nn.Module):
    """Images -> logits (N, classes): a linear layer on an encoder's latent, or on its backbone's features."""

    def __init__(self, encoder: Encoder, head: nn.Linear, space: Space = "latent") -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.space = space

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder.backbone(images)
        logits: Tensor = self.head(features if self.space == "backbone" else self.encoder.projector(features))
        return logits


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from `seed`, leaving torch's global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def save_encoder(path: Path, encoder: Encoder) -> None:
    """Write the encoder's settings and weights, atomically."""
    save_weights(path, {"settings": encoder.settings.model_dump(), "weights": encoder.state_dict()})


def load_encoder(path: Path) -> Encoder:
    """Build the encoder that a file describes. Raises UserError when the file is missing, damaged or something else."""
    return _encoder_from(load_weights(path), path)


def save_classifier(path: Path, classifier: Classifier) -> None:
    """Write a classifier's encoder, head and what the head reads, atomically."""
    encoder = {"settings": classifier.encoder.settings.model_dump(), "weights": classifier.encoder.state_dict()}
    save_weights(path, encoder | {"head": classifier.head.state_dict(), "space": classifier.space})


def load_classifier(path: Path) -> Classifier:
    """Build the fine-tuned network that a file describes. Raises UserError when it is missing, damaged or something else."""
    content = load_weights(path)
    encoder = _encoder_from(content, path)
    try:
        return with_head(encoder, content["head"], content["space"])
    except (KeyError, TypeError, AttributeError, RuntimeError):
        raise UserError(f"{path} does not hold a classifier: delete it and run `dvc repro`") from None


def with_head(encoder: Encoder, weights: dict[str, Tensor], space: Space = "latent") -> Classifier:
    """The encoder with a linear layer of these weights, `weight` (classes, d) and `bias`, on its latent or backbone."""
    head = nn.Linear(weights["weight"].shape[1], weights["weight"].shape[0])
    head.load_state_dict(weights)
    return Classifier(encoder, head, space)


def _encoder_from(content: Any, path: Path) -> Encoder:
    try:
        encoder = Encoder(EncoderSettings.model_validate(content["settings"]))
        encoder.load_state_dict(content["weights"])
    except (KeyError, TypeError, AttributeError, RuntimeError, ValidationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} does not hold an encoder ({reason}): delete it and run `dvc repro`") from None
    return encoder

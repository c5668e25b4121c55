"""The networks: a ResNet backbone, the projector and predictor heads, and SimSiam made of the three.

Every ReLU is a module of its own, not in place, and residuals are added out of place: `shap.DeepExplainer` hooks
modules, and with a shared or functional ReLU its values silently stop adding up.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simsiam.checkpoint import load_weights, save_weights
from simsiam.errors import UserError
from simsiam.seeds import derive

BLOCKS_PER_STAGE = {10: 1, 18: 2}  # depth -> basic blocks in each of the four stages
# Mean and standard deviation of each channel that standardise images in [0, 1].
NORMALISATION = {
    "cifar10": ((0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)),  # of the 50,000 training images
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
SMALLEST_BOTTLENECK = 32
Space = Literal["backbone", "latent"]  # an encoder's two outputs


@dataclass(frozen=True)
class EncoderSettings:
    """All that it takes to build an encoder again.

    stem: "imagenet" is torchvision's 7x7 stride 2 and max-pool; "cifar" is 3x3 stride 1 without pooling (Chen & He,
    appendix D); "strided" is 3x3 stride 2 without pooling, a quarter of the "cifar" work.
    """

    latent_dim: int
    stem: Literal["imagenet", "cifar", "strided"]
    depth: Literal[10, 18]
    width: int  # channels of the first stage; the pooled features have 8 times as many
    normalisation: Literal["cifar10", "half"]
    projector_layers: int
    projector_hidden: int
    latent_norm: bool  # BatchNorm on the latent
    seed: int  # of the initial weights


class Conv2d(nn.Conv2d):
    """torch's convolution, computed as a matrix product where the map that goes in has at most 2x2 pixels.

    Then most taps of a kernel meet padding, and only those that meet the input count. The result is the same but for
    rounding; on a CPU the gradient of the weight is up to 20 times faster, and with it the last stages of a ResNet on small
    images. For what a ResNet has: square maps, no bias, and a padding of half the kernel.
    """

    def forward(self, x: Tensor) -> Tensor:
        size, first = x.shape[-1], int(self.padding[0])  # for the first pixel that comes out, this tap meets the first of x
        out = -(-size // self.stride[0])
        if size > 2 or (out > 1 and self.kernel_size[0] == 1):
            return super().forward(x)
        met = min(size, self.kernel_size[0] - first)  # taps that meet the input, in each direction
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
    zero as the last BatchNorm weight of each block, so that a block starts as its shortcut.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        width = settings.width
        self.dim = 8 * width
        mean, std = NORMALISATION[settings.normalisation]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        if settings.stem == "imagenet":
            first = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        else:
            first = nn.Conv2d(3, width, 3, 1 if settings.stem == "cifar" else 2, 1, bias=False)
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

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers((images - self.mean) / self.std)
        return features


def projector(inputs: int, hidden: int, latent_dim: int, layers: int, latent_norm: bool) -> nn.Sequential:
    """(N, inputs) -> latent (N, latent_dim): linear layers with BatchNorm and ReLU between.

    latent_norm: BatchNorm without affine on the latent too, as Chen & He 2020, section 4.4, "default"; without it, their
    "hidden-only", which they found nearly as good. Without stop-gradient the two collapse differently. BatchNorm keeps the
    mean of each latent dimension at zero, so the batch cannot become one point: it ends with one sample opposite to all
    others, a z_std of about 2 / sqrt(batch size), 0.18 at 128. Without it z_std falls to 0.
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        inputs = hidden
    modules.append(nn.Linear(inputs, latent_dim, bias=not latent_norm))
    if latent_norm:
        modules.append(nn.BatchNorm1d(latent_dim, affine=False))
    return nn.Sequential(*modules)


def predictor(latent_dim: int, hidden: int) -> nn.Sequential:
    """Latent (N, d) -> prediction (N, d) through a bottleneck; no BatchNorm on the output (Chen & He, section 4.4)."""
    return nn.Sequential(
        nn.Linear(latent_dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, latent_dim)
    )


def bottleneck(latent_dim: int) -> int:
    """Hidden units of the predictor: d/4 as in the paper's appendix B, but never under 32.

    The paper's d is 2048, where a quarter still makes a wide layer. At d = 2 a quarter is no unit at all, and a few units
    behind BatchNorm and ReLU are easily dead; 32 train at every d from 2 on.
    """
    return max(latent_dim // 4, SMALLEST_BOTTLENECK)


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
            )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        return features, self.projector(features)


class SimSiam(nn.Module):
    """An encoder and its predictor: two views -> predictions p1, p2 and latents z1, z2 (Chen & He, Algorithm 1)."""

    def __init__(self, encoder: Encoder, predictor_hidden: int) -> None:
        super().__init__()
        self.encoder = encoder
        with seeded(derive(encoder.settings.seed, 2)):  # another stream than the encoder's
            self.predictor = predictor(encoder.settings.latent_dim, predictor_hidden)

    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z1, z2 = self.encoder(view1)[1], self.encoder(view2)[1]
        return self.predictor(z1), self.predictor(z2), z1, z2


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
    save_weights(path, {"settings": asdict(encoder.settings), "weights": encoder.state_dict()})


def load_encoder(path: Path) -> Encoder:
    """Build the encoder that a file describes. Raises UserError when the file is missing, damaged or something else."""
    return encoder_from(load_weights(path), path)


def encoder_from(content: dict[str, Any], path: Path) -> Encoder:
    """Build the encoder from `settings` and `weights` as read from `path`, which the error names."""
    try:
        encoder = Encoder(EncoderSettings(**content["settings"]))
        encoder.load_state_dict(content["weights"])
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} does not hold an encoder ({reason}): delete it and run `dvc repro`") from None
    return encoder


def load_classifier(path: Path) -> Classifier:
    """Build the fine-tuned network that a file describes. Raises UserError when it is missing, damaged or something else."""
    content = load_weights(path)
    encoder = encoder_from(content, path)
    if "head" not in content:
        raise UserError(f"{path} does not hold a classifier: delete it and run `dvc repro`")
    return with_head(encoder, content["head"])


def with_head(encoder: Encoder, weights: dict[str, Tensor]) -> Classifier:
    """The encoder with a linear layer of these weights, `weight` (classes, latent_dim) and `bias`, on its latent."""
    head = nn.Linear(weights["weight"].shape[1], weights["weight"].shape[0])
    head.load_state_dict(weights)
    return Classifier(encoder, head)

"""The loops that a user would write or pick instead, for the same network, batch and images.

The backbone is torchvision's ResNet, the same function as ours, with the stem, width and depth that the recipe has.
"""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import ResNet as TorchvisionResNet
from torchvision.models.resnet import BasicBlock

from simsiam.methods.simsiam import SimSiam
from simsiam.networks import BLOCKS_PER_STAGE, ResNet
from simsiam.settings import Augment, EncoderSettings


class Pictures(Dataset[Any]):
    """Images as torchvision's CIFAR10 hands them out: a PIL image through the transform, and a label."""

    def __init__(self, images: NDArray[Any], transform: Callable[[Image.Image], Any]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), 0


def batches(images: NDArray[Any], transform: Callable[[Image.Image], Any], batch: int, workers: int) -> Iterator[Any]:
    """What a shuffling DataLoader that drops the last incomplete batch gives, again and again."""
    pin = torch.cuda.is_available()
    loader: DataLoader[Any] = DataLoader(
        Pictures(images, transform),
        batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
    )
    # Workers are forks of this process, and one that collects a CUDA graph of ours dies of it.
    gc.collect()
    gc.freeze()
    while True:
        yield from loader


def torchvision_backbone(like: ResNet, settings: EncoderSettings) -> nn.Module:
    """torchvision's ResNet without its classifier, with the stem, width and depth of ours."""
    blocks, width = BLOCKS_PER_STAGE[settings.depth], settings.width
    backbone = TorchvisionResNet(BasicBlock, [blocks] * 4, zero_init_residual=True)
    if settings.stem != "imagenet":
        stride = 1 if settings.stem == "cifar" else 2
        backbone.conv1, backbone.maxpool = nn.Conv2d(3, width, 3, stride, 1, bias=False), nn.Identity()
    if width != 64:  # which torchvision offers no other
        backbone.bn1, backbone.inplanes = nn.BatchNorm2d(width), width
        for stage in range(4):
            layer = backbone._make_layer(BasicBlock, width * 2**stage, blocks, stride=2 if stage else 1)
            setattr(backbone, f"layer{stage + 1}", layer)
    backbone.fc = nn.Identity()
    ours, theirs = (sum(parameter.numel() for parameter in network.parameters()) for network in (like, backbone))
    assert ours == theirs, "not the same network"
    return backbone


def lightly_steps(
    model: SimSiam, images: NDArray[Any], batch: int, lr: float, workers: int, device: torch.device, augment: Augment
) -> Iterator[None]:
    """lightly's SimSiam example: its transform (which blurs), heads and loss around a ResNet; a step each `next`."""
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models.modules.heads import ProjectionHead, SimSiamPredictionHead
    from lightly.transforms.simsiam_transform import SimSiamTransform

    settings = model.encoder.settings
    backbone = torchvision_backbone(model.encoder.backbone, settings).to(device)
    sizes = [model.encoder.backbone.dim] + [settings.projector_hidden] * (settings.projector_layers - 1)
    layers = [(size, settings.projector_hidden, nn.BatchNorm1d(settings.projector_hidden), nn.ReLU()) for size in sizes[:-1]]
    last = (sizes[-1], settings.latent_dim, nn.BatchNorm1d(settings.latent_dim, affine=False), None)
    projection = ProjectionHead([*layers, last]).to(device)
    hidden = len(next(model.predictor.parameters()))
    prediction = SimSiamPredictionHead(settings.latent_dim, hidden, settings.latent_dim).to(device)
    parts = nn.ModuleList([backbone, projection, prediction])
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD(parts.parameters(), lr=lr)
    for (view1, view2), _ in batches(images, SimSiamTransform(input_size=augment.view_size), batch, workers):
        z1, z2 = (projection(backbone(view.to(device))) for view in (view1, view2))
        p1, p2 = prediction(z1), prediction(z2)
        loss = 0.5 * (criterion(z1.detach(), p2) + criterion(z2.detach(), p1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield


def plain_steps(
    model: SimSiam, images: NDArray[Any], batch: int, lr: float, workers: int, device: torch.device, augment: Augment
) -> Iterator[None]:
    """torchvision transforms in a DataLoader, its ResNet, our heads, fp32, the loss read at every step; one each `next`."""
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    steps: list[Any] = [
        transforms.RandomResizedCrop(augment.view_size, scale=(0.2, 1.0)),
        transforms.RandomHorizontalFlip(),
        jitter,
        transforms.RandomGrayscale(0.2),
    ]
    if augment.blur:
        steps.append(transforms.RandomApply([transforms.GaussianBlur(3, (0.1, 2.0))], p=0.5))
    normalise = transforms.Normalize(model.encoder.settings.mean, model.encoder.settings.std)
    view = transforms.Compose([*steps, transforms.ToTensor(), normalise])
    model.encoder.backbone = torchvision_backbone(model.encoder.backbone, model.encoder.settings)  # type: ignore[assignment]
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    total = 0.0
    for (view1, view2), _ in batches(images, lambda image: (view(image), view(image)), batch, workers):
        z1, z2 = (model.encoder(x.to(device))[1] for x in (view1, view2))
        p1, p2 = model.predictor(z1), model.predictor(z2)
        loss = negative_cosine(p1, z2) / 2 + negative_cosine(p2, z1) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
        yield


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """As in the paper's pseudo-code."""
    return -(F.normalize(p, dim=1) * F.normalize(z.detach(), dim=1)).sum(dim=1).mean()

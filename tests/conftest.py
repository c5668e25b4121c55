"""Shared fixtures: 500 real CIFAR-10 images (40 training and 10 test images of each class)."""

import os
from pathlib import Path
from typing import Any, TypeVar

# Two test processes share the cores, and threads of torch that wait for each other would slow both down many times.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from torch import Tensor

from simsiam.files import read_npz
from simsiam.images import ImageSet, from_arrays, to_tensor
from simsiam.settings import Augment, EncoderSettings, Section

HERE = Path(__file__).parent
SMALL = HERE / "data/cifar10_500.npz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
S = TypeVar("S", bound=Section)

PLAIN = Augment(
    view_size=32,
    crop_scale=[1.0, 1.0],
    flip=0.0,
    jitter=[0.0, 0.0, 0.0, 0.0],
    jitter_probability=0.0,
    grey=0.0,
    blur=0.0,
)
COLOURFUL = PLAIN.model_copy(
    update={"crop_scale": [0.2, 1.0], "flip": 0.5, "jitter": [0.4, 0.4, 0.4, 0.1], "jitter_probability": 0.8, "grey": 0.2}
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, one for each test process."""
    long = ["test_pipeline.py", "test_grid.py", "test_survival.py", "test_finetune.py", "test_ablation.py"]
    items.sort(key=lambda item: long.index(item.path.name) if item.path.name in long else len(long))


@pytest.fixture(scope="session")
def cifar() -> ImageSet:
    return from_arrays(**read_npz(SMALL), classes=CLASSES)


@pytest.fixture(scope="session")
def images(cifar: ImageSet) -> Tensor:
    """The 400 training images, (400, 3, 32, 32) uint8."""
    return to_tensor(cifar.x_train, torch.device("cpu"))


@pytest.fixture
def tiny() -> EncoderSettings:
    """The smallest encoder that has every part."""
    return EncoderSettings(
        latent_dim=8,
        stem="strided",
        depth=10,
        width=8,
        normalisation="data",
        projector_layers=2,
        projector_hidden=16,
        latent_norm=True,
        seed=3,
        mean=(0.49, 0.48, 0.45),
        std=(0.25, 0.24, 0.26),
    )


def but(settings: S, **changes: Any) -> S:
    """The settings with others for some keys, checked as those of params.yaml are."""
    return type(settings).model_validate(settings.model_dump() | changes)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)

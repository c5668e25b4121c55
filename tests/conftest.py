"""Shared fixtures: 500 real CIFAR-10 images (40 training and 10 test images of each class)."""

import os
from pathlib import Path

# Two test processes share the cores, and threads of torch that wait for each other would slow both down many times.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
from torch import Tensor

from simsiam.data import Cifar10, to_tensor
from simsiam.files import read_npz
from simsiam.models import EncoderSettings

HERE = Path(__file__).parent
SMALL = HERE / "data/cifar10_500.npz"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, one for each test process."""
    long = ["test_pipeline.py", "test_survival.py"]
    items.sort(key=lambda item: item.path.name not in long)


@pytest.fixture(scope="session")
def cifar() -> Cifar10:
    return Cifar10(**read_npz(SMALL))


@pytest.fixture(scope="session")
def images(cifar: Cifar10) -> Tensor:
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
        normalisation="cifar10",
        projector_layers=2,
        projector_hidden=16,
        latent_norm=True,
        seed=3,
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)

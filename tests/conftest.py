"""Shared fixtures: 500 real CIFAR-10 images (40 training and 10 test images of each class)."""

import os

# Two test processes share the cores, and threads of torch that wait for each other would slow both down many times.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from torch import Tensor

from simsiam.images import ImageSet, to_tensor
from simsiam.settings import EncoderSettings
from tests.some import TINY, cifar_500


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, one for each test process."""
    long = ["test_pipeline.py", "test_grid.py", "test_survival.py", "test_any_images.py", "test_any_folder.py"]
    long += ["test_finetune.py", "test_ablation.py"]
    items.sort(key=lambda item: long.index(item.path.name) if item.path.name in long else len(long))


@pytest.fixture(scope="session")
def cifar() -> ImageSet:
    return cifar_500()


@pytest.fixture(scope="session")
def images(cifar: ImageSet) -> Tensor:
    """The 400 training images, (400, 3, 32, 32) uint8."""
    return to_tensor(cifar.x_train, torch.device("cpu"))


@pytest.fixture
def tiny() -> EncoderSettings:
    """The smallest encoder that has every part."""
    return TINY

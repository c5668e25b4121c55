"""CIFAR-10 as arrays: what it must be, how it is read and split."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simsiam.errors import UserError
from simsiam.files import read_npz, sha256

if TYPE_CHECKING:  # torch takes seconds to import, and half of the stages do without it
    import torch

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# SHA-256 of the uint8 arrays in C order: images NHWC, both in the official order.
SHA256 = {
    "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}

Arrays = dict[str, NDArray[np.uint8]]
Floats = NDArray[np.float32] | NDArray[np.float64]
Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Cifar10:
    """Images (N, 32, 32, 3) uint8 and labels (N,) uint8 in 0..9, of the training and of the test set."""

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.uint8]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.uint8]


def wrong_arrays(arrays: Arrays) -> list[str]:
    """Names of the arrays that are missing or not CIFAR-10's, by shape, dtype and SHA-256. Empty when all is well."""

    def right(name: str, digest: str) -> bool:
        array = arrays.get(name)
        if array is None or array.dtype != np.uint8 or array.shape[1:] != ((32, 32, 3) if name.startswith("x") else ()):
            return False
        return sha256(np.ascontiguousarray(array).data) == digest

    return [name for name, digest in SHA256.items() if not right(name, digest)]


def load(path: Path) -> Cifar10:
    """Read what the download stage wrote. Raises UserError when it is missing, damaged or not CIFAR-10."""
    arrays = read_npz(path)
    if wrong := wrong_arrays(arrays):
        raise UserError(f"{path}: {', '.join(wrong)} is not CIFAR-10's: delete the file and run `dvc repro download`")
    return Cifar10(**{name: arrays[name] for name in SHA256})


def to_tensor(images: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Images (N, H, W, 3) -> the same bytes as (N, 3, H, W) on the device."""
    import torch

    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous()


def split(labels: NDArray[np.uint8], held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (kept, held out), each sorted; the held-out slice takes the same share of every class.

    Deterministic in `seed`. Raises UserError when nothing would be left on one side.
    """
    if not 0 < held_out < len(labels):
        raise UserError(f"held_out is {held_out}: it must be between 1 and {len(labels) - 1}, the training images less 1")
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    # Rank every image within its class; the lowest ranks of all classes together form the slice.
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels)
    rank = np.concatenate([np.arange(count) / count for count in counts if count])
    order = by_class[np.argsort(rank, kind="stable")]
    return np.sort(order[held_out:]), np.sort(order[:held_out])

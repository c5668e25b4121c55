"""What a set of images is to everything else: images, labels, which part is for testing, and the classes' names.

Where they come from is the business of the sources beside this file; counts, size, classes and normalisation come with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simsiam.errors import UserError
from simsiam.files import REPRO, read_npz, write_npz

if TYPE_CHECKING:  # torch takes seconds to import, and half of the stages do without it
    import torch

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]
Floats = NDArray[np.float32] | NDArray[np.float64]
TRAIN, TEST, UNLABELLED = 0, 1, 2  # values of `split`; unlabelled images are for pretraining only
ORDER = np.array([0, 2, 1], np.uint8)  # where each of them lies


@dataclass(frozen=True)
class ImageSet:
    """Square colour images: first those for training, then the unlabelled ones, then those for testing.

    In that order every part is a view, so that a large set is in memory once. Raises ValueError for another order.
    """

    images: Pixels  # (N, S, S, 3)
    labels: Labels  # (N,), a number of `classes`, or -1 where there is none
    split: Pixels  # (N,), TRAIN, TEST or UNLABELLED
    classes: tuple[str, ...]  # none: a set without labels
    names: tuple[str, ...]  # where each came from: "train/cat/1.png", "train[17]"
    mirrors: bool = True  # False: a mirrored image is another thing, as a digit's is
    skipped: tuple[str, ...] = ()  # files that could not be read, each "name: reason"

    def __post_init__(self) -> None:
        if (np.diff(ORDER[self.split].astype(int)) < 0).any():
            raise ValueError("images should lie in the order training, unlabelled, test")

    @cached_property
    def _ends(self) -> tuple[int, int]:
        """Where the training images end, and where the test images begin."""
        train, test, _ = np.bincount(self.split, minlength=3).tolist()
        return train, len(self.split) - test

    @property
    def x_train(self) -> Pixels:
        return self.images[: self._ends[0]]

    @property
    def y_train(self) -> Labels:
        return self.labels[: self._ends[0]]

    @property
    def x_pretrain(self) -> Pixels:
        """All that training without labels may see: the training and the unlabelled images."""
        return self.images[: self._ends[1]]

    @property
    def x_test(self) -> Pixels:
        return self.images[self._ends[1] :]

    @property
    def y_test(self) -> Labels:
        return self.labels[self._ends[1] :]

    @property
    def size(self) -> int:
        """Side in pixels."""
        return self.images.shape[1]

    @property
    def labelled(self) -> bool:
        return bool(self.classes)

    @cached_property
    def grey(self) -> bool:
        """No image has any colour."""
        return all((piece == piece[..., :1]).all() for piece in _pieces(self.images))

    @cached_property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of each channel over the images for pretraining, in [0, 1], to five places."""
        # From counts of the 256 values: exact, and without a copy of all images as floats.
        counts = np.zeros((3, 256), np.int64)
        for piece in _pieces(self.x_pretrain):
            counts += [np.bincount(piece[..., channel].ravel(), minlength=256) for channel in range(3)]
        values = np.arange(256) / 255
        share = counts / counts.sum(1, keepdims=True)
        mean = share @ values
        deviation = np.sqrt((share @ values**2 - mean**2).clip(0))
        deviation[deviation < 1e-4] = 1  # of a channel that has one value
        return tuple(mean.round(5).tolist()), tuple(deviation.round(5).tolist())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that a result can depend on."""
        found = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        for array in (self.images, self.labels, self.split):
            found.update(np.ascontiguousarray(array).data)
        if not self.mirrors:
            found.update(b"no mirrors")
        return found.hexdigest()

    @cached_property
    def pixels_digest(self) -> str:
        """SHA-256 of all that training without labels can depend on."""
        found = hashlib.sha256(repr((self.x_pretrain.shape, self.mirrors)).encode())
        found.update(np.ascontiguousarray(self.x_pretrain).data)
        return found.hexdigest()

    def save(self, path: Path) -> None:
        """Write an npz that `load` reads."""
        write_npz(
            path,
            images=self.images,
            labels=self.labels,
            split=self.split,
            classes=np.array(self.classes, str),
            names=_packed(self.names),
            mirrors=np.array(self.mirrors),
            skipped=_packed(self.skipped),
        )


def distinct_texts(classes: NDArray[Any]) -> bool:
    """Whether an array can be the names of classes."""
    return classes.ndim == 1 and classes.dtype.kind == "U" and len(np.unique(classes)) == len(classes) and "" not in classes


def _pieces(images: Pixels) -> Iterator[Pixels]:
    return (images[start : start + 1000] for start in range(0, len(images), 1000))


def _packed(texts: tuple[str, ...]) -> Pixels:
    """Texts of any length as one array, which needs no pickle and no padding."""
    return np.frombuffer("\0".join(texts).encode(), np.uint8)


def _unpacked(array: Pixels) -> tuple[str, ...]:
    return tuple(array.tobytes().decode().split("\0")) if array.size else ()


def numbered(**counts: int) -> tuple[str, ...]:
    """Names of images that have none: train=2 -> ("train[0]", "train[1]")."""
    return tuple(f"{part}[{n}]" for part, count in counts.items() for n in range(count))


def from_arrays(
    x_train: Pixels, y_train: NDArray[np.integer], x_test: Pixels, y_test: NDArray[np.integer], classes: Sequence[str]
) -> ImageSet:
    """The set of these images (N, S, S, 3) uint8 and labels (N,)."""
    return ImageSet(
        images=np.concatenate([x_train, x_test]),
        labels=np.concatenate([y_train, y_test]).astype(np.int64),
        split=np.repeat(np.array([TRAIN, TEST], np.uint8), [len(x_train), len(x_test)]),
        classes=tuple(classes),
        names=numbered(train=len(x_train), test=len(x_test)),
    )


def load(path: Path, how: str | None = None) -> ImageSet:
    """Read what `ImageSet.save` wrote. Raises UserError where it is missing, damaged or something else.

    how: what to do then, where it is not to run the pipeline.
    """
    arrays = read_npz(path, how=how or REPRO)
    try:
        n, side = arrays["images"].shape[:2]
        found = ImageSet(
            arrays["images"],
            arrays["labels"],
            arrays["split"],
            classes=tuple(arrays["classes"].tolist()),
            names=_unpacked(arrays["names"]),
            mirrors=bool(arrays["mirrors"]),
            skipped=_unpacked(arrays["skipped"]),
        )
        good = (
            found.images.dtype == np.uint8
            and found.images.shape == (n, side, side, 3)
            and found.labels.dtype == np.int64
            and found.split.dtype == np.uint8
            and found.labels.shape == found.split.shape == (n,)
            and {TRAIN, TEST} <= set(np.unique(found.split))
            and -1 <= found.labels.min() <= found.labels.max() < len(found.classes)
            and len(found.names) == n
            and (distinct_texts(arrays["classes"]) or not arrays["classes"].size)
            and arrays["mirrors"].dtype == bool
        )
    except (KeyError, ValueError, IndexError, TypeError):
        good = False
    if not good:
        raise UserError(f"{path} does not hold a set of images: {how or 'delete it and run `dvc repro download`'}")
    return found


def to_tensor(images: Pixels, device: torch.device) -> torch.Tensor:
    """Images (N, H, W, 3) -> the same bytes as (N, 3, H, W) on the device."""
    import torch

    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous()


def split(labels: Labels, held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices (kept, held out), each sorted; the held-out slice takes the same share of every class.

    Deterministic in `seed`. Raises UserError when nothing would be left on one side, or a label is missing.
    """
    if len(labels) and labels.min() < 0:
        raise UserError("some of these images have no label: what needs labels can take only those that have one")
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

"""Sources whose parts do not belong together, or that would be read as something else without a word."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simsiam.errors import Unusable
from simsiam.images import arrays, folder, medmnist


def some(count: int, side: int = 16) -> np.ndarray:
    return np.arange(count * side * side, dtype=np.uint64).astype(np.uint8).reshape(count, side, side)


@pytest.mark.parametrize(
    "changes",
    [
        {"train_labels": np.arange(9)[:, None] % 2, "val_labels": np.arange(5)[:, None] % 2},
        {"val_images": some(4, 20)},
        {"test_labels": np.arange(5)[:, None] % 2},
    ],
)
def test_each_part_of_a_medmnist_file_has_its_own_labels(changes: dict[str, Any]) -> None:
    counts = {"train": 10, "val": 4, "test": 4}
    good = {f"{part}_images": some(count) for part, count in counts.items()}
    good |= {f"{part}_labels": np.arange(count)[:, None] % 2 for part, count in counts.items()}
    assert len(medmnist.read(good, 0.2, 0).x_train) == 14
    with pytest.raises(Unusable, match="there should be one label for each image, and all images in one shape"):
        medmnist.read(good | changes, 0.2, 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("classes", np.array(["a", "a"]), "each another one"),
        ("classes", np.array([["a", "b"]]), "each another one"),
        ("mirrors", np.array("False"), "it should be one bool"),
        ("mirrors", np.array([True, False]), "it should be one bool"),
    ],
)
def test_names_of_classes_and_mirrors_are_what_they_say(name: str, value: Any, message: str) -> None:
    good: dict[str, Any] = {"x_train": some(20), "y_train": np.arange(20) % 2, "classes": np.array(["a", "b"])}
    assert arrays.from_npz(good, 0.2, 0).classes == ("a", "b")
    with pytest.raises(Unusable, match=message):
        arrays.from_npz(good | {name: value}, 0.2, 0)


def fill(at: Path, *names: str) -> Path:
    for name in names:
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(some(1)[0]).save(at / name)
    return at


def test_a_class_called_train_is_not_taken_for_the_training_part(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}/{n}.png" for name in ("train", "dog") for n in range(4)))
    with pytest.raises(Unusable, match="train/ without folders of classes in it, and dog/ beside it"):
        folder.read(tmp_path, 16, "crop", 0.25, 0)


def test_two_names_that_read_alike_are_not_merged(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}/{n}.png" for name in ("b", "\u00e9", "e\u0301") for n in range(4)))
    with pytest.raises(Unusable, match="holds two files that read"):
        folder.read(tmp_path, 16, "crop", 0.25, 0)


def test_links_are_followed_once_and_never_for_ever(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}/{n}.png" for name in "abcdefghi" for n in range(4)))
    for name in "abcdefghi":
        for other in "abcdefghi":
            os.symlink(tmp_path / other, tmp_path / name / f"to {other}")
    os.symlink("self", tmp_path / "self")
    assert (
        36 <= len(list(folder.files(str(tmp_path)))) <= 36 + 1 + 36
    )  # every file, the link to itself, each folder once more

"""Arrays and pictures of anyone -> an image set, and every kind of array that is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simsiam.errors import Unusable
from simsiam.files import read_npz
from simsiam.images import TEST, TRAIN, UNLABELLED, ImageSet
from simsiam.images.arrays import from_npz, gathered, save_arrays
from tests.some import rng


def some(count: int, *shape: int) -> np.ndarray:
    return rng(count).integers(0, 256, (count, *(shape or (20, 20))), np.uint8)


X, Y = some(30), np.arange(30) % 3


def saved(path: Path, *arguments: Any, **options: Any) -> ImageSet:
    save_arrays(path / "a.npz", *arguments, **options)
    return from_npz(read_npz(path / "a.npz"), 0.2, 0)


def test_arrays_come_back(tmp_path: Path) -> None:
    test, more = some(6), some(9)
    found = saved(tmp_path, (X, Y), (test, Y[:6]), unlabelled=more, classes=["a", "b", "c"], mirrors=False)
    assert (found.x_train[..., 0] == X).all() and (found.y_train == Y).all() and (found.x_test[..., 0] == test).all()
    assert (found.x_pretrain[30:, ..., 0] == more).all() and (found.labels[30:39] == -1).all()
    assert found.classes == ("a", "b", "c") and not found.mirrors
    assert (found.names[29], found.names[30], found.names[39]) == ("train[29]", "unlabelled[0]", "test[0]")


@pytest.mark.parametrize("shape", [(20, 20), (20, 20, 1), (20, 20, 3)])
def test_grey_and_colour(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = some(30, *shape)
    found = saved(tmp_path, (x, Y))
    assert found.images.shape == (30, 20, 20, shape[2] if len(shape) == 3 else 1)
    for image, name in zip(found.images, found.names, strict=True):
        assert (image.squeeze() == x[int(name[6:-1])].squeeze()).all()  # though test images now lie at the end


def test_pictures_of_several_sizes_are_made_squares(tmp_path: Path) -> None:
    pictures = [Image.fromarray(some(1, 30 + n, 50, 3)[0]) for n in range(12)]
    found = saved(tmp_path, (pictures, [0, 1] * 6))
    assert found.images.shape == (12, 35, 35, 3)
    assert saved(tmp_path, (tuple(pictures), tuple([0, 1] * 6))).digest == found.digest  # as zip(*dataset) gives them


def test_a_part_of_every_class_is_for_testing(tmp_path: Path) -> None:
    x, y = some(203, 4, 4), np.repeat([0, 1, 2], [150, 50, 3])
    found = saved(tmp_path, (x, y))
    assert np.bincount(found.y_test).tolist() == [30, 10, 1] and np.bincount(found.y_train).tolist() == [120, 40, 2]
    again, other = (gathered((x, y), None, None, None, 0.2, seed) for seed in (0, 1))
    assert again.digest == found.digest != other.digest
    assert np.bincount(gathered((x, y), None, None, None, 0.5, 0).y_test).tolist() == [75, 25, 1]
    assert len(set(found.names)) == 203


def test_labels_are_classes_by_their_names(tmp_path: Path) -> None:
    assert saved(tmp_path, (X, Y + 1)).classes == ("1", "2", "3")
    named = saved(tmp_path, (X, np.array(["cat", "ant", "bee"])[Y]))
    assert named.classes == ("ant", "bee", "cat")
    assert [named.classes[label] for label in named.labels] == [
        ["cat", "ant", "bee"][int(name[6:-1]) % 3] for name in named.names
    ]
    assert (
        saved(tmp_path, (X, Y[:, None])).digest == saved(tmp_path, (X, Y.tolist())).digest == saved(tmp_path, (X, Y)).digest
    )
    assert saved(tmp_path, (X, Y.astype(np.uint8))).labels.dtype == np.int64


def test_training_images_without_a_label_are_for_pretraining(tmp_path: Path) -> None:
    found = saved(tmp_path, (X, np.where(np.arange(30) < 10, -1, Y)))
    assert np.bincount(found.split).tolist() == [17, 3, 10] and {*found.y_train, *found.y_test} == {0, 1, 2}
    assert found.names[17:27] == tuple(f"train[{n}]" for n in range(10)) and found.split[17] == UNLABELLED


def test_no_labels_at_all(tmp_path: Path) -> None:
    found = saved(tmp_path, (X, None))
    assert not found.labelled and (found.labels == -1).all() and np.bincount(found.split).tolist() == [24, 6]
    assert {TRAIN, TEST} == set(found.split)
    assert np.bincount(saved(tmp_path, (X, None), (X[:5], None), unlabelled=X).split).tolist() == [30, 5, 30]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "floats": ({"train": (X / 255, Y)}, "has train images of shape (30, 20, 20) and type float64: they should be"),
    "colour first": ({"train": (some(30, 3, 20, 20), Y)}, "has train images of shape (30, 3, 20, 20) and type uint8"),
    "one image": ({"train": (X[0], Y)}, "has train images of shape (20, 20) and type uint8"),
    "nothing": ({"train": (X[:0], Y[:0])}, "has train images of shape (0, 20, 20)"),
    "another size": ({"test": (some(5, 20, 24), Y[:5])}, "several shapes, (20, 20, 1) and (20, 24, 1)"),
    "fewer labels": ({"train": (X, Y[:29])}, "has train labels of shape (29,) and type int64 for 30 images"),
    "soft labels": ({"train": (X, Y / 2)}, "has train labels of shape (30,) and type float64"),
    "several labels": ({"train": (X, np.ones((30, 4), int))}, "has train labels of shape (30, 4)"),
    "labels of one part": ({"test": (X, None)}, "has no labels for its test images, but for the others"),
    "too few names": ({"classes": ["a", "b"]}, "has the label 2, and 2 classes, which are numbered from 0"),
    "names twice over": ({"train": (X, ["a", "b", "c"] * 10), "classes": ["a", "b", "c"]}, "has the label c, and 3 classes"),
    "one class": ({"train": (X, Y * 0)}, "has one class only, 0: two or more are needed"),
    "a class of one": (
        {"train": (X, np.arange(30) // 29)},
        "too few images of class 1, 1 in all: training",
    ),
    "a class of two": ({"train": (X, np.arange(30) // 28)}, "too few images of class 1, 2 in all"),
    "a class without": ({"classes": ["a", "b", "c", "d"]}, "too few images of class d, 0 in all"),
    "a class not tested": ({"test": (X, Y % 2)}, "too few images of class 2, 10 for training and 0 for testing"),
    "a class not trained": ({"test": (X, Y + 1)}, "too few images of class 0, 10 for training and 0 for testing"),
    "test without label": ({"test": (X, Y - 1)}, "has test images without a label"),
    "two images": ({"train": (X[:2], None)}, "has too few images, 2 in all"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_set_is_refused_before_anything_is_written(tmp_path: Path, case: str) -> None:
    arguments, says = BAD[case]
    with pytest.raises(Unusable) as caught:
        save_arrays(tmp_path / "a.npz", **({"train": (X, Y)} | arguments))
    assert says in str(caught.value) and "\n" not in str(caught.value) and isinstance(caught.value, ValueError)
    assert not list(tmp_path.iterdir())

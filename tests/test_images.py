"""What an image set is, against numbers computed another way; splits; and files that hold something else."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from simsiam import images
from simsiam.errors import UserError
from simsiam.files import read_npz, write_npz
from simsiam.images import ImageSet, from_arrays, split, to_tensor
from stages.common import load_images
from tests.some import CLASSES

# Mean and deviation of CIFAR-10's 50,000 training images as they are known (Krizhevsky's data, used by every tutorial).
PUBLISHED = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def test_the_normalisation_is_mean_and_deviation_of_the_training_images(cifar: ImageSet) -> None:
    mean, std = cifar.normalisation
    pixels = cifar.x_train.astype(np.float64) / 255
    assert mean == pytest.approx(pixels.mean((0, 1, 2)), abs=6e-6)
    assert std == pytest.approx(pixels.std((0, 1, 2)), abs=6e-6)
    assert all(round(number, 5) == number for number in mean + std)
    # 400 of the images have about the mean that all have, and it is not the test images'.
    assert mean == pytest.approx(PUBLISHED[0], abs=0.03) and std == pytest.approx(PUBLISHED[1], abs=0.02)
    other = replace(cifar, images=np.where(cifar.split[:, None, None, None] == images.TEST, 0, cifar.images))
    assert other.normalisation == (mean, std)


def test_a_normalisation_that_can_be_worked_out_by_hand() -> None:
    x = np.zeros((2, 4, 4, 3), np.uint8)
    x[0, ..., 0], x[1, ..., 0] = 51, 153  # .2 and .6
    x[:, :2, :, 1] = 255  # half black, half white
    x[..., 2] = 204  # .8 everywhere
    found = from_arrays(x, np.array([0, 1]), x[:1], np.array([0]), ("a", "b"))
    assert found.normalisation == ((0.4, 0.5, 0.8), (0.2, 0.5, 1.0))  # 1 for what does not vary: nobody divides by 0


def test_the_parts_are_what_was_put_in(cifar: ImageSet) -> None:
    small = read_npz(Path(__file__).parent / "data/cifar10_500.npz")
    for name, array in small.items():
        assert (getattr(cifar, name) == array).all(), name
    assert cifar.images.shape == (500, 32, 32, 3) and cifar.labels.dtype == np.int64 and cifar.classes == CLASSES


@pytest.fixture
def three(cifar: ImageSet) -> ImageSet:
    """300 training, 100 unlabelled and 100 test images."""
    split = np.repeat(np.array([images.TRAIN, images.UNLABELLED, images.TEST], np.uint8), [300, 100, 100])
    labels = np.where(split == images.UNLABELLED, -1, cifar.labels)
    return replace(cifar, split=split, labels=labels, mirrors=False, skipped=("a b.png: cut", "ü.jpg: empty"))


def test_the_parts_are_views(three: ImageSet) -> None:
    parts = {"x_train": (0, 300), "x_pretrain": (0, 400), "x_test": (400, 500)}
    for name, (start, end) in parts.items():
        part = getattr(three, name)
        assert np.shares_memory(part, three.images) and (part == three.images[start:end]).all() and len(part) == end - start
    assert (three.y_train == three.labels[:300]).all() and (three.y_test == three.labels[400:]).all()
    assert (
        three.normalisation
        == from_arrays(three.x_pretrain, np.zeros(400, int), three.x_test, np.zeros(100, int), "a").normalisation
    )
    assert three.labelled and not replace(three, labels=np.full(500, -1), classes=()).labelled


def test_without_unlabelled_images_pretraining_is_on_the_training_images(cifar: ImageSet) -> None:
    assert len(cifar.x_pretrain) == 400 and (cifar.x_pretrain == cifar.x_train).all()


@pytest.mark.parametrize("order", [[0, 1, 0, 1], [1, 0], [2, 0, 1], [0, 1, 2]])
def test_another_order_is_refused(cifar: ImageSet, order: list[int]) -> None:
    n = len(order)
    with pytest.raises(ValueError, match="training, unlabelled, test"):
        ImageSet(cifar.images[:n], cifar.labels[:n], np.array(order, np.uint8), CLASSES, cifar.names[:n])


def test_grey_is_no_colour_anywhere(cifar: ImageSet) -> None:
    assert not cifar.grey
    pixels = np.repeat(cifar.images[..., :1], 3, axis=3).repeat(5, axis=0)  # more than are looked at at once
    grey = replace(cifar, images=pixels)
    assert grey.grey
    pixels = pixels.copy()
    pixels[2400, 31, 31, 2] ^= 1
    assert not replace(cifar, images=pixels).grey


def test_a_set_survives_its_file(cifar: ImageSet, three: ImageSet, tmp_path: Path) -> None:
    bare = replace(cifar, labels=np.full(500, -1), classes=())
    for kept in (cifar, three, bare):
        kept.save(tmp_path / "images.npz")
        again = images.load(tmp_path / "images.npz")
        for name in ("images", "labels", "split"):
            ours, theirs = getattr(kept, name), getattr(again, name)
            assert ours.dtype == theirs.dtype and (ours == theirs).all()
        assert again.classes == kept.classes and all(type(name) is str for name in again.classes)
        assert (again.names, again.mirrors, again.skipped) == (kept.names, kept.mirrors, kept.skipped)
        assert again.digest == kept.digest
    assert cifar.names[0] == "train[0]" and cifar.names[-1] == "test[99]" and len(cifar.names) == 500


def test_the_digest_tells_all_that_a_result_can_depend_on(cifar: ImageSet) -> None:
    pixel, label, part = cifar.images.copy(), cifar.labels.copy(), cifar.split.copy()
    pixel[3, 4, 5, 1] ^= 1
    label[7] = (label[7] + 1) % 10
    part[399] = images.TEST
    names = ("plane", *CLASSES[1:])
    others = [
        replace(cifar, images=pixel),
        replace(cifar, labels=label),
        replace(cifar, split=part),
        replace(cifar, classes=names),
        replace(cifar, mirrors=False),
    ]
    assert len({cifar.digest, *(other.digest for other in others)}) == 6
    assert cifar.digest == replace(cifar, names=("x",) * 500, skipped=("y: z",)).digest
    # What checkpoints and committed results were identified by before a set had names.
    assert cifar.digest == "c157ec9bbec80aa5a083055019949d8d47812b7ca9774e60867c0f550e436587"


BAD: dict[str, dict[str, Any]] = {
    "no labels": {"labels": None},
    "no classes": {"classes": None},
    "floats": {"images": np.zeros((500, 32, 32, 3), np.float32)},
    "not square": {"images": np.zeros((500, 32, 28, 3), np.uint8)},
    "grey": {"images": np.zeros((500, 32, 32), np.uint8)},
    "with alpha": {"images": np.zeros((500, 32, 32, 4), np.uint8)},
    "fewer images": {"images": np.zeros((499, 32, 32, 3), np.uint8)},
    "narrow labels": {"labels": np.zeros(500, np.uint8)},
    "a label beyond the classes": {"labels": np.full(500, 10)},
    "a label below none": {"labels": np.full(500, -2)},
    "a fourth part": {"split": np.repeat([0, 3, 1], [300, 100, 100]).astype(np.uint8)},
    "nothing to test on": {"split": np.zeros(500, np.uint8)},
    "nothing to train on": {"split": np.repeat([2, 1], 250).astype(np.uint8)},
    "a wide split": {"split": np.repeat([0, 1], 250)},
    "a mixed split": {"split": (np.arange(500) % 2).astype(np.uint8)},
    "no names": {"names": None},
    "names of others": {"names": np.frombuffer(b"a\0b", np.uint8)},
    "names in another encoding": {"names": np.frombuffer(b"\xff", np.uint8)},
    "no word on mirrors": {"mirrors": None},
    "one number": {"images": np.array(3, np.uint8)},
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_of_something_else_is_refused(cifar: ImageSet, tmp_path: Path, kind: str) -> None:
    cifar.save(tmp_path / "images.npz")
    arrays: dict[str, Any] = read_npz(tmp_path / "images.npz") | BAD[kind]
    write_npz(tmp_path / "images.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(UserError, match=r"images\.npz does not hold a set of images: delete it") as caught:
        images.load(tmp_path / "images.npz")
    assert "\n" not in str(caught.value)


def test_a_label_of_none_is_good(cifar: ImageSet, tmp_path: Path) -> None:
    replace(cifar, labels=np.where(np.arange(500) % 2, cifar.labels, -1)).save(tmp_path / "images.npz")
    assert images.load(tmp_path / "images.npz").labels.min() == -1


def test_split_takes_the_same_share_of_every_class(cifar: ImageSet) -> None:
    kept, held = split(cifar.y_train, 100, seed=1)
    assert (np.bincount(cifar.y_train[held]) == 10).all() and (np.bincount(cifar.y_train[kept]) == 30).all()
    assert sorted([*kept, *held]) == list(range(400))
    assert (np.diff(kept) > 0).all() and (np.diff(held) > 0).all()
    assert (split(cifar.y_train, 100, seed=1)[1] == held).all()
    assert not (split(cifar.y_train, 100, seed=2)[1] == held).all()
    uneven = np.repeat(np.arange(3), [10, 30, 60])
    assert np.bincount(uneven[split(uneven, 20, seed=0)[1]]).tolist() == [2, 6, 12]


def test_a_class_without_images_does_not_disturb_a_split() -> None:
    labels = np.repeat([0, 3, 5], 20)
    assert np.bincount(labels[split(labels, 30, seed=0)[1]], minlength=6).tolist() == [10, 0, 0, 10, 0, 10]


@pytest.mark.parametrize("held_out", [0, 400])
def test_a_split_with_an_empty_side_is_refused(cifar: ImageSet, held_out: int) -> None:
    with pytest.raises(UserError, match=f"held_out is {held_out}: it must be between 1 and 399"):
        split(cifar.y_train, held_out, seed=0)


def test_to_tensor_keeps_every_pixel_in_its_place(cifar: ImageSet, tmp_path: Path) -> None:
    tensor = to_tensor(cifar.x_test, torch.device("cpu"))
    assert tensor.shape == (100, 3, 32, 32) and tensor.dtype == torch.uint8 and tensor.is_contiguous()
    Image.fromarray(cifar.x_test[7]).save(tmp_path / "seven.png")  # another library's view of rows, columns and colours
    with Image.open(tmp_path / "seven.png") as picture:
        for column, row in ((0, 0), (5, 3), (31, 0), (0, 31)):
            assert tuple(tensor[7, :, row, column].tolist()) == picture.getpixel((column, row))


def test_a_folder_without_images_of_its_own_has_the_current_one_s(
    cifar: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A point of a study runs in a scratch folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data/images\.npz is missing: `dvc repro` makes it anew"):
        load_images(Path("points/a"))
    cifar.save(Path("data/images.npz"))
    replace(cifar, classes=("plane", *CLASSES[1:])).save(Path("points/b/data/images.npz"))
    assert load_images(Path()).digest == load_images(Path("points/a")).digest == cifar.digest
    assert load_images(Path("points/b")).classes[0] == load_images(tmp_path / "points/b").classes[0] == "plane"
    assert not Path("points/a").exists()

"""What data.source means, for every source but CIFAR-10, whose ways have a file of their own."""

import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simsiam import images
from simsiam.errors import UserError
from simsiam.files import read_npz, write_npz
from simsiam.images import ImageSet, cifar100, sources
from simsiam.images.arrays import save_arrays
from simsiam.settings import Data, load
from stages.common import run
from stages.download import download
from tests.some import CLASSES, SMALL, but, rng
from tests.test_cifar10 import pack, spread, within
from tests.test_folder import fill

PARAMS = Path(__file__).parent.parent / "params.yaml"
DATA = Data(source="digits", size=None, square="crop", test_share=0.2, classes=None)


@pytest.fixture
def fetch(tmp_path: Path) -> Callable[..., ImageSet]:
    scratch = tmp_path / ".scratch"
    scratch.mkdir()

    def fetch(source: object, seed: int = 0, **changes: Any) -> ImageSet:
        return sources.fetch(but(DATA, source=str(source), **changes), seed, scratch)[0]

    return fetch


# Digits


def test_digits(fetch: Callable[..., ImageSet]) -> None:
    from sklearn.datasets import load_digits

    found, truth = fetch("digits"), load_digits()
    assert found.images.shape == (1797, 16, 16, 3) and found.grey and not found.mirrors and found.labelled
    assert found.classes == tuple("0123456789") and len(set(found.names)) == 1797
    share = np.bincount(found.y_test) / np.bincount(found.labels)
    assert np.abs(share - 0.2).max() < 0.005
    for n in (0, 700, 1796):
        original = int(found.names[n][6:-1])
        assert found.labels[n] == truth.target[original]
        small = found.images[n, ..., 0].reshape(8, 2, 8, 2).mean((1, 3)) / 255 * 16
        assert (
            np.abs(small - truth.images[original]).mean() < 1
            and np.corrcoef(small.ravel(), truth.data[original])[0, 1] > 0.98
        )
    assert fetch("digits").digest == found.digest != fetch("digits", seed=1).digest
    assert len(fetch("digits", test_share=0.5, size=28).x_test) == pytest.approx(1797 / 2, abs=10)


# MedMNIST


def medmnist(at: Path, *shape: int, without: str = "", **others: Any) -> Path:
    """A file as theirs are: two classes, three in four of the second."""
    arrays: dict[str, Any] = {}
    for seed, (part, count) in enumerate([("train", 24), ("val", 8), ("test", 12)]):
        arrays[f"{part}_images"] = rng(seed).integers(0, 256, (count, *(shape or (28, 28))), np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 4 > 0).astype(np.uint8)[:, None]
    arrays = {name: array for name, array in (arrays | others).items() if not without or not name.startswith(without)}
    at.parent.mkdir(exist_ok=True)
    np.savez_compressed(at, **arrays)
    return at


@pytest.mark.parametrize(("shape", "side"), [((28, 28), 28), ((64, 64, 3), 64), ((128, 128), 64)])
def test_a_medmnist_file(
    tmp_path: Path, fetch: Callable[..., ImageSet], capfd: pytest.CaptureFixture[str], shape: tuple[int, ...], side: int
) -> None:
    found = fetch(path := medmnist(tmp_path / "pneumoniamnist.npz", *shape))
    assert found.images.shape == (44, side, side, 3) and found.grey == (len(shape) == 2)
    assert found.classes == ("0", "1") and len(found.x_train) == 32 and np.bincount(found.y_test).tolist() == [3, 9]
    assert "the validation images join those for training" in capfd.readouterr().err
    if side == shape[0]:
        ours = read_npz(path)
        stored = np.concatenate([ours["train_images"], ours["val_images"]]).reshape(32, side, side, -1)
        assert (found.x_train == stored).all()
        assert (found.y_train == np.concatenate([ours["train_labels"], ours["val_labels"]])[:, 0]).all()
    assert fetch(path, classes=["well", "ill"], size=16).classes == ("well", "ill")


def test_a_medmnist_file_without_test_images(tmp_path: Path, fetch: Callable[..., ImageSet]) -> None:
    found = fetch(medmnist(tmp_path / "x.npz", without="test"))
    assert np.bincount(found.y_test).tolist() == [2, 5] and len(found.x_train) == 25


ONE: dict[str, Any] = {
    f"{part}_labels": np.zeros((count, 1), np.uint8) for part, count in (("train", 24), ("val", 8), ("test", 12))
}
MEDMNIST: dict[str, tuple[Callable[[Path], Path], str]] = {
    "multi-label": (
        lambda at: medmnist(at, train_labels=np.ones((24, 14), np.uint8)),
        "is multi-label, train_labels of shape (24, 14): only files with one label each can be used",
    ),
    "3-D": (lambda at: medmnist(at, 28, 28, 28), "has 3-D images, train_images of shape (24, 28, 28, 28): only files of"),
    "no labels": (lambda at: medmnist(at, without="train_labels"), "has train_images but no train_labels"),
    "one class": (lambda at: medmnist(at, **ONE), "has one class only, 0"),
}


@pytest.mark.parametrize("case", MEDMNIST)
def test_a_medmnist_file_that_cannot_be_used(tmp_path: Path, fetch: Callable[..., ImageSet], case: str) -> None:
    make, says = MEDMNIST[case]
    with pytest.raises(UserError) as caught:
        fetch(path := make(tmp_path / "chestmnist.npz"))
    assert str(caught.value).startswith(f"data.source: {path} {says}") and str(caught.value).endswith(
        "; nothing was written"
    )


# CIFAR-100


@pytest.fixture
def hundred(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The three official pickles, of few images, whose MD5s become the published ones."""
    names = [f"class {n:02}" for n in range(100)]
    files = {}
    for seed, (part, count) in enumerate([("train", 300), ("test", 100)]):
        rows = rng(seed).integers(0, 256, (count, 3072), np.uint8)
        batch = {"data": rows, "fine_labels": [n % 100 for n in range(count)], "coarse_labels": [0] * count}
        files[part] = pickle.dumps(batch, 2)
    files["meta"] = pickle.dumps({"fine_label_names": names, "coarse_label_names": ["x"]}, 2)
    monkeypatch.setattr(cifar100, "MEMBERS", {name: hashlib.md5(content).hexdigest() for name, content in files.items()})
    return files


@pytest.mark.parametrize("form", ["archive", "folder", "above the folder"])
def test_cifar100(tmp_path: Path, hundred: dict[str, bytes], fetch: Callable[..., ImageSet], form: str) -> None:
    inner = within("cifar-100-python", {"file.txt~": b"", **hundred})
    if form == "archive":
        path = pack(inner, tmp_path / "c.tar.gz")
    else:
        path = spread(hundred, tmp_path / "x/cifar-100-python")
        path = path.parent if form.startswith("above") else path
    found = fetch(path)
    assert found.images.shape == (400, 32, 32, 3) and found.classes[7] == "class 07" and len(found.classes) == 100
    rows = pickle.loads(hundred["test"])["data"]
    assert (found.x_test[5, 3, 9] == [rows[5, plane * 1024 + 3 * 32 + 9] for plane in range(3)]).all()
    assert found.y_train.tolist() == [n % 100 for n in range(300)]


def test_cifar100_from_its_host(
    tmp_path: Path, hundred: dict[str, bytes], fetch: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = pack(within("cifar-100-python", hundred), tmp_path / "cifar-100-python.tar.gz")
    monkeypatch.setattr(cifar100, "URL", archive.as_uri())
    assert len(fetch("cifar100").classes) == 100
    monkeypatch.setattr(cifar100, "URL", "http://127.0.0.1:1/cifar-100-python.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(
        UserError, match=r"127.*tar\.gz could not be fetched \(Connection refused\): give its path, -S 'data\.source="
    ):
        fetch("cifar100")


def test_no_pickle_of_cifar100_is_opened_but_the_official_ones(
    tmp_path: Path, hundred: dict[str, bytes], fetch: Callable[..., ImageSet]
) -> None:
    path = spread(hundred | {"meta": pickle.dumps(Trap(tmp_path / "trap"))}, tmp_path / "copy")
    with pytest.raises(UserError, match="is not CIFAR-100, bit for bit: meta has another MD5 than the official one"):
        fetch(path)
    assert not (tmp_path / "trap").exists()
    (path / "test").unlink()
    with pytest.raises(UserError, match="has not all of CIFAR-100: there is no test;"):
        fetch(path)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def test_what_is_published_of_cifar100() -> None:
    from torchvision.datasets import CIFAR100  # takes seconds to import

    assert cifar100.URL == CIFAR100.url
    lists = [*CIFAR100.train_list, *CIFAR100.test_list, [CIFAR100.meta["filename"], CIFAR100.meta["md5"]]]
    assert cifar100.MEMBERS == {name: md5 for name, md5 in lists}


# Files of our own, and of nobody


def test_our_own_file_is_what_it_is(tmp_path: Path, cifar: ImageSet, fetch: Callable[..., ImageSet]) -> None:
    cifar.save(tmp_path / "images.npz")
    again = fetch(tmp_path / "images.npz")
    assert again.digest == cifar.digest and again.names == cifar.names and again.classes == CLASSES
    assert fetch(tmp_path / "images.npz", size=16).images.shape == (500, 16, 16, 3)


def test_arrays_of_anyone(tmp_path: Path, fetch: Callable[..., ImageSet]) -> None:
    x, y = rng().integers(0, 256, (40, 100, 120), np.uint8), np.arange(40) % 2
    save_arrays(tmp_path / "mine.npz", (x, y), unlabelled=x[:7], classes=["no", "yes"])
    found = fetch(tmp_path / "mine.npz")
    assert found.images.shape == (47, 64, 64, 3) and np.bincount(found.split).tolist() == [32, 8, 7]
    assert fetch(SMALL).classes == tuple("0123456789")  # not all of CIFAR-10, so nobody knows its classes


BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "a zip": (
        "my photos.zip",
        lambda path: zipfile.ZipFile(path, "w").writestr("train/a/1.png", b""),
        "is a zip archive: unpack it, and give the folder",
    ),
    "a tar": (
        "photos.tar.gz",
        lambda path: pack({"photos/a/1.jpg": b"x"}, path),
        "is an archive, with 1.jpg in it: unpack it",
    ),
    "a picture": ("cat.png", lambda path: Image.new("L", (9, 9)).save(path), "is neither a .tar.gz, a .tar nor an .npz"),
    "nothing": ("fotos (neu), ä", lambda path: None, "does not exist"),
    "empty": ("empty", lambda path: path.mkdir(), "holds no pictures (.png, .jpg, "),
    "one class": ("one", lambda path: fill(path, {"cat": 5}), "has one class only, cat: two or more are needed"),
    "other arrays": ("x.npz", lambda path: write_npz(path, a=np.zeros(1), b=np.zeros(1)), "has the arrays a, b: x_train or"),
    "no images": ("y.npz", lambda path: write_npz(path, x_train=np.zeros((3, 3))), "has train images of shape (3, 3)"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_path_that_cannot_be_used_is_one_line(tmp_path: Path, fetch: Callable[..., ImageSet], case: str) -> None:
    name, make, says = BAD[case]
    make(tmp_path / name)
    with pytest.raises(UserError) as caught:
        fetch(tmp_path / name)
    text = str(caught.value)
    assert text.startswith(f"data.source: {tmp_path / name} {says}") and "\n" not in text and "; nothing was written" in text


def test_a_damaged_file_of_ours(tmp_path: Path, cifar: ImageSet, fetch: Callable[..., ImageSet]) -> None:
    cifar.save(tmp_path / "images.npz")
    write_npz(tmp_path / "images.npz", **read_npz(tmp_path / "images.npz") | {"labels": np.zeros(500)})
    with pytest.raises(UserError, match=r"images\.npz does not hold a set of images: nothing was written; mend or replace"):
        fetch(tmp_path / "images.npz")


def test_a_file_that_is_too_large_for_the_memory(
    tmp_path: Path, fetch: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    medmnist(tmp_path / "x.npz", 224, 224)
    monkeypatch.setattr(sources, "free_memory", lambda: 4_000_000)
    with pytest.raises(UserError, match=r"x\.npz takes 0\.0 GB of memory to read, and 0\.0 GB are free: take a smaller one"):
        fetch(tmp_path / "x.npz")


def test_names_for_the_classes(tmp_path: Path, fetch: Callable[..., ImageSet]) -> None:
    fill(tmp_path / "x", {"1": 4, "0": 5})
    found = fetch(tmp_path / "x", classes=["healthy", "ill"])
    assert found.classes == ("healthy", "ill") and np.bincount(found.labels).tolist() == [5, 4]
    with pytest.raises(UserError, match=r"x has 2 classes, and data\.classes has 3 names"):
        fetch(tmp_path / "x", classes=["a", "b", "c"])
    with pytest.raises(UserError, match=r"digits has 10 classes, and data\.classes has 2 names"):
        fetch("digits", classes=["a", "b"])
    with pytest.raises(UserError, match="has 0 classes"):
        fetch(fill(tmp_path / "bare", {"": 5}), classes=["a", "b"])


@pytest.mark.parametrize("name", ["plain", "with space", "(c), ~ü's [x] {y}=$z#", "digits"])
def test_any_folder_and_whence_it_counts(
    tmp_path: Path, fetch: Callable[..., ImageSet], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fill(tmp_path / "home" / name, {"a": 3, "b": 4})
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "home"))
    for source in (tmp_path / "home" / name, f"~/{name}", f"./{name}", f"{name}/"):
        assert len(fetch(source).images) == 7


def test_the_fingerprint_of_each_source(tmp_path: Path) -> None:
    fill(tmp_path / "x", {"a": 3, "b": 4})
    medmnist(tmp_path / "m.npz")

    def of(source: object, seed: int = 0) -> str:
        return sources.fingerprint(but(DATA, source=str(source)), seed)

    assert of("auto") == of("auto", 1) == "auto" and of("cifar100", 1) == "cifar100"
    for source in ("digits", tmp_path / "x", tmp_path / "m.npz"):  # whose test images are chosen by the seed
        assert of(source) == of(source) != of(source, 1)
    folder, file = of(tmp_path / "x"), of(tmp_path / "m.npz")
    (tmp_path / "x/a/0.png").unlink()
    os.utime(tmp_path / "m.npz", ns=(1, 1))
    assert of(tmp_path / "x") != folder and of(tmp_path / "m.npz") != file and of(tmp_path / "none") == "nothing"


# The stage


def test_the_stage_writes_images_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    fill(tmp_path / "mine", {"a": 10, "b": 5, "unlabelled": 4})
    (tmp_path / "mine/a/cut.png").write_bytes(b"")
    run(download, load(PARAMS, ["data.source=mine"]), tmp_path)
    found = json.loads((tmp_path / "reports/metrics/download.json").read_text())["download"]
    assert {name: found[name] for name in ("classes", "train", "test", "unlabelled", "skipped", "size")} == {
        "classes": 2, "train": 12, "test": 3, "unlabelled": 4, "skipped": 1, "size": 20,
    }  # fmt: skip
    kept = images.load(tmp_path / "data/images.npz")
    assert kept.skipped == ("a/cut.png: cannot identify image file",) and not (tmp_path / "data/.download").exists()
    shutil.rmtree(tmp_path / "mine/b")
    with pytest.raises(UserError, match="mine has one class only, a"):
        run(download, load(PARAMS, ["data.source=mine"]), tmp_path)
    assert images.load(tmp_path / "data/images.npz").digest == kept.digest


def test_what_a_source_is_called(tmp_path: Path, cifar: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    others = replace(cifar, classes=tuple("abcdefghij"))
    (tmp_path / "scans 2.1").mkdir()
    (tmp_path / "bloodmnist.npz").touch()
    monkeypatch.chdir(tmp_path / "scans 2.1")
    given = {
        ".": "scans 2.1",
        f"{tmp_path}/scans 2.1/": "scans 2.1",
        "../bloodmnist.npz": "bloodmnist",
        "cifar100": "CIFAR-100",
    }
    for source, name in given.items():
        assert sources.title(but(DATA, source=source), others) == name
    monkeypatch.setattr("simsiam.images.cifar10.DIGEST", cifar.digest)
    assert sources.title(but(DATA, source="."), cifar) == sources.title(but(DATA, source="auto"), others) == "CIFAR-10"
    assert sources.title(but(DATA, source="."), replace(cifar, labels=cifar.labels[::-1])) == "scans 2.1"

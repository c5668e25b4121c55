"""Folders of pictures as people have them, and everything that is none."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simsiam.errors import Unusable
from simsiam.images import TEST, TRAIN, UNLABELLED, ImageSet, folder
from simsiam.images.folder import files, fingerprint, layout, natural


def paint(path: Path, shade: int = 100, size: tuple[int, int] = (20, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, shade).save(path)
    return path


def fill(at: Path, counts: dict[str, int]) -> Path:
    """So many pictures in each folder, each of another grey."""
    for name, count in counts.items():
        for n in range(count):
            paint(at / name / f"{n}.png", 10 * n)
    return at


def read(at: Path, **options: Any) -> ImageSet:
    return folder.read(at, **{"size": None, "square": "crop", "test_share": 0.2, "seed": 0} | options)


def parts(found: ImageSet) -> dict[str, list[str]]:
    return {
        name: [where for where, of in zip(found.names, found.split, strict=True) if of == part]
        for name, part in (("train", TRAIN), ("unlabelled", UNLABELLED), ("test", TEST))
    }


def says(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line.removeprefix("download: ") for line in capfd.readouterr().err.splitlines() if line.startswith("download: ")]


def test_train_and_test(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = read(
        fill(tmp_path, {"train/cat": 3, "train/ant": 4, "test/ant": 1, "test/cat": 2, "unlabelled/x": 2, "unlabelled": 1})
    )
    assert found.classes == ("ant", "cat")
    assert found.names == (
        *(f"train/ant/{n}.png" for n in range(4)),
        *(f"train/cat/{n}.png" for n in range(3)),
        *("unlabelled/0.png", "unlabelled/x/0.png", "unlabelled/x/1.png"),
        *("test/ant/0.png", "test/cat/0.png", "test/cat/1.png"),
    )
    assert found.labels.tolist() == [0] * 4 + [1] * 3 + [-1] * 3 + [0, 1, 1] and found.labels.dtype == np.int64
    assert found.images.shape == (13, 20, 20, 3) and found.images.dtype == np.uint8 and found.grey
    assert found.images[:, 7, 7, 0].tolist() == [0, 10, 20, 30, 0, 10, 20, 0, 0, 10, 0, 0, 10]
    assert says(capfd) == ["the images are made 20 x 20 pixels: data.size sets another size"]


@pytest.mark.parametrize(("val", "train"), [("val", "train"), ("valid", "Train"), ("Validation", "training")])
def test_validation_images(tmp_path: Path, capfd: pytest.CaptureFixture[str], val: str, train: str) -> None:
    fill(tmp_path, {f"{train}/a": 3, f"{train}/b": 3, f"{val}/a": 1, f"{val}/b": 1})
    assert parts(read(tmp_path))["test"] == [f"{val}/a/0.png", f"{val}/b/0.png"]
    assert f"{val}/ is used for testing" in says(capfd)
    found = parts(read(fill(tmp_path, {"test/a": 1, "test/b": 1})))
    assert found["test"] == ["test/a/0.png", "test/b/0.png"] and f"{val}/a/0.png" in found["train"]
    assert f"{val}/ is used for training, as there is test/" in says(capfd)


def test_classes_only(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 20, "b": 10, "c": 3, "Unlabeled": 4})
    found = read(tmp_path)
    assert np.bincount(found.y_test).tolist() == [4, 2, 1] and np.bincount(found.y_train).tolist() == [16, 8, 2]
    assert parts(found)["unlabelled"] == [f"Unlabeled/{n}.png" for n in range(4)]
    assert read(tmp_path).digest == found.digest and read(tmp_path).names == found.names
    assert parts(read(tmp_path, seed=1)) != parts(found)
    assert np.bincount(read(tmp_path, test_share=0.5).y_test).tolist() == [10, 5, 1]
    assert np.bincount(read(fill(tmp_path / "in", {"train/a": 10, "train/b": 5})).y_test).tolist() == [2, 1]  # without test/


@pytest.mark.parametrize("where", [{"": 10}, {"train": 8, "test": 2}, {"": 10, "unlabelled": 3}])
def test_without_classes(tmp_path: Path, where: dict[str, int]) -> None:
    found = read(fill(tmp_path, where))
    assert not found.labelled and found.classes == () and (found.labels == -1).all()
    assert len(found.x_train) == 8 and len(found.x_test) == 2 and len(found.x_pretrain) == 8 + where.get("unlabelled", 0)


def test_names_of_all_kinds_and_what_lies_deeper(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, {"Größe (klein), alt": 3, "кошка": 2, "кошка/old ones/2019": 2, "10": 3, "9": 3})
    paint(tmp_path / "кошка/old ones/a 'quoted' \\ name.PNG")
    for name in (".hidden.png", "кошка/.hidden/1.png", "__MACOSX/1.png"):
        paint(tmp_path / name)
    for name in ("Thumbs.db", "9/desktop.ini", "9/notes.txt", "9/film.gif", "LICENSE", "9/other.gif"):
        (tmp_path / name).write_bytes(b"x")
    paint(tmp_path / "cover.png")
    found = read(tmp_path)
    assert found.classes == ("9", "10", "Größe (klein), alt", "кошка") and np.bincount(found.labels).tolist() == [3, 3, 3, 5]
    assert "кошка/old ones/a 'quoted' \\ name.PNG" in found.names and len(found.names) == 14
    assert says(capfd)[:2] == [
        "files that are no pictures are not read: 2 .gif, 1 .txt, 1 no ending",
        "pictures that lie beside these folders are not used: 1, such as cover.png",
    ]


def test_letters_are_the_same_on_every_system(tmp_path: Path) -> None:
    fill(tmp_path, {"train/Gr\u00f6\u00dfe": 2, "train/b": 2, "test/Gro\u0308\u00dfe": 1, "test/b": 1})  # o and dots apart
    try:
        fill(tmp_path, {os.fsdecode(b"unlabelled/latin\xf6"): 1})
    except OSError:
        pytest.skip("this disk takes no such names")
    found = read(tmp_path)
    assert found.classes == ("b", "Gr\u00f6\u00dfe") and found.names[4] == "unlabelled/latin\ufffd/0.png"
    found.save(tmp_path / "images.npz")


def test_natural_order() -> None:
    names = ["b", "a10", "a9", "a09", "", "10", "9", "a", "B", "a9b10", "a9b9", "ä"]
    expected = ["", "9", "10", "a", "a09", "a9", "a9b9", "a9b10", "a10", "B", "b", "ä"]
    assert sorted(names, key=natural) == sorted(reversed(names), key=natural) == expected


def test_links(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", {"a": 3, "b": 4})
    (tmp_path / "here/a").mkdir(parents=True)
    (tmp_path / "here/b").symlink_to(tmp_path / "elsewhere/b")
    for n in range(3):
        (tmp_path / f"here/a/{n}.png").symlink_to(f"../../elsewhere/a/{n}.png")
    (tmp_path / "elsewhere/b/loop").symlink_to(tmp_path / "here")
    (tmp_path / "again").symlink_to("here")
    found = read(tmp_path / "again")
    assert np.bincount(found.labels).tolist() == [3, 4]  # no folder is in itself
    before = fingerprint(tmp_path / "again")
    paint(tmp_path / "elsewhere/a/3.png")
    assert fingerprint(tmp_path / "again") == before
    paint(tmp_path / "elsewhere/a/0.png", 3, (40, 40))
    assert fingerprint(tmp_path / "again") != before


def test_every_kind_of_file(tmp_path: Path) -> None:
    """The same picture in all of them."""
    pixels = np.add.outer(np.arange(32) * 4, np.arange(32) * 3).astype(np.uint8)
    (tmp_path / "a").mkdir()
    for ending in (*folder.ENDINGS, ".JPG"):
        Image.fromarray(pixels).save(tmp_path / f"a/x{ending}", quality=95)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = read(tmp_path)
    assert len(found.images) == 16 and not found.skipped
    assert np.abs(found.images[..., 0].astype(int) - pixels).max() < 12


def test_a_large_jpeg_is_not_another_picture(tmp_path: Path) -> None:
    """It is decoded at a fraction of its size."""
    tiles = np.kron(np.add.outer(np.arange(17), np.arange(25)) % 2, np.full((8, 8), 255))[4:132, 4:196].astype(np.uint8)
    fill(tmp_path, {"": 3})
    Image.fromarray(tiles).save(tmp_path / "0.jpg", quality=95)
    found = read(tmp_path, size=32)
    jpeg = found.images[found.names.index("0.jpg")][..., 0].astype(int)
    assert np.abs(jpeg - tiles[:, 32:160].reshape(32, 4, 32, 4).mean((1, 3))).max() < 50


@pytest.mark.parametrize(("size", "square", "side"), [(None, "crop", 24), (48, "crop", 48), (17, "pad", 17)])
def test_size_and_square(tmp_path: Path, size: int | None, square: str, side: int) -> None:
    for n in range(3):
        paint(tmp_path / f"a/{n}.png", 0, (24, 100))
        paint(tmp_path / f"b/{n}.png", 255, (100, 24))
    assert read(tmp_path, size=size, square=square).images.shape == (6, side, side, 3)


@pytest.mark.parametrize(("own", "side"), [(8, 16), (300, 64)])
def test_the_usual_size_has_bounds(tmp_path: Path, own: int, side: int) -> None:
    for n in range(4):
        paint(tmp_path / f"{n}.png", 0, (own, own + 5))
    assert read(tmp_path).images.shape[1] == side


def bomb(path: Path) -> None:
    Image.new("1", (10_000, 9_000)).save(path)


def cut(path: Path) -> None:
    whole = paint(path.with_suffix(".whole.jpg"), 90, (200, 200))
    path.write_bytes(whole.read_bytes()[:-300])
    whole.unlink()


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "x.jpg": (cut, "image file is truncated"),
    "x.png": (bomb, "Image size (90000000 pixels) exceeds limit of 89478485 pixels, could be decompression bomb"),
    "page.png": (lambda path: path.write_bytes(b"<html>"), "cannot identify image file"),
    "empty.tif": (lambda path: path.write_bytes(b""), "cannot identify image file"),
    "program.jpg": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot identify"),
    "link.png": (lambda path: path.symlink_to("nowhere"), "a link to nothing"),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.filterwarnings("error")
def test_an_unreadable_file_is_skipped_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    make, reason = UNREADABLE[name]
    expected = read(fill(tmp_path, {"a": 7, "b": 5, "unlabelled": 2}), test_share=0.01)
    make(tmp_path / "a" / name)
    found = read(tmp_path, test_share=0.01)
    assert len(found.skipped) == 1 and found.skipped[0].startswith(f"a/{name}: {reason}")
    assert f"skipped {found.skipped[0]}" in says(capfd)
    assert sorted(found.names) == sorted(expected.names) and found.images.base is not None
    shades = {where: image[3, 3, 0] for where, image in zip(expected.names, expected.images, strict=True)}
    assert [shades[where] for where in found.names] == found.images[:, 3, 3, 0].tolist()
    (tmp_path / "b/0.png").write_bytes(b"")
    with pytest.raises(Unusable, match=r"has 2 pictures of 15 that cannot be read, such as a/"):
        read(tmp_path)


def test_a_class_that_is_too_small_when_unreadable_files_are_left_out(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a": 15, "train/b": 2, "test/a": 3, "test/b": 1})
    (tmp_path / "train/b/0.png").write_bytes(b"")
    with pytest.raises(Unusable, match="too few images of class b, 2 in all"):
        read(tmp_path)


def test_many_unreadable_files_are_not_all_on_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, {"": 250})
    for n in range(25):
        (tmp_path / f"{n}.png").write_bytes(b"")
    found = read(tmp_path)
    lines = says(capfd)
    assert len(found.skipped) == 25 and sum(line.startswith("skipped ") for line in lines) == 21
    assert lines[-1] == "skipped 5 more, which data/images.npz names"


BAD: dict[str, tuple[dict[str, int], str]] = {
    "empty": ({}, "holds no pictures (.png, .jpg, "),
    "one class": (
        {"cat": 9},
        "has one class only, cat: two or more are needed, or pictures without folders; if",
    ),
    "one class of both": ({"train/cat": 9, "test/cat": 3}, "has one class only, cat"),
    "one folder too high": ({"set/train/a": 3, "set/train/b": 3}, "if the folders in set are the classes, give that one"),
    "a class of one": ({"a": 9, "b": 1}, "has too few images of class b, 1 in all"),
    "a class of one for training": ({"train/a": 3, "train/b": 1, "test/a": 1, "test/b": 1}, "of class b, 2 in all"),
    "no training": ({"test/a": 3, "test/b": 3}, "has test/ but no train/"),
    "a class called val": ({"Val": 3, "b": 3}, "has Val/ but no train/ with pictures in it; if that is a class, give"),
    "another class": (
        {"train/a": 3, "train/b": 3, "test/a": 3, "test/c": 3},
        "has other classes for training than for testing: only for training b; only for testing c",
    ),
    "classes for testing only": ({"train": 5, "test/a": 3, "test/b": 3}, "only for training none; only for testing a, b"),
    "classes for training only": ({"train/a": 3, "train/b": 3, "test": 3}, "only for training a, b; only for testing none"),
    "two pictures": ({"": 2}, "has too few images, 2 in all"),
    "unlabelled only": ({"unlabelled": 9}, "has too few images, 0 in all"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_folder_that_cannot_be_used(tmp_path: Path, case: str) -> None:
    counts, message = BAD[case]
    with pytest.raises(Unusable) as caught:
        read(fill(tmp_path, counts))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_other_files_only(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(b"GIF")
    with pytest.raises(Unusable, match=r"holds no pictures \(.*\), only other files: 1 \.gif$"):
        read(tmp_path)


def test_too_many_pictures_for_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.images.pictures.free_memory", lambda: 60_000)
    read(fill(tmp_path, {"": 4}), size=16)
    with pytest.raises(Unusable, match=r"has 4 images: in 64 x 64 pixels .* set a smaller data\.size"):
        read(tmp_path, size=64)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "gone": lambda at: (at / "a/5.png").unlink(),
    "added": lambda at: paint(at / "a/new.png"),
    "replaced": lambda at: paint(at / "a/0.png", 7, (33, 33)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    fill(tmp_path, {"a": 30, "b": 30})
    monkeypatch.setattr(folder, "check_memory", lambda *_: CHANGES[change](tmp_path))  # just before it is decoded
    message = "changes while it is read: a/5.png has gone" if change == "gone" else "changes while it is read: try again"
    with pytest.raises(Unusable, match=message):
        read(tmp_path)


def rewrite(path: Path) -> None:
    """As a file of another size, and of the same time."""
    before = path.stat().st_mtime_ns
    path.write_bytes(b"x")
    os.utime(path, ns=(before, before))


def test_the_fingerprint(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 3, "b/c": 3})
    seen = [fingerprint(tmp_path)]
    assert fingerprint(tmp_path) == seen[0]
    paint(tmp_path / ".hidden.png")
    (tmp_path / "Thumbs.db").touch()
    assert fingerprint(tmp_path) == seen[0]
    for change in (
        lambda: paint(tmp_path / "b/c/9.png"),
        lambda: (tmp_path / "b/c/9.png").rename(tmp_path / "b/c/8.png"),
        lambda: os.utime(tmp_path / "a/0.png", ns=(1, 1)),
        lambda: rewrite(tmp_path / "a/0.png"),
        lambda: (tmp_path / "a/0.png").unlink(),
        lambda: (tmp_path / "b/c/link.png").symlink_to("nowhere"),
    ):
        change()
        seen.append(fingerprint(tmp_path))
    assert len(set(seen)) == 7
    shutil.copytree(tmp_path, tmp_path.parent / "copy", symlinks=True)  # with its times
    assert fingerprint(tmp_path.parent / "copy") == seen[-1]


def test_files_are_found_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"a": 1})
    monkeypatch.chdir(tmp_path)
    assert [entry.path for entry in files("a")] == ["a/0.png"]
    assert layout(["0.png", "1.png", "2.png"], 0.2, 0)[0] == ["0.png", "1.png", "2.png"]

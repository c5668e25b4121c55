"""DVC and a folder of pictures: it is read once, again when it has changed, and whatever its name is."""

import os
from pathlib import Path

import pytest
from PIL import Image

from simsiam.images import load
from tests.clones import make_clone, run, set_params

READ = "Running stage 'download'"


def paint(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in a home of its own, with a name that a shell, YAML and DVC have each their own reading of."""
    folder = tmp_path_factory.mktemp("home") / "with, (commas) [1] and ümlauts = $x #1: {y}"
    for n in range(5):
        paint(folder / f"red ones/{n}.png", f"rgb(250, {n}, 0)")
        paint(folder / f"blau, grün/{n}.png", f"rgb(0, {n}, 250)")
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clone = tmp_path_factory.mktemp("clone")
    make_clone(clone)
    return clone


def repro(clone: Path) -> bool:
    """Run the stages up to download; whether that one ran."""
    return READ in run("dvc", "repro", "download", at=clone).stdout


def names(clone: Path) -> list[str]:
    return sorted(load(clone / "data/images.npz").names)


def test_a_folder_is_read_again_when_it_has_changed_and_not_otherwise(clone: Path, pictures: Path) -> None:
    set_params(clone, data__source=str(pictures))
    assert repro(clone)
    assert names(clone) == [f"{kind}/{n}.png" for kind in ("blau, grün", "red ones") for n in range(5)]
    assert not repro(clone)

    paint(pictures / "red ones/added.png", "red")
    assert repro(clone) and len(names(clone)) == 11
    assert not repro(clone)
    (pictures / "red ones/4.png").unlink()
    assert repro(clone) and len(names(clone)) == 10

    picture = pictures / "red ones/3.png"
    before, size = load(clone / "data/images.npz").digest, picture.stat().st_size
    paint(pictures / "new.png", "rgb(250, 9, 0)")
    assert (pictures / "new.png").stat().st_size == size
    os.replace(pictures / "new.png", picture)  # of the same size
    assert repro(clone)
    assert load(clone / "data/images.npz").digest != before and len(names(clone)) == 10
    assert not repro(clone)


def test_any_path_can_be_given_for_one_run(clone: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In quotes, as params.yaml says: without them DVC takes a comma, a parenthesis, = or ~ for its own."""
    monkeypatch.setenv("HOME", str(pictures.parent))
    for given in (str(pictures), f"~/{pictures.name}"):
        (clone / "data/images.npz").unlink(missing_ok=True)
        result = run("dvc", "exp", "run", "-S", f"data.source='{given}'", "download", at=clone)
        assert "Ran experiment" in result.stdout, result.stdout + result.stderr
        assert len(names(clone)) == 10

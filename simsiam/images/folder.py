"""A folder of pictures, in the layouts that people have, as an image set."""

import contextlib
import hashlib
import os
import re
import sys
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from simsiam.errors import Unusable
from simsiam.images import ORDER, TEST, TRAIN, UNLABELLED, ImageSet
from simsiam.images.arrays import check_counts, hold_out
from simsiam.images.pictures import USUAL, Square, as_seen, check_memory, squared, usual_size

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # what is looked for in such a file; others of Pillow's start programs
CLUTTER = {"thumbs.db", "desktop.ini", "__macosx"}  # which systems leave in folders, beside hidden files
ROLES = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "val", "valid": "val"}
ROLES |= {"validation": "val", "unlabelled": "unlabelled", "unlabeled": "unlabelled"}
THREADS = 2  # Pillow decodes without Python's lock
SHOWN = 20  # unreadable files that are named on stderr
LOST = 0.1  # the largest share of unreadable files that is only warned of


def files(folder: str, seen: set[tuple[int, int]] | None = None) -> Iterator["os.DirEntry[str]"]:
    """All files below a folder, also through links, but no hidden ones. A link to nothing is a file, too.

    Links to one folder are followed once, so that no loop of them is walked for ever. seen: folders that were walked.
    """
    seen = set() if seen is None else seen
    status = os.stat(folder)
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name.lower() in CLUTTER:
                continue
            if _is(entry.is_dir):
                status = entry.stat()
                if not entry.is_symlink() or (status.st_dev, status.st_ino) not in seen:
                    yield from files(entry.path, seen)
            elif entry.is_symlink() or _is(entry.is_file):
                yield entry


def _is(question: Callable[[], bool]) -> bool:
    """False also of a link to itself."""
    try:
        return question()
    except OSError:
        return False


def fingerprint(folder: Path) -> str:
    """SHA-256 of the names, sizes and times of all files in it: another one where any was added, removed or replaced."""
    found, start = [], len(str(folder)) + 1
    for entry in files(str(folder)):
        status = entry.stat() if _is(entry.is_file) else entry.stat(follow_symlinks=False)
        found.append(f"{entry.path[start:]}\0{status.st_size}\0{status.st_mtime_ns}")
    return hashlib.sha256(os.fsencode("\n".join(sorted(found)))).hexdigest()


def natural(name: str) -> tuple[list[str | int], str]:
    """What to sort names by, so that 2 comes before 10 and a before B, the same on every system."""
    return [int(part) if n % 2 else part for n, part in enumerate(re.split(r"([0-9]+)", name.casefold()))], name


def read(folder: Path, size: int | None, square: Square, test_share: float, seed: int) -> ImageSet:
    """The set of the pictures in a folder, in one of these layouts; what lies deeper belongs to the class above it.

    train/<class>/ and test/<class>/; or <class>/, or pictures only: then `test_share` of each class is for testing.
    val/ is for testing where there is no test/, else for training. unlabelled/ is for pretraining only.
    size: side of the images; None: the usual shorter side, from 16 to 64. In the test part the classes take turns.

    What a user may not expect is a line on stderr. Raises Unusable, also where the folder changes meanwhile.
    """
    before = fingerprint(folder)
    every: dict[str, str] = {}
    for entry in files(str(folder)):
        name = _printable(entry.path[len(str(folder)) + 1 :])
        if name in every:
            raise Unusable(
                f"holds two files that read {name!r}, in other letters each: rename one of the two (or its folder)"
            )
        every[name] = entry.path
    names, split, labels, classes = layout(sorted(every, key=natural), test_share, seed)
    check_counts(labels, split, classes)
    order = np.lexsort((in_turn(labels, split), ORDER[split]))
    names, split, labels = [names[n] for n in order], split[order], labels[order]
    side = size or usual_size(_shorter_sides([every[name] for name in names]))
    if size is None:
        _say(f"the images are made {side} x {side} pixels: data.size sets another size")
    check_memory(len(names), side)

    images = np.empty((len(names), side, side, 3), np.uint8)

    def decode(n: int) -> str:
        """Put picture n in its place, or say why not."""
        try:
            with Image.open(every[names[n]], formats=FORMATS) as picture:
                picture.draft(None, (2 * side, 2 * side))  # of a large JPEG no more is decoded than it takes
                images[n] = np.asarray(squared(as_seen(picture), side, square))
        except FileNotFoundError:
            if not os.path.islink(every[names[n]]):
                raise Unusable(f"changes while it is read: {names[n]} has gone; try again when it is left alone") from None
            return "a link to nothing"
        except Exception as error:  # Pillow's are of many kinds
            return " ".join(re.sub(r" '.*| <.*", "", str(error)).split()) or type(error).__name__
        return ""

    Image.init()  # not in two threads at once, one of which would take a good file for none
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")  # of odd EXIF data
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        bar = tqdm(pool.map(decode, range(len(names))), "reading pictures", len(names), unit=" pictures", delay=1)
        reasons = list(bar)
    if fingerprint(folder) != before:
        raise Unusable("changes while it is read: try again when it is left alone")
    skipped = tuple(f"{name}: {reason}" for name, reason in zip(names, reasons, strict=True) if reason)
    if len(skipped) > LOST * len(names):
        raise Unusable(f"has {len(skipped)} pictures of {len(names)} that cannot be read, such as {skipped[0]}")
    for line in skipped[:SHOWN]:
        _say(f"skipped {line}")
    if len(skipped) > SHOWN:
        _say(f"skipped {len(skipped) - SHOWN} more, which data/images.npz names")
    good = [n for n, reason in enumerate(reasons) if not reason]
    if skipped:
        for to, n in enumerate(good):  # in place: there may be no memory for a second copy
            images[to] = images[n]
        labels, split, names = labels[good], split[good], [names[n] for n in good]
        check_counts(labels, split, classes)
    return ImageSet(images[: len(good)], labels, split, classes, tuple(names), skipped=skipped)


def layout(names: list[str], test_share: float, seed: int) -> tuple[list[str], np.ndarray, np.ndarray, tuple[str, ...]]:
    """Of files' names in a folder: those of pictures, each one's part, its label, and the classes. Raises Unusable."""
    pictures = [name for name in names if name.lower().endswith(ENDINGS)]
    others = Counter(Path(name).suffix.lower() or "no ending" for name in names if not name.lower().endswith(ENDINGS))
    counts = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
    if not pictures:
        raise Unusable(f"holds no pictures ({', '.join(ENDINGS)})" + f", only other files: {counts}" * bool(others))
    if others:
        _say(f"files that are no pictures are not read: {counts}")
    tops = {ROLES[name.split("/")[0].lower()]: name.split("/")[0] for name in pictures if _role(name)}
    if "train" not in tops and (alone := tops.get("test") or tops.get("val")):
        raise Unusable(f"has {alone}/ but no train/ with pictures in it; if that is a class, give the folder another name")
    parts = {"train": TRAIN, "test": TEST, "val": TRAIN if "test" in tops else TEST, "unlabelled": UNLABELLED}
    if "val" in tops:
        _say(f"{tops['val']}/ is used for {'training, as there is ' + tops['test'] + '/' if 'test' in tops else 'testing'}")

    found: list[tuple[str, int, str]] = []  # name, part, class
    for name in pictures:
        role, below = (_role(name), name.partition("/")[2]) if _role(name) else ("", name)
        if role or "train" not in tops:
            found.append((name, parts[role or "train"], below.partition("/")[0] if "/" in below else ""))
    of_part = {part: {group for _, of, group in found if of == part and group} for part in (TRAIN, TEST)}
    classes = sorted(of_part[TRAIN] | of_part[TEST], key=natural)
    if TEST in {part for _, part, _ in found} and of_part[TRAIN] != of_part[TEST]:
        only = [f"{', '.join(sorted(of_part[part] - of_part[1 - part], key=natural)) or 'none'}" for part in (TRAIN, TEST)]
        raise Unusable(
            f"has other classes for training than for testing: only for training {only[0]}; only for testing {only[1]}"
        )
    if not classes and (beside := {name.split("/")[0] for name in pictures if "/" in name and not _role(name)}):
        raise Unusable(
            f"has {', '.join(sorted(tops.values()))}/ without folders of classes in it, and {min(beside)}/ beside it: put "
            "classes into the former, or give it another name if it is a class"
        )
    if len(classes) == 1:
        raise Unusable(
            f"has one class only, {classes[0]}: two or more are needed, or pictures without folders; if the folders in "
            f"{classes[0]} are the classes, give that one"
        )
    if classes:
        found = [each for each in found if each[2] or each[1] == UNLABELLED]
    if unused := sorted({*pictures} - {name for name, _, _ in found}, key=natural):
        _say(f"pictures that lie beside these folders are not used: {len(unused)}, such as {unused[0]}")
    split = np.array([part for _, part, _ in found], np.uint8)
    number = {name: n for n, name in enumerate(classes)}
    labels = np.array([-1 if part == UNLABELLED else number.get(group, -1) for _, part, group in found])
    if TEST not in split:
        hold_out(labels, split, test_share, seed)
    return [name for name, _, _ in found], split, labels, tuple(classes)


def in_turn(labels: np.ndarray, split: np.ndarray) -> np.ndarray:
    """The place of each test image in its class, else 0: sorted by it, the first test images are of different classes."""
    place = np.zeros(len(labels), int)
    for label in np.unique(labels):
        members = np.flatnonzero((labels == label) & (split == TEST))
        place[members] = np.arange(len(members))
    return place


def _role(name: str) -> str:
    """The part of the set that the first folder of a file's name stands for, if any."""
    top, slash, _ = name.partition("/")
    return ROLES.get(top.lower(), "") if slash else ""


def _printable(path: str) -> str:
    """A path in the same letters on every system: with /, composed, and without bytes that are no text."""
    return unicodedata.normalize("NFC", os.fsencode(path).decode(errors="replace").replace(os.sep, "/"))


def _shorter_sides(paths: list[str]) -> list[int]:
    """Of a thousand pictures at most, evenly chosen."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths[:: max(1, len(paths) // 1000)]:
            with contextlib.suppress(Exception), Image.open(path, formats=FORMATS) as picture:  # or it is skipped later
                found.append(min(picture.size))
    return found or [USUAL]


def _say(line: str) -> None:
    print(f"download: {line}", file=sys.stderr)

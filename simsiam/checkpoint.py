"""The checkpoint store: training that was cut short, or is already done, kept by what it is a training of.

A folder of the store is named by the fingerprint of everything that decides the result: settings, data, code and arithmetic.
So a checkpoint of another training is never found, and two runs of the same training share one. The store lies outside
DVC's outputs, because DVC deletes those before a stage runs.

A file is written whole or not at all, and carries its own SHA-256 in its name: `00000123-<digest>.pt`.
"""

import io
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from simsiam import code, parallel
from simsiam.errors import UserError
from simsiam.files import Busy, locked, sha256, sha256_file, write_bytes, write_json

KEEP = 2  # the newest, and the one before it in case the newest is damaged
NO_ARITHMETIC = code.NO_NUMBERS | {"simsiam.collapse"}  # of a training, whose collapse is only told


def fingerprint(module: str, identity: dict[str, Any]) -> str:
    """16 hexadecimal digits of what identifies a training, and of the meaning of the code that `module` trains with."""
    return sha256(json.dumps([identity, code.digest(module, NO_ARITHMETIC)], sort_keys=True).encode())[:16]


def store_folder(root: Path) -> Path:
    """Where checkpoints lie: beside the repository that DVC works for, also when it runs a copy (`--temp`, `--queue`)."""
    return Path(os.environ.get("DVC_ROOT", root)) / ".checkpoints"


@contextmanager
def open_store(root: Path, module: str, identity: dict[str, Any], *, fresh: bool = False) -> Iterator["Store"]:
    """The place of a training that `module` makes, such as "simsiam.pretrain"; `fresh` empties it first.

    What it is a training of is written beside the checkpoints, for people to read. Another program that is at the same
    training is waited for: it leaves a finished checkpoint, or what it had when it was killed. Raises UserError where
    several processes would have to wait.
    """
    kind = module.rpartition(".")[2]
    folder = store_folder(root) / kind / fingerprint(module, identity)
    # Of several processes the first holds the lock for all of them.
    with training_lock(folder, wait=parallel.size() == 1) if parallel.rank() == 0 else nullcontext():
        if parallel.rank() == 0:
            for leftover in [*folder.glob(".*.tmp"), *(folder.glob("*.pt") if fresh else ())]:
                leftover.unlink()
            write_json(folder / "settings.json", identity)
        yield Store(folder)


@contextmanager
def training_lock(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the training of a store's folder. Raises Busy where another program has it and `wait` is false.

    Locks lie in a folder of their own that is never deleted, so that whoever frees a training frees no lock that others wait
    for.
    """
    kind, name = folder.parent.name, folder.name
    busy = f"{kind}: another program is at the same training"
    try:
        with locked(folder.parent.parent / "locks" / f"{kind}-{name}.lock", wait=wait, waiting=f"{busy}: waiting for it"):
            yield
    except Busy:
        raise Busy(f"{busy}: wait for its end, or stop it, and run the same command") from None


def trainings(root: Path) -> list[Path]:
    """The folders of all trainings in the store, oldest first."""
    folders = [path.parent for path in store_folder(root).glob("*/*/settings.json")]
    return sorted(folders, key=lambda path: path.stat().st_mtime)


def free(folder: Path) -> None:
    """Delete a training. Raises Busy when it is being trained."""
    with training_lock(folder, wait=False):
        shutil.rmtree(folder)


class Store:
    """The checkpoints of one training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state of `step` and drop all but the newest two. Raises UserError when the disk is full."""
        content = _serialised(state)
        write_bytes(self.folder / f"{step:08d}-{sha256(content)[:16]}.pt", content)
        for old in self._files()[KEEP:]:
            old.unlink()

    def latest(self) -> dict[str, Any] | None:
        """The newest state that is intact, or None. A damaged one is renamed to `.damaged`, with a message."""
        for path in self._files():
            if sha256_file(path)[:16] == path.stem.split("-")[1]:
                return load_weights(path)
            print(f"checkpoint {path} is damaged: set aside, going back to the one before it", file=sys.stderr)
            path.rename(path.with_suffix(".damaged"))
        return None

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*-*.pt"), reverse=True)


def save_weights(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values, atomically. Raises UserError when the disk is full."""
    write_bytes(path, _serialised(content))


def load_weights(path: Path) -> dict[str, Any]:
    """Tensors and plain values from a file, on the CPU. Nothing in the file is executed.

    Raises UserError when the file is missing, damaged, or holds anything but tensors and plain values.
    """
    try:
        if zipfile.is_zipfile(path) and (damaged := zipfile.ZipFile(path).testzip()):  # torch compares no checksum
            raise UserError(f"{path} was refused ({damaged} is damaged): delete it and run `dvc repro`")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path} is missing: `dvc repro` makes it") from None
    except Exception as error:  # torch, pickle and zipfile each have errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "weights_only" in reason:  # torch's advice is to switch the protection off
            reason = "it holds more than tensors and plain values"
        raise UserError(f"{path} was refused ({reason}): delete it and run `dvc repro`") from None


def _serialised(content: dict[str, Any]) -> bytes:
    """torch.save into memory: its own writer hides the disk's errors behind ones of its own."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()

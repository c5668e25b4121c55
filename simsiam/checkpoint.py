"""The checkpoint store: training that was cut short, or is already done, kept by what it is a training of.

A folder of the store is named by the fingerprint of everything that decides the result: settings, data and code. So a
checkpoint of other settings, other data or other code is never found, and two runs of the same training share one. The
store lies outside DVC's outputs, because DVC deletes those before a stage runs.

A file is written whole or not at all, and carries its own SHA-256 in its name: `00000123-<digest>.pt`.
"""

import fcntl
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from simsiam import parallel
from simsiam.errors import UserError
from simsiam.files import atomic_write, sha256, sha256_file, write_json

KEEP = 2  # the newest, and the one before it in case the newest is damaged


def fingerprint(settings: dict[str, Any], data: dict[str, str], script: Path) -> str:
    """16 hexadecimal digits of the settings, the data's digests and the source of the script and of every simsiam module
    imported so far.

    The schema of params.yaml is left out: what of it matters is in the settings.
    """
    names = sorted(name for name in sys.modules if name.startswith("simsiam.") and name != "simsiam.params")
    code = {name: sha256_file(Path(str(sys.modules[name].__file__))) for name in names}
    code["script"] = sha256_file(script)
    return sha256(json.dumps([settings, data, code], sort_keys=True).encode())[:16]


def store_folder(root: Path) -> Path:
    """Where checkpoints lie: beside the repository that DVC works for, also when it runs a copy (`--temp`, `--queue`)."""
    return Path(os.environ.get("DVC_ROOT", root)) / ".checkpoints"


@contextmanager
def open_store(
    root: Path, script: Path, settings: dict[str, Any], data: dict[str, str], *, fresh: bool = False
) -> Iterator["Store"]:
    """The place of the training that `script` makes of these settings and data; `fresh` empties it first.

    What it is a training of is written beside the checkpoints, for people to read. Another program that is at the same
    training is waited for: it leaves a finished checkpoint, or what it had when it was killed. Raises UserError where
    several processes would have to wait.
    """
    folder = store_folder(root) / script.stem / fingerprint(settings, data, script)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        if parallel.rank() == 0:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy = f"{script.stem}: another program is at the same training"
                if parallel.size() > 1:
                    raise UserError(f"{busy}: wait for its end, or stop it, and run the same command") from None
                print(f"{busy}: waiting for it", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            for leftover in [*folder.glob(".*.tmp"), *(folder.glob("*.pt") if fresh else ())]:
                leftover.unlink()
            write_json(folder / "settings.json", settings)
        yield Store(folder)


class Store:
    """The checkpoints of one training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the state of `step` and drop all but the newest two. Raises UserError when the disk is full."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        with atomic_write(self.folder / f"{step:08d}-{sha256(content)[:16]}.pt") as file:
            file.write(content)
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
    """torch.save, atomically."""
    with atomic_write(path) as file:
        torch.save(content, file)


def load_weights(path: Path) -> dict[str, Any]:
    """Tensors and plain values from a file, on the CPU. Nothing in the file is executed.

    Raises UserError when the file is missing, damaged, or holds anything but tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: `dvc repro` makes it") from None
    except Exception as error:  # torch, pickle and zipfile each have errors of their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} was refused ({reason}): delete it and run `dvc repro`") from None

"""Files that are either whole or not there, and their digests."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from simsiam.errors import UserError


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes `path`'s place when the block ends well, and leaves no trace when it does not.

    Raises UserError when the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException as error:
        Path(scratch).unlink(missing_ok=True)
        # torch.save hides the disk's error behind a RuntimeError of its writer.
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or (isinstance(error, RuntimeError) and "PytorchStreamWriter" in str(error)):
            raise UserError(f"no space left on the disk to write {path}: free some and run the same command") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically. Raises ValueError for NaN and infinities, which JSON does not have."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): `dvc repro` makes it") from None


def write_npz(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays as an uncompressed npz, atomically. The same arrays give the same bytes."""
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of an npz. Nothing in the file is executed. Raises UserError when it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: `dvc repro` makes it") from None
    except Exception as error:  # zipfile, numpy and zlib each have errors of their own
        raise UserError(f"{path} cannot be read ({error}): delete it and run `dvc repro`") from None


def sha256(content: bytes | memoryview) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    """Write rows with the same keys as CSV with a header, atomically. Raises ValueError when the keys differ."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0] if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())

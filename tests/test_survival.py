"""Real trainings through DVC that are killed, started anew, and queued."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simsiam.checkpoint import trainings
from simsiam.files import sha256_file
from tests.clones import end_processes_in, environment, make_clone, processes_in, run, set_params


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The small repository with its data and nothing trained yet; it saves five checkpoints a second."""
    clone = tmp_path_factory.mktemp("clone")
    make_clone(clone, save_every=0.2)
    set_params(clone, recipes__laptop__pretrain__epochs=40)
    run("dvc", "repro", "download", at=clone)
    run("git", "add", "--all", at=clone)
    run("git", "commit", "-qm", "data", at=clone)
    yield clone
    end_processes_in(clone)  # DVC's queue leaves a daemon


def newest(clone: Path) -> int:
    """The step of the newest checkpoint of all pretrainings, 0 when there is none."""
    return max((int(path.name.split("-")[0]) for path in clone.glob(".checkpoints/pretrain/*/*.pt")), default=0)


def start_and_signal(clone: Path, command: list[str], number: signal.Signals) -> tuple[int, str]:
    """Start a command, send it and its children a signal once it has saved a checkpoint; exit status and stderr."""
    before = newest(clone)
    with subprocess.Popen(
        command, cwd=clone, env=environment(), start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as process:
        while newest(clone) == before:
            assert process.poll() is None, "it ended before there was a new checkpoint"
            time.sleep(0.02)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_stopped_and_killed_trainings_go_on_and_fresh_trains_anew(clone: Path) -> None:
    stage = ["python", "-m", "stages.pretrain"]
    status, errors = start_and_signal(clone, stage, signal.SIGTERM)
    assert status == 143 and re.search(r"error: pretrain: stopped at step \d+ of 240, saved", errors)
    status, _ = start_and_signal(clone, ["dvc", "repro", "pretrain"], signal.SIGKILL)
    assert status == -signal.SIGKILL and not (clone / "models/encoder.pt").exists() and newest(clone) < 240

    resumed = run("dvc", "repro", "pretrain", at=clone)
    assert f"going on from step {newest(clone)}" not in resumed.stderr  # it went on from before its end
    assert re.search(r"going on from step [1-9]\d* of 240", resumed.stderr)
    expected = sha256_file(clone / "models/encoder.pt")
    fresh = run(*stage, "--fresh", at=clone)
    assert "going on" not in fresh.stderr and sha256_file(clone / "models/encoder.pt") == expected
    run("dvc", "commit", "--force", "pretrain", at=clone)
    assert json.loads(run("dvc", "status", "--json", "pretrain", at=clone).stdout) == {}
    run("git", "checkout", "--force", ".", at=clone)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])  # one stays between DVC and the training on some systems
def test_a_training_whose_dvc_is_gone_saves_and_stops(clone: Path, shell: str) -> None:
    run("python", "-m", "stages.checkpoints", "--free", at=clone)
    set_params(clone, latent_dim=6, recipes__laptop__pretrain__epochs=10_000)  # it cannot end before it notices
    set_params(clone, recipes__base__pretrain__compile="never")  # as so long a training would be
    command, variables = ["dvc", "repro", "pretrain"], environment() | {"SHELL": shell}
    with subprocess.Popen(command, cwd=clone, env=variables, start_new_session=True) as dvc:
        while newest(clone) == 0:
            assert dvc.poll() is None, "it ended before there was a new checkpoint"
            time.sleep(0.02)
        mine = [pid for pid in processes_in(clone) if pid != dvc.pid]
        dvc.kill()
        dvc.wait(timeout=60)
    assert mine
    deadline = time.monotonic() + 120
    while set(mine) & set(processes_in(clone)):
        assert time.monotonic() < deadline, "it goes on training for nobody"
        time.sleep(0.2)
    assert 0 < newest(clone) < 60_000
    run("git", "checkout", "--force", ".", at=clone)


def test_torchrun_trains_and_dvc_finds_it_done(clone: Path) -> None:
    set_params(clone, latent_dim=4, recipes__laptop__pretrain__epochs=2)
    command = ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "stages.pretrain"]
    assert "minutes here" not in run(*command, at=clone).stderr  # which is measured on one process
    trained = json.loads((clone / "reports/metrics/pretrain.json").read_text())["pretrain"]["trained"][0]
    assert trained["processes"] == 2 and trained["latent_dim"] == 4
    expected = sha256_file(clone / "models/encoder.pt")
    assert "going on from step 12 of 12" in run("dvc", "repro", "pretrain", at=clone).stderr
    assert sha256_file(clone / "models/encoder.pt") == expected
    for module, name in (("stages.finetune", "finetune"), ("ablation.point", "a point")):
        refused = run("env", "WORLD_SIZE=2", "python", "-m", module, at=clone, check=False)
        assert refused.returncode == 1 and refused.stderr == f"error: {name} is for one process: run it without torchrun\n"
    run("git", "checkout", "--force", ".", at=clone)


def test_two_queued_experiments_train_side_by_side(clone: Path) -> None:
    set_params(clone, recipes__laptop__pretrain__epochs=2)
    run("git", "commit", "-qam", "shorter", at=clone)
    for latent_dim in (4, 8):
        run("dvc", "exp", "run", "--queue", "-S", f"latent_dim={latent_dim}", "pretrain", at=clone)
    run("dvc", "queue", "start", "--jobs", "2", at=clone)
    for _ in range(200):
        time.sleep(1)
        status = run("dvc", "queue", "status", at=clone).stdout
        if status.count("Success") + status.count("Failed") == 2:
            break
    run("dvc", "queue", "stop", "--kill", at=clone, check=False)
    assert status.count("Success") == 2, status
    rows = json.loads(run("dvc", "exp", "show", "--json", at=clone).stdout)
    found = [point["revs"][0]["data"] for point in rows[1]["experiments"]]
    trained = {row["params"]["params.yaml"]["data"]["latent_dim"]: row["metrics"] for row in found}
    assert set(trained) == {4, 8}
    for metrics in trained.values():
        assert metrics["reports/metrics/pretrain.json"]["data"]["pretrain"]["epochs"] == 2


def test_the_store_is_listed_and_freed(clone: Path) -> None:
    store = clone / ".checkpoints"
    listed = run("python", "-m", "stages.checkpoints", at=clone).stdout
    # Of the queue's two points one was trained by torchrun before; both went to the repository's own store.
    assert len(listed.splitlines()) == 1 + len(trainings(clone)) == 1 + 3
    assert re.search(r"step 12  method simsiam  d 8  stop_gradient True  lr 0\.3  seed 0  epochs 2  batch_size 64", listed)
    assert "now freed" in run("python", "-m", "stages.checkpoints", "--free", at=clone).stdout
    assert not list(store.rglob("*.pt"))

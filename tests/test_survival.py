"""Real trainings through DVC that are killed, started anew, and queued."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from simsiam.files import sha256_file
from tests.clones import environment, make_clone, run, set_params


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small repository with its data and nothing trained yet; it saves five checkpoints a second."""
    clone = tmp_path_factory.mktemp("clone")
    make_clone(clone, save_every=0.2)
    set_params(clone, recipes__laptop__pretrain__epochs=25)
    run("dvc", "repro", "download", at=clone)
    run("git", "add", "--all", at=clone)
    run("git", "commit", "-qm", "data", at=clone)
    return clone


def test_kill_dash_nine_loses_nothing_and_fresh_trains_anew(clone: Path) -> None:
    store = clone / ".checkpoints/pretrain"
    with subprocess.Popen(["dvc", "repro", "pretrain"], cwd=clone, env=environment(), start_new_session=True) as process:
        while not list(store.glob("*/*.pt")):
            assert process.poll() is None, "it ended before there was a checkpoint"
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (clone / "models/encoder.pt").exists()

    resumed = run("dvc", "repro", "pretrain", at=clone)
    assert re.search(r"going on from step [1-9]\d* of 150", resumed.stderr)
    expected = sha256_file(clone / "models/encoder.pt")
    fresh = run("python", "-m", "stages.pretrain", "--fresh", at=clone)
    assert "going on" not in fresh.stderr and sha256_file(clone / "models/encoder.pt") == expected


def test_two_queued_experiments_train_side_by_side(clone: Path) -> None:
    for latent_dim in (4, 8):
        run("dvc", "exp", "run", "--queue", "-S", f"latent_dim={latent_dim}", "pretrain", at=clone)
    run("dvc", "queue", "start", "--jobs", "2", at=clone)
    for _ in range(240):
        status = run("dvc", "queue", "status", at=clone).stdout
        if status.count("Success") + status.count("Failed") == 2:
            break
        time.sleep(1)
    assert status.count("Success") == 2, status
    rows = json.loads(run("dvc", "exp", "show", "--json", at=clone).stdout)
    found = [point["revs"][0]["data"] for point in rows[1]["experiments"]]
    trained = {row["params"]["params.yaml"]["data"]["latent_dim"]: row["metrics"] for row in found}
    assert set(trained) == {4, 8}
    for metrics in trained.values():
        assert metrics["reports/metrics/pretrain.json"]["data"]["pretrain"]["epochs"] == 25
    # They found the repository's store, so the same points are not trained again here.
    run("dvc", "queue", "stop", "--kill", at=clone, check=False)
    set_params(clone, latent_dim=8)
    assert "going on from step 150 of 150" in run("dvc", "repro", "--force", "--single-item", "pretrain", at=clone).stderr


def test_the_store_is_listed_and_freed(clone: Path) -> None:
    store = clone / ".checkpoints"
    listed = run("python", "-m", "stages.checkpoints", at=clone).stdout
    assert len(listed.splitlines()) == 1 + len(list(store.glob("*/*")))
    assert re.search(r"step 150  d 8  stop_gradient True  lr 0\.4  epochs 25  batch_size 64  seed 0", listed)
    assert "now freed" in run("python", "-m", "stages.checkpoints", "--free", at=clone).stdout
    assert not store.exists()

"""The study's grid through DVC, on 500 real images."""

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.clones import make_clone, run, set_params


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small repository, with a grid of two latent dimensions, one of them without stop-gradient too."""
    clone = tmp_path_factory.mktemp("grid")
    make_clone(clone)
    changes: dict[str, Any] = {"latent_dim": [2, 8], "without_stop_gradient": [8]}
    changes |= {"few_labels": {"latent_dim": [8], "share": [0.25, 1.0]}}
    changes |= {"shap_mass": {"latent_dim": [8], "images": 10, "background": 10}}
    set_params(clone, latent_dim=2, **{f"ablation__{key}": value for key, value in changes.items()})
    told = run("dvc", "repro", "ablation/dvc.yaml", at=clone)  # in an empty clone: it fetches the images itself
    assert "the study is in reports/study/" in told.stderr
    run("git", "add", "--all", at=clone)
    run("git", "commit", "-qm", "grid", at=clone)
    return clone


def test_tables_and_figures(clone: Path) -> None:
    study = clone / "reports/study/laptop"
    assert {path.stem for path in study.glob("*.png")} == {
        "accuracy", "collapse", "spectra", "figure_1", "figure_2", "figure_3", "few_labels",
    }  # fmt: skip
    table = pd.read_csv(study / "table_1.csv").set_index(["latent_dim", "encoder"])
    metrics = clone / "ablation/points/laptop/2-true-0/reports/metrics/linear_eval.json"
    of_two = json.loads(metrics.read_text())["linear_eval"]["latent"]["top1"]
    assert table.loc[(2, "frozen"), "top1"] == of_two and len(table) == 4
    assert pd.read_csv(study / "table_2.csv")["stop_gradient"].tolist() == [True, True, False, False]
    assert set(pd.read_csv(study / "shap_mass.csv")["latent_dim"]) == {8}
    result = json.loads((clone / "ablation/results/laptop/8-true-0.json").read_text())
    assert result["finetunings"]["few_labels"]["25%"]["images"] == 100
    assert result["finetunings"]["few_labels"]["100%"]["pretrained"] == result["finetune"]["top1"]


def test_the_pipeline_finds_what_the_grid_has_trained(clone: Path) -> None:
    told = run("dvc", "repro", "pretrain", at=clone)
    assert "pretrain: going on from step 12 of 12" in told.stderr
    encoder = "ablation/points/laptop/2-true-0/models/encoder.pt"
    assert (clone / encoder).read_bytes() == (clone / "models/encoder.pt").read_bytes()


@pytest.mark.long
def test_one_more_dimension_is_one_more_encoder_and_a_failure_loses_nothing(clone: Path) -> None:
    before = {path: path.read_bytes() for path in (clone / "ablation/results/laptop").iterdir()}
    set_params(clone, ablation__latent_dim=[2, 8, 16])
    broken = clone / "ablation/points/laptop/16-true-0/data/cifar10.npz"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no images")
    failed = run("dvc", "repro", "--keep-going", "ablation/dvc.yaml", at=clone, check=False)
    assert failed.returncode != 0 and "cifar10.npz" in failed.stderr
    assert before == {path: path.read_bytes() for path in (clone / "ablation/results/laptop").iterdir()}
    told = run("python", "-m", "ablation.study", at=clone)
    assert "study: without 16-true-0, of which there are no results" in told.stderr

    broken.unlink()
    told = run("dvc", "repro", "ablation/dvc.yaml", at=clone)
    assert told.stdout.count("> python -m stages.pretrain ") == 1 and "pretrain: going on" not in told.stderr
    assert len(pd.read_csv(clone / "reports/study/laptop/table_1.csv")) == 6


@pytest.mark.long
def test_the_queue_runs_the_grid_too(clone: Path) -> None:
    set_params(clone, ablation__latent_dim=[2, 32])
    run("python", "-m", "ablation.enqueue", at=clone)
    run("dvc", "queue", "start", at=clone)
    deadline = time.monotonic() + 600
    while any(word in (status := run("dvc", "queue", "status", at=clone).stdout) for word in ("Queued", "Running")):
        assert time.monotonic() < deadline, status
        time.sleep(3)
    assert status.count("Success") == 3 and "Failed" not in status
    told = run("dvc", "repro", "ablation/dvc.yaml", at=clone)
    assert "pretrain@laptop-32-true-0' is cached - skipping run, checking out outputs" in told.stdout
    assert "> python -m stages." not in told.stdout

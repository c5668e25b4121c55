"""The study's grid through DVC, on 500 real images."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.clones import make_clone, run, set_params


@pytest.mark.long
def test_the_grid(tmp_path: Path) -> None:
    """Two latent dimensions, of which one is trained already; then a third, which is one more encoder."""
    make_clone(tmp_path)
    changes: dict[str, Any] = {"latent_dim": [2, 8], "without_stop_gradient": [8]}
    changes |= {"few_labels": {"latent_dim": [8], "share": [0.25, 1.0]}}
    changes |= {"shap_mass": {"latent_dim": [8], "images": 10, "background": 10}}
    set_params(tmp_path, latent_dim=2, **{f"ablation__{key}": value for key, value in changes.items()})
    run("dvc", "repro", "pretrain", at=tmp_path)
    told = run("dvc", "repro", "ablation/dvc.yaml", at=tmp_path)
    assert "pretrain: going on from step 12 of 12" in told.stderr and told.stderr.count("pretrain: going on") == 1
    encoder = "ablation/points/laptop/2-true-0/models/encoder.pt"
    assert (tmp_path / encoder).read_bytes() == (tmp_path / "models/encoder.pt").read_bytes()
    assert "the study is in reports/study/" in told.stderr

    study = tmp_path / "reports/study/laptop"
    assert {path.stem for path in study.glob("*.png")} == {
        "accuracy", "collapse", "spectra", "figure_1", "figure_2", "figure_3", "few_labels",
    }  # fmt: skip
    table = pd.read_csv(study / "table_1.csv").set_index(["latent_dim", "encoder"])
    metrics = tmp_path / "ablation/points/laptop/2-true-0/reports/metrics/linear_eval.json"
    of_two = json.loads(metrics.read_text())["linear_eval"]["latent"]["top1"]
    assert table.loc[(2, "frozen"), "top1"] == of_two and len(table) == 4
    assert pd.read_csv(study / "table_2.csv")["stop_gradient"].tolist() == [True, True, False, False]
    result = json.loads((tmp_path / "ablation/results/laptop/8-true-0.json").read_text())
    assert result["finetunings"]["few_labels"]["25%"]["images"] == 100
    assert result["finetunings"]["few_labels"]["100%"]["pretrained"] == result["finetune"]["top1"]

    set_params(tmp_path, ablation__latent_dim=[2, 8, 16])
    status = json.loads(run("dvc", "status", "--json", "ablation/dvc.yaml", at=tmp_path).stdout)
    changed = {name.split(":")[-1] for name in status}
    assert {name for name in changed if name.startswith("pretrain")} == {"pretrain@laptop-16-true-0"}
    assert {name.split("@")[-1] for name in changed} == {"laptop-16-true-0", "laptop"}  # and the study

"""The ablation through DVC, on 500 real images, and DVC's ordinary commands where it has not been run."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clones import environment, make_clone, run, set_params

STAGES = ["pretrain", "embed", "linear_eval", "finetune", "project", "explain"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh clone of a small repository whose pipeline has run, but not its ablation; with the pipeline run again here."""
    origin, clone = tmp_path_factory.mktemp("origin"), tmp_path_factory.mktemp("fresh") / "clone"
    make_clone(origin)
    points: dict[str, Any] = {"d8": {"latent_dim": 8, "explain.mass_images": 10}, "collapsed": {"stop_gradient": False}}
    points["labels_25"] = {"recipes.laptop.finetune.labels": 0.25, "recipes.laptop.finetune.budget": "grow"}
    studies = {
        "dimension": {"points": ["d8", "collapsed"], "seeds": [0], "stages": STAGES},
        "few_labels": {"points": ["labels_25", "d8"], "seeds": [0, 1], "stages": ["pretrain", "finetune"]},
    }
    set_params(origin, latent_dim=2, ablation__points=points, ablation__studies=studies)
    run("dvc", "repro", at=origin)
    run("dvc", "commit", "--force", "ablation/dvc.yaml", at=origin)
    run("git", "add", "--all", at=origin)
    run("git", "commit", "-qm", "run", at=origin)
    run("git", "clone", "-q", str(origin), str(clone), at=origin)
    run("dvc", "repro", at=clone)
    return clone


def test_ordinary_commands_work_where_the_ablation_has_not_been_run(clone: Path) -> None:
    assert not (clone / "ablation/results").exists()
    run("dvc", "exp", "run", "-S", "project.perplexity=5", at=clone)
    name = json.loads(run("dvc", "exp", "show", "--json", at=clone).stdout)[1]["experiments"][0]["name"]
    run("git", "checkout", ".", at=clone)
    for command in (
        ["exp", "apply", name], ["exp", "save"], ["commit"], ["commit", "--force"], ["checkout"], ["pull"], ["status"],
        ["dag"], ["metrics", "show"], ["metrics", "diff"], ["plots", "show"], ["stage", "list"],
    ):  # fmt: skip
        run("dvc", *command, at=clone, timeout=120)
    assert len(run("dvc", "status", at=clone).stdout.splitlines()) <= 5  # that check and the ablation's stage always run
    run("git", "checkout", ".", at=clone)
    run("dvc", "checkout", at=clone)


def test_points_side_by_side_compute_nothing_twice_and_say_what_they_were_made_with(clone: Path) -> None:
    listed = run("python", "-m", "ablation.point", "--list", at=clone).stdout.splitlines()
    assert listed == ["d8 0", "d8 1", "collapsed 0", "labels_25 0", "labels_25 1"]
    command = ["python", "-m", "ablation.point", "d8", "--seed", "0"]
    pair = [subprocess.Popen(command, cwd=clone, env=environment(), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    both = [process.communicate(timeout=600)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], both
    assert sorted("there already" in text for text in both) == [False, True]
    made = json.loads((clone / "ablation/results/d8/0.json").read_text())["made_with"]
    assert made["params"]["latent_dim"] == 8 and made["params"]["explain"]["mass_images"] == 10
    assert made["machine"]["threads"] == 1 and made["stages"] == STAGES and made["code"]

    told = run("dvc", "repro", "ablation/dvc.yaml", at=clone)
    assert "d8, seed 0: there already" in told.stderr and "d8, seed 1: pretrain" in told.stderr
    assert told.stderr.count("pretrain:   0%") == 3  # d8 of the other seed, and labels_25 of both: d = 2 was the pipeline's
    found = {path.relative_to(clone / "ablation/results").as_posix() for path in clone.glob("ablation/results/*/*.json")}
    assert found == {"d8/0.json", "d8/1.json", "collapsed/0.json", "labels_25/0.json", "labels_25/1.json"}
    assert {"dimension", "few_labels"} <= {path.name for path in (clone / "reports/study").iterdir()}
    assert list((clone / ".checkpoints/scratch").iterdir()) == []
    assert not (clone / "ablation/results/labels_25/0.npz").stat().st_size > 1_000_000

    again = run("python", "-m", "ablation.point", at=clone)
    assert again.stderr.count("there already") == 5 and "pretrain" not in again.stderr
    set_params(clone, recipes__laptop__pretrain__lr=0.2)
    assert "made with other params" in run("python", "-m", "ablation.study", at=clone).stderr
    run("git", "checkout", "params.yaml", at=clone)


def test_a_point_that_fails_is_named_and_stops_no_other(clone: Path) -> None:
    set_params(clone, ablation__points={"bad": {"data.source": "/nowhere"}, "d8": {"latent_dim": 8}})
    two = {"points": ["bad"], "seeds": [0], "stages": ["download"]}, {"points": ["d8"], "seeds": [0], "stages": ["pretrain"]}
    set_params(clone, ablation__studies={"two": two[0], "other": two[1]})
    failed = run("python", "-m", "ablation.point", at=clone, check=False)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert "error: bad, seed 0: data.source: /nowhere does not exist" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: without results: bad, seed 0 (")
    assert json.loads((clone / "ablation/results/d8/0.json").read_text())["made_with"]["stages"] == ["pretrain"]
    shutil.rmtree(clone / "reports/study", ignore_errors=True)
    failed = run("dvc", "repro", "ablation/dvc.yaml", at=clone, check=False)
    assert failed.returncode != 0 and "error: without results: bad, seed 0 (" in failed.stderr
    assert json.loads((clone / "reports/study/other/study.json").read_text())["missing"] == []
    run("git", "checkout", "params.yaml", at=clone)

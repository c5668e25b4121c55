"""The study's tables and claims on results made by hand, and its dvc.yaml beside the pipeline's."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from ruamel.yaml import YAML

from ablation.claims import CLAIMS, all_claims, noise
from ablation.study import collapsed_z_std, grid_points, read_point, read_points, study
from ablation.tables import few_labels_table, markdown, points_table, shap_mass_table, table_1, table_2
from simsiam.errors import UserError
from simsiam.files import write_json, write_npz
from simsiam.params import load
from simsiam.report import published
from tests.clones import ROOT
from tests.test_pipeline import STAGES, closure, written

GRID: dict[str, Any] = YAML(typ="safe").load(ROOT / "ablation/dvc.yaml")["stages"]
POINT = "ablation/points/${item.recipe}/${item.latent_dim}-${item.stop_gradient}-${item.seed}/"
ARRAYS = ("curve_step", "maps_label", "shap_images")
SHARES = {"frozen": 0.28, "finetuned": 0.25, "random": 0.36, "stock": 0.4}  # of the top left quadrant


def result(latent_dim: int, latent: float, finetuned: float, *, stop_gradient: bool = True, seed: int = 0) -> dict[str, Any]:
    """What a point of the grid leaves, as far as the study reads it."""
    confusion = np.zeros((10, 10), int)
    confusion[3, 5] = confusion[5, 3] = 200
    distances = np.ones((10, 10))
    distances[3, 5] = distances[5, 3] = 0.4
    linear = {"top1": latent, "top5": latent + 0.4, "confusion": confusion.tolist()}
    space = {"silhouette": latent - 0.5, "pca_variance_2": 0.8}
    shap = {
        name: {
            "quadrants": [{"mean": share, "half_width": 0.01}] * 4,
            "radius": {"mean": 11.0, "half_width": 0.1},
            "residual": 2e-6,
        }
        for name, share in SHARES.items()
    }
    return {
        "point": {"recipe": "laptop", "latent_dim": latent_dim, "stop_gradient": stop_gradient, "seed": seed},
        "pretrain": {
            "loss": -0.8,
            "epochs": 10,
            "seconds": 100.0,
            "trained": [{"precision": "fp32", "device": "abacus"}],
        },
        "embed": {
            "knn": {"backbone": 0.4, "latent": 0.3, "random": 0.2},
            "collapse": {"z_std": 0.9 if stop_gradient else 0.01},
            "rankme": {"backbone": 50.0, "latent": 10.0, "random": 30.0},
        },
        "linear_eval": {"backbone": linear, "latent": linear, "random": linear, "random_latent": linear}
        | {"few_labels": {"1%": {"backbone": 0.3, "latent": 0.2, "random": 0.1}}},
        "finetune": {"top1": finetuned, "top5": finetuned + 0.3, "seconds": 10.0, "trained": [{"device": "slide rule"}]},
        "project": {name: space for name in ("latent", "backbone", "random")}
        | {"finetuned": {"silhouette": finetuned - 0.5, "pca_variance_2": 0.3}}
        | {"centroid_distances": {"latent": distances.tolist()}},
        "finetunings": {
            "backbone": {"top1": finetuned + 0.1, "top5": finetuned + 0.2},
            "few_labels": {"1%": {"images": 500, "pretrained": 0.35, "random": 0.25}},
        },
        "shap_mass": shap | {"images": 100, "background": 10},
    }


def grid() -> list[dict[str, Any]]:
    """One in which every claim of the report holds, but the last."""
    trained = [result(2, 0.2, 0.50), result(8, 0.25, 0.505), result(32, 0.3, 0.51), result(512, 0.35, 0.52)]
    return [*trained, result(512, 0.11, 0.515, stop_gradient=False)]


def verdicts(results: list[dict[str, Any]]) -> dict[str, str]:
    return {claim["name"]: claim["verdict"] for claim in all_claims(points_table(results), results, "dvc x")}


def test_where_all_is_as_the_report_says() -> None:
    assert verdicts(grid()) == dict.fromkeys(CLAIMS, "holds") | {"top_left_corner": "does not hold"}


def test_where_nothing_is_as_the_report_says() -> None:
    results = [result(2, 0.35, 0.2), result(8, 0.34, 0.25), result(32, 0.30, 0.4), result(512, 0.33, 0.5)]
    results.append(result(512, 0.2, 0.4, stop_gradient=False))
    for number, each in enumerate(results):
        each["embed"]["collapse"]["z_std"] = 0.9
        each["project"]["latent"] = {"silhouette": -each["linear_eval"]["latent"]["top1"], "pca_variance_2": 0.3}
        each["project"]["finetuned"] = {"silhouette": -each["finetune"]["top1"], "pca_variance_2": 0.4}
        each["project"]["centroid_distances"]["latent"][3][5] = 1.5 + number
        each["linear_eval"]["latent"]["confusion"][3][9] = 500
    assert verdicts(results) == dict.fromkeys(CLAIMS, "does not hold")


def test_too_small_a_grid_tells_nothing() -> None:
    alone = result(8, 0.3, 0.5)
    alone["shap_mass"] = {}
    told = verdicts([alone])
    assert {name for name, verdict in told.items() if verdict != "cannot be told"} == {
        "cat_is_nearer_to_dog",
        "two_components",
    }


def test_without_any_stop_gradient_nothing_is_told() -> None:
    assert set(verdicts([result(512, 0.1, 0.5, stop_gradient=False)]).values()) == {"cannot be told"}


@pytest.mark.parametrize(("share", "verdict"), [(0.32, "holds"), (0.305, "cannot be told"), (0.28, "does not hold")])
def test_the_corner_is_judged_by_the_interval(share: float, verdict: str) -> None:
    results = grid()
    for each in results:
        each["shap_mass"]["frozen"]["quadrants"] = [{"mean": share, "half_width": 0.01}] * 4
    assert verdicts(results)["top_left_corner"] == verdict


def test_a_difference_within_chance_tells_nothing() -> None:
    results = [result(2, 0.340, 0.50), result(32, 0.345, 0.51), result(512, 0.350, 0.52)]
    assert verdicts(results)["falls_with_dimension"] == "cannot be told"  # 1.0 point, where chance is 1.3
    results[-1] = result(512, 0.360, 0.52)
    assert verdicts(results)["falls_with_dimension"] == "holds"
    unsure = [result(512, 0.360 + change, 0.52, seed=1 + seed) for seed, change in enumerate((-0.04, 0.04))]
    assert verdicts([*results, *unsure])["falls_with_dimension"] == "cannot be told"


def test_half_of_what_a_claim_says_tells_nothing() -> None:
    nearer_only, neither_half, few = grid(), grid(), grid()[:4]
    for each in nearer_only:  # but taken for each other less often
        each["linear_eval"]["latent"]["confusion"][3][9] = 500
    for each in neither_half:
        each["project"]["finetuned"]["pca_variance_2"] = 0.6
    assert verdicts(nearer_only)["cat_is_nearer_to_dog"] == "cannot be told"
    for each in nearer_only:
        each["linear_eval"]["latent"]["confusion"][3][9] = 0
        each["project"]["centroid_distances"]["latent"][3][5] = 1.5
    assert verdicts(nearer_only)["cat_is_nearer_to_dog"] == "cannot be told"
    assert verdicts(neither_half)["two_components"] == "cannot be told"
    assert verdicts(few)["accuracy_goes_with_clusters"] == "cannot be told"  # rho 1, but 2 of 24 orders


def test_with_batchnorm_on_the_latent_a_collapse_does_not_reach_zero() -> None:
    results = grid()
    results[-1]["embed"]["collapse"]["z_std"] = 0.2
    points = points_table(results)
    told = [
        {claim["name"]: claim["verdict"] for claim in all_claims(points, results, "dvc x", floor)}
        for floor in (0.0, 0.18, 0.5)
    ]
    assert [each["collapse"] for each in told] == ["cannot be told", "holds", "holds"]
    results[-1]["embed"]["collapse"]["z_std"] = 0.85
    told = [{claim["name"]: claim["verdict"] for claim in all_claims(points_table(results), results, "dvc x", 0.5)}]
    assert told[0]["collapse"] == "does not hold"


def test_accuracies_at_two_dimensions_are_not_taken_for_seeds() -> None:
    results = [*grid(), result(2, 0.11, 0.495, stop_gradient=False)]
    assert verdicts(results)["finetuning_hides_stop_gradient"] == "holds"


def test_with_several_seeds_noise_is_wider_than_with_many() -> None:
    """Half the 95 % interval of Student's t, beside that of the test images."""
    pair, exact = pd.Series([0.30, 0.34]), pd.Series([0.40])
    of_images = 0.32 * 0.68 / 10_000 + 0.4 * 0.6 / 10_000
    assert noise(pair, exact) == pytest.approx(12.706 * np.sqrt(0.04**2 / 2 / 2 + of_images), rel=1e-3)
    assert noise(exact, exact) == pytest.approx(1.96 * np.sqrt(2 * 0.24 / 10_000), rel=1e-3)


def test_claims_are_plain_json_with_their_numbers() -> None:
    results = grid()
    points = points_table(results)
    claims = {
        claim["name"]: claim for claim in json.loads(json.dumps(all_claims(points, results, "dvc x"), allow_nan=False))
    }
    assert claims["falls_with_dimension"]["value"] == pytest.approx(0.15)
    assert "20.0% at d = 2" in claims["falls_with_dimension"]["finding"]
    clusters = scipy.stats.spearmanr(points["latent_silhouette"], points["latent_top1"])
    assert claims["accuracy_goes_with_clusters"]["value"] == pytest.approx(clusters.statistic)
    assert "(p = 0.017)" in claims["accuracy_goes_with_clusters"]["finding"]  # 2 of the 120 permutations
    assert "-S seed=0 -S latent_dim=512 -S stop_gradient=false" in claims["collapse"]["command"]
    assert claims["falls_with_dimension"]["command"] == "dvc x"


def test_tables_have_the_published_number_beside_ours() -> None:
    points = points_table(grid())
    first = table_1(points, published()).set_index(["latent_dim", "encoder"])
    assert list(first.index) == [(d, encoder) for d in (512, 32, 8, 2) for encoder in ("frozen", "fine-tuned")]
    assert first.loc[512, "seconds"].tolist() == [100.0, 10.0]
    assert first.loc[512, "device"].tolist() == ["abacus", "slide rule"]
    assert first.loc[(512, "frozen"), ["top1", "published_top1", "published_top5"]].tolist() == [0.35, 0.341, 0.851]
    assert first.loc[(2, "fine-tuned"), ["top1", "published_top1", "backbone_top1"]].tolist() == [0.50, 0.627, 0.60]
    second = table_2(points, published())
    assert second[["encoder", "stop_gradient", "top1", "published_top1"]].to_numpy().tolist() == [
        ["frozen", True, 0.35, 0.341],
        ["fine-tuned", True, 0.52, 0.693],
        ["frozen", False, 0.11, 0.104],
        ["fine-tuned", False, 0.515, 0.692],
    ]
    lines = markdown(second).splitlines()
    assert lines[2].startswith("| 512 | frozen | yes | 35.0 |") and len(lines) == 6
    assert table_2(points[points["stop_gradient"]], published()).empty


def test_seeds_become_means_and_deviations() -> None:
    results = [result(8, top1, 0.5, seed=seed) for seed, top1 in enumerate((0.30, 0.34, 0.32))] + [result(2, 0.2, 0.4)]
    table = table_1(points_table(results), published())
    row = table.iloc[0]
    assert row["top1"] == pytest.approx(0.32) and row["top1_sd"] == pytest.approx(0.02) and row["seeds"] == 3
    assert "| 32.0 ± 2.0 |" in markdown(table) and "| 20.0 |" in markdown(table)


def test_few_labels() -> None:
    results = [result(512, 0.3, 0.5), result(512, 0.3, 0.5, seed=1), result(8, 0.3, 0.5)]
    results[1]["finetunings"]["few_labels"]["1%"]["pretrained"] = 0.45
    results[2]["finetunings"]["few_labels"] = {}
    table = few_labels_table(results)
    assert len(table) == 1
    assert table.iloc[0][["labels", "finetuned", "finetuned_random", "latent"]].tolist() == pytest.approx(
        [500, 0.4, 0.25, 0.2]
    )
    assert table.iloc[0]["finetuned_sd"] == pytest.approx(0.1 / 2**0.5)


def test_shap_mass_by_network() -> None:
    results = [result(8, 0.3, 0.5), result(2, 0.3, 0.5)]
    results[1]["shap_mass"] = {"run": []}
    results[0]["shap_mass"]["frozen"]["quadrants"] = [
        {"mean": share, "half_width": 0.01} for share in (0.28, 0.1, 0.2, 0.42)
    ]
    table = shap_mass_table(results).set_index("network")
    assert list(table.index) == ["frozen", "fine-tuned", "random encoder", "frozen, ReLUs used twice"]
    quadrants = table.loc["frozen", ["top_left", "top_right", "bottom_left", "bottom_right"]]
    assert quadrants.tolist() == [0.28, 0.1, 0.2, 0.42]
    assert table["top_left"].tolist() == list(SHARES.values()) and set(table["latent_dim"]) == {8}
    assert "| 36.0 ± 1.0 |" in markdown(table.reset_index()) and "| 11.0 ± 0.1 | 2e-06 |" in markdown(table.reset_index())


def entries(stage: dict[str, Any], kind: str) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in stage.get(kind, [])}


@pytest.mark.parametrize("name", [name for name in GRID if not name.endswith("_without")])
def test_a_stage_of_the_grid_depends_on_what_it_imports(name: str) -> None:
    stage = GRID[name]
    folder = "ablation" if (ROOT / f"ablation/{name}.py").exists() else "stages"
    code = {str(path.relative_to(ROOT)) for path in closure(ROOT / folder / f"{name}.py")}
    assert {dep for dep in stage["deps"] if dep.endswith(".py")} == code
    assert stage["cmd"].startswith(f"python -m {folder}.{name}")


@pytest.mark.parametrize("name", ["pretrain", "embed", "linear_eval", "finetune", "project", "explain"])
def test_a_stage_of_the_grid_is_the_pipelines_at_another_point(name: str) -> None:
    ours, root = GRID[name], STAGES[name]
    assert entries(ours, "outs") == {POINT + path for path in written(name)}
    shared = {"data/cifar10.npz"}
    deps = {dep if dep in shared or dep.endswith(".py") else POINT + dep for dep in root["deps"] if dep != "data/recipe"}
    assert set(ours["deps"]) == deps
    told = {"recipe", "latent_dim", "stop_gradient", "seed"}  # on the command line
    assert set(ours["params"]) == {param.replace("${recipe}", "${item.recipe}") for param in root["params"]} - told
    assert {(key, item) for key, item in re.findall(r"(\w+)=\$\{item\.(\w+)\}", ours["cmd"])} == {(key, key) for key in told}
    assert f"--root {POINT[:-1]} " in ours["cmd"]


def test_the_grid_runs_with_and_without_stop_gradient_alike() -> None:
    for name in [name for name in GRID if not name.endswith("_without") and name not in ("study", "page")]:
        other = copy.deepcopy(GRID[f"{name}_without"])
        assert other["matrix"]["stop_gradient"] == [False] and GRID[name]["matrix"]["stop_gradient"] == [True]
        assert other | {"matrix": GRID[name]["matrix"]} == GRID[name]


def test_the_committed_study_is_of_the_committed_results() -> None:
    """Tables and claims come from the committed points, by this code."""
    params = load(ROOT / "params.yaml")
    for folder in (ROOT / "reports/study").iterdir():
        params = params.model_copy(update={"recipe": folder.name})
        results = [result for result, _ in read_points(params, ROOT)]
        points = points_table(results)
        if folder.name == "laptop":
            assert set(points["latent_dim"]) >= {2, 8, 32, 128, 512, 2048} and not points["stop_gradient"].all()
        pd.testing.assert_frame_equal(pd.read_csv(folder / "points.csv"), points.round(6), check_dtype=False)
        claims = json.loads((folder / "study.json").read_text())["claims"]
        assert [(claim["name"], claim["verdict"], claim["finding"]) for claim in claims] == [
            (claim["name"], claim["verdict"], claim["finding"])
            for claim in all_claims(points, results, "", collapsed_z_std(params))
        ]


@pytest.mark.parametrize("damage", ["another point", "older", "cut off", "no arrays", "nothing", "list"])
def test_a_result_that_is_not_the_points_is_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    content = result(32 if damage == "another point" else 8, 0.3, 0.5)
    if damage == "older":
        del content["finetunings"]
    path = tmp_path / "laptop/8-true-0.json"
    write_json(path, [] if damage == "list" else content)
    if damage in ("cut off", "nothing"):
        path.write_bytes(path.read_bytes()[: 0 if damage == "nothing" else 100])
    arrays = {"x": np.arange(3)} if damage == "no arrays" else dict.fromkeys(ARRAYS, np.arange(3))
    write_npz(path.with_suffix(".npz"), **arrays)
    with pytest.raises(UserError, match=r"8-true-0\.json or \.npz is damaged") as caught:
        read_point(path.parent, "8-true-0")
    assert "\n" not in str(caught.value)


def test_a_write_that_fails_keeps_the_old_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, figure: object) -> None:
        raise OSError("no space left")

    for name in ("ablation/results/laptop", "reports/study/laptop"):
        shutil.copytree(ROOT / name, tmp_path / name)
    before = {path.name for path in (tmp_path / "reports/study/laptop").iterdir()}
    monkeypatch.setattr("ablation.study.save", full)
    with pytest.raises(OSError, match="no space left"):
        study(load(ROOT / "params.yaml"), tmp_path)
    assert {path.name for path in (tmp_path / "reports/study/laptop").iterdir()} == before


def test_a_point_that_is_named_twice_is_one() -> None:
    grid = load(ROOT / "params.yaml").ablation.model_copy(
        update={"latent_dim": [8, 2, 8], "without_stop_gradient": [8], "seed": [1, 1]}
    )
    assert grid_points(grid) == [(8, True, 1), (2, True, 1), (8, False, 1)]


def test_only_the_grids_points_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = load(ROOT / "params.yaml")
    grid = params.ablation.model_copy(update={"latent_dim": [2, 8, 32], "without_stop_gradient": [512], "seed": [0]})
    params = params.model_copy(update={"ablation": grid})
    for name in ("2-true-0", "512-false-0", "64-true-0"):
        latent_dim, stop_gradient, _ = name.split("-")
        found = result(int(latent_dim), 0.3, 0.5, stop_gradient=stop_gradient == "true")
        write_json(tmp_path / f"ablation/results/laptop/{name}.json", found)
        write_npz(tmp_path / f"ablation/results/laptop/{name}.npz", **dict.fromkeys(ARRAYS, np.arange(3)))
    points = [result["point"] for result, _ in read_points(params, tmp_path)]
    assert [(point["latent_dim"], point["stop_gradient"]) for point in points] == [(2, True), (512, False)]
    assert "without 8-true-0, 32-true-0, of which" in capsys.readouterr().err
    with pytest.raises(UserError, match="no results of recipe paper"):
        read_points(params.model_copy(update={"recipe": "paper"}), tmp_path)

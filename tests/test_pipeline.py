"""dvc.yaml against the code, and the whole pipeline in a temporary repository on 500 real images."""

import ast
import json
import re
import shutil
from functools import reduce
from io import StringIO
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ruamel.yaml import YAML

from ablation.why_no_collapse.claims import WORDS
from simsiam import code
from simsiam.files import read_npz
from simsiam.methods.every import METHODS
from tests.clones import ROOT, make_clone, run, set_params

ALWAYS = {"check"}  # it runs every time, as nobody tells DVC what becomes of the user's images
STAGES: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
# Downward: a module imports only from rows above its own.
ROOMS = [
    {"errors", "machine", "schedule", "seeds", "code"},
    {"files", "parallel", "settings"},
    {"images", "checkpoint", "augment", "collapse", "spread"},
    {"pictures", "look", "fitting", "metrics", "networks", "engine", "projection", "whitening", "plots", "report"},
    {"arrays", "method"},
    {"cifar10", "digits", "folder", "medmnist"},
    {"cifar100"},
    {"sources"},
    {"features", "methods", "patches", "pretrain", "probe", "explain", "released"},
    {"finetune"},
]


def name_of(path: Path) -> str:
    """A module's name: of a package's own file, the package's."""
    return path.parent.name if path.stem == "__init__" else path.stem


def test_a_stage_is_run_by_its_script_and_depends_on_its_code() -> None:
    for stage, entry in STAGES.items():
        assert entry["cmd"] == f"python -m stages.{stage}"
        if stage != "check":
            assert entry["deps"][0] == f"data/code/{stage}.txt"
    folders = {path.relative_to(ROOT).parts[0] for stage in STAGES for path in code.closure(ROOT / f"stages/{stage}.py")}
    assert folders == {"simsiam", "stages"}
    assert {"params.yaml", "simsiam", "stages"} <= set(STAGES["check"]["deps"])


def test_the_readme_says_what_the_committed_runs_found() -> None:
    """Of the last commit, as the workspace may hold an experiment."""

    def committed(path: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(run("git", "show", f"HEAD:{path}.json", at=ROOT).stdout)
        return content

    told = " ".join(path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))))
    told = " ".join(told.split())  # lines may break anywhere
    linear, knn = committed("reports/metrics/linear_eval")["linear_eval"], committed("reports/metrics/embed")["embed"]["knn"]
    tuned, trained = committed("reports/metrics/finetune")["finetune"], committed("reports/metrics/pretrain")["pretrain"]
    few, near = linear["few_labels"]["1%"], committed("reports/metrics/embed")["embed"]["precision_at_8"]

    def top(scores: dict[str, float], mark: str = "") -> str:
        return f"{mark}{100 * scores['top1']:.1f} %{mark} / {100 * scores['top5']:.1f} %"

    def mean(scores: dict[str, float]) -> str:
        return f"{100 * scores['top1']:.1f} ± {100 * scores['sd']:.1f} %"

    def percent(found: Any, key: str) -> float:
        return 100 * float(reduce(getitem, key.split("."), found))

    def pair(words: str, trained: str, random: str) -> str:
        return f"| {words} | {trained} | {random} |"

    expected = [
        pair("linear on backbone, top-1 / top-5", top(linear["backbone"], "**"), top(linear["random_backbone"])),
        pair("the same with 1 % of the labels, top-1", mean(few["backbone"]), mean(few["random_backbone"])),
        pair("linear on latent, top-1 / top-5", top(linear["latent"]), top(linear["random_latent"])),
        f"| kNN on backbone, top-1 | {100 * knn['backbone']:.1f} % | {100 * knn['random_backbone']:.1f} % |",
        f"of the same class | {100 * near['backbone']:.1f} % | {100 * near['random_backbone']:.1f} % |",
        pair(f"fine-tuned, {tuned['epochs']} epoch, top-1 / top-5", top(tuned), top(tuned["scratch"])),
        f"{trained['epochs']} epochs of pretraining in {trained['seconds']:.0f} s",
    ]
    copies = committed("reports/metrics/look")["look"]["copies"]["test"]
    clean = linear["without_copies"]["backbone"]
    expected += [
        f"Of CIFAR-10's test images {copies['exact'] + copies['near']} have a near copy among the training images",
        f"has {100 * clean:.1f} % instead of {100 * linear['backbone']['top1']:.1f} %",
    ]
    of_digits = [committed(f"ablation/results/digits/{seed}") for seed in range(3)]
    for stage, key, control in (
        ("linear_eval", "backbone.top1", "random_backbone.top1"),
        ("embed", "knn.backbone", "knn.random_backbone"),
        ("finetune", "top1", "scratch.top1"),
    ):
        both = [[percent(found[stage], each) for found in of_digits] for each in (key, control)]
        expected.append(" and ".join(f"{np.mean(of):.1f} ± {np.std(of, ddof=1):.1f} %" for of in both))

    def results(point: str) -> list[dict[str, Any]]:
        """Of a point, with each seed that has run."""
        listed = run("git", "ls-tree", "--name-only", "HEAD", f"ablation/results/{point}/", at=ROOT).stdout.split()
        return [committed(path.removesuffix(".json")) for path in listed if path.endswith(".json")]

    def over_seeds(point: str, *keys: str) -> list[str]:
        """Percent of a point's results, and deviation."""
        every = [[percent(each, key) for each in results(point)] for key in keys]
        return [f"{np.mean(of):.1f}" + (f" ± {np.std(of, ddof=1):.1f}" if len(of) > 1 else "") for of in every]

    measured = (
        "linear_eval.backbone.top1",
        "linear_eval.few_labels.1%.backbone.top1",
        "embed.knn.backbone",
        "finetune.top1",
    )
    for name in (*METHODS, *(f"{name}_simsiams_seconds" for name in METHODS)):
        if found := results(name):
            rank = np.mean([each["embed"]["rankme"]["backbone"] for each in found])
            expected.append(f"| {' | '.join(over_seeds(name, *measured))} | {rank:.0f} |")
    spaces = ("latent", "random_latent", "backbone")
    ends = ("finetune.top1", "finetune.scratch.top1")
    for name in ("d2048", "d512", "d128", "d32", "d8", "d2", "no_stop_gradient"):
        cells = over_seeds(name, *(f"linear_eval.{space}.top1" for space in spaces), "embed.knn.backbone", *ends)
        expected.append(f"| {' | '.join(cells)} |")
    for name in ("labels_1", "labels_10", "labels_all"):
        expected.append(f"| {' | '.join(over_seeds(name, *ends) + over_seeds(f'{name}_long', *ends))} |")
    expected += [" and ".join(over_seeds(f"{name}_head_on_backbone", *ends)) for name in ("d2", "d512", "d2048")]
    for claim in committed("reports/study/lind_bosch_hu/study")["claims"]:
        expected.append(f"| {claim['claim']} | {claim['verdict']} |")
    for name, words in (
        ("patches", "a dictionary of patches, no network"),
        ("random_blocks", "random encoder, blocks not zero-initialised"),
    ):
        cells = over_seeds(name, *measured[:-1])
        rank = np.mean([each["embed"]["rankme"]["backbone"] for each in results(name)])
        expected.append(f"| {words} | {' | '.join(cells)} | – | {rank:.0f} |")
        expected.append("linear {} %, linear with 1 % of the labels {} %, kNN {} %".format(*cells))
    random = over_seeds("simsiam", *(key.replace(".backbone", ".random_backbone") for key in measured[:-1]))
    random += over_seeds("d512_head_on_backbone", ends[1])
    rank = np.mean([each["embed"]["rankme"]["random_backbone"] for each in results("simsiam")])
    expected.append(f"| random encoder | {' | '.join(random)} | {rank:.0f} |")
    loops = {"ours": "", "bare": "ours/bare", "lightly": "ours/lightly", "plain": "ours/plain"}
    for file in ("throughput", "throughput_h200"):
        models = committed(f"reports/benchmarks/{file}")["models"].values()
        for loop, name in loops.items():
            medians = [model["pairs_per_second"][loop]["median"] for model in models]
            speeds = [f"{median:{'.1f' if median < 100 else '.0f'}}" for median in medians]
            ratios = [f" (ours: {model['ratios'][name]:.2f} times)" if name else "" for model in models]
            expected.append(f" | {' | '.join(map(str.__add__, speeds, ratios))} |")
    for name, way in committed("reports/benchmarks/step")["ways"].items():
        ms, shares = way["ms"], [100 * way[key] for key in ("shorter_by", "share_of_matrix_product")]
        spread = f"{ms['median']:.1f} | {ms['low']:.1f} to {ms['high']:.1f}"
        expected.append(f"| {name} | {spread} | {' | '.join(f'{share:.0f}' for share in shares)} |")
    verdicts = committed("reports/metrics/study_why_no_collapse")["study_why_no_collapse"]
    case_of = {words: case for case, words in WORDS.items()}
    cases = run("git", "show", "HEAD:reports/study/why_no_collapse/cases.csv", at=ROOT).stdout
    for row in pd.read_csv(StringIO(cases)).to_dict("records"):
        cells = [
            f"{scale * row[key]:.1f}" + (f" ± {scale * sd:.1f}" if (sd := row.get(f"{key}_sd", np.nan)) == sd else "")
            for key, scale in (("embed.knn.backbone", 100), ("linear_eval.backbone.top1", 100), ("pretrain.rankme", 1))
        ]
        verdict = verdicts.get(case_of[row["change"]], "")
        expected.append(f"| {' | '.join(cells)} | {row['collapse']} | {verdict} |".replace("  ", " "))
    for change in ("", "_epochs24", "_lr0.6", "_epochs24_lr0.6", "_decay0", "_decay0.002"):
        cells = []
        for of in (committed(f"ablation/results/{method}{change}/0") for method in ("simsiam", "simclr")):
            cells += [f"{percent(of, key):.1f}" for key in ("linear_eval.backbone.top1", "embed.knn.backbone")]
            announced = " (announced)" * (of["pretrain"]["verdict"] == "losing rank")
            cells.append(f"{of['embed']['rankme']['backbone']:.0f}{announced}")
        expected.append(f"| {' | '.join(cells)} |")
    for training in committed("reports/benchmarks/ladder_h200")["trainings"]:
        linear, rank = training.get("linear", {}), training["rankme_of_features"]
        cells = [*(linear.get(space) for space in ("latent", "backbone", "random_backbone")), training["knn"]["backbone"]]
        shown = " | ".join(f"{100 * cell:.1f}" if cell else "–" for cell in cells)
        expected.append(f"| {shown} | {rank['latent']:.0f}, {rank['backbone']:.0f} |")
    assert [line for line in expected if line.strip() not in told] == []


def test_imports_run_downward() -> None:
    level = {name: number for number, names in enumerate(ROOMS) for name in names}
    for package, others in {"simsiam": set(), "stages": set(), "ablation": {ROOT / "stages/__init__.py"}}.items():
        assert code.imports(ROOT / package / "__init__.py") == others
    for path in sorted((ROOT / "simsiam").rglob("*.py")):
        if path != ROOT / "simsiam/__init__.py" and path.parent.name != "methods":
            for imported in code.imports(path) - {ROOT / "simsiam/__init__.py"}:
                assert imported.is_relative_to(ROOT / "simsiam"), f"{path.name} imports {imported}"
                assert level[name_of(imported)] < level[name_of(path)], f"{path} imports {imported}"
    for path in (ROOT / "simsiam/methods").glob("*.py"):
        for imported in code.imports(path) - {ROOT / "simsiam/__init__.py"}:
            assert imported.parent.name == "methods" or level[name_of(imported)] < level["methods"]
    for stage in [path.stem for path in (ROOT / "stages").glob("*.py")]:
        calls = {path.stem for path in code.imports(ROOT / f"stages/{stage}.py") if path.parent.name == "stages"}
        assert calls <= {"common", "left_out", "numbers", "__init__"}, f"{stage} calls another stage"


def test_nothing_but_its_own_room_knows_simsiam_or_cifar10() -> None:
    """A method and a source of images are named where they are defined, chosen, cited or documented, and nowhere else."""
    words = re.compile(r"cifar|airplane|negative_cosine|predictor|\b(50_?000|10_?000|60_?000)\b", re.I)
    sources = {"images/cifar10.py", "images/cifar100.py", "images/sources.py"}
    allowed = sources | {"networks.py"} | {f"methods/{path.name}" for path in (ROOT / "simsiam/methods").glob("*.py")}
    for path in [*(ROOT / "simsiam").rglob("*.py"), *(ROOT / "stages").glob("*.py"), *(ROOT / "ablation").glob("*.py")]:
        if str(path.relative_to(ROOT)).removeprefix("simsiam/") in allowed:
            continue
        tree = ast.parse(path.read_text())
        found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        found |= {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant) and len(str(node.value)) < 40}
        known = {word for word in found - {"cifar"} if words.search(word)}  # "cifar" is a stem
        assert not known, f"{path}: {known}"


def test_what_trains_needs_neither_dvc_nor_shap() -> None:
    for stage in ("pretrain", "finetune"):
        for path in code.closure(ROOT / f"stages/{stage}.py"):
            names = re.findall(r"^\s*(?:import|from) (dvc|shap|sklearn|matplotlib|pandas)\b", path.read_text(), re.M)
            assert not names, f"{path.name} imports {names}"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small repository after one experiment with d = 2."""
    clone = tmp_path_factory.mktemp("clone")
    make_clone(clone)
    run("dvc", "exp", "run", "-S", "latent_dim=2", at=clone)
    return clone


def written(stage: str) -> list[str]:
    """Paths that a stage writes."""
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in STAGES[stage].get(kind, [])]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def stale(clone: Path) -> set[str]:
    """Names of the stages that `dvc repro` would run."""
    return {name.split(":")[-1] for name in json.loads(run("dvc", "status", "--json", "dvc.yaml", at=clone).stdout)}


def test_the_pipeline_leaves_every_contracted_number(clone: Path) -> None:
    metrics: dict[str, Any] = {}
    for path in (clone / "reports/metrics").iterdir():
        content = json.loads(path.read_text())
        assert list(content) == [path.stem]
        metrics |= content
    spaces = ("backbone", "latent", "random_backbone", "random_latent")
    fractions = [f"linear_eval.{space}.{score}" for space in spaces for score in ("top1", "top5")]
    fractions += [f"embed.knn.{space}" for space in spaces] + [f"embed.precision_at_8.{space}" for space in spaces]
    fractions += ["finetune.top1", "finetune.top5", "finetune.scratch.top1"]
    others = [
        "embed.collapse.z_std",
        "embed.rankme.random_latent",
        "embed.explained_auc.backbone",
        "embed.alignment.random_backbone",
        "embed.uniformity.latent",
        "pretrain.loss",
        "pretrain.images_per_second",
        "pretrain.seconds",
    ]
    for key in [*fractions, *others]:
        value: Any = metrics
        for part in key.split("."):
            value = value[part]
        assert isinstance(value, float)
        assert key not in fractions or 0 <= value <= 1
    assert metrics["explain"]["additivity_residual"] < 0.01
    assert metrics["pretrain"]["trained"][0]["latent_dim"] == 2


def test_the_report_opens_offline_and_shows_the_run(clone: Path) -> None:
    page = (clone / "reports/index.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    copies = json.loads((clone / "reports/metrics/look.json").read_text())["look"]["copies"]["test"]
    shown = len(list((clone / "reports/figures").glob("*.png"))) - (copies["exact"] + copies["near"] == 0)
    assert page.count("data:image/webp;base64,") == shown >= 10
    top1 = json.loads((clone / "reports/metrics/linear_eval.json").read_text())["linear_eval"]["backbone"]["top1"]
    assert f"{top1:.1%}" in page and "latent dimension <b>2</b>" in page
    assert "25% of the training images' labels" in page


def test_with_two_latent_dimensions_the_latent_itself_is_mapped(clone: Path) -> None:
    header = (clone / "reports/projection.csv").read_text().splitlines()[0].split(",")
    assert {"index", "label", "class", "latent_1", "latent_2", "backbone_tsne_2"} <= set(header)
    assert "finetuned_pca_1" in header and "finetuned_1" not in header  # its head reads the backbone


def test_shap_values_are_kept(clone: Path) -> None:
    shap = read_npz(clone / "data/shap.npz")
    assert shap["frozen_values"].shape == shap["finetuned_values"].shape == shap["random_values"].shape == (5, 3, 32, 32, 10)


def test_nothing_runs_twice_and_only_what_changed_runs_again(clone: Path) -> None:
    before = (clone / "params.yaml").read_text()
    assert stale(clone) == ALWAYS
    assert re.findall(r"Running stage '(\w+)'", run("dvc", "repro", at=clone).stdout) == ["check"]
    for changes, expected in (
        ({"project__perplexity": 10.0}, {"project"}),  # and report, by what project writes
        ({"recipes__paper__pretrain__lr": 0.06, "recipes__report__finetune__epochs": 1}, set()),
        ({"recipes__laptop__finetune__weight_decay": 0.0}, {"finetune"}),
        ({"stop_gradient": False}, {"pretrain"}),
        ({"seed": 1}, {"look", "pretrain", "embed", "linear_eval", "finetune", "project", "explain"}),
        ({"method": "simclr"}, {"pretrain"}),
        ({"latent_dim": 3}, {"pretrain"}),
        ({"embed__knn_k": 5}, {"embed"}),
        ({"linear_eval__draws": 3}, {"linear_eval"}),
        ({"explain__background": 20}, {"explain"}),
        ({"recipes__base__pretrain__momentum": 0.8}, {"pretrain"}),
        ({"data__source": "npm"}, {"download"}),
        ({"ablation__studies__dimension__seeds": [0, 1]}, set()),
        ({"report__title": "Another"}, {"report"}),
    ):
        set_params(clone, **changes)
        assert stale(clone) == expected | ALWAYS
        (clone / "params.yaml").write_text(before)


def test_after_project_report_alone_runs() -> None:
    readers = {name for name, stage in STAGES.items() if set(stage["deps"]) & set(written("project"))}
    assert readers == {"report"} and not any(set(stage["deps"]) & set(written("report")) for stage in STAGES.values())


def test_metrics_and_plots_are_readable(clone: Path) -> None:
    shown = json.loads(run("dvc", "metrics", "show", "--json", at=clone).stdout)
    assert shown[""]["data"]["reports/metrics/embed.json"]["data"]["embed"]["knn"]["backbone"] >= 0
    assert "versions" not in run("dvc", "metrics", "show", at=clone).stdout
    run("dvc", "plots", "show", at=clone)
    page = (clone / "dvc_plots/index.html").read_text()
    shutil.rmtree(clone / "dvc_plots")
    assert "Pretraining z_std" in page and "backbone_tsne_1" in page and "#3f90da" in page


def test_an_edited_comment_runs_nothing_and_an_edited_formula_what_it_must(clone: Path) -> None:
    probe, plots = clone / "simsiam/probe.py", clone / "simsiam/plots.py"
    before = probe.read_text(), plots.read_text()
    probe.write_text(before[0] + "# a remark\n")
    plots.write_text(before[1].replace("Arrays -> matplotlib figures.", "Other words."))
    plan = run("dvc", "repro", at=clone).stdout
    assert re.findall(r"Running stage '(\w+)'", plan) == ["check"]
    probe.write_text(before[0] + "another = 1\n")
    run("dvc", "repro", "check", at=clone)
    assert stale(clone) == {"linear_eval"} | ALWAYS
    plots.write_text(before[1] + "another = 1\n")
    run("dvc", "repro", "check", at=clone)
    drawing = {"look", "embed", "linear_eval", "project", "explain", "report"}
    assert stale(clone) == drawing | ALWAYS  # and no training
    probe.write_text(before[0])
    plots.write_text(before[1])
    run("dvc", "repro", "check", at=clone)
    assert stale(clone) == ALWAYS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("recipe=desktop", "params.yaml: recipe is 'desktop': it should be 'laptop', 'report' or 'paper'"),
        ("+latentdim=32", "params.yaml: unknown key latentdim: allowed here are recipe, method, latent_dim"),
    ],
)
def test_bad_parameters_through_dvc(clone: Path, change: str, message: str) -> None:
    result = run("dvc", "exp", "run", "-S", change, at=clone, check=False)
    assert result.returncode != 0
    assert f"{message}" in result.stdout + result.stderr and "Traceback" not in result.stdout + result.stderr
    run("git", "checkout", "params.yaml", at=clone)
    set_params(clone, latent_dim=2)
    run("dvc", "checkout", "--force", "dvc.yaml", at=clone)

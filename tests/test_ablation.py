"""Studies on results made by hand: how they are read, compared, drawn, and what they say of the report's claims."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba
from numpy.typing import NDArray
from ruamel.yaml import YAML
from scipy.stats import norm
from scipy.stats import t as student
from torch import Tensor, nn

from ablation import controls
from ablation.compare import Estimate, contrast, difference
from ablation.figures import accuracy_figure, looks_figure, maps_figure, styles
from ablation.lind_bosch_hu.claims import CLAIMS, Grid, grid_of, judged
from ablation.point import RESULTS, made_with, relevant, run_point, work
from ablation.results import ARRAYS, MAPPED, NETWORKS, SOME, SPACES, Found, flat, read, read_controls, read_one
from ablation.study import COLUMNS, PARTS, axis_of, changes_of, cka, controls_of, only, published, rate, study, those_of
from simsiam.errors import UserError
from simsiam.files import read_npz, write_json, write_npz
from simsiam.images import ImageSet
from simsiam.methods import build
from simsiam.methods.every import METHODS
from simsiam.networks import ResNet
from simsiam.plots import COLOURS
from simsiam.settings import load, load_point
from stages.common import load_images
from stages.report import read_study
from tests.clones import ROOT
from tests.some import cifar_500
from tests.through import QUICK

TEST_IMAGES = 403  # no multiple of 8
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CAT, DOG, TRUCK = 3, 5, 9
STAGES = ["pretrain", "embed", "linear_eval", "finetune", "project", "explain"]
DIMS = (2, 8, 32, 128, 512, 2048)


def bits(top1: float, rng: np.random.Generator, images: int = TEST_IMAGES) -> NDArray[np.bool_]:
    """Which images are classified right: the easy ones come first, but not quite."""
    order = np.argsort(np.arange(images) + rng.normal(0, images / 4, images))
    found = np.zeros(images, bool)
    found[order[: round(top1 * images)]] = True
    return found


def put(tree: Any, key: str, value: Any) -> None:
    """Set what is at a key with dots; nothing but `...` takes it out."""
    *path, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    for part in path:
        tree = tree[part]
    tree[last] = value
    if value is ...:
        del tree[last]


def content(
    params: dict[str, Any], point: str, seed: int, stages: list[str] = STAGES, **changes: Any
) -> tuple[dict[str, Any], Any]:
    """A result that is made up, as `ablation.point` would leave it. changes: what is at a key, with __ for a dot."""
    rng = np.random.default_rng([seed, *point.encode()])
    dim, classes = params["latent_dim"], len(CLASSES)
    healthy = params["stop_gradient"]
    frozen = changes.pop("frozen", 0.2 + 0.015 * np.log2(dim) if healthy else 0.11)
    tuned = changes.pop("tuned", 0.60 + 0.005 * np.log2(dim) if healthy else 0.64)
    frozen, tuned = frozen + 0.005 * (seed % 3), tuned + 0.004 * (seed % 3)
    right = {
        "backbone": bits(frozen + 0.05, rng), "latent": bits(frozen, rng), "finetuned": bits(tuned, rng),
        "random_backbone": bits(0.25, rng), "random_latent": bits(0.15 + 0.01 * np.log2(dim), rng),
    }  # fmt: skip
    top1 = {space: float(found.mean()) for space, found in right.items()}
    confusion = np.full((classes, classes), 3)
    confusion[CAT, DOG] = 20
    distances = np.ones((classes, classes))
    distances[CAT, DOG] = 0.4
    shares = np.sort(rng.dirichlet(np.full(dim, 0.5)))[::-1]
    radius = {"radius": {"mean": 11.0, "half_width": 0.1}, "residual": 1e-6}
    mass = {
        network: {"quadrants": [{"mean": share, "half_width": 0.01}] * 4} | radius
        for network, share in {"frozen": 0.36, "finetuned": 0.25, "random": 0.31, "stock": 0.4}.items()
    }
    metrics: dict[str, Any] = {
        "pretrain": {"loss": -0.8, "z_std": 0.9 if healthy else 0.1, "rankme": 3.0 + np.log2(dim), "first_share": 0.3}
        | {"verdict": "healthy" if healthy else "collapsed to a point", "epochs": 10, "seconds": 100.0 + seed}
        | {"images_per_second": 1500.0 + seed, "peak_memory": 700.0},
        "embed": {"knn": {space: top1[space] for space in SPACES}, "rankme": dict.fromkeys(SPACES, 20.0)}
        | {name: dict.fromkeys(SPACES, value) for name, value in (("alignment", 0.3), ("uniformity", -2.5))}
        | {"explained_auc": dict.fromkeys(SPACES, 0.9)}
        | {"spectrum": {"latent": shares.tolist(), "backbone": np.sort(rng.dirichlet(np.ones(64)))[::-1].tolist()}},
        "linear_eval": {space: {"top1": top1[space], "top5": 0.9, "confusion": confusion.tolist()} for space in SPACES}
        | {"few_labels": {"1%": {space: {"top1": top1[space] / 2, "sd": 0.01} for space in SPACES[:3]}}},
        "finetune": {"top1": top1["finetuned"], "top5": 0.95, "scratch": {"top1": 0.55, "top5": 0.9}}
        | {"epochs": 1, "images": 50_000, "seconds": 30.0},
        "project": {space: {"silhouette": frozen - 0.4, "pca_variance_2": 0.8} for space in MAPPED}
        | {"finetuned": {"silhouette": tuned - 0.5, "pca_variance_2": 0.3}}
        | {"centroid_distances": dict.fromkeys(MAPPED, distances.tolist())},
        "explain": {"residual": dict.fromkeys(NETWORKS, 1e-6)} | {"mass": {"images": 100, "background": 10, **mass}},
    }  # fmt: skip
    result = {"point": point, "seed": seed, "classes": CLASSES, "test_images": TEST_IMAGES}
    result["made_with"] = {"params": params | {"seed": seed}, "stages": stages, "code": {}, "images": "i", "machine": {}}
    result |= {stage: metrics[stage] for stage in stages}
    result = json.loads(json.dumps(result))
    for key, value in changes.items():
        put(result, key.replace("__", "."), value)
    steps = np.arange(50, 1001, 50)
    arrays: dict[str, Any] = {f"right_{space}": np.packbits(found) for space, found in right.items()}
    arrays |= {"curve_step": steps, "curve_loss": -0.8 * (1 - np.exp(-steps / 300)) + rng.normal(0, 0.01, 20)}
    arrays |= {"curve_z_std": 0.9 if healthy else np.exp(-steps / 100), "curve_rankme": np.full(20, 3 + np.log2(dim))}
    arrays["curve_z_std"] = np.broadcast_to(arrays["curve_z_std"], 20).astype(np.float32)
    arrays["curve_knn"] = np.where(steps % 200, np.nan, 0.3 + steps / 5000 + 0.01 * seed).astype(np.float32)  # 5 epochs
    common, own = (np.random.default_rng(n).normal(size=(50, 16)) for n in ([1, *params["method"].encode()], [seed]))
    arrays["cka_backbone"] = (2 * common + own).astype(np.float16)  # what a method's seeds have in common
    arrays["maps_label"] = np.arange(100) % classes
    centres = rng.normal(0, 3, (classes, 2))
    names = [f"{s}_{m}" for s in ("backbone", "latent", "finetuned") for m in ("pca", "tsne")] + ["latent", "finetuned"] * (
        dim == 2
    )
    for name in names:
        xy = centres[arrays["maps_label"]] + rng.normal(0, 1, (100, 2))
        arrays |= {f"maps_{name}_1": xy[:, 0], f"maps_{name}_2": xy[:, 1]}
    arrays["shap_images"] = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), np.uint8)  # the same at every point
    arrays |= {"shap_labels": np.array([3, 8, 0]), "shap_shown": np.array([[3, 5], [8, 0], [0, 8]])}
    for network in NETWORKS:
        arrays[f"shap_{network}_values"] = rng.normal(0, 0.01, (3, 8, 8, classes)).astype(np.float16)
        arrays[f"shap_{network}_logits"] = rng.normal(0, 3, (3, classes)).astype(np.float32)
    wanted = {name for stage in stages for name in ARRAYS.get(stage, {})} | {*SOME}
    wanted |= {f"maps_{name}_{n}" for name in names for n in (1, 2)}
    return result, {name: array for name, array in arrays.items() if name in wanted}


@cache
def defaults() -> str:
    return json.dumps(load(ROOT / "params.yaml").in_use())


def found(dim: int, seed: int = 0, stop_gradient: bool = True, space: str = "latent", **changes: Any) -> Found:
    """A made-up result in memory."""
    params = json.loads(defaults()) | {"latent_dim": dim, "stop_gradient": stop_gradient}
    params["recipes"]["laptop"]["finetune"]["space"] = space
    result, arrays = content(params, f"d{dim}{stop_gradient}{space}", seed, **changes)
    numbers = {key: value for key, value in flat(result).items() if type(value) in (int, float)}
    return Found(result["point"], seed, result, numbers, arrays)


def grid(seeds: int = 1, **changes: Any) -> list[Found]:
    """One in which every claim of the report holds."""
    every = [found(dim, seed, **changes) for dim in DIMS for seed in range(seeds)]
    return every + [found(512, seed, stop_gradient=False) for seed in range(seeds)]


def verdicts(every: list[Found]) -> dict[str, str]:
    return {claim["name"]: claim["verdict"] for claim in judged(grid_of(every))}


STUDIES = {
    "points": {f"d{dim}": {"latent_dim": dim} | ({"explain.mass_images": 100} if dim in (8, 32) else {}) for dim in DIMS}
    | {"no_stop_gradient": {"stop_gradient": False}, "wide": {"recipes.laptop.model.width": 64}}
    | {method: {"method": method} for method in ("simclr", "supervised")},
    "studies": {
        "dimension": {"points": [f"d{dim}" for dim in DIMS], "seeds": [0, 1], "stages": STAGES},
        "stop_gradient": {"points": ["d512", "no_stop_gradient"], "seeds": [0, 1], "stages": STAGES},
        "width": {"points": ["d512", "wide"], "seeds": [0], "stages": ["pretrain", "finetune"]},
        "methods": {"points": ["d512", "simclr", "supervised"], "seeds": [0, 1], "stages": STAGES[:-1]},
    },
}


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time."""
    monkeypatch.setattr("ablation.tables.draw", lambda path, *content: path.touch())


def write_result(root: Path, point: str, seed: int, **changes: Any) -> Path:
    """ablation/results/<point>/<seed>.json and .npz, made with the code, params and images that there are."""
    params = load_point(root / "params.yaml", point, seed)
    stages = work(params)[point][1]
    result, arrays = content(relevant(params, stages), point, seed, stages, **changes)
    result["made_with"] |= made_with(params, stages, load_images(root).digest)
    place = root / RESULTS / point / str(seed)
    write_json(place.with_suffix(".json"), result)
    write_npz(place.with_suffix(".npz"), **arrays)
    return place


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A good result of one point."""
    params = load(ROOT / "params.yaml").in_use() | {"latent_dim": 32}
    result, arrays = content(params, "d32", 0)
    place = tmp_path / RESULTS / "d32/0"
    write_json(place.with_suffix(".json"), result)
    write_npz(place.with_suffix(".npz"), **arrays)
    return place


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, cifar: ImageSet) -> Path:
    """A folder with params.yaml, images, and results of all points but of the study `width`."""
    root = tmp_path_factory.mktemp("study")
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["ablation"] |= STUDIES
    params["recipes"]["laptop"]["finetune"]["space"] = "latent"  # as in the report
    yaml.dump(params, root / "params.yaml")
    cifar.save(root / "data/images.npz")
    for point in ("no_stop_gradient", "simclr", "supervised", *(f"d{dim}" for dim in DIMS)):
        for seed in (0, 1):
            write_result(root, point, seed)
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(template, tmp_path / "root")


def effects(
    rng: np.random.Generator, seeds: int, images: int, shared: NDArray[Any], *, seed: float, rest: float, mean: float = 0.0
) -> Any:
    """(seeds, images): mean, what a seed adds, what an image adds to every encoder, and the rest."""
    return mean + rng.normal(0, seed, (seeds, 1)) + shared + rng.normal(0, rest, (seeds, images))


def unpaired(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Estimate:
    """As it was before: images counted for each encoder alone, and again in the seeds."""
    of_images = sum(group.mean() * (1 - group.mean()) / group.shape[1] for group in (a, b))
    of_seeds = sum(group.mean(1).var(ddof=1) / len(group) for group in (a, b))
    return Estimate(a.mean() - b.mean(), student.ppf(0.975, len(a) + len(b) - 2) * (of_images + of_seeds) ** 0.5)


def test_the_interval_of_a_difference_covers_what_it_says() -> None:
    """Images that are easy for one encoder are so for the other, and seeds differ a little."""
    rng, seed, own, spread, runs = np.random.default_rng(0), 0.04, 0.5, 2.0, 500
    truth = norm.cdf(0.3 / (1 + seed**2 + own**2 + spread**2) ** 0.5) - 0.5
    within = {"new": 0, "old": 0}
    for _ in range(runs):
        shared = rng.normal(0, spread, 600)
        a, b = (
            effects(rng, 3, 600, shared + rng.normal(0, own, 600), seed=seed, rest=1, mean=mean) > 0 for mean in (0.3, 0.0)
        )
        for name, found in (("new", difference(a, b)), ("old", unpaired(a, b))):
            within[name] += found.low <= truth <= found.high
    assert 0.92 <= within["new"] / runs <= 0.98
    assert within["old"] / runs > 0.99  # five times in a hundred it should have missed


def test_with_one_seed_the_interval_is_of_paired_images() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 1, 400)) < 0.3
    expected = 1.96 * np.sqrt((a[0] * 1.0 - b[0]).var(ddof=1) / 400)
    assert difference(a, b).half == pytest.approx(expected, rel=1e-4)
    assert difference(a, a) == Estimate(0.0, 0.0)
    each_other = np.array([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0]])  # all of it rest, and less than none of the seeds'
    assert contrast(each_other, -each_other) == Estimate(0.0, 0.0)
    opposite = np.array([[1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    assert contrast(opposite, np.zeros((2, 4))) == Estimate(0.5, 0.0)


@pytest.mark.parametrize(
    ("seed", "rest", "counts"), [(0.0, 1.0, (8, 8)), (1.0, 0.1, (3, 3)), (0.3, 1.0, (4, 1)), (1.0, 0.1, (3, 1))]
)
def test_neither_seeds_nor_images_are_counted_twice(seed: float, rest: float, counts: tuple[int, int]) -> None:
    """Where the rest, or the seeds, are all there is; an error of images alone that is shared falls out."""
    rng, within = np.random.default_rng(2), 0
    for _ in range(1000):
        shared = rng.normal(0, 5, 40)
        a, b = (effects(rng, count, 40, shared, seed=seed, rest=rest) for count in counts)
        found = contrast(a, -b)
        within += found.low <= 0 <= found.high
    assert 0.92 <= within / 1000 <= 0.975


def with_rights(dim: int, rights: dict[str, NDArray[np.bool_]], seed: int) -> Found:
    """A result in memory that only has which test images are classified right."""
    made = {"params": {"latent_dim": dim}, "stages": ["linear_eval", "finetune"]}
    result = {"made_with": made, "test_images": len(rights["latent"]), "pretrain": {"verdict": "healthy"}}
    numbers = {f"linear_eval.{space}.top1": float(rights["latent"].mean()) for space in ("latent", "random_latent")}
    arrays = {f"right_{space}": np.packbits(found) for space, found in rights.items()}
    return Found(f"d{dim}", seed, result, numbers | {"finetune.scratch.top1": 0.5}, arrays)


@pytest.mark.parametrize("seeds", [1, 3])
def test_six_equal_dimensions_give_no_verdict(seeds: int) -> None:
    """One in twenty, at the most, finds that fine-tuning hides, or does not hide, what is not there."""
    rng, told, falls = np.random.default_rng(3), 0, 0
    for _ in range(400):
        shared = rng.normal(0, 1.5, 500)

        def rights(shared: NDArray[Any] = shared) -> dict[str, NDArray[np.bool_]]:
            limits = {"latent": 0.8, "finetuned": 0.0}
            return {s: effects(rng, 1, 500, shared, seed=0.02, rest=1)[0] > limit for s, limit in limits.items()}

        trained = {dim: [with_rights(dim, rights(), seed) for seed in range(seeds)] for dim in DIMS}
        told += (found := CLAIMS["finetuning_hides_dimension"].judge(Grid(trained, {}, {}))).holds or found.fails
        falls += CLAIMS["falls_with_dimension"].judge(Grid(trained, {}, {})).holds
    assert told / 400 <= 0.05 and falls / 400 <= 0.05


def test_where_all_is_as_the_report_says() -> None:
    every = grid(3, tuned=0.6)
    assert verdicts(every) == dict.fromkeys(CLAIMS, "holds")
    claims = {claim["name"]: claim for claim in judged(grid_of(every))}
    assert all(claim["control"] and claim["finding"] and not claim["reason"] for claim in claims.values())
    top1 = {d: np.mean([e.numbers["linear_eval.latent.top1"] for e in every if e.params["latent_dim"] == d]) for d in DIMS}
    assert f"{top1[2048]:.1%} to {top1[2]:.1%}" in claims["falls_with_dimension"]["finding"]


def test_where_nothing_is_as_the_report_says() -> None:
    every = []
    for n, dim in enumerate(DIMS):
        changes: dict[str, Any] = {"project__latent__silhouette": 0.01 * n, "project__latent__pca_variance_2": 0.3}
        changes |= {"project__centroid_distances__latent__3__5": 1.5, "linear_eval__latent__confusion__3__9": 90}
        changes["explain__mass__frozen__quadrants__0"] = {"mean": 0.26, "half_width": 0.01}
        every.append(found(dim, frozen=0.38 - 0.02 * n, tuned=0.2 + 0.08 * n, **changes))
    every.append(found(512, stop_gradient=False, frozen=0.2, tuned=0.3, pretrain__verdict="healthy"))
    assert verdicts(every) == dict.fromkeys(CLAIMS, "does not hold") | {"finetuning_hides_dimension": "cannot be told"}


def losing(frozen: float, tuned: float) -> list[Found]:
    """The smallest of three dimensions loses these shares of the images, of the largest's."""
    every = []
    for dim, share in ((2, 1.0), (8, 0.5), (32, 0.0)):
        rights = {
            name: np.arange(TEST_IMAGES) < TEST_IMAGES * (0.6 - lost * share) for name, lost in (("l", frozen), ("f", tuned))
        }
        every.append(found(dim))
        every[-1].arrays.update(right_latent=np.packbits(rights["l"]), right_finetuned=np.packbits(rights["f"]))
    return every


@pytest.mark.parametrize(
    ("frozen", "tuned", "verdict", "reason"),
    [
        (0.30, 0.02, "holds", ""),
        (0.30, 0.28, "does not hold", ""),
        (0.30, 0.15, "cannot be told", "the interval includes half of the frozen loss"),
        (0.00, 0.30, "cannot be told", "frozen, no loss is beyond its interval"),
    ],
)
def test_what_fine_tuning_hides_is_judged_by_the_ends(frozen: float, tuned: float, verdict: str, reason: str) -> None:
    told = {claim["name"]: claim for claim in judged(grid_of(losing(frozen, tuned)))}["finetuning_hides_dimension"]
    assert (told["verdict"], told["reason"]) == (verdict, reason)


def test_too_little_to_tell_says_what_is_missing() -> None:
    told = {claim["name"]: claim for claim in judged(grid_of([found(8, stages=["pretrain"])]))}
    assert {claim["verdict"] for claim in told.values()} == {"cannot be told"}
    assert "three latent dimensions" in told["falls_with_dimension"]["reason"]
    assert "with and without stop-gradient" in told["collapse"]["reason"]
    assert {claim["verdict"] for claim in judged(grid_of([found(512, stop_gradient=False)]))} == {"cannot be told"}


@pytest.mark.parametrize(("share", "verdict"), [(0.32, "holds"), (0.305, "cannot be told"), (0.28, "does not hold")])
def test_the_corner_is_judged_by_the_interval(share: float, verdict: str) -> None:
    every = [found(dim, explain__mass__frozen__quadrants__0={"mean": share, "half_width": 0.01}) for dim in (8, 32)]
    assert verdicts(every)["top_left_corner"] == verdict


def test_clusters_are_not_judged_by_a_collapsed_encoder() -> None:
    """Six latents in an order that comes by chance; one more that is last in both, as a collapsed one, makes p < .05."""
    silhouettes = [0.0, 0.3, 0.1, 0.2, 0.5, 0.4]  # Spearman .77, p .10
    every = [found(dim, frozen=0.2 + 0.02 * n, project__latent__silhouette=silhouettes[n]) for n, dim in enumerate(DIMS)]
    assert verdicts(every)["accuracy_goes_with_clusters"] == "cannot be told"
    last: dict[str, Any] = {"frozen": 0.1, "project__latent__silhouette": -0.5}
    assert verdicts([*every, found(16, **last)])["accuracy_goes_with_clusters"] == "holds"
    for others in (
        found(16, pretrain__verdict="collapsed onto one direction", **last),
        found(512, stop_gradient=False, **last),
    ):
        assert verdicts([*every, others])["accuracy_goes_with_clusters"] == "cannot be told"


@pytest.mark.parametrize(
    ("without", "with_", "verdict"),
    [
        (["collapsed onto one direction", "collapsed to a point"], "healthy", "holds"),
        (["collapsed to a point", "healthy"], "healthy", "cannot be told"),
        (["healthy", "views too alike"], "healthy", "does not hold"),
        (["collapsed to a point"], "collapsed to a point", "does not hold"),
    ],
)
def test_collapse_is_told_by_the_training_batches(without: list[str], with_: str, verdict: str) -> None:
    """Not by z_std, which BatchNorm on the latent keeps up."""
    every = [found(8, pretrain__verdict=with_, pretrain__z_std=0.6)]
    every += [found(8, n, False, pretrain__verdict=said, pretrain__z_std=0.6) for n, said in enumerate(without)]
    assert verdicts(every)["collapse"] == verdict
    every[-1].arrays["curve_step"] = np.array([50, 100])  # over before it could be seen
    assert verdicts(every)["collapse"] == "cannot be told"


def test_ends_that_have_collapsed_tell_nothing_of_their_dimension() -> None:
    every = grid()
    every[0] = found(2, pretrain__verdict="collapsed to a point")
    told = verdicts(every)
    assert told["falls_with_dimension"] == told["finetuning_hides_dimension"] == "cannot be told"
    every[5] = found(2048, pretrain__verdict="collapsed to a point")
    assert verdicts(every)["two_components"] == "cannot be told"


def test_half_of_what_a_claim_says_tells_nothing() -> None:
    nearer_only, less_only = grid(), [found(dim, project__finetuned__pca_variance_2=0.6) for dim in DIMS]
    for each in nearer_only:  # but taken for each other less often
        each.result["linear_eval"]["latent"]["confusion"][CAT][TRUCK] = 500
    assert verdicts(nearer_only)["cat_is_nearer_to_dog"] == "cannot be told"
    assert verdicts(less_only)["two_components"] == "cannot be told"
    few = {claim["name"]: claim["reason"] for claim in judged(grid_of(grid()[:3]))}
    assert few["accuracy_goes_with_clusters"].startswith("it takes four latent dimensions")
    nearly = losing(frozen=0.007, tuned=0.0)  # at every dimension a little less, but no more than chance
    assert verdicts(nearly)["falls_with_dimension"] == "cannot be told"


def test_two_components_of_two_dimensions_tell_nothing() -> None:
    """They hold all of the variance, whatever was learned."""
    alone = {claim["name"]: claim for claim in judged(grid_of([found(2)]))}["two_components"]
    assert alone["verdict"] == "cannot be told" and alone["reason"] == "no latent of more than two dimensions was measured"


def test_the_claim_of_cats_needs_cats() -> None:
    every = grid()
    for each in every:
        each.result["classes"] = [f"kind {number}" for number in range(10)]
    assert set(verdicts(every)) == set(CLAIMS) - {"cat_is_nearer_to_dog"}


def test_points_fit_by_their_params_whatever_their_names() -> None:
    """Other epochs, another method or fewer labels are another grid, other rates not; the head elsewhere is its control."""
    others = [found(dim) for dim in (4, *range(16, 24))]
    others[0].params["recipes"]["laptop"]["pretrain"]["epochs"] = 3
    for each in others[1:]:
        each.params["method"] = "simclr"
    few = [found(dim, frozen=0.9) for dim in (2, 512)]
    for each in few:
        each.params["recipes"]["laptop"]["finetune"]["labels"] = 0.1
    measured = found(2048, 7)
    measured.params["explain"]["mass_images"] = 5  # measures more, trains alike
    control = [found(dim, space="backbone", tuned=0.6) for dim in (2, 2048)]
    of_study = grid()
    of_study[0].params["recipes"]["laptop"]["finetune"]["lr"] = [0.1, 0.3]  # fine-tuned at the best of rates of its own
    chosen = grid_of([*others, *few, *of_study, measured, *control])
    assert list(chosen.trained) == list(DIMS) and list(chosen.without) == [512] and list(chosen.on_backbone) == [2, 2048]
    assert [each.seed for each in chosen.trained[2048]] == [0, 7] and len(chosen.trained[2]) == 1
    told = {claim["name"]: claim["control"] for claim in judged(chosen)}
    assert "with the head on the backbone instead of the latent 0.0" in told["finetuning_hides_dimension"]


def test_a_study_says_what_its_points_found(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(root)
    told = capsys.readouterr().err
    assert "made with other" not in told
    assert "study width: without wide, seed 0, of which there are no results" in told
    assert "does not hold: " in told or "holds: " in told
    folder = root / "reports/study/dimension"
    table = pd.read_csv(folder / "table.csv").set_index("point")
    top1 = [
        json.loads((root / f"ablation/results/d32/{seed}.json").read_text())["linear_eval"]["latent"]["top1"]
        for seed in (0, 1)
    ]
    assert table.loc["d32", "linear_eval.latent.top1"] == pytest.approx(np.mean(top1), abs=1e-6)
    assert table.loc["d32", "linear_eval.latent.top1_sd"] == pytest.approx(abs(top1[0] - top1[1]) / 2**0.5, abs=1e-6)
    assert table.loc["d32", ["changes", "seeds"]].tolist() == ["latent_dim=32", 2]
    row, trained = (
        next(line for line in (folder / f"{name}.md").read_text().splitlines() if line.startswith("| d32 |"))
        for name in ("table", "training")
    )
    assert f" | {100 * np.mean(top1):.1f} ± {100 * np.std(top1, ddof=1):.1f} | " in row and " | healthy | " in trained
    page = json.loads((folder / "study.json").read_text())
    assert page["name"] == "dimension" and page["missing"] == page["stale"] == page["claims"] == []
    tables = {f"{table}.{end}" for table in ("table", "features", "training", "cka") for end in ("csv", "md", "html")}
    assert {path.name for path in folder.iterdir()} == {"study.json"} | tables | {f"{f}.png" for f in page["figures"]}
    assert list(page["figures"]) == ["accuracy", "learning", "looks", "spectra", "maps"]
    width = pd.read_csv(root / "reports/study/width/table.csv")
    assert width["point"].tolist() == ["d512"] and "finetune.top1" in width and "embed.knn.latent" not in width
    assert not (root / "reports/study/width/spectra.png").exists()

    folder = root / "reports/study/lind_bosch_hu"
    claims = json.loads((folder / "study.json").read_text())["claims"]
    verdicts = json.loads((root / "reports/metrics/study_lind_bosch_hu.json").read_text())["study_lind_bosch_hu"]
    assert verdicts == {claim["name"]: claim["verdict"] for claim in claims} and len(verdicts) == 8
    first = pd.read_csv(folder / "table_1.csv").set_index(["latent_dim", "encoder"])
    assert list(first.index) == [(dim, encoder) for dim in DIMS[::-1] for encoder in ("frozen", "fine-tuned")]
    assert first.loc[(32, "frozen"), "top1"] == pytest.approx(np.mean(top1), abs=1e-6)
    assert first.loc[(512, "frozen"), ["published_top1", "published_top5", "published_epochs"]].tolist() == [
        0.341,
        0.851,
        50,
    ]
    assert first.loc[(2, "fine-tuned"), ["published_top1", "control"]].tolist() == [0.627, 0.55]
    second = pd.read_csv(folder / "table_2.csv")
    assert second["stop_gradient"].tolist() == [True, True, False, False]
    assert second["published_top1"].tolist() == [0.341, 0.693, 0.104, 0.692]
    assert len(pd.read_csv(folder / "shap_mass.csv")) == 6 * 2 * 4
    assert {path.stem for path in folder.glob("*.png")} == {"figure_1", "figure_2", "figure_3"}


def test_results_made_otherwise_are_named_and_marked(
    root: Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    def changed(point: str, key: str, value: Any) -> None:
        path = root / f"ablation/results/{point}/1.json"
        result = json.loads(path.read_text())
        put(result, key, value)
        write_json(path, result)

    changed("d2", "made_with.code.pretrain", "older")
    changed("d8", "made_with.images", "others")
    changed("d32", "made_with.params.recipes.laptop.pretrain.epochs", 3)
    for path in (root / "ablation/results/d128").glob("0.*"):
        path.unlink()
    study(root)
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "made with" in line] == [
        "study: d2, seed 1 was made with other code",
        "study: d8, seed 1 was made with other images",
        "study: d32, seed 1 was made with other params (recipes.laptop.pretrain.epochs: 3, now 12)",
    ]
    page = json.loads((root / "reports/study/dimension/study.json").read_text())
    assert page["missing"] == ["d128, seed 0"] and len(page["stale"]) == 3
    table = pd.read_csv(root / "reports/study/dimension/table.csv").set_index("point")
    assert table.loc[["d2", "d8", "d512"], "stale"].fillna("").tolist() == ["code", "images", ""]
    assert "made with other" in (root / "reports/study/dimension/table.html").read_text()
    assert "made with other" not in (root / "reports/study/stop_gradient/table.html").read_text()
    (root / "data/images.npz").unlink()
    study(root)
    assert "cannot be told whether the results are of the same images" in capsys.readouterr().err


def test_what_all_points_change_alike_is_said_once() -> None:
    params = load(ROOT / "params.yaml")
    own, common = changes_of(params.ablation.studies["collapse"].points, params)
    assert common == "method=simsiam pretrain.knn=1000 pretrain.epochs=3"
    assert own["simsiam_short"] == "" and own["simsiam_ema"] == "methods.simsiam.target=ema"
    assert changes_of(["d2", "a control"], params) == (
        {"d2": "latent_dim=2 finetune.space=latent finetune.lr=[0.03, 0.1, 0.3, 1.0] finetune.scratch_lr=None"},
        "",
    )
    assert changes_of(["d32", "d512"], params)[0] == {"d32": "latent_dim=32", "d512": "latent_dim=512"}, (
        "what is measured besides"
    )
    assert changes_of([], params) == ({}, "")


def test_claims_are_judged_on_the_points_of_their_studies() -> None:
    """A training of three epochs, or one of other seeds, is nothing that the rank of longer ones is compared with."""
    params = load(ROOT / "params.yaml")
    results = {
        (point, seed): replace(found(2), point=point, seed=seed) for point in params.ablation.points for seed in (0, 9)
    }
    those = those_of(results, params, "rank", "no such study")
    assert [(each.point, each.seed) for each in those] == [
        (point, 0) for point in params.ablation.points if point in params.ablation.studies["rank"].points
    ]
    assert "simsiam_short" not in {each.point for each in those}


def test_points_of_different_machines_are_named(root: Path, capsys: pytest.CaptureFixture[str], no_figures: None) -> None:
    def made_on(point: str, device: str, torch: str, threads: int = 2) -> None:
        for path in (root / f"ablation/results/{point}").glob("*.json"):
            result = json.loads(path.read_text())
            result["made_with"]["machine"] = {"device": device, "threads": threads, "versions": {"torch": torch}}
            write_json(path, result)

    for point in root.glob("ablation/results/*"):
        made_on(point.name, "cpu A", "2.9")
    study(root)
    assert "not all made on one machine" not in capsys.readouterr().err
    assert json.loads((root / "reports/study/dimension/study.json").read_text())["note"] == ""
    made_on("d2", "cpu B", "2.9")
    made_on("d8", "cpu A", "2.8")
    made_on("d32", "cpu A", "2.9", threads=1)
    study(root)
    assert "study dimension: Its points were not all made on one machine" in capsys.readouterr().err
    note = json.loads((root / "reports/study/dimension/study.json").read_text())["note"]
    assert "cpu B, 2 threads, torch 2.9: d2, seed 0" in note and "cpu A, 2 threads, torch 2.8: d8, seed 0" in note
    assert "cpu A, 1 threads, torch 2.9: d32, seed 0" in note and note.endswith("; the others: cpu A, 2 threads, torch 2.9.")
    assert note.count(", seed 0") == 3, "those of the others are not listed"
    path = root / "ablation/results/d2/0.json"
    result = json.loads(path.read_text())
    result["pretrain"]["trained"] = [
        {"device": device, "threads": 2, "versions": {"torch": "2.9"}} for device in ("gpu", "cpu B", "gpu")
    ]
    write_json(path, result)
    study(root)
    note = json.loads((root / "reports/study/dimension/study.json").read_text())["note"]
    assert "cpu B, 2 threads, torch 2.9 (encoder: gpu, 2 threads, torch 2.9): d2, seed 0" in note
    assert json.loads((root / "reports/study/stop_gradient/study.json").read_text())["note"] == ""


def test_a_study_that_params_has_no_more_is_deleted_and_nothing_else(
    root: Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    study(root)
    for name, content in {"gone": {"by": "ablation.study"}, "other": {"name": "other"}, "broken": []}.items():
        write_json(root / f"reports/study/{name}/study.json", content)
    (root / "reports/study/mine").mkdir()
    before = {path.name for path in (root / "reports/study").iterdir()}
    study(root)
    assert before - {path.name for path in (root / "reports/study").iterdir()} == {"gone"}
    assert "study gone: deleted: no study of that name has results" in capsys.readouterr().err


def test_tables_of_results_that_are_gone_are_deleted(
    root: Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    study(root)
    assert (root / "reports/study/width").exists()
    for point in load(root / "params.yaml").ablation.studies["width"].points:
        shutil.rmtree(root / RESULTS / point, ignore_errors=True)
    study(root)
    assert not (root / "reports/study/width").exists() and (root / "reports/study/methods").exists()
    assert "study width: it has no results" in capsys.readouterr().err
    verdicts = [root / "reports/study/lind_bosch_hu", root / "reports/metrics/study_lind_bosch_hu.json"]
    assert all(path.exists() for path in verdicts)
    for point in (*(f"d{dim}" for dim in DIMS), "no_stop_gradient"):
        shutil.rmtree(root / RESULTS / point, ignore_errors=True)
    study(root)
    assert not any(path.exists() for path in verdicts)


def test_a_study_has_no_name_of_the_project_s_own(root: Path) -> None:
    content = YAML().load(root / "params.yaml")
    content["ablation"]["studies"]["rates"] = content["ablation"]["studies"].pop("width")
    YAML().dump(content, root / "params.yaml")
    with pytest.raises(UserError, match=r"params\.yaml: a study has the name rates"):
        study(root)


def test_without_results_there_is_a_line_with_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "ablation")
    for other in ("ablation/results/mine", "reports/study/mine"):  # it wrote neither
        (root / other).mkdir(parents=True)
        (root / other / "study.json").write_text("no json")
    study(root)
    told = capsys.readouterr().err
    assert "study width: it has no results: `for point in d512 wide; do python -m ablation.point $point; done`" in told
    assert "study lind_bosch_hu: no point of method simsiam has results" in told
    assert [path.name for path in (root / "reports/study").iterdir()] == ["mine"]


@pytest.mark.parametrize("at", ["write_text", "draw", "write_json"])
def test_a_write_that_fails_keeps_the_old_study(
    root: Path, monkeypatch: pytest.MonkeyPatch, no_figures: None, at: str
) -> None:
    def full(path: Path, *content: object) -> None:
        raise UserError(f"no space left to write {path}")

    study(root)
    before = {path: path.read_bytes() for path in (root / "reports").rglob("*.*")}
    write_result(root, "d2", 0, frozen=0.3)
    monkeypatch.setattr(f"ablation.tables.{at}", full)
    with pytest.raises(UserError, match="no space left"):
        study(root)
    assert before == {path: path.read_bytes() for path in (root / "reports").rglob("*.*")}


def test_a_study_that_cannot_be_moved_into_place_leaves_the_old_one(
    root: Path, monkeypatch: pytest.MonkeyPatch, no_figures: None
) -> None:
    study(root)
    before = {path: path.read_bytes() for path in (root / "reports").rglob("*.*")}
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp":
            raise OSError("no permission")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="no permission"):
        study(root)
    assert before == {path: path.read_bytes() for path in (root / "reports").rglob("*.*")}


def test_an_old_study_gives_way_whole(root: Path, no_figures: None) -> None:
    study(root)
    (root / "reports/study/dimension/of_before.png").touch()
    study(root)
    assert not (root / "reports/study/dimension/of_before.png").exists()
    assert {path.name for path in (root / "reports").iterdir()} == {"study", "metrics"}


DAMAGES: dict[str, tuple[Any, ...]] = {
    "finetune.top1": (7.5, None, "x", True, ..., float("nan")),
    "linear_eval.latent.top1": (-0.1, [0.5], float("inf")),
    "linear_eval.latent.confusion": ([[1, 2], [3]], [[1] * 10] * 9, [], None, [["x"] * 10] * 10),
    "project.latent.silhouette": (1.5, "0.1"),
    "project.centroid_distances.latent": ([], ...),
    "embed.knn": ({}, None, 0.3),
    "embed.spectrum.latent": ([], "x"),
    "explain.mass": ({}, None, {"frozen": {}}),
    "explain.mass.frozen.quadrants": ([], [1, 2, 3, 4]),
    "pretrain": (..., [], "x"),
    "pretrain.verdict": (None, 3),
    "made_with.params": ({}, ...),
    "made_with.stages": (["pretrain", "telepathy"], [["pretrain"]], "pretrain"),
    "classes": ([], [1, 2], "cat"),
    "test_images": (0, 1.5, None),
    "point": ("d8",),
    "seed": (1,),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in DAMAGES.items() for value in values])
def test_damage_in_a_result_is_one_line_with_file_and_key(place: Path, key: str, value: Any) -> None:
    path = place.with_suffix(".json")
    result = json.loads(path.read_text())
    put(result, key, value)
    path.write_text(json.dumps(result))
    with pytest.raises(UserError) as caught:
        read_one(place, {})
    told = str(caught.value)
    assert "\n" not in told and told.startswith(str(path)) and "python -m ablation.point d32 --seed 0" in told
    assert {"point": "it is of point d8", "seed": "point d32, seed 1"}.get(key, key) in told


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"point": "d32"', '{"made_with": "x"}'])
def test_a_file_that_is_no_result_is_one_line(place: Path, text: str) -> None:
    place.with_suffix(".json").write_text(text)
    with pytest.raises(UserError, match=r"d32/0\.json") as caught:
        read_one(place, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("curve_loss", np.zeros(0)),
        ("curve_loss", np.full(20, np.nan)),
        ("curve_z_std", np.zeros(19)),
        ("curve_step", np.array(["a"] * 20)),
        ("curve_rankme", None),
        ("curve_knn", np.zeros(19)),
        ("curve_knn", np.full(20, np.inf)),
        ("cka_backbone", np.zeros(50)),
        ("maps_backbone_tsne_2", None),
        ("right_latent", np.zeros(51, np.uint8)),
        ("right_latent", np.zeros(50, np.uint8)),
        ("right_finetuned", np.zeros(51, np.float32)),
        ("maps_label", np.full(100, 10)),
        ("maps_latent_pca_1", np.zeros((100, 2))),
        ("shap_shown", np.full((3, 2), -1)),
        ("shap_frozen_values", np.zeros((3, 8, 8, 9))),
        ("shap_random_values", None),
    ],
)
def test_damage_in_a_results_arrays_is_one_line_with_file_and_name(place: Path, name: str, array: Any) -> None:
    arrays = read_npz(place.with_suffix(".npz"))
    write_npz(
        place.with_suffix(".npz"), **{key: value for key, value in (arrays | {name: array}).items() if value is not None}
    )
    with pytest.raises(UserError, match=rf"d32/0\.npz: {name} ") as caught:
        read_one(place, {})
    assert "\n" not in str(caught.value)


def test_both_files_are_of_one_run(place: Path) -> None:
    read_one(place, {})
    params = load(ROOT / "params.yaml").in_use() | {"latent_dim": 32}
    write_npz(place.with_suffix(".npz"), **content(params, "d32", 0, frozen=0.5)[1])
    with pytest.raises(UserError, match="the two files are of two runs"):
        read_one(place, {})
    place.with_suffix(".npz").unlink()
    with pytest.raises(UserError, match=r"0\.npz.*is missing"):
        read_one(place, {})


@pytest.mark.parametrize(
    ("changes", "axis"),
    [
        ([{"latent_dim": 2}, {"latent_dim": 8, "explain.mass_images": 5}], ("latent_dim", {"p0": 2.0, "p1": 8.0})),
        (
            [{"latent_dim": 2, "recipes.laptop.finetune.lr": [1.0]}, {"latent_dim": 8}],
            ("latent_dim", {"p0": 2.0, "p1": 8.0}),
        ),
        ([{"recipes.laptop.pretrain.lr": 0.1}, {}], ("recipes.laptop.pretrain.lr", {"p0": 0.1, "p1": 0.3})),
        ([{"embed.knn_k": 5}, {"embed.knn_k": 20}], ("embed.knn_k", {"p0": 5.0, "p1": 20.0})),
        ([{"latent_dim": 2}, {"latent_dim": 8, "recipes.laptop.pretrain.epochs": 3}], None),
        ([{"stop_gradient": False}, {}], None),
        ([{"recipes.laptop.pretrain.precision": "bf16"}, {}], None),
        ([{}], None),
    ],
)
def test_the_axis_is_the_one_number_that_differs(changes: list[dict[str, Any]], axis: Any) -> None:
    points = {f"p{number}": [found(512)] for number in range(len(changes))}
    for results, change in zip(points.values(), changes, strict=True):
        for key, value in change.items():
            put(results[0].params, key, value)
    assert axis_of(points) == axis


def test_a_best_rate_at_an_edge_is_named() -> None:
    def tuned(best: float, *tried: float) -> Found:
        return found(2, finetune__lr=best, finetune__trials=[{"lr": lr, "top1": 0.5} for lr in tried])

    said = {
        "0.1": [tuned(0.1, 0.03, 0.1, 0.3), tuned(0.1)],  # a rate that was given and not chosen has no edge
        "0.1 or 0.3 (the highest of 3)": [tuned(0.1, 0.03, 0.1, 0.3), tuned(0.3, 0.03, 0.1, 0.3)],
        "0.03 (the lowest of 2)": [tuned(0.03, 0.1, 0.03)],
    }
    assert {rate(results, "lr", "trials"): results for results in said.values()} == said
    assert rate([found(2)], "lr", "trials") is None


def test_accuracy_stands_at_the_axis_with_the_right_bars() -> None:
    """On a logarithmic axis; bars are the deviation over seeds, and with one seed the test images' interval."""
    points = {f"d{dim}": [found(dim, seed) for seed in range(1 + (dim < 100))] for dim in (512, 2, 32)}
    figure = accuracy_figure(points, axis_of(points))
    panel = figure.axes[0]
    assert panel.get_xscale() == "log" and panel.get_xlabel() == "latent_dim"
    bars: Any = next(each for each in panel.containers if each.get_label() == "latent")
    line, _, (segments,) = bars.lines
    assert line.get_xdata().tolist() == [2, 32, 512]
    of_two, alone = ([e.numbers["linear_eval.latent.top1"] for e in points[name]] for name in ("d2", "d512"))
    assert line.get_ydata()[[0, 2]].tolist() == pytest.approx([100 * np.mean(of_two), 100 * alone[0]])
    heights = [segment[1, 1] - segment[0, 1] for segment in segments.get_segments()]
    half = 196 * np.sqrt(alone[0] * (1 - alone[0]) / TEST_IMAGES)
    assert [heights[0] / 2, heights[2] / 2] == pytest.approx([100 * np.std(of_two, ddof=1), half])
    named = accuracy_figure(points, None).axes[0]
    assert [text.get_text() for text in named.get_yticklabels()] == ["d512", "d2", "d32"] and named.yaxis_inverted()
    bars = next(each for each in named.containers if each.get_label() == "latent")
    line, _, (segments,) = bars.lines
    assert list(line.get_xdata()[:2]) == pytest.approx([100 * alone[0], 100 * np.mean(of_two)])
    assert [round(row) for row in line.get_ydata()] == [0, 1, 2]
    lengths = [segment[1, 0] - segment[0, 0] for segment in segments.get_segments()]
    assert [lengths[0] / 2, lengths[1] / 2] == pytest.approx([half, 100 * np.std(of_two, ddof=1)])


def test_a_method_has_a_colour_and_its_points_have_lines() -> None:
    def of(method: str) -> list[Found]:
        result = found(2)
        result.params["method"] = method
        return [result]

    points = {"one": of("simsiam"), "other": of("simclr"), "longer": of("simsiam")}
    colours, lines = ({point: style[key] for point, style in styles(points, None).items()} for key in ("color", "linestyle"))
    assert colours["one"] == colours["longer"] != colours["other"]
    assert lines["one"] == lines["other"] != lines["longer"]
    alike = styles({str(number): of("simsiam") for number in range(12)}, None)
    assert len({(style["color"], style["linestyle"]) for style in alike.values()}) == 12
    assert len({style["color"] for style in alike.values()}) == len(COLOURS)


def table_of(root: Path, study: str, name: str, index: str) -> pd.DataFrame:
    return pd.read_csv(root / f"reports/study/{study}/{name}.csv").set_index(index)


CONTROLS = [control.words for control in controls.CONTROLS.values()]


def control(root: Path, name: str, seed: int, top1: float, **made: Any) -> None:
    """What `ablation.controls` would leave."""
    params = load(root / "params.yaml", [f"seed={seed}"])
    result: dict[str, Any] = {"point": name, "seed": seed, "classes": CLASSES, "test_images": TEST_IMAGES}
    result["linear_eval"] = {"backbone": {"top1": top1}, "few_labels": {"1%": {"backbone": {"top1": 0.3, "sd": None}}}}
    result["embed"] = {"knn": {"backbone": 0.35}, "knn_standardised": {"backbone": 0.4}, "rankme": {"backbone": 55.0}}
    result["control"] = {"seconds": 9.0}
    result["made_with"] = controls.made_with(name, params, load_images(root).digest) | {"machine": {}} | made
    write_json(root / controls.RESULTS / name / f"{seed}.json", result)


def test_a_study_of_methods_has_its_ceiling_and_its_controls(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, list[str]] = {}  # figure -> the points on it

    def draw(path: Path, _: object, points: Any, *rest: object) -> None:
        if "methods" in path.parent.name:
            drawn[path.stem] = list(points)
        path.touch()

    monkeypatch.setattr("ablation.tables.draw", draw)
    for seed, top1 in ((0, 0.7), (1, 0.74), (2, 0.1)):  # the last is no seed of the study
        control(root, "patches", seed, top1)
    control(root, "random_blocks", 1, 0.4)
    study(root)
    assert "made with other" not in capsys.readouterr().err
    folder = root / "reports/study/methods"
    table = table_of(root, "methods", "table", "point")
    assert list(table.index) == ["d512", "simclr", "supervised", *CONTROLS]
    assert table["role"].fillna("").tolist() == ["", "", "ceiling", "control", "control"]
    assert drawn.pop("accuracy") == ["d512", "simclr", "supervised", *CONTROLS]
    assert drawn == {name: ["d512", "simclr", "supervised"] for name in ("learning", "looks", "spectra", "maps")}
    of_patches, of_blocks = (table.loc[words] for words in CONTROLS)
    assert of_patches["seeds"] == 2 and of_patches["linear_eval.backbone.top1"] == pytest.approx(0.72)
    assert of_patches["linear_eval.backbone.top1_sd"] == pytest.approx(0.04 / 2**0.5, abs=1e-6)
    assert of_patches[["embed.knn.backbone", "linear_eval.few_labels.1%.backbone.top1"]].tolist() == [0.35, 0.3]
    assert np.isnan(of_patches["linear_eval.latent.top1"])
    assert (of_blocks["seeds"], of_blocks["linear_eval.backbone.top1"]) == (1, 0.4)
    trained, features = (table_of(root, "methods", name, "point") for name in ("training", "features"))
    assert list(trained.index) == ["d512", "simclr", "supervised"]
    assert list(features.index) == list(table.index) and features.loc[CONTROLS[0], "embed.rankme.backbone"] == 55
    assert trained.loc["simclr", ["pretrain.images_per_second", "pretrain.peak_memory"]].tolist() == [1500.5, 700]
    assert features.loc["simclr", [f"embed.{name}.latent" for name in ("alignment", "uniformity")]].tolist() == [0.3, -2.5]
    caption = json.loads((folder / "study.json").read_text())["tables"]["table"]
    assert "The ceiling learned from all labels" in caption and "The controls have no trained network" in caption
    text = "".join((folder / f"{name}.md").read_text() for name in ("table", "training", "features"))
    assert "1 % of the labels: linear" in text and "pretraining: images/s" in text and "explained variance: latent" in text

    other = json.loads((root / "reports/study/dimension/study.json").read_text())  # of one method
    assert "ceiling" not in other["tables"]["table"] and "published" not in other["tables"]
    assert not {*CONTROLS} & {*table_of(root, "dimension", "table", "point").index}


def test_a_study_whose_stages_measure_no_control_has_none(root: Path) -> None:
    control(root, "patches", 0, 0.7)
    params = load(root / "params.yaml")
    found, measured = read(root, params, ""), read_controls(root, params, [0], "")
    points = {name: [found[name, 0]] for name in ("d512", "simclr")}
    for stages, expected in ((["pretrain"], []), (["pretrain", "embed"], [CONTROLS[0]])):
        assert list(controls_of(points, [only(each, stages) for each in measured])) == expected


def test_a_control_of_other_images_is_marked_and_a_damaged_one_named(
    root: Path, capsys: pytest.CaptureFixture[str], no_figures: None
) -> None:
    control(root, "patches", 0, 0.7, images="others")
    study(root)
    assert table_of(root, "methods", "table", "point").loc[CONTROLS[0], "stale"] == "images"
    stale = json.loads((root / "reports/study/methods/study.json").read_text())["stale"]
    assert stale == [f"{CONTROLS[0]}, seed 0: other images"]
    assert "study: patches, seed 0 was made with other images" in capsys.readouterr().err
    path = root / controls.RESULTS / "patches/0.json"
    for key, value in {
        "linear_eval.backbone.top1": 7.5,
        "linear_eval.few_labels.1%.backbone.top1": 7.5,
        "embed.knn.backbone": -5.0,
        "embed": {},
        "made_with": {},
        "made_with.stages": 5,
        "pretrain": [3],
        "classes": ...,
        "": [1],
    }.items():
        control(root, "patches", 0, 0.7)
        content = json.loads(path.read_text())
        if key:
            put(content, key, value)
        write_json(path, content if key else value)
        with pytest.raises(
            UserError, match=r"patches/0\.json is no result .* `python -m ablation\.controls patches --seed 0` makes"
        ):
            study(root)
    control(root, "patches", 1, 0.7)
    shutil.move(path.with_name("1.json"), path)
    with pytest.raises(UserError, match=r"patches/0\.json is no result"):  # it is of seed 1
        study(root)
    control(root, "random_blocks", 0, 0.4)
    shutil.move(root / controls.RESULTS / "random_blocks/0.json", path)
    with pytest.raises(UserError, match=r"patches/0\.json is no result"):  # it is the other control's
        study(root)


def seeds_of(method: str, *features: NDArray[Any], images: str = "i") -> list[Found]:
    """A point in memory that has nothing but features, one array a seed."""
    made = {"params": {"method": method}, "stages": ["embed"], "images": images}
    return [Found(method, n, {"made_with": made}, {}, {"cka_backbone": each}) for n, each in enumerate(features)]


def test_cka_compares_different_seeds_of_the_same_images() -> None:
    """By hand: features that agree, are each other's rotation, or have nothing in common."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 400, 8))
    turned = one @ np.linalg.qr(rng.normal(size=(8, 8)))[0]
    points = {
        "alike": seeds_of("alike", one, 3 * turned),
        "mixed": seeds_of("mixed", one, other),  # seed 0 is like `alike`, but against it stands seed 1 alone
        "alone": seeds_of("alone", turned),
        "flat": seeds_of("flat", np.ones((400, 8)), np.ones((400, 8))),
        "elsewhere": seeds_of("elsewhere", one, other, images="others"),
    }
    table = cka(points).set_index("point")
    assert table.loc["alike", "alike"] == pytest.approx(1) and table.loc["mixed", "mixed"] == pytest.approx(0, abs=0.02)
    assert table.loc["alike", "mixed"] == table.loc["mixed", "alike"] == pytest.approx(0.5, abs=0.02)
    assert table.loc["alike", "alone"] == pytest.approx(1) and table.loc["mixed", "alone"] == pytest.approx(0, abs=0.02)
    assert np.isnan([table.loc["alone", "alone"], table.loc["flat", "alike"], table.loc["elsewhere", "alike"]]).all()
    single = cka({"alike": seeds_of("alike", one), "alone": seeds_of("alone", turned)}).set_index("point")
    assert single.loc["alike", "alone"] == pytest.approx(1)  # with one seed each there is no other pair


def test_cka_of_a_study_is_in_its_folder(root: Path, no_figures: None) -> None:
    study(root)
    table = table_of(root, "methods", "cka", "point")
    assert list(table.columns) == list(table.index) == ["d512", "simclr", "supervised"]
    assert (np.diag(table) > 0.6).all() and table.loc["d512", "simclr"] < 0.4
    text = (root / "reports/study/methods/cka.md").read_text()
    assert text.startswith("| point | CKA with: d512 | CKA with: simclr |")
    assert not (root / "reports/study/width/cka.csv").exists()


def test_looks_stand_against_epochs_with_the_band_of_the_seeds() -> None:
    points = {f"d{dim}": [found(dim, seed) for seed in range(seeds)] for dim, seeds in ((8, 2), (2, 1))}
    points["unseen"] = [found(32)]
    del points["unseen"][0].arrays["curve_knn"]
    for axis in (None, axis_of({point: results for point, results in points.items() if point != "unseen"})):
        drawn = points if axis is None else {point: points[point] for point in ("d8", "d2")}
        axes = looks_figure(drawn, axis).axes[0]
        lines = {str(line.get_label()): line for line in axes.lines}
        assert set(lines) == {"d8", "d2"}
        expected = {"d2": [[n, 30 + 4 * n] for n in range(1, 6)], "d8": [[n, 30.5 + 4 * n] for n in range(1, 6)]}
        for point, xy in expected.items():
            np.testing.assert_allclose(np.asarray(lines[point].get_xydata(), float), np.array(xy), rtol=1e-5)
        (band,) = axes.collections
        low, high = band.get_paths()[0].get_extents().intervaly
        assert [low, high] == pytest.approx([34.5 - 1 / 2**0.5, 50.5 + 1 / 2**0.5], rel=1e-5)
        assert tuple(np.asarray(band.get_facecolor())[0, :3]) == pytest.approx(to_rgba(lines["d8"].get_color())[:3])


def test_maps_side_by_side_are_of_one_seed_and_have_everyone_s_colours() -> None:
    points = {f"d{dim}": [found(dim, seed) for seed in seeds] for dim, seeds in ((2, (0, 1)), (8, (1, 2)), (32, (0, 1)))}
    points["no_map"] = [found(8, stages=["pretrain"])]
    figure = maps_figure(points, None)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["d2", "d8", "d32"]
    for axes, results in zip(panels, points.values(), strict=False):
        arrays = next(each for each in results if each.seed == 1).arrays
        for number, dots in enumerate(axes.collections):
            rows = arrays["maps_label"] == number
            expected = np.stack([arrays[f"maps_backbone_tsne_{n}"][rows] for n in (1, 2)], axis=1)
            np.testing.assert_allclose(np.asarray(dots.get_offsets(), float), expected)
            assert tuple(np.asarray(dots.get_facecolor())[0, :3]) == pytest.approx(to_rgba(COLOURS[number])[:3])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == CLASSES


def test_what_others_report_stands_beside_the_method_s_first_point() -> None:
    def of(method: str, epochs: int = 10) -> list[Found]:
        results = [found(512, seed, pretrain__epochs=epochs) for seed in (0, 1)]
        for each in results:
            each.params["method"] = method
        return results

    points = {"simclr": of("simclr"), "simclr_long": of("simclr", 20), "supervised": of("supervised")}
    table = published(points)
    assert table["method"].unique().tolist() == ["SimCLR"] and table["here"].unique().tolist() == ["simclr"]
    assert table["top1"].dropna().tolist() == [0.911, 0.9074] and table["knn"].dropna().tolist() == [0.879]
    assert table["here_epochs"].unique().tolist() == [10]
    assert table["here_top1"][0] == np.mean([e.numbers["linear_eval.backbone.top1"] for e in points["simclr"]])
    assert published({"simclr": points["simclr"]}).empty  # one method is no comparison
    assert published(
        points | {f"simclr_{epochs}": of("simclr", epochs) for epochs in (1, 2)}
    ).empty  # nor are two at many lengths
    for each in points["simclr"]:
        each.result["classes"] = CLASSES[::-1]
    assert published(points).empty  # other images


@pytest.mark.parametrize("content", ["", "method,top1,knn,epochs\nsimclr,lots,,800\n", "method,top1\nsimclr,.9,800,a\n"])
def test_published_numbers_that_cannot_be_read_are_one_line(
    root: Path, tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch, no_figures: None
) -> None:
    monkeypatch.setattr("ablation.study.PUBLISHED", tmp_path / "published.csv")
    (tmp_path / "published.csv").write_text(content)
    with pytest.raises(UserError, match=r"published\.csv cannot be read: .*`git checkout .*published\.csv` brings it back"):
        study(root)


def test_every_published_number_says_where_it_stands_and_how_it_was_measured() -> None:
    table = pd.read_csv(ROOT / "ablation/published.csv")
    assert set(table["method"]) <= {*METHODS, "patches"} and table[["network", "protocol", "source"]].notna().all(axis=None)
    assert table[["top1", "knn"]].stack().dropna().between(0.5, 1).all() and table[["top1", "knn"]].notna().any(axis=1).all()
    assert not table.duplicated().any()


def passes(method: str) -> float:
    """How much work a step of a method is: a pass through the backbone counts 1, and with its way back 3, by its area."""
    model, count = build(load(ROOT / "params.yaml", [f"method={method}"]), cifar_500()), 0.0

    def note(backbone: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal count
        count += given[0].shape[-1] ** 2 * (3 if torch.is_grad_enabled() else 1)

    for module in model.modules():
        if isinstance(module, ResNet):
            module.register_forward_pre_hook(note)
    augment = load(ROOT / "params.yaml").chosen.pretrain.augment
    views = [torch.rand(4, 3, view.view_size, view.view_size) for view in model.views(augment)]
    model(*views, **({"labels": torch.zeros(4, dtype=torch.int64)} if model.labelled else {}))
    return count


def test_equal_seconds_are_equal_work() -> None:
    """Every method at equal epochs, and where it takes clearly longer, with about the work that simsiam takes, too."""
    points = load(ROOT / "params.yaml").ablation.studies["methods"].points
    given = {point: load_point(ROOT / "params.yaml", point) for point in points}
    assert {point for point in points if not point.endswith("_seconds")} == {*METHODS}
    assert len({given[name].chosen.pretrain.epochs for name in METHODS}) == 1
    work = {point: passes(of.method) * of.chosen.pretrain.epochs for point, of in given.items()}
    for name in METHODS:
        longer = work[name] > 1.08 * work["simsiam"]
        assert longer == (f"{name}_simsiams_seconds" in points)
        if longer:
            assert work[f"{name}_simsiams_seconds"] == pytest.approx(work["simsiam"], rel=0.08)
    assert all(of.chosen.pretrain.knn == 1000 for of in given.values())


def test_a_study_of_methods_from_the_images_to_the_page(
    tmp_path: Path, cifar: ImageSet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real stages, with an encoder that takes seconds."""
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    quicker = {f"recipes.laptop.{stage}.batch_size": 64 for stage in ("pretrain", "finetune")} | {"project.points": 50}
    for key, value in (QUICK | quicker).items():
        put(params, key, value)
    small = {"method": "simsiam", "recipes.laptop.pretrain.knn": 40}
    points = {"simsiam": small, "supervised": small | {"method": "supervised"}}
    params["ablation"]["points"] = points
    defined = load(ROOT / "params.yaml").ablation.studies["methods"]
    params["ablation"]["studies"] = {"methods": {"points": list(points), "seeds": [0], "stages": defined.stages}}
    yaml.dump(params, tmp_path / "params.yaml")
    cifar.save(tmp_path / "data/images.npz")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # where the stages of a point look for the images that points share
    for point in points:
        run_point(point, 0, list(defined.stages))
    control(tmp_path, "patches", 0, 0.6)
    capsys.readouterr()
    study(tmp_path)
    told = capsys.readouterr().err
    assert "could not be drawn" not in told and "made with other" not in told
    page = json.loads((tmp_path / "reports/study/methods/study.json").read_text())
    assert list(page["tables"]) == ["table", "features", "training", "cka", "published"]
    assert list(page["figures"]) == ["accuracy", "learning", "looks", "spectra", "maps"] and page["missing"] == []
    assert list(table_of(tmp_path, "methods", "table", "point").index) == ["simsiam", "supervised", CONTROLS[0]]
    table = pd.concat([table_of(tmp_path, "methods", name, "point") for name in PARTS], axis=1)
    numbers = [name for name in COLUMNS if "." in name and "1%" not in name]  # 1 % of 400 labels are too few
    numbers.remove(of_control := "embed.knn_standardised.backbone")
    assert table.loc[["simsiam", "supervised"], numbers].notna().all(axis=None)
    assert table.loc[CONTROLS[0], of_control] == 0.4
    looks = read_one(tmp_path / RESULTS / "simsiam/0", {}).looks()
    assert looks.shape == (2,) and ((looks >= 0) & (looks <= 1)).all()
    alike = table_of(tmp_path, "methods", "cka", "point")
    assert 0 < alike.loc["simsiam", "supervised"] == alike.loc["supervised", "simsiam"] < 1
    read_study(tmp_path / "reports/study/methods/study.json")

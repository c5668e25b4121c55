"""Why SimSiam does not collapse, on results made by hand: what counts as which collapse, and each rule at its borders."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind

from ablation.claims import judged
from ablation.compare import ratio
from ablation.figures import learning_figure
from ablation.point import relevant
from ablation.results import Found
from ablation.why_no_collapse.claims import (
    CHANGES,
    CLAIMS,
    FEW,
    LOST,
    RANK_CLAIMS,
    STAGES,
    Cases,
    cases_of,
    kind,
    kinds,
    line,
    ranks_of,
)
from ablation.why_no_collapse.study import cases_figure, cases_table, rank_figure, rank_table, study
from simsiam.settings import load, load_point
from tests.clones import ROOT

IMAGES = 2000
RIGHT = np.arange(IMAGES) < 1000
POINT, LINE = "collapsed to a point", "collapsed onto one direction"
CASES = {  # case -> the point of params.yaml
    "default": "simsiam_short",
    "no_stop_gradient": "simsiam_no_stop_gradient",
    "no_predictor": "simsiam_no_predictor",
    "fixed_predictor": "simsiam_fixed_predictor",
    "linear_predictor": "simsiam_linear_predictor",
    "cosine_predictor_lr": "simsiam_cosine_predictor_lr",
    "fast_predictor": "simsiam_fast_predictor",
    "ema": "simsiam_ema",
    "ema_no_stop_gradient": "simsiam_ema_no_stop_gradient",
    "no_weight_decay": "simsiam_no_weight_decay",
    "no_head_norm": "simsiam_no_head_norm",
}


@cache
def params_of(point: str) -> str:
    return json.dumps(relevant(load_point(ROOT / "params.yaml", point, 0), list(STAGES)))


def result(
    point: str = "simsiam_short",
    seed: int = 0,
    *,
    verdict: str = "healthy",
    lost: int = 0,
    gained: int = 0,
    stages: tuple[str, ...] = STAGES,
    records: int = 20,
    **numbers: float,
) -> Found:
    """One of a point of params.yaml. lost, gained: how many test images it classifies wrong, or right, that others do not.

    numbers: loss, rank (of the latents), backbone (its RankMe) and knn.
    """
    params = json.loads(params_of(point)) | {"seed": seed}
    right = RIGHT.copy()
    right[:lost] = False
    right[1000 : 1000 + gained] = True
    numbers = {"loss": -0.8, "rank": 40.0, "backbone": 60.0, "knn": 0.4} | numbers
    found = {
        "pretrain.epochs": 3.0,
        "pretrain.loss": numbers["loss"],
        "pretrain.rankme": numbers["rank"],
        "pretrain.first_share": 0.1,
    }
    found |= {"pretrain.z_std": 0.9, "embed.rankme.backbone": numbers["backbone"], "embed.rankme.random_backbone": 20.0}
    found |= {"embed.knn.backbone": numbers["knn"], "embed.knn.random_backbone": 0.25}
    found |= {"linear_eval.backbone.top1": float(right.mean())}
    made = {"params": params, "stages": list(stages), "images": "i", "code": {}, "machine": {}}
    steps = 50.0 * np.arange(1, records + 1)
    knn = np.where(np.arange(records) % 5 == 4, 0.3, np.nan)
    arrays = {"right_backbone": np.packbits(right), "curve_step": steps, "curve_knn": knn}
    arrays |= {"curve_z_std": np.full(records, 0.9), "curve_rankme": steps / 20, "curve_loss": -steps / 1000}
    arrays |= {"curve_backbone_rankme": steps / 30}
    return Found(point, seed, {"made_with": made, "test_images": IMAGES, "pretrain": {"verdict": verdict}}, found, arrays)


def with_params(found: Found, **changes: Any) -> Found:
    """A result whose params are otherwise; __ stands for a dot."""
    for key, value in changes.items():
        *path, last = key.split("__")
        tree = found.result["made_with"]["params"]
        for part in path:
            tree = tree[part]
        tree[last] = value
    return found


def verdict(case: str, found: list[Found], default: list[Found] | None = None) -> str:
    cases: Cases = {"default": [result()] if default is None else default, case: found}
    return judged({case: CLAIMS[case]}, cases)[0]["verdict"]


def test_the_points_of_params_are_the_cases_of_the_claims() -> None:
    study = load(ROOT / "params.yaml").ablation.studies["collapse"]
    assert set(study.points) == set(CASES.values()) and set(STAGES) <= set(study.stages) and set(CASES) == set(CHANGES)
    found = cases_of([result(point, seed) for point in study.points for seed in (0, 1)])
    assert {case: {each.point for each in results} for case, results in found.items()} == {c: {p} for c, p in CASES.items()}
    assert all(len(results) == 2 for results in found.values()) and set(CLAIMS) == set(CHANGES) - {"default"}


def test_the_points_of_params_are_the_combinations_of_the_rank_claims() -> None:
    study = load(ROOT / "params.yaml").ablation.studies["rank"]
    ranks = ranks_of([result(point) for point in study.points])
    for method, lr, high in (("simsiam", 0.3, 0.6), ("simclr", 0.3, 0.6)):
        few = {(12, lr, 0.0005), (12, lr, 0.0), (12, lr, 0.002), (12, high, 0.0005)}
        assert set(ranks[method]) == few | {(24, lr, 0.0005), (24, high, 0.0005)}
    for axis, ends, fixed in ((0, (12, 24), "lr 0.6"), (1, (0.3, 0.6), "epochs 24"), (2, (0.0, 0.002), "epochs 12, lr 0.3")):
        values, words = line(ranks, "simsiam", axis)
        assert (min(values), max(values)) == ends and fixed in words


def test_what_differs_in_anything_else_is_no_case() -> None:
    every = [result(point) for point in ("simsiam_short", "simsiam_no_predictor")]
    other_views = with_params(result("simsiam_ema"), recipes__laptop__pretrain__augment__flip=0.1)
    others = [result(point) for point in ("simsiam", "simsiam_epochs24", "simsiam_decay0.002", "simsiam_lr0.6", "simclr")]
    faster = with_params(result("simsiam_fast_predictor"), recipes__laptop__methods__simsiam__predictor_lr_times=3.0)
    unmeasured = result("simsiam_linear_predictor", stages=("pretrain", "embed"))
    other_images = result("simsiam_no_head_norm")
    other_images.result["made_with"]["images"] = "j"
    found = cases_of([*every, *others, other_views, faster, unmeasured, other_images])
    assert {case: [each.point for each in results] for case, results in found.items()} == {
        "default": ["simsiam_short"],
        "no_predictor": ["simsiam_no_predictor"],
    }
    assert cases_of([]) == cases_of([result("simsiam_ema"), result("simsiam_ema_no_stop_gradient")]) == {}


def test_a_missing_stop_gradient_is_the_same_however_it_is_said() -> None:
    switch = with_params(result(), stop_gradient=False)
    assert cases_of([result(), switch])["no_stop_gradient"] == [switch]


def test_kinds_of_collapse() -> None:
    default = [result(seed=seed) for seed in range(3)]
    assert kind(result(verdict=POINT, rank=500, backbone=500), default) == "complete"
    assert kind(result(verdict=LINE, rank=500, backbone=500), default) == "onto few directions"
    assert kind(result(rank=FEW * 40 - 0.01), default) == "onto few directions"
    assert kind(result(rank=FEW * 40), default) == "none"
    assert kind(result(backbone=LOST * 60 - 0.01), default) == "lost rank"
    assert kind(result(backbone=LOST * 60), default) == kind(result(verdict="views too alike"), default) == "none"
    assert kind(result(backbone=1.0, rank=1.0), default) == "onto few directions"
    assert kinds([result(verdict=POINT), result(), result(verdict=POINT)], default) == "complete (2), none (1)"
    assert kinds([result()], default) == "none"


def test_less_than_the_default_is_also_by_two_of_its_deviations() -> None:
    """Seeds at 30, 60 and 90 have a deviation of 30: none is two below the mean that is not below 0."""
    spread = [result(seed=n, backbone=value) for n, value in enumerate((30.0, 60.0, 90.0))]
    assert kind(result(backbone=5.0), spread) == "none" and kind(result(backbone=5.0), spread[1:2]) == "lost rank"
    near = [result(seed=n, backbone=value) for n, value in enumerate((40.0, 60.0, 80.0))]  # 60 less two of 20
    assert [kind(result(backbone=value), near) for value in (19.9, 20.0)] == ["lost rank", "none"]


@pytest.mark.parametrize("case", ["no_stop_gradient", "no_predictor", "ema_no_stop_gradient"])
def test_collapse_holds_where_every_one_collapses_and_no_default(case: str) -> None:
    gone, line_, well = result(verdict=POINT), result(verdict=LINE), result(backbone=1.0)  # lost rank is not collapsed
    assert verdict(case, [gone, gone]) == verdict(case, [gone, line_]) == "holds"
    assert verdict(case, [gone, well]) == "cannot be told"
    assert verdict(case, [well, well]) == "does not hold"
    assert verdict(case, [gone], [well, gone]) == "cannot be told"
    assert verdict(case, [gone], [gone]) == "does not hold"
    short = [result(verdict=POINT, records=2)]
    assert verdict(case, short) == "cannot be told"


@pytest.mark.parametrize("case", ["no_head_norm", "no_weight_decay"])
def test_learning_less_is_told_by_the_interval(case: str) -> None:
    """Of 2,000 images k are lost: k/2000 ± 1.96 sqrt(k/2000 (1 - k/2000) / 1999), which reaches one point from 13 on."""
    assert [verdict(case, [result(lost=lost)]) for lost in (0, 5, 12, 13, 100)] == [*["does not hold"] * 3, "holds", "holds"]
    assert verdict(case, [result(lost=60, gained=50)]) == "cannot be told"  # -0.5 ± 1.03
    assert verdict(case, [result(lost=100), result(lost=100, verdict=POINT)]) == "cannot be told"
    assert verdict(case, [result(lost=100, verdict=LINE)]) == "does not hold"


def test_a_fixed_predictor_has_a_higher_loss_too() -> None:
    one, case = [result(lost=100, loss=-0.5)], "fixed_predictor"
    assert verdict(case, one) == "holds"
    assert verdict(case, [*one, result(lost=100, loss=-0.81)]) == "cannot be told"
    assert verdict(case, [result(loss=-0.5)]) == "does not hold"
    assert verdict(case, [result(lost=100, loss=-0.5, verdict=POINT)]) == "does not hold"


def test_learning_as_much_and_more_is_told_by_the_interval() -> None:
    case = "cosine_predictor_lr"
    assert [verdict(case, [result(gained=n)]) for n in (0, 12, 13)] == ["holds", "holds", "does not hold"]
    assert verdict(case, [result(lost=50, gained=60)]) == "cannot be told"
    assert verdict(case, [result(verdict=POINT)]) == "holds"
    assert verdict(case, [result()], [result(), result(verdict=POINT)]) == "cannot be told"
    assert verdict(case, [result()], [result(verdict=POINT)]) == "does not hold"
    assert [verdict("ema", [result(gained=n)]) for n in (0, 12, 13, 100)] == [*["does not hold"] * 2, "holds", "holds"]
    assert verdict("ema", [result(lost=50, gained=60)]) == "cannot be told"
    assert verdict("ema", [result(gained=100, verdict=LINE)]) == "does not hold"


def test_a_linear_predictor_has_to_learn_something() -> None:
    case = "linear_predictor"
    assert verdict(case, [result(), result(seed=1)]) == "holds"
    assert verdict(case, [result(), result(knn=0.25)]) == "cannot be told"  # as the random encoder has
    assert verdict(case, [result(), result(verdict=POINT)]) == "cannot be told"
    assert verdict(case, [result(verdict=POINT)] * 2) == "does not hold"


def test_with_one_seed_half_or_twice_is_the_least_that_tells() -> None:
    told = {value: verdict("fast_predictor", [result(backbone=value)]) for value in (29.9, 30.1, 119.9, 120.1)}
    assert list(told.values()) == ["does not hold", "cannot be told", "cannot be told", "holds"]
    three = [result(seed=seed, backbone=60.0 + seed) for seed in range(3)]
    assert verdict("fast_predictor", [result(seed=n, backbone=70.0 + n) for n in range(3)], three) == "holds"
    assert verdict("fast_predictor", [result(seed=n, backbone=61.0 + n) for n in range(3)], three) == "cannot be told"
    assert verdict("fast_predictor", [result(backbone=70.0)], three) == "cannot be told"


def test_a_ratio_has_welch_s_interval() -> None:
    a, b = [3.0, 4.0, 7.0], [2.0, 2.5, 2.2, 2.4]
    ours, theirs = ratio(a, b), ttest_ind(np.log(a), np.log(b), equal_var=False).confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ratio([4.0], [2.0, 2.0]).low == pytest.approx(0) and ratio([2.0, 2.0], [2.0, 2.0]) == (0.0, 0.0)


def test_a_missing_case_is_named() -> None:
    rows = judged(CLAIMS, {"default": [result()]})
    assert {row["verdict"] for row in rows} == {"cannot be told"}
    assert rows[0]["reason"] == "there is no result of no stop-gradient"
    empty = judged(RANK_CLAIMS, ranks_of([]))
    assert {row["verdict"] for row in empty} == {"cannot be told"}
    assert "simsiam was not trained with two values of epochs" in empty[0]["reason"]


def rank(**backbone: float) -> dict[str, str]:
    """The verdicts where points have such a RankMe, with one seed."""
    every = [result(point.replace("__", "."), backbone=value, knn=value / 200) for point, value in backbone.items()]
    return {row["name"]: row["verdict"] for row in judged(RANK_CLAIMS, ranks_of(every))}


@pytest.mark.parametrize(
    ("claim", "short", "long"),
    [
        ("longer_loses_rank", "simsiam", "simsiam_epochs24"),
        ("higher_rate_loses_rank", "simsiam", "simsiam_lr0__6"),
        ("weight_decay_loses_rank", "simsiam_decay0", "simsiam_decay0__002"),
    ],
)
def test_rank_that_is_lost_is_told_by_the_ratio(claim: str, short: str, long: str) -> None:
    found = [rank(**{short: 60.0, long: value})[claim] for value in (29.9, 30.1, 119.9, 120.1)]
    assert found == ["holds", "cannot be told", "cannot be told", "does not hold"]


def test_a_contrastive_method_keeps_its_rank() -> None:
    def contrastive(*last: float) -> str:
        every = [result("simclr", seed, backbone=60.0 + seed) for seed in range(len(last))]
        every += [result("simclr_epochs24", seed, backbone=value) for seed, value in enumerate(last)]
        return {row["name"]: row["verdict"] for row in judged(RANK_CLAIMS, ranks_of(every))}["contrastive_keeps_rank"]

    assert contrastive(59.0, 61.0, 62.0) == "holds"
    assert contrastive(40.0, 41.0, 42.0) == "does not hold"
    assert contrastive(20.0, 60.0, 90.0) == "cannot be told"
    assert [contrastive(value) for value in (29.9, 59.9, 60.1)] == ["does not hold", "cannot be told", "holds"]


def test_that_the_loss_does_not_show_it_takes_a_loss_of_rank() -> None:
    def shown(verdict: str = "healthy", backbone: float = 20.0, loss: float = -0.9) -> str:
        every = [result("simsiam"), result("simsiam_epochs24", verdict=verdict, backbone=backbone, loss=loss)]
        return {row["name"]: row["verdict"] for row in judged(RANK_CLAIMS, ranks_of(every))}["loss_says_nothing"]

    assert shown(loss=-0.9) == "holds"
    assert shown(loss=-0.7) == "does not hold"
    assert shown(loss=-0.8) == "cannot be told"
    assert shown(verdict=LINE, loss=-0.9) == "does not hold"
    assert shown(loss=-0.9, backbone=60.0) == "cannot be told"


def test_knn_and_rank_go_together_over_four_combinations_and_more() -> None:
    names = [
        "simsiam",
        "simsiam_epochs24",
        "simsiam_lr0.6",
        "simsiam_epochs24_lr0.6",
        "simsiam_decay0",
        "simsiam_decay0.002",
    ]

    def together(ranks: list[float], knn: list[float]) -> str:
        every = [result(n, backbone=r, knn=k) for n, r, k in zip(names, ranks, knn, strict=False)]
        return {row["name"]: row["verdict"] for row in judged(RANK_CLAIMS, ranks_of(every))}["knn_goes_with_rank"]

    rising = [0.2, 0.3, 0.35, 0.4, 0.45, 0.5]
    assert together([10, 20, 30, 40, 50, 60], rising) == "holds"
    assert together([60, 50, 40, 30, 20, 10], rising) == "does not hold"
    assert together([10, 20, 30, 40], rising[:4]) == "cannot be told"  # four are so by chance one time in twelve
    assert together([30, 10, 20, 60, 40, 50], rising) == "cannot be told"
    assert together([10, 20, 30], rising[:3]) == "cannot be told"


def everything(study: str, seeds: int) -> list[Found]:
    return [
        result(name, seed) for name in load(ROOT / "params.yaml").ablation.studies[study].points for seed in range(seeds)
    ]


def test_figures_have_a_line_for_each_seed_and_the_default_in_each_row() -> None:
    found = everything("collapse", 2)
    figure = cases_figure(cases_of(found))
    assert len(figure.axes) == 9
    lines = [len(axes.lines) for axes in figure.axes]
    assert lines == [2 * n for n in (4, 4, 4, 6, 6, 6, 3, 3, 3)]
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())]
    names = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert [row[0] for row in names] == ["the default"] * 3 and sum(map(len, names)) == 13
    titles, steps = [axes.get_title() for axes in figure.axes], [axes.get_xlabel() for axes in figure.axes]
    assert ["z_std" in titles[0], "RankMe" in titles[1], "kNN" in titles[2], *titles[3:]] == [True] * 3 + [""] * 6
    assert steps == [""] * 6 + ["step"] * 3
    knn = figure.axes[2].lines[0]
    assert np.asarray(knn.get_xydata()) == pytest.approx(np.array([[250, 30], [500, 30], [750, 30], [1000, 30]]))
    colours = {line.get_color() for line in figure.axes[3].lines}
    assert len(colours) == 6
    both = rank_figure(ranks_of(everything("rank", 2)))
    assert [len(axes.lines) for axes in both.axes] == [12] * 6
    assert len({(line.get_color(), line.get_linestyle()) for line in both.axes[0].lines}) == 6
    for each in found:
        del each.arrays["curve_knn"]  # of results of before it was measured
    assert [len(axes.lines) for axes in cases_figure(cases_of(found)).axes[:3]] == [8, 8, 0]


def test_no_line_is_cut_off_where_a_later_row_is_higher() -> None:
    found = [result(), result("simsiam_no_stop_gradient"), result("simsiam_no_weight_decay")]
    found[-1].arrays["curve_rankme"] *= 3
    for axes in cases_figure(cases_of(found)).axes:
        low, high = axes.get_ylim()
        assert all(low <= np.nanmin(line.get_ydata()) <= np.nanmax(line.get_ydata()) <= high for line in axes.lines)


def test_the_losses_of_several_methods_are_not_drawn_beside_each_other() -> None:
    short, other = {"short": [result()]}, {"simclr": [result("simclr")]}
    titles = [[axes.get_title() for axes in learning_figure(points, None).axes] for points in (short, short | other)]
    assert titles[0][0] == "loss" and "loss" not in titles[1] and [len(of) for of in titles] == [3, 3]


def test_a_training_that_points_share_is_drawn_once() -> None:
    points = {"short": [result()], "short_tuned_otherwise": [result()], "other": [result("simclr")]}
    points["other"][0].arrays["curve_loss"] = points["short"][0].arrays["curve_loss"] - 1
    drawn = learning_figure(points, None).axes[0].lines
    assert [line.get_label() for line in drawn] == ["short (and 1 more with this training)", "other"]


def test_tables_say_the_kind_and_the_numbers() -> None:
    found = everything("collapse", 3)
    for each in found:
        if each.point == "simsiam_no_predictor":
            each.result["pretrain"]["verdict"] = POINT if each.seed else "healthy"
            each.numbers["embed.knn.backbone"] = 0.1 + 0.1 * each.seed
    table = cases_table(cases_of(found)).set_index("change")
    assert table.index[0] == "the default" and len(table) == 11 and set(table["seeds"]) == {3}
    assert table.loc["no predictor", "collapse"] == "none (1), complete (2)"
    assert table.loc["no predictor", ["embed.knn.backbone", "embed.knn.backbone_sd"]].tolist() == pytest.approx([0.2, 0.1])
    rows = rank_table(ranks_of(everything("rank", 3)))
    assert rows[["method", "epochs", "lr", "weight decay"]].iloc[0].tolist() == ["simsiam", 12, "0.3", "0"]
    assert len(rows) == 12


def test_the_page_has_every_claim_with_its_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path, [result()], [])
    assert "no two points of it have results" in capsys.readouterr().err and not (tmp_path / "reports").exists()
    study(tmp_path, everything("collapse", 1), everything("rank", 1))
    folder = tmp_path / "reports/study/why_no_collapse"
    page = json.loads((folder / "study.json").read_text())
    told = json.loads((tmp_path / "reports/metrics/study_why_no_collapse.json").read_text())["study_why_no_collapse"]
    assert told == {claim["name"]: claim["verdict"] for claim in page["claims"]} and list(told) == [*CLAIMS, *RANK_CLAIMS]
    assert told["no_stop_gradient"] == "does not hold" and told["linear_predictor"] == "holds"
    assert len(pd.read_csv(folder / "cases.csv")) == 11 and set(page["figures"]) == {"cases", "rank"}
    assert "could not be drawn" not in capsys.readouterr().err
    shutil.rmtree(folder)
    study(tmp_path, [result(), result("simsiam_ema")], [])
    page = json.loads((folder / "study.json").read_text())
    assert list(page["tables"]) == list(page["figures"]) == ["cases"]

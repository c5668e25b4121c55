"""What Lind, Bosch & Hu concluded, put to the test: each claim with its rule in words and the code that judges by it.

The rules were written before the grid ran with the code that they judge. Accuracies are those of a linear classifier on the
latent ("frozen") and of the fine-tuned network, on the test images; a difference is told by its 95 % interval over seeds and
images (`ablation.compare`). What a random encoder, or a network trained from scratch, does stands beside each finding.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import permutation_test, spearmanr

from ablation.compare import Estimate, contrast, difference
from ablation.results import Found, flat

Verdict = Literal["holds", "does not hold", "cannot be told"]
ByDim = dict[int, list[Found]]  # latent dimension, ascending -> a result for each seed
SMALL = 0.01  # of accuracy: as good as no difference
MONOTONE = 0.8  # Spearman's correlation
HIDDEN = 0.5  # of what is lost frozen, at most this is left
MUCH = 0.5  # of the variance
CORNER = 0.30  # share of the SHAP mass in one quadrant; spread evenly, each has .25


@dataclass(frozen=True)
class Grid:
    """The results that differ in nothing but latent dimension, stop-gradient, seed and what the fine-tuned head reads."""

    trained: ByDim  # with stop-gradient
    without: ByDim  # without stop-gradient
    on_backbone: ByDim  # with stop-gradient, and the fine-tuned head on the backbone: a control

    @property
    def healthy(self) -> ByDim:
        """Those with stop-gradient that have not collapsed."""
        kept = {dim: [each for each in results if not each.collapsed] for dim, results in self.trained.items()}
        return {dim: results for dim, results in kept.items() if results}


@dataclass(frozen=True)
class Finding:
    """What the grid says of a claim."""

    holds: bool
    fails: bool
    value: float  # the number that the rule is about
    words: str
    control: str  # what an encoder does that learned nothing
    open: str = ""  # why it cannot be told, where it neither holds nor fails

    @property
    def verdict(self) -> Verdict:
        return "holds" if self.holds else "does not hold" if self.fails else "cannot be told"


class Untold(Exception):
    """The grid has not what the rule asks for; the message says what is missing."""


@dataclass(frozen=True)
class Claim:
    claim: str
    where: str  # in the report, with its numbers
    rule: str
    judge: Callable[[Grid], Finding]  # raises Untold


def grid_of(found: list[Found]) -> Grid:
    """The largest set of SimSiam's results that differ in nothing else: of most latent dimensions, then of most results."""
    groups: dict[str, list[Found]] = defaultdict(list)
    for each in found:
        params = each.result.made_with.params
        if params.method == "simsiam":
            free = {"latent_dim", "stop_gradient", "seed", f"recipes.{params.recipe}.finetune.space"}
            kept = {
                key: value
                for key, value in flat(params.model_dump()).items()
                if key not in free and key.split(".")[0] not in ("data", "embed", "linear_eval", "project", "explain")
            }
            groups[repr((sorted(kept.items()), each.result.made_with.images))].append(each)

    def size(group: list[Found]) -> tuple[int, int]:
        return len({each.result.made_with.params.latent_dim for each in group}), len(group)

    cells: dict[tuple[bool, str], dict[int, dict[int, Found]]] = defaultdict(lambda: defaultdict(dict))
    for each in max(groups.values(), key=size, default=[]):
        params = each.result.made_with.params
        cell = cells[params.stop_gradient, params.recipes[params.recipe].finetune.space][params.latent_dim]
        cell.setdefault(each.seed, each)  # two points may be the same training

    def by_dim(stop_gradient: bool, space: str) -> ByDim:
        return {dim: list(seeds.values()) for dim, seeds in sorted(cells[stop_gradient, space].items())}

    return Grid(by_dim(True, "latent"), by_dim(False, "latent"), by_dim(True, "backbone"))


def falls_with_dimension(grid: Grid) -> Finding:
    trained, small, large = ends(grid, "linear_eval")
    lost = difference(right(trained[large], "latent"), right(trained[small], "latent"))
    top1 = {dim: mean(results, "linear_eval.latent.top1") for dim, results in trained.items()}
    rho = correlation(np.array(list(top1)), np.array(list(top1.values())))
    words = (
        f"{percent(top1[small])} at d = {small}, {percent(top1[large])} at d = {large}: {points(lost)} points are lost; "
        f"Spearman {rho:.2f} over {len(top1)} dimensions"
    )
    random = [mean(trained[dim], "linear_eval.random_latent.top1") for dim in (small, large)]
    control = f"on a random encoder's latent {percent(random[0])} and {percent(random[1])}"
    reason = (
        "the interval includes both a loss and none"
        if lost.low <= 0
        else f"it falls, but with Spearman {rho:.2f} not steadily"
    )
    return Finding(lost.low > 0 and rho >= MONOTONE, lost.high < SMALL, lost.value, words, control, reason)


def finetuning_hides_dimension(grid: Grid) -> Finding:
    trained, small, large = ends(grid, "linear_eval", "finetune")
    scratch = [mean(trained[dim], "finetune.scratch.top1") for dim in (large, small)]
    control = f"trained from scratch {100 * (scratch[0] - scratch[1]):.1f} points are lost"
    on_backbone = having(grid.on_backbone, "finetune")
    if small in on_backbone and large in on_backbone:
        lost = difference(*(right(on_backbone[dim], "finetuned") for dim in (large, small)))
        control += f"; fine-tuned with the head on the backbone instead of the latent, {points(lost)}"
    return hidden(trained[large], trained[small], f"from d = {large} to d = {small}", control)


def finetuning_hides_stop_gradient(grid: Grid) -> Finding:
    with_, without = both_ways(grid, "linear_eval", "finetune")
    dim = max(with_)
    control = f"trained from scratch it has {percent(mean(with_[dim], 'finetune.scratch.top1'))}"
    return hidden(with_[dim], without[dim], f"without stop-gradient, at d = {dim},", control)


def hidden(better: list[Found], worse: list[Found], what: str, control: str) -> Finding:
    """Whether fine-tuning hides what the worse encoders lack: of what they lose frozen, it leaves at most HIDDEN."""
    (frozen, tuned), (frozen_worse, tuned_worse) = (
        [right(results, space).astype(float) for space in ("latent", "finetuned")] for results in (better, worse)
    )
    lost, left = contrast(frozen, -frozen_worse), contrast(tuned, -tuned_worse)
    # Each seed's two networks come from one encoder, so they are put together before the seeds are compared.
    beyond = contrast(tuned - HIDDEN * frozen, HIDDEN * frozen_worse - tuned_worse)
    words = (
        f"{what} {points(lost)} points are lost frozen ({percent(frozen.mean())} to {percent(frozen_worse.mean())}) and "
        f"{points(left)} fine-tuned ({percent(tuned.mean())} to {percent(tuned_worse.mean())})"
    )
    told = lost.low > 0
    reason = (
        "the interval includes half of the frozen loss"
        if told
        else "frozen nothing is lost beyond the interval, so there is nothing to hide"
    )
    return Finding(told and beyond.high <= 0, told and beyond.low > 0, left.value, words, control, reason)


def collapse(grid: Grid) -> Finding:
    with_, without = both_ways(grid)
    kinds = {
        name: [f"d = {dim}: {each.result.pretrain.verdict}" for dim in cells for each in cells[dim]]
        for name, cells in (("with", with_), ("without", without))
    }
    collapsed = {name: sum("collapsed" in kind for kind in said) for name, said in kinds.items()}
    z_std = {
        name: [mean(cells[dim], "pretrain.z_std") for dim in cells]
        for name, cells in (("with", with_), ("without", without))
    }
    words = (
        f"without stop-gradient {collapsed['without']} of {len(kinds['without'])} trainings collapse "
        f"({'; '.join(dict.fromkeys(kinds['without']))}), with it {collapsed['with']} of {len(kinds['with'])}; z_std of training "
        f"batches {', '.join(f'{value:.2f}' for value in z_std['without'])} and {', '.join(f'{value:.2f}' for value in z_std['with'])}"
    )
    control = "what a collapsed encoder's latent is worth was not measured"
    if having(with_, "linear_eval") and having(without, "linear_eval"):
        dim = max(with_)
        values = [mean(without[dim], f"linear_eval.{space}.top1") for space in ("latent", "random_latent")]
        control = f"linear top-1 on the latent without stop-gradient {percent(values[0])}, of a random encoder {percent(values[1])} (d = {dim})"
    holds = collapsed["without"] == len(kinds["without"]) and collapsed["with"] == 0
    fails = collapsed["without"] == 0 or collapsed["with"] == len(kinds["with"])
    return Finding(
        holds, fails, float(max(z_std["without"])), words, control, "it is so for some trainings and not for others"
    )


def accuracy_goes_with_clusters(grid: Grid) -> Finding:
    healthy = having(grid.healthy, "linear_eval", "project")
    if len(healthy) < 4:
        raise Untold(f"it takes four latent dimensions at which the encoder has not collapsed; there are {len(healthy)}")
    columns = ("linear_eval.latent.top1", "project.latent.silhouette")
    top1, silhouette = (np.array([mean(results, column) for results in healthy.values()]) for column in columns)
    rho, p = ranked(silhouette, top1)
    words = f"Spearman {rho:.2f} (p = {p:.2g}) over {len(healthy)} frozen latents, of accuracy and silhouette"
    if tuned := having(healthy, "finetune"):
        columns = ("finetune.top1", "project.finetuned.silhouette")
        values = (np.array([mean(results, column) for results in tuned.values()]) for column in columns)
        words += "; {:.2f} (p = {:.2g}) over the fine-tuned ones".format(*ranked(*values))
    dims = np.array(list(healthy))
    control = (
        f"accuracy goes with the latent dimension alone by Spearman {correlation(dims, top1):.2f}, and the silhouette by "
        f"{correlation(dims, silhouette):.2f}; the random encoder's backbone has silhouette "
        f"{mean(healthy[max(healthy)], 'project.random_backbone.silhouette'):.2f}, the latents {silhouette.min():.2f} to {silhouette.max():.2f}"
    )
    return Finding(
        rho > 0 and p < 0.05,
        rho < 0 and p < 0.05,
        rho,
        words,
        control,
        f"p = {p:.2g}: so few latents may lie in this order by chance",
    )


def cat_is_nearer_to_dog(grid: Grid) -> Finding:
    healthy = having(grid.healthy, "linear_eval", "project")
    if not healthy:
        raise Untold("no encoder with stop-gradient has been measured that has not collapsed")
    names = next(iter(healthy.values()))[0].result.classes
    cat, dog, truck = (names.index(name) for name in ("cat", "dog", "truck"))

    def pairs(space: str, linear: str) -> list[tuple[float, int, int]]:
        found = []
        for each in (each for results in healthy.values() for each in results):
            assert each.result.project and each.result.linear_eval
            distance = np.array(each.result.project.centroid_distances[space])
            confusion = np.array(getattr(each.result.linear_eval, linear).confusion)
            taken = [int(confusion[cat, other] + confusion[other, cat]) for other in (dog, truck)]
            found.append((float(distance[cat, dog] / max(distance[cat, truck], 1e-12)), *taken))
        return found

    ours, random = pairs("latent", "latent"), pairs("random_backbone", "random_backbone")
    nearer, farther = (all(sign * (r - 1) < 0 and sign * (t - d) < 0 for r, d, t in ours) for sign in (1, -1))
    said = [f"{min(r for r, _, _ in p):.2f} to {max(r for r, _, _ in p):.2f}; at the largest d {p[-1][1]} cats and dogs and {p[-1][2]} "
            "cats and trucks are taken for each other" for p in (ours, random)]  # fmt: skip
    words = f"distance from cat to dog over that from cat to truck, {len(ours)} encoders: {said[0]}"
    return Finding(
        nearer,
        farther,
        ours[-1][0],
        words,
        f"random encoders' backbones: {said[1]}",
        "the encoders, or the two measures, disagree",
    )


def two_components(grid: Grid) -> Finding:
    measured = having(grid.trained, "project")
    dim = max(measured, default=0)
    if dim <= 2:
        raise Untold("it takes a latent of more than two dimensions")
    if any(each.collapsed for each in measured[dim]):
        raise Untold(f"the encoder has collapsed at the largest dimension, d = {dim}")
    share = {
        space: numbers(measured[dim], f"project.{space}.pca_variance_2")
        for space in ("latent", "finetuned", "backbone", "random_backbone")
    }
    said = {space: percent(float(np.mean(found))) for space, found in share.items()}
    words = f"at d = {dim} two components explain {said['latent']} of the frozen latent's variance and {said['finetuned']} of the fine-tuned one's"
    control = f"of the frozen backbone's {said['backbone']}, of the random encoder's backbone {said['random_backbone']}"
    each = list(zip(share["latent"], share["finetuned"], strict=True))
    holds = all(frozen >= MUCH and tuned <= frozen / 2 for frozen, tuned in each)
    fails = all(frozen < MUCH or tuned > frozen for frozen, tuned in each)
    return Finding(
        holds,
        fails,
        float(np.mean(share["latent"])),
        words,
        control,
        "the fine-tuned share is smaller, but not half, or the seeds disagree",
    )


def top_left_corner(grid: Grid) -> Finding:
    masses = {
        dim: [each.result.explain.mass for each in results if each.result.explain and each.result.explain.mass]
        for dim, results in grid.healthy.items()
    }
    masses = {dim: found for dim, found in masses.items() if found}
    if not masses:
        raise Untold("where the SHAP mass lies was not measured of any encoder with stop-gradient that has not collapsed")

    def said(network: str) -> str:
        found = [[getattr(mass, network).quadrants[0] for mass in each] for each in masses.values()]
        return ", ".join(
            f"{100 * np.mean([q.mean for q in qs]):.1f} ± {100 * np.mean([q.half_width for q in qs]):.1f}" for qs in found
        )

    corner = [mass.frozen.quadrants[0] for found in masses.values() for mass in found]
    words = f"top left quadrant's share in per cent at d = {', '.join(map(str, masses))}: frozen {said('frozen')}; fine-tuned {said('finetuned')}"
    control = f"random encoder {said('random')}; the usual code, with ReLUs used twice, whose values do not add up: {said('stock')}"
    low, high = min(q.mean - q.half_width for q in corner), max(q.mean + q.half_width for q in corner)
    return Finding(
        low > CORNER,
        high < CORNER,
        corner[-1].mean,
        words,
        control,
        f"the encoders lie on both sides of {CORNER:.0%}, or their intervals include it",
    )


CLAIMS = {
    "falls_with_dimension": Claim(
        "The frozen encoder's accuracy falls slightly as the latent dimension is reduced.",
        "section 5.1, Table 1: 34.1 % at d = 512, 22.8 % at d = 2",
        f"compares the smallest with the largest dimension. Holds if the accuracy at the smallest is lower beyond the interval and "
        f"Spearman's correlation with the dimension is at least {MONOTONE}; does not if the interval leaves a loss of less than "
        f"{100 * SMALL:.0f} point. It takes three dimensions",
        falls_with_dimension,
    ),
    "finetuning_hides_dimension": Claim(
        "Fine-tuning hides the latent dimension.",
        "Table 1: from d = 512 to 2 frozen 11.3 points are lost, fine-tuned 6.6",
        "compares the smallest with the largest dimension, whatever the others have. Holds if of what is lost frozen at most half is "
        "lost fine-tuned; does not if more than half; cannot be told where the interval includes half, or where frozen nothing is "
        "lost. It takes three dimensions",
        finetuning_hides_dimension,
    ),
    "finetuning_hides_stop_gradient": Claim(
        "Fine-tuning hides a missing stop-gradient.",
        "section 5.3, Table 2: without it frozen 23.7 points are lost, fine-tuned 0.1",
        "the same rule, at the largest dimension that was trained with and without stop-gradient",
        finetuning_hides_stop_gradient,
    ),
    "collapse": Claim(
        "Without stop-gradient the encoder collapses; stop-gradient prevents it.",
        "section 5.3, Table 2: 10.4 % without, 34.1 % with",
        "judged by the latents of the last training batches, all at a point or on a line (simsiam/collapse.py). Holds if every training "
        "without stop-gradient collapses, and none with it at the same dimensions; does not if none without it does, or all with it",
        collapse,
    ),
    "accuracy_goes_with_clusters": Claim(
        "Accuracy goes with the quality of the classes' clusters.",
        "section 7",
        "over the frozen latents with stop-gradient that have not collapsed, means over seeds: holds if Spearman's correlation of top-1 "
        "and silhouette is positive with p < .05 (by permuting the latents), does not if negative with p < .05. It takes four dimensions",
        accuracy_goes_with_clusters,
    ),
    "cat_is_nearer_to_dog": Claim(
        "Cats overlap more with dogs than with trucks.",
        "section 5.2, Figure 2",
        "holds if in every frozen latent with stop-gradient that has not collapsed the means of cat and dog lie nearer than those of cat "
        "and truck, and the linear classifier confuses them more often; does not if in every one both are the other way round",
        cat_is_nearer_to_dog,
    ),
    "two_components": Claim(
        "Two components explain much of the frozen latent's variance, and little of the fine-tuned one's.",
        "section 7",
        "at the largest dimension, with every seed: holds if they explain at least half of the frozen latent's variance and at most half "
        "as much of the fine-tuned one's; does not if less than half of the frozen one's, or more of the fine-tuned one's",
        two_components,
    ),
    "top_left_corner": Claim(
        "The frozen network looks at the top left corner.",
        "section 5.4, Figure 3",
        f"holds if the 95 % interval over images of the top left quadrant's share of the SHAP mass lies above {CORNER:.0%} (evenly: 25 %) "
        "at every dimension and seed that was measured; does not if it lies below at every one",
        top_left_corner,
    ),
}  # fmt: skip


def judged(grid: Grid) -> list[dict[str, Any]]:
    """Every claim with what was found, for the page. That of cats is left out where the images have no such classes."""
    classes = {name for cells in (grid.trained, grid.without) for each in cells.values() for name in each[0].result.classes}
    claims = []
    for name, claim in CLAIMS.items():
        if name == "cat_is_nearer_to_dog" and classes and not {"cat", "dog", "truck"} <= classes:
            continue
        row = {"name": name, "claim": claim.claim, "where": claim.where, "rule": claim.rule}
        try:
            found = claim.judge(grid)
            reason = found.open if found.verdict == "cannot be told" else ""
            row |= {
                "verdict": found.verdict,
                "reason": reason,
                "value": found.value,
                "finding": found.words,
                "control": found.control,
            }
        except Untold as error:
            row |= {"verdict": "cannot be told", "reason": str(error), "value": None, "finding": "", "control": ""}
        claims.append(row)
    return claims


def having(cells: ByDim, *stages: str) -> ByDim:
    """The dimensions, and at each the results, that have gone through these stages."""
    kept = {
        d: [each for each in found if all(getattr(each.result, s) is not None for s in stages)] for d, found in cells.items()
    }
    return {dim: results for dim, results in kept.items() if results}


def ends(grid: Grid, *stages: str) -> tuple[ByDim, int, int]:
    """What was measured with stop-gradient, and the smallest and the largest dimension of it."""
    measured = having(grid.trained, *stages)
    if len(measured) < 3:
        raise Untold(f"it takes three latent dimensions that were measured with stop-gradient; there are {len(measured)}")
    small, large = min(measured), max(measured)
    for dim in (small, large):
        if any(each.collapsed for each in measured[dim]):
            raise Untold(f"an encoder has collapsed at d = {dim}, which is more than a small or large latent does")
    return measured, small, large


def both_ways(grid: Grid, *stages: str) -> tuple[ByDim, ByDim]:
    """The dimensions that were trained with and without stop-gradient."""
    with_, without = having(grid.trained, *stages), having(grid.without, *stages)
    if not (both := sorted(with_.keys() & without.keys())):
        raise Untold("no latent dimension was trained and measured both with and without stop-gradient")
    return {dim: with_[dim] for dim in both}, {dim: without[dim] for dim in both}


def right(results: list[Found], space: str) -> NDArray[np.bool_]:
    """(seeds, N): which test images each classified right."""
    return np.stack([each.right(space) for each in results])


def numbers(results: list[Found], key: str) -> list[float]:
    return [each.numbers[key] for each in results]


def mean(results: list[Found], key: str) -> float:
    return float(np.mean(numbers(results, key)))


def percent(share: float) -> str:
    return f"{share:.1%}"


def points(found: Estimate) -> str:
    return f"{100 * found.value:.1f} ± {100 * found.half:.1f}"


def ranked(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Spearman's correlation and its p by permuting the points, two-sided: all orders of up to seven points, else 10,000."""
    test = permutation_test((x,), lambda x: correlation(x, y), permutation_type="pairings", n_resamples=10_000, rng=0)
    return float(test.statistic), float(test.pvalue)


def correlation(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Spearman's, or 0 where there is nothing to rank."""
    rho = float(spearmanr(x, y).statistic) if np.ptp(x) and np.ptp(y) else 0.0
    return rho if np.isfinite(rho) else 0.0

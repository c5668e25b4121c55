"""What Lind, Bosch & Hu concluded, put to the test: each claim with its rule in words, and the code that judges by it.

The rules were written before the grid ran with the code that they judge. Accuracies are those of a linear classifier on the
latent ("frozen") and of the fine-tuned network, on the test images; differences have 95 % intervals over seeds and images
(`ablation.compare`). What a random encoder does, or a network trained from scratch, stands beside each finding.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ablation.claims import Claim, Finding, Untold, long_enough
from ablation.claims import judged as judged_by
from ablation.compare import SMALL, contrast, correlation, difference, points, ranked
from ablation.results import MEASURED, Found, flat

ByDim = dict[int, list[Found]]  # latent dimension, ascending -> a result for each seed
MONOTONE = 0.8  # Spearman's correlation
HIDDEN = 0.5  # of what is lost frozen, no more than this is left
MUCH = 0.5  # of the variance
CORNER = 0.30  # share of the SHAP mass in one quadrant; spread evenly, each has .25
PAIRS = ("cat", "dog", "truck")


class Grid(NamedTuple):
    """The results that differ in nothing but latent dimension, stop-gradient, seed, what the fine-tuned head reads, and the
    rates of which the best on held-out images is used: each may need others."""

    trained: ByDim  # with stop-gradient
    without: ByDim  # without stop-gradient
    on_backbone: ByDim  # with stop-gradient, and the fine-tuned head on the backbone: a control

    @property
    def healthy(self) -> ByDim:
        """Those with stop-gradient that have not collapsed."""
        kept = {dim: [each for each in found if not collapsed(each)] for dim, found in self.trained.items()}
        return {dim: found for dim, found in kept.items() if found}


def grid_of(found: list[Found]) -> Grid:
    """The largest set of SimSiam's results that differ in nothing else: of most latent dimensions, then of most results."""
    groups: dict[str, list[Found]] = defaultdict(list)
    for each in found:
        if each.params["method"] == "simsiam" and not each.has("download"):  # with images of its own
            of_head = {f"recipes.{each.params['recipe']}.finetune.{key}" for key in ("space", "lr", "scratch_lr")}
            free = {"latent_dim", "stop_gradient", "seed"} | of_head
            kept = {
                key: value
                for key, value in flat(each.params).items()
                if key not in free and key.split(".")[0] not in ("data", *MEASURED)
            }
            groups[repr((sorted(kept.items()), each.result["made_with"]["images"]))].append(each)
    cells: dict[tuple[bool, str], dict[int, dict[int, Found]]] = defaultdict(lambda: defaultdict(dict))
    for each in max(
        groups.values(), key=lambda group: (len({e.params["latent_dim"] for e in group}), len(group)), default=[]
    ):
        space = each.params["recipes"][each.params["recipe"]].get("finetune", {}).get("space", "latent")
        # Two points may be the same training, of which the one that went through more stages counts.
        seeds = cells[each.params["stop_gradient"], space][each.params["latent_dim"]]
        seeds[each.seed] = max(seeds.get(each.seed, each), each, key=lambda e: len(e.result["made_with"]["stages"]))

    def by_dim(stop_gradient: bool, space: str) -> ByDim:
        return {dim: list(seeds.values()) for dim, seeds in sorted(cells[stop_gradient, space].items())}

    return Grid(by_dim(True, "latent"), by_dim(False, "latent"), by_dim(True, "backbone"))


def falls_with_dimension(grid: Grid) -> Finding:
    trained, small, large = ends(grid, "linear_eval")
    lost = difference(right(trained[large], "latent"), right(trained[small], "latent"))
    top1, random = over(trained, "linear_eval.latent.top1"), over(trained, "linear_eval.random_latent.top1")
    rho = correlation(np.array(list(trained)), top1)
    words = f"{points(lost)} points are lost from d = {large} to d = {small} ({top1[-1]:.1%} to {top1[0]:.1%})"
    words += f"; Spearman {rho:.2f} over {len(top1)} dimensions"
    control = (
        f"on a random encoder's latent {100 * (random[-1] - random[0]):.1f} points ({random[-1]:.1%} to {random[0]:.1%})"
    )
    untold = "the interval includes both no loss and one that counts" if lost.low <= 0 else "it falls, but not steadily"
    return Finding(lost.low > 0 and rho >= MONOTONE, lost.high < SMALL, words, control, untold)


def finetuning_hides_dimension(grid: Grid) -> Finding:
    trained, small, large = ends(grid, "linear_eval", "finetune")
    scratch, on_backbone = over(trained, "finetune.scratch.top1"), having(grid.on_backbone, "finetune")
    control = f"trained from scratch {100 * (scratch[-1] - scratch[0]):.1f} points"
    if small in on_backbone and large in on_backbone:
        lost = difference(right(on_backbone[large], "finetuned"), right(on_backbone[small], "finetuned"))
        control += f"; fine-tuned with the head on the backbone instead of the latent {points(lost)}"
    return hidden(trained[large], trained[small], f"from d = {large} to d = {small}", control)


def finetuning_hides_stop_gradient(grid: Grid) -> Finding:
    with_, without = both_ways(grid.healthy, grid.without, "linear_eval", "finetune")
    dim = max(with_)
    control = f"trained from scratch it has {over(with_, 'finetune.scratch.top1')[-1]:.1%}"
    return hidden(with_[dim], without[dim], f"without stop-gradient at d = {dim}", control)


def hidden(better: list[Found], worse: list[Found], what: str, control: str) -> Finding:
    """Whether fine-tuning hides what the worse encoders lack: of what they lose frozen, it leaves at most HIDDEN."""
    frozen, frozen_worse = (right(found, "latent").astype(float) for found in (better, worse))
    tuned, tuned_worse = (right(found, "finetuned").astype(float) for found in (better, worse))
    lost, left = contrast(frozen, -frozen_worse), contrast(tuned, -tuned_worse)
    # A seed's two networks come from one encoder, so they are put together before the seeds are compared.
    beyond = contrast(tuned - HIDDEN * frozen, HIDDEN * frozen_worse - tuned_worse)
    words = f"{what}: {points(lost)} points are lost frozen ({frozen.mean():.1%} to {frozen_worse.mean():.1%}) and "
    words += f"{points(left)} fine-tuned ({tuned.mean():.1%} to {tuned_worse.mean():.1%})"
    told = lost.low > 0
    untold = "the interval includes half of the frozen loss" if told else "frozen, no loss is beyond its interval"
    return Finding(told and beyond.high <= 0, told and beyond.low > 0, words, control, untold)


def collapse(grid: Grid) -> Finding:
    without, with_ = (together(cells) for cells in both_ways(grid.without, grid.trained))
    long_enough(without + with_)
    count, count_with = (sum(map(collapsed, found)) for found in (without, with_))

    def said(found: list[Found]) -> str:
        verdicts = ", ".join(dict.fromkeys(each.verdict for each in found))
        z_std = ", ".join(f"{each.numbers['pretrain.z_std']:.2f}" for each in found)
        return f"{sum(map(collapsed, found))} of {len(found)} trainings ({verdicts}; z_std {z_std})"

    words = f"collapsed are {said(without)} without stop-gradient, and {said(with_)} with it"
    control = "what a collapsed latent is worth was not measured"
    if measured := [each for each in without if each.has("linear_eval")]:
        top1 = [
            np.mean([each.numbers[f"linear_eval.{space}.top1"] for each in measured])
            for space in ("latent", "random_latent")
        ]
        control = f"linear top-1 on the latent without stop-gradient {top1[0]:.1%}, of a random encoder {top1[1]:.1%}"
    holds, fails = count == len(without) and not count_with, not count or count_with == len(with_)
    return Finding(holds, fails, words, control, "some of the trainings collapse, and others do not")


def accuracy_goes_with_clusters(grid: Grid) -> Finding:
    healthy = having(grid.healthy, "linear_eval", "project")
    if len(healthy) < 4:
        raise Untold(f"it takes four latent dimensions at which the encoder has not collapsed; there are {len(healthy)}")
    top1, silhouette = over(healthy, "linear_eval.latent.top1"), over(healthy, "project.latent.silhouette")
    rho, p = ranked(silhouette, top1)
    words = f"Spearman {rho:.2f} (p = {p:.2g}) over {len(healthy)} frozen latents"
    if tuned := having(healthy, "finetune"):
        found = ranked(over(tuned, "project.finetuned.silhouette"), over(tuned, "finetune.top1"))
        words += ", {:.2f} (p = {:.2g}) over the fine-tuned ones".format(*found)
    words += f"; silhouettes {silhouette.min():.2f} to {silhouette.max():.2f}"
    alone = [f"{correlation(np.array(list(healthy)), values):.2f}" for values in (top1, silhouette)]
    control = (
        f"both may follow the latent dimension, with which go accuracy by {alone[0]} and silhouette by {alone[1]}; the "
    )
    control += f"random encoder's backbone has silhouette {over(healthy, 'project.random_backbone.silhouette').mean():.2f}"
    untold = f"p = {p:.2g}: so few latents may be in this order by chance"
    return Finding(rho > 0 and p < 0.05, rho < 0 and p < 0.05, words, control, untold)


def cat_is_nearer_to_dog(grid: Grid) -> Finding:
    every = together(having(grid.healthy, "linear_eval", "project"))
    if not every:
        raise Untold("no encoder with stop-gradient was measured that has not collapsed")

    def ratios(space: str) -> tuple[list[float], list[float]]:
        """Cat to dog over cat to truck: of distances, and of how many are taken for each other."""
        cat, dog, truck = (every[0].result["classes"].index(name) for name in PAIRS)
        distances = [np.array(each.result["project"]["centroid_distances"][space]) for each in every]
        taken = [np.array(each.result["linear_eval"][space]["confusion"]) for each in every]
        taken = [matrix + matrix.T for matrix in taken]
        first, second = ([float(m[cat, dog] / max(m[cat, truck], 1e-12)) for m in found] for found in (distances, taken))
        return first, second

    def said(near: list[float], taken: list[float]) -> str:
        return (
            f"{min(near):.2f} to {max(near):.2f}, and the number taken for each other {min(taken):.1f} to {max(taken):.1f}"
        )

    ours = ratios("latent")
    words = f"cat to dog over cat to truck, {len(every)} encoders: distance {said(*ours)}"
    control = f"random encoders' backbones: distance {said(*ratios('random_backbone'))}"
    nearer = [distance < 1 < taken for distance, taken in zip(*ours, strict=True)]
    farther = [distance > 1 > taken for distance, taken in zip(*ours, strict=True)]
    return Finding(all(nearer), all(farther), words, control, "encoders, or the two measures, disagree")


def two_components(grid: Grid) -> Finding:
    measured = having(grid.trained, "project")
    dim = max(measured, default=0)
    if dim <= 2:
        raise Untold("no latent of more than two dimensions was measured")
    if any(map(collapsed, measured[dim])):
        raise Untold(f"an encoder has collapsed at the largest dimension, d = {dim}")
    share = {space: f"project.{space}.pca_variance_2" for space in ("latent", "finetuned", "backbone", "random_backbone")}
    pairs = [(each.numbers[share["latent"]], each.numbers[share["finetuned"]]) for each in measured[dim]]
    frozen, tuned, backbone, random = (over(measured, key)[-1] for key in share.values())
    words = f"at d = {dim} they explain {frozen:.1%} of the frozen latent's variance and {tuned:.1%} of the fine-tuned one's"
    control = f"of the frozen backbone's variance {backbone:.1%}, of the random encoder's backbone {random:.1%}"
    holds, fails = all(f >= MUCH and t <= f / 2 for f, t in pairs), all(f < MUCH or t > f for f, t in pairs)
    return Finding(holds, fails, words, control, "the fine-tuned share is less, but not half as much, or seeds disagree")


def top_left_corner(grid: Grid) -> Finding:
    every = [each for each in together(having(grid.healthy, "explain")) if "mass" in each.result["explain"]]
    if not every:
        raise Untold("where the SHAP mass lies was measured of no encoder with stop-gradient that has not collapsed")

    def corners(network: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        key = f"explain.mass.{network}.quadrants.0"
        mean, half = (np.array([each.numbers[f"{key}.{part}"] for each in every]) for part in ("mean", "half_width"))
        return mean, half

    said = {}
    for network in ("frozen", "finetuned", "random", "stock"):
        mean, half = corners(network)
        said[network] = f"{100 * mean.min():.1f} to {100 * mean.max():.1f} (± {100 * half.mean():.1f})"
    words = f"its share in per cent, {len(every)} encoders: frozen {said['frozen']}; fine-tuned {said['finetuned']}"
    control = (
        f"random encoders {said['random']}; frozen, but with each ReLU used twice as in the usual code, so that the values "
    )
    control += f"do not add up, {said['stock']}"
    mean, half = corners("frozen")
    untold = f"intervals include {CORNER:.0%}, or lie on both sides of it"
    return Finding(bool((mean - half > CORNER).all()), bool((mean + half < CORNER).all()), words, control, untold)


CLAIMS: dict[str, Claim[Grid]] = {
    "falls_with_dimension": Claim(
        "The frozen encoder's accuracy falls slightly as the latent dimension is reduced.",
        "section 5.1, Table 1: 34.1 % at d = 512, 22.8 % at d = 2",
        "The smallest is compared with the largest dimension. Holds if the accuracy at the smallest is lower beyond the "
        f"interval and Spearman's correlation with the dimension is at least {MONOTONE}; does not if the interval leaves a "
        f"loss of less than {100 * SMALL:.0f} point. It takes three dimensions.",
        falls_with_dimension,
    ),
    "finetuning_hides_dimension": Claim(
        "Fine-tuning hides the latent dimension.",
        "Table 1: from d = 512 to d = 2 11.3 points are lost frozen, 6.6 fine-tuned",
        "The smallest is compared with the largest dimension, whatever the others have. Holds if of what is lost frozen at "
        "most half is lost fine-tuned; does not if more than half; cannot be told where the interval includes half, or "
        "where nothing is lost frozen. It takes three dimensions.",
        finetuning_hides_dimension,
    ),
    "finetuning_hides_stop_gradient": Claim(
        "Fine-tuning hides a missing stop-gradient.",
        "section 5.3, Table 2: without it 23.7 points are lost frozen, 0.1 fine-tuned",
        "The same rule, at the largest dimension that was trained with and without stop-gradient.",
        finetuning_hides_stop_gradient,
    ),
    "collapse": Claim(
        "Without stop-gradient the encoder collapses; stop-gradient prevents it.",
        "section 5.3, Table 2: 10.4 % without, 34.1 % with",
        "A collapse is told by the latents of the last training batches: all at a point or on a line (simsiam/collapse.py). "
        "Holds if every training without stop-gradient collapses, and none with it at the same dimensions; does not if none "
        "without it does, or every one with it.",
        collapse,
    ),
    "accuracy_goes_with_clusters": Claim(
        "Accuracy goes with the quality of the classes' clusters.",
        "section 7",
        "Over the frozen latents with stop-gradient that have not collapsed, means over seeds: holds if Spearman's "
        "correlation of top-1 and silhouette is positive with p < .05 (by permuting the latents), does not if negative with "
        "p < .05. It takes four dimensions.",
        accuracy_goes_with_clusters,
    ),
    "cat_is_nearer_to_dog": Claim(
        "Cats overlap more with dogs than with trucks.",
        "section 5.2, Figure 2",
        "Holds if in every frozen latent with stop-gradient that has not collapsed the means of cat and dog lie nearer than "
        "those of cat and truck, and the linear classifier confuses them more often; does not if in every one both are the "
        "other way round.",
        cat_is_nearer_to_dog,
    ),
    "two_components": Claim(
        "Two components explain much of the frozen latent's variance, and little of the fine-tuned one's.",
        "section 7",
        "At the largest dimension, with every seed: holds if they explain at least half of the frozen latent's variance and "
        "at most half as much of the fine-tuned one's; does not if less than half of the frozen one's, or more of the "
        "fine-tuned one's.",
        two_components,
    ),
    "top_left_corner": Claim(
        "The frozen network looks at the top left corner.",
        "section 5.4, Figure 3",
        f"Holds if the 95 % interval over images of the top left quadrant's share of the SHAP mass lies above {CORNER:.0%} "
        "(evenly: 25 %) at every dimension and seed that was measured; does not if it lies below at every one.",
        top_left_corner,
    ),
}


def judged(grid: Grid) -> list[dict[str, str]]:
    """Every claim with what was found, for the page. That of cats is left out where the images have no such classes."""
    classes = {name for found in (*grid.trained.values(), *grid.without.values()) for name in found[0].result["classes"]}
    cats = classes.issuperset(PAIRS)
    return judged_by({name: claim for name, claim in CLAIMS.items() if cats or name != "cat_is_nearer_to_dog"}, grid)


def collapsed(found: Found) -> bool:
    return found.verdict.startswith("collapsed")


def having(cells: ByDim, *stages: str) -> ByDim:
    """The dimensions, and at each the results, that have gone through these stages."""
    kept = {dim: [each for each in found if each.has(*stages)] for dim, found in cells.items()}
    return {dim: found for dim, found in kept.items() if found}


def together(cells: ByDim) -> list[Found]:
    return [each for found in cells.values() for each in found]


def ends(grid: Grid, *stages: str) -> tuple[ByDim, int, int]:
    """What was measured with stop-gradient, and the smallest and the largest dimension of it."""
    measured = having(grid.trained, *stages)
    if len(measured) < 3:
        raise Untold(f"it takes three latent dimensions that were measured with stop-gradient; there are {len(measured)}")
    small, large = min(measured), max(measured)
    if any(map(collapsed, measured[small] + measured[large])):
        raise Untold(f"an encoder has collapsed at d = {small} or {large}, which costs more than its dimension does")
    return measured, small, large


def both_ways(first: ByDim, second: ByDim, *stages: str) -> tuple[ByDim, ByDim]:
    """Those of the dimensions that both have."""
    first, second = having(first, *stages), having(second, *stages)
    if not (both := sorted(first.keys() & second.keys())):
        raise Untold("no latent dimension was trained with and without stop-gradient, and measured")
    return {dim: first[dim] for dim in both}, {dim: second[dim] for dim in both}


def right(found: list[Found], space: str) -> NDArray[np.bool_]:
    """(seeds, N): which test images each classified right."""
    return np.stack([each.right(space) for each in found])


def over(cells: ByDim, key: str) -> NDArray[np.float64]:
    """(dimensions,): a number's mean over seeds."""
    return np.array([np.mean([each.numbers[key] for each in found]) for found in cells.values()])

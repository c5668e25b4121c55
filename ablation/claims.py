"""What Lind, Bosch & Hu concluded, put to the test on the study's numbers.

Each claim has a number, a rule, and a verdict by that rule: it holds, it does not, or it cannot be told at this scale. The
rules were first written when of the `laptop` grid only the pipeline's default point was known (commit a4436fb); some were
made stricter or plainer since. By the first ones the verdicts on that grid are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm, permutation_test, spearmanr
from scipy.stats import t as student

from ablation.tables import Result
from simsiam.data import CLASSES
from simsiam.params import TEST_IMAGES

Verdict = Literal["holds", "does not hold", "cannot be told"]
CAT, DOG, TRUCK = (CLASSES.index(name) for name in ("cat", "dog", "truck"))
COLLAPSED, HEALTHY = 0.1, 0.5  # z_std below the one, above the other
CORNER = 0.30  # share of the SHAP mass in one quadrant; spread evenly, each has .25

CLAIMS = {  # name -> what is claimed, where in the report, and the rule
    "falls_with_dimension": (
        "The frozen encoder's accuracy falls slightly as the latent dimension is reduced.",
        "section 5.1, Table 1",
        "holds if top-1 is lower at the smallest than at the largest dimension by more than the noise, and Spearman's "
        "correlation with the dimension is at least .8; does not if it is not lower; cannot be told between these, or with "
        "fewer than three dimensions",
    ),
    "finetuning_hides_dimension": (
        "Fine-tuning hides the latent dimension.",
        "Table 1",
        "holds if the spread of top-1 over the dimensions is at most half as wide fine-tuned as frozen; does not if it is "
        "at least as wide; cannot be told between these, or where the frozen spread is within the noise, or with fewer than "
        "three dimensions",
    ),
    "finetuning_hides_stop_gradient": (
        "Fine-tuning hides a missing stop-gradient.",
        "section 5.3, Table 2",
        "holds if what is lost without stop-gradient is, fine-tuned, at most a quarter of what it is frozen, or within "
        "the noise; does not if it is more than half and more than the noise; cannot be told between these, or where "
        "nothing is lost frozen; at the largest dimension that was trained both ways",
    ),
    "collapse": (
        "Without stop-gradient the encoder collapses; stop-gradient prevents it.",
        "section 5.3, Table 2",
        f"holds if z_std of the test images is below {COLLAPSED} without and above {HEALTHY} with stop-gradient; does not "
        f"if it is above {HEALTHY} without; with BatchNorm on the latent, which keeps z_std of a collapsed batch at "
        "2 / sqrt(batch size), the bounds are these shares of the way from there to 1",
    ),
    "accuracy_goes_with_clusters": (
        "Accuracy goes with the quality of the classes' clusters.",
        "section 7",
        "holds if Spearman's correlation of top-1 and silhouette over the frozen latents is positive with p < .05 (by "
        "permuting the points); does not if it is negative with p < .05",
    ),
    "cat_is_nearer_to_dog": (
        "Cats overlap more with dogs than with trucks.",
        "section 5.2, Figure 2",
        "holds if, in every frozen latent with stop-gradient, the means of cat and dog lie nearer than those of cat and "
        "truck and a linear classifier confuses them more often; does not if in every one both are the other way round",
    ),
    "two_components": (
        "Two components explain much of the frozen latent's variance, and little of the fine-tuned one's.",
        "section 7",
        "holds if, at the largest dimension, they explain at least half of the frozen latent's variance and at most half as "
        "much of the fine-tuned one's; does not if they explain less than half of the frozen one's, or more of the "
        "fine-tuned one's",
    ),
    "top_left_corner": (
        "The frozen network looks at the top left corner.",
        "section 5.4, Figure 3",
        f"holds if the 95 % interval of the top left quadrant's share of the SHAP mass lies above {CORNER:.0%} (evenly: 25 "
        "%) at every dimension that was measured; does not if it lies below at every one",
    ),
}


@dataclass(frozen=True)
class Finding:
    """What the grid says of a claim."""

    value: float | None  # the number that the rule is about
    words: str  # all numbers that the verdict rests on
    holds: bool
    fails: bool
    points: str = ""  # a command's overrides that make what it is about; without, it is about the whole grid

    @property
    def verdict(self) -> Verdict:
        return "holds" if self.holds else "does not hold" if self.fails else "cannot be told"


def all_claims(points: pd.DataFrame, results: list[Result], whole_grid: str, floor: float = 0.0) -> list[dict[str, Any]]:
    """Every claim with its finding, for the page; `points` is `tables.points_table(results)`.

    whole_grid: the command that runs all points. floor: what BatchNorm on the latent leaves of z_std when all latents have
    collapsed.
    """
    trained = points[points["stop_gradient"]]
    findings: dict[str, Callable[[], Finding]] = {
        "falls_with_dimension": lambda: falls_with_dimension(trained),
        "finetuning_hides_dimension": lambda: finetuning_hides_dimension(trained),
        "finetuning_hides_stop_gradient": lambda: finetuning_hides_stop_gradient(*pair(points)),
        "collapse": lambda: collapse(*pair(points), floor),
        "accuracy_goes_with_clusters": lambda: accuracy_goes_with_clusters(points),
        "cat_is_nearer_to_dog": lambda: cat_is_nearer_to_dog(results),
        "two_components": lambda: two_components(trained),
        "top_left_corner": lambda: top_left_corner(results),
    }
    claims = []
    for name, (claim, where, rule) in CLAIMS.items():
        found = findings[name]()
        first = f"-S recipe={points['recipe'].iloc[0]} -S seed={points['seed'].min()}"
        command = f"dvc exp run {first} {found.points}" if found.points else whole_grid
        claims.append(
            {"name": name, "claim": claim, "where": where, "rule": rule, "value": found.value, "finding": found.words}
            | {"verdict": found.verdict, "command": command}
        )
    return claims


def falls_with_dimension(trained: pd.DataFrame) -> Finding:
    """Over the points with stop-gradient."""
    by_dim = trained.groupby("latent_dim")[["latent_top1", "random_latent_top1"]].mean()
    if len(by_dim) < 3:
        return Finding(None, "it takes three latent dimensions.", False, False)
    small, large = by_dim.iloc[0], by_dim.iloc[-1]
    loss = float(large["latent_top1"] - small["latent_top1"])
    unsure = noise(*(trained.loc[trained["latent_dim"] == end.name, "latent_top1"] for end in (small, large)))
    rho = correlation(by_dim.index.to_numpy(), by_dim["latent_top1"].to_numpy())
    words = (
        f"top-1 on the latent is {small['latent_top1']:.1%} at d = {small.name} and {large['latent_top1']:.1%} at "
        f"d = {large.name} (noise: {100 * unsure:.1f} points); Spearman {rho:.2f} over {len(by_dim)} dimensions. On a "
        f"random encoder's latent it is {small['random_latent_top1']:.1%} and {large['random_latent_top1']:.1%}."
    )
    return Finding(loss, words, loss > unsure and rho >= 0.8, loss <= 0)


def finetuning_hides_dimension(trained: pd.DataFrame) -> Finding:
    """Over the points with stop-gradient."""
    by_dim = trained.groupby("latent_dim")[["latent_top1", "finetuned_top1", "finetuned_backbone_top1"]].mean()
    if by_dim.empty:
        return Finding(None, "nothing was trained with stop-gradient.", False, False)
    spread = by_dim.max() - by_dim.min()
    ratio = float(spread["finetuned_top1"] / max(spread["latent_top1"], 1e-9))
    ends = by_dim["latent_top1"].idxmin(), by_dim["latent_top1"].idxmax()
    unsure = noise(*(trained.loc[trained["latent_dim"] == dim, "latent_top1"] for dim in ends))
    told = len(by_dim) > 2 and spread["latent_top1"] > unsure
    points = 100 * spread
    words = (
        f"over {len(by_dim)} dimensions top-1 spreads by {points['latent_top1']:.1f} points frozen and by "
        f"{points['finetuned_top1']:.1f} fine-tuned, {ratio:.2f} times that; fine-tuned with the head on the backbone "
        f"instead of the latent, by {points['finetuned_backbone_top1']:.1f}."
    )
    return Finding(ratio, words, told and ratio <= 0.5, told and ratio >= 1)


def finetuning_hides_stop_gradient(with_: pd.DataFrame, without: pd.DataFrame) -> Finding:
    """At the largest dimension that was trained with and without stop-gradient."""
    if with_.empty:
        return Finding(None, "no dimension was trained both ways.", False, False)
    dim = with_["latent_dim"].max()
    with_, without = (group[group["latent_dim"] == dim] for group in (with_, without))
    frozen = with_["latent_top1"], without["latent_top1"]
    tuned = with_["finetuned_top1"], without["finetuned_top1"]
    lost_frozen, lost = float(frozen[0].mean() - frozen[1].mean()), float(tuned[0].mean() - tuned[1].mean())
    words = (
        f"at d = {dim}, without stop-gradient, top-1 on the latent falls from {frozen[0].mean():.1%} to "
        f"{frozen[1].mean():.1%} frozen, and from {tuned[0].mean():.1%} to {tuned[1].mean():.1%} fine-tuned (noise: "
        f"{100 * noise(*tuned):.1f} points)."
    )
    told = lost_frozen > noise(*frozen)
    shows = lost > max(noise(*tuned), lost_frozen / 2)
    return Finding(
        lost, words, told and lost <= max(noise(*tuned), lost_frozen / 4), told and shows, without_points(without)
    )


def collapse(with_: pd.DataFrame, without: pd.DataFrame, floor: float) -> Finding:
    """At the dimensions that were trained with and without stop-gradient; floor as in `all_claims`."""
    if with_.empty:
        return Finding(None, "no dimension was trained both ways.", False, False)
    low, high = float(without["z_std"].max()), float(with_["z_std"].min())
    words = (
        f"z_std is {low:.3f} without and {high:.3f} with stop-gradient; the loss ends at {without['loss'].mean():.3f} and "
        f"{with_['loss'].mean():.3f}; linear evaluation of the latent gives {without['latent_top1'].mean():.1%} and "
        f"{with_['latent_top1'].mean():.1%}, of a random encoder's {with_['random_latent_top1'].mean():.1%}."
    )
    collapsed, healthy = (floor + (1 - floor) * bound for bound in (COLLAPSED, HEALTHY))
    return Finding(low, words, low < collapsed and high > healthy, low > healthy, without_points(without))


def accuracy_goes_with_clusters(points: pd.DataFrame) -> Finding:
    """Over the points, means over seeds.

    Frozen and fine-tuned latents are not thrown together: two groups that differ in both would correlate by that alone.
    """
    columns = [f"{space}_{name}" for space in ("latent", "finetuned") for name in ("silhouette", "top1")]
    means = points.groupby(["latent_dim", "stop_gradient"])[columns].mean()
    if len(means) < 4:
        return Finding(None, "it takes four points.", False, False)
    found = {space: ranked(means[f"{space}_silhouette"], means[f"{space}_top1"]) for space in ("latent", "finetuned")}
    rho, p = found["latent"]
    words = (
        f"Spearman {rho:.2f} (p = {p:.2g}) over the {len(means)} frozen latents; {found['finetuned'][0]:.2f} "
        f"(p = {found['finetuned'][1]:.2g}) over the fine-tuned ones."
    )
    return Finding(rho, words, rho > 0 and p < 0.05, rho < 0 and p < 0.05)


def cat_is_nearer_to_dog(results: list[Result]) -> Finding:
    """Over the points with stop-gradient, in the frozen latent."""
    ratios, confused = [], []
    for result in sorted(results, key=lambda result: result["point"]["latent_dim"]):
        if result["point"]["stop_gradient"]:
            distance = np.array(result["project"]["centroid_distances"]["latent"])
            confusion = np.array(result["linear_eval"]["latent"]["confusion"])
            ratios.append(float(distance[CAT, DOG] / max(distance[CAT, TRUCK], 1e-12)))
            confused.append([int(confusion[CAT, other] + confusion[other, CAT]) for other in (DOG, TRUCK)])
    if not ratios:
        return Finding(None, "nothing was trained with stop-gradient.", False, False)
    words = (
        f"distance from cat to dog over distance from cat to truck: {ratios[-1]:.2f} at the largest d, {min(ratios):.2f} to "
        f"{max(ratios):.2f} over the grid; at the largest d, {confused[-1][0]} cats and dogs are taken for each other, and "
        f"{confused[-1][1]} cats and trucks."
    )
    nearer = [ratio < 1 and dog > truck for ratio, (dog, truck) in zip(ratios, confused, strict=True)]
    farther = [ratio > 1 and dog < truck for ratio, (dog, truck) in zip(ratios, confused, strict=True)]
    return Finding(ratios[-1], words, all(nearer), all(farther))


def two_components(trained: pd.DataFrame) -> Finding:
    """At the largest dimension."""
    if trained.empty:
        return Finding(None, "nothing was trained with stop-gradient.", False, False)
    largest = trained[trained["latent_dim"] == trained["latent_dim"].max()]
    share = {
        space: float(largest[f"{space}_pca_variance_2"].mean())
        for space in ("latent", "finetuned", "backbone", "random_backbone")
    }
    frozen, tuned, dim = share["latent"], share["finetuned"], largest["latent_dim"].iloc[0]
    words = (
        f"at d = {dim} they explain {frozen:.1%} of the frozen latent's variance and {tuned:.1%} of the fine-tuned one's; "
        f"of the frozen backbone's {share['backbone']:.1%}, and of a random one's {share['random_backbone']:.1%}."
    )
    told = dim > 2
    holds = told and frozen >= 0.5 and tuned <= frozen / 2
    return Finding(frozen, words, holds, told and (frozen < 0.5 or tuned > frozen), f"-S latent_dim={dim}")


def top_left_corner(results: list[Result]) -> Finding:
    """Over the points whose SHAP mass was measured."""
    measured = [result for result in results if "frozen" in result["shap_mass"] and result["point"]["stop_gradient"]]
    measured.sort(key=lambda result: result["point"]["latent_dim"])
    if not measured:
        return Finding(None, "the SHAP mass of no point was measured.", False, False)
    networks = ("frozen", "finetuned", "random", "stock")
    shares = {name: [result["shap_mass"][name]["quadrants"][0] for result in measured] for name in networks}
    said = {
        name: ", ".join(f"{100 * s['mean']:.1f} ± {100 * s['half_width']:.1f}" for s in shares[name]) for name in networks
    }
    radius = measured[-1]["shap_mass"]["frozen"]["radius"]
    words = (
        f"the top left quadrant's share in per cent at d = {', '.join(str(r['point']['latent_dim']) for r in measured)}, "
        f"over {measured[0]['shap_mass']['images']} images: frozen {said['frozen']}; fine-tuned {said['finetuned']}; a "
        f"random encoder {said['random']}; frozen, but with ReLUs used twice as in the stock network, whose values do not "
        f"add up, {said['stock']}. The mean distance from the middle, frozen: {radius['mean']:.1f} ± "
        f"{radius['half_width']:.1f} pixels (12.2 if spread evenly)."
    )
    low = min(share["mean"] - share["half_width"] for share in shares["frozen"])
    high = max(share["mean"] + share["half_width"] for share in shares["frozen"])
    return Finding(shares["frozen"][-1]["mean"], words, low > CORNER, high < CORNER)


def noise(*groups: pd.Series) -> float:
    """Half the 95 % interval of the difference of two accuracies, each measured with some seeds.

    From the number of test images, and where there are several seeds from how far they lie apart (Student's t).
    """
    of_images = sum(group.mean() * (1 - group.mean()) / TEST_IMAGES for group in groups)
    of_seeds = sum(group.var() / len(group) for group in groups if len(group) > 1)
    freedom = sum(len(group) - 1 for group in groups)
    width = student.ppf(0.975, freedom) if freedom else norm.ppf(0.975)
    return float(width * np.sqrt(of_images + of_seeds))


def ranked(x: pd.Series, y: pd.Series) -> tuple[float, float]:
    """Spearman's correlation and its p by permuting the points, two-sided: all orders of up to seven points, else 10,000."""
    test = permutation_test(
        (x.to_numpy(),), lambda x: correlation(x, y.to_numpy()), permutation_type="pairings", n_resamples=10_000, rng=0
    )
    return float(test.statistic), float(test.pvalue)


def pair(points: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The points with and those without stop-gradient, of the dimensions that have both."""
    with_, without = points[points["stop_gradient"]], points[~points["stop_gradient"]]
    both = set(with_["latent_dim"]) & set(without["latent_dim"])
    return with_[with_["latent_dim"].isin(both)], without[without["latent_dim"].isin(both)]


def without_points(without: pd.DataFrame) -> str:
    """The overrides that train the first of these points."""
    return f"-S latent_dim={without['latent_dim'].iloc[0]} -S stop_gradient=false"


def correlation(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Spearman's, or 0 where there is nothing to rank."""
    rho = float(spearmanr(x, y).statistic) if len(x) > 2 else 0.0
    return rho if np.isfinite(rho) else 0.0

"""How far two encoders' accuracies on the same test images differ, and how sure that is."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata, spearmanr
from scipy.stats import t as student

SMALL = 0.01  # of accuracy: less counts as none
ALONE = 2.0  # with one seed, by how much two trainings' numbers have to differ


class Estimate(NamedTuple):
    """A number, and half the width of its 95 % interval."""

    value: float
    half: float

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half


def difference(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> Estimate:
    """Accuracy of encoder a less that of b: (seeds, N) each, whether an image was classified right; the same N images."""
    return contrast(a.astype(float), -b.astype(float))


def contrast(*groups: NDArray[np.float64]) -> Estimate:
    """The sum of the groups' means, each (seeds, N) on the same N images; the seeds of two groups are independent.

    Seeds and images are both samples: x = mean + seed + image + rest (two-way random effects), and the sum's variance is

        sum of V_seeds / n  +  V_images / N  -  sum of V_rest / (n N)

    V_seeds: of a group's means over images; V_images: of the images' sums over groups, means over seeds, so that what the
    groups have in common falls out; the rest is in both and counts once. A group of one seed is taken to vary with the seed
    as the others do. Where every group has one, the interval is over images alone: of these networks, not of other seeds.
    """
    images = np.sum([group.mean(0) for group in groups], axis=0)
    n = len(images)
    value, of_images = float(images.mean()), float(images.var(ddof=1)) / n
    counts = np.array([len(group) for group in groups])
    if counts.max() == 1:
        return Estimate(value, float(norm.ppf(0.975)) * of_images**0.5)
    several = counts[counts > 1]
    seeds = np.array([group.mean(1).var(ddof=1) for group in groups if len(group) > 1])
    rest = np.array([_rest(group) / n for group in groups if len(group) > 1])
    share = 1 / several + (counts == 1).sum() / len(several)  # in the sum: its own, and what those of one seed borrow
    variance = of_images + max(float((share * (seeds - rest)).sum()), 0.0)
    # Welch and Satterthwaite: the degrees of freedom of a sum of variances, of which those over seeds have few.
    few = ((share * seeds) ** 2 / (several - 1)).sum()
    width = student.ppf(0.975, variance**2 / few) if few > 0 and variance > 0 else norm.ppf(0.975)
    return Estimate(value, float(width) * variance**0.5)


def ratio(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Logarithm of a's geometric mean over b's, of positive numbers that the seeds of two points gave.

    The interval is Welch's, over seeds. Where either has one seed nothing is known of how seeds differ: then the interval is
    as wide as a factor of `ALONE` either way, so that less than it tells nothing.
    """
    x, y = np.log(a), np.log(b)
    value = float(x.mean() - y.mean())
    if min(len(x), len(y)) == 1:
        return Estimate(value, float(np.log(ALONE)))
    parts = np.array([x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)])
    few = (parts**2 / (np.array([len(x), len(y)]) - 1)).sum()
    width = student.ppf(0.975, parts.sum() ** 2 / few) if few > 0 else 0.0
    return Estimate(value, float(width * parts.sum() ** 0.5))


def points(found: Estimate) -> str:
    """A difference of accuracies in points, with half of its interval."""
    return f"{100 * found.value:.1f} ± {100 * found.half:.1f}"


def ranked(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Spearman's correlation and its p by permuting the points, two-sided: all orders of up to seven points, else 10,000."""
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    rng, n = np.random.default_rng(0), len(a)
    orders = list(permutations(range(n))) if n <= 7 else [np.arange(n), *(rng.permutation(n) for _ in range(9_999))]
    found = a[np.array(orders)] @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-300)  # the first is the order there is
    return float(found[0]), float((np.abs(found) > abs(found[0]) - 1e-9).mean())


def correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Spearman's, or 0 where there is nothing to rank."""
    return float(spearmanr(x, y).statistic) if np.ptp(x) and np.ptp(y) else 0.0


def _rest(group: NDArray[np.float64]) -> float:
    """Mean square of what neither seed nor image explains, of (seeds, N)."""
    left = group - group.mean(0) - group.mean(1, keepdims=True) + group.mean()
    return float((left**2).sum() / ((group.shape[0] - 1) * (group.shape[1] - 1)))

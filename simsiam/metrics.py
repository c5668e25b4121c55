"""What arrays of features, scores and labels are worth: arrays in, numbers out."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import entropy, mannwhitneyu

from simsiam.images import Floats, Labels


def top_k(scores: Floats, labels: Labels, k: int) -> float:
    """Share of rows whose label is among the k highest scores, as a fraction of 1.

    scores (N, classes), labels (N,). Of two classes with equal scores the lower one counts as higher.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(1).mean())


def accuracies(scores: Floats, labels: Labels) -> dict[str, float]:
    """What scores (N, classes) are worth: `top1`; `top5` above five classes; `balanced`, the mean over classes of the share
    that is right, where the classes are not equally many; `auc`, the area under the ROC curve, where there are two."""
    counts = np.bincount(labels, minlength=scores.shape[1])
    found = {"top1": top_k(scores, labels, 1)}
    if len(counts) > 5:
        found["top5"] = top_k(scores, labels, 5)
    if counts.min() < counts.max():
        right = np.bincount(labels, weights=scores.argmax(1) == labels, minlength=len(counts))
        found["balanced"] = float((right[counts > 0] / counts[counts > 0]).mean())
    if len(counts) == 2 and counts.min():
        margin = scores[:, 1] - scores[:, 0]
        found["auc"] = float(mannwhitneyu(margin[labels == 1], margin[labels == 0]).statistic / np.prod(counts))
    return found


def nearest(bank: Floats, queries: Floats, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosine similarities and bank indices, both (queries, k) and most similar first, of each query's k neighbours.

    All of the bank where it has fewer than k.
    """
    k = min(k, len(bank))
    normalised = F.normalize(torch.from_numpy(bank).float(), dim=1).T
    similarities, indices = zip(
        *((F.normalize(chunk, dim=1) @ normalised).topk(k) for chunk in torch.split(torch.from_numpy(queries).float(), 500)),
        strict=True,
    )
    return torch.cat(similarities).numpy(), torch.cat(indices).numpy()


def knn_scores(similarities: Floats, neighbours: Labels, classes: int, *, temperature: float) -> NDArray[np.float64]:
    """Votes (N, classes) of the weighted kNN classifier (Wu et al. 2018, section 3.4): each with exp(cosine / T).

    similarities and the neighbours' labels: (N, k), most similar first.
    """
    weights = np.exp((similarities - similarities[:, :1]) / temperature)  # the nearest weighs 1, so nothing overflows
    return np.stack([(weights * (neighbours == c)).sum(1) for c in range(classes)], axis=1)


def knn_top1(
    bank: Floats, bank_labels: Labels, queries: Floats, labels: Labels, *, classes: int, k: int, temperature: float
) -> float:
    """Share of queries (N, d) whose label is what their k neighbours in the bank (M, d) vote for (`knn_scores`)."""
    similarities, indices = nearest(bank, queries, k)
    return top_k(knn_scores(similarities, bank_labels[indices], classes, temperature=temperature), labels, 1)


def precision_at(k: int, neighbours: Labels, labels: Labels) -> float:
    """Share of the k nearest neighbours with the query's label, over all queries. neighbours (N, k or more), labels (N,)."""
    return float((neighbours[:, :k] == labels[:, None]).mean())


def rankme(features: Floats) -> float:
    """Effective rank of features (N, d): the exponential of the entropy of the singular values, in [1, d].

    Garrido et al. 2023, equation 1 (RankMe), on the matrix as it is, not centred; without their 1e-7, which lifts it over d.
    """
    x = features.astype(np.float64)
    gram = x.T @ x if x.shape[1] <= len(x) else x @ x.T  # much faster than a decomposition of x, and as good: in double
    singular = np.sqrt(np.linalg.eigvalsh(gram).clip(0))
    return min(float(np.exp(entropy(singular))), float(len(singular))) if singular.any() else 1.0  # rounding may exceed it


def spectrum(features: Floats) -> NDArray[np.float64]:
    """Eigenvalues of the features' covariance as shares of the total variance, largest first: (d,), sums to 1."""
    eigenvalues = np.linalg.eigvalsh(np.atleast_2d(np.cov(features.astype(np.float64), rowvar=False)))[::-1].clip(0)
    return eigenvalues / max(eigenvalues.sum(), 1e-300)


def explained_auc(shares: Floats) -> float:
    """How few directions the features use, in [(d + 1) / 2d, 1] and 1 for a single one, from their `spectrum` (d,).

    Li, Efros & Pathak 2022, equation 2: the area under the cumulative explained variance, which they take of the singular
    values of the centred features themselves, not of their squares. 1 for features without any variance.
    """
    singular = np.sqrt(shares)
    return float((np.cumsum(singular) / singular.sum()).mean()) if singular.any() else 1.0


def alignment(one: Floats, other: Floats) -> float:
    """Mean squared distance of l2-normalised features (N, d) of two views of the same images: in [0, 4], 0 for equal ones.

    Wang & Isola 2020, section 4.1, with their alpha = 2.
    """
    return float(((_normalised(one) - _normalised(other)) ** 2).sum(1).mean())


def uniformity(features: Floats, most: int = 3000) -> float:
    """Logarithm of the mean of exp(-2 * squared distance) over all pairs of l2-normalised features (N, d), in [-8, 0].

    Wang & Isola 2020, section 4.1, with their t = 2. 0 for features at one point; spread evenly over a sphere of many
    dimensions they come to -4. N is 2 or more; of more than `most` images that many are compared, evenly chosen.
    """
    x = _normalised(features[np.unique(np.linspace(0, len(features) - 1, min(most, len(features))).astype(int))])
    squares, total = (x**2).sum(1), 0.0
    for start in range(0, len(x), 500):  # all pairs at once would take 72 MB
        rows = slice(start, start + 500)
        distances = (squares[rows, None] + squares - 2 * x[rows] @ x.T).clip(0)
        total += np.exp(-2 * distances).sum() - len(distances)  # without each one's distance to itself
    return float(np.log(total / (len(x) * (len(x) - 1))))


def linear_cka(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Linear centred kernel alignment of two networks' features, (N, d) and (N, e), of the same N images, 4 or more.

    1 for features that are the same but for rotation, mirroring, scale and shift; about 0, and at times a little below, for
    unrelated ones; NaN where one has no variance. Kornblith et al. 2019, section 3, with HSIC estimated without bias (Song
    et al. 2007; Nguyen et al. 2021, equation 3): by the plain estimate all features of some hundred images look alike.
    """
    p, q = _pairwise(one), _pairwise(other)
    within = _hsic(p, p) * _hsic(q, q)
    return _hsic(p, q) / within**0.5 if within > 0 else float("nan")


def _normalised(features: Floats) -> NDArray[np.float64]:
    """Rows of length 1, but for those that are 0."""
    x = features.astype(np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)


def _pairwise(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Inner products (N, N) of centred features, and 0 on the diagonal: an image with itself is what makes the bias."""
    x = features.astype(np.float64)
    x = x - x.mean(0)
    products = x @ x.T
    np.fill_diagonal(products, 0)
    return products


def _hsic(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """HSIC_1 of two symmetric matrices (N, N) with a diagonal of 0."""
    n = len(p)
    found = (p * q).sum() + p.sum() * q.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (p.sum(0) @ q.sum(0))
    return float(found / (n * (n - 3)))

"""What arrays of features, scores and labels are worth: arrays in, numbers out."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import entropy, rankdata

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
        ranks = rankdata(scores[:, 1] - scores[:, 0])[labels == 1]  # equal scores share theirs
        found["auc"] = float((ranks.mean() - (counts[1] + 1) / 2) / counts[0])
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

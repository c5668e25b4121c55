"""What arrays of features, scores and labels are worth: arrays in, numbers out."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from simsiam.data import Floats, Labels


def top_k(scores: Floats, labels: Labels, k: int) -> float:
    """Share of rows whose label is among the k highest scores, as a fraction of 1.

    scores (N, classes), labels (N,). Of two classes with equal scores the lower one counts as higher.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((best == labels[:, None]).any(1).mean())


def nearest(bank: Floats, queries: Floats, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosine similarities and bank indices, both (queries, k) and most similar first, of each query's k neighbours."""
    k = min(k, len(bank))
    normalised = F.normalize(torch.from_numpy(bank).float(), dim=1).T
    similarities, indices = zip(
        *((F.normalize(chunk, dim=1) @ normalised).topk(k) for chunk in torch.split(torch.from_numpy(queries).float(), 500)),
        strict=True,
    )
    return torch.cat(similarities).numpy(), torch.cat(indices).numpy()


def knn_accuracy(bank: Floats, bank_labels: Labels, queries: Floats, labels: Labels, *, k: int, temperature: float) -> float:
    """Top-1 of the weighted kNN classifier (Wu et al. 2018, section 3.4): neighbours vote with exp(cosine / T)."""
    similarities, indices = nearest(bank, queries, k)
    weights = np.exp((similarities - similarities[:, :1]) / temperature)  # the nearest weighs 1, so nothing overflows
    neighbour_labels = bank_labels[indices]
    votes = np.stack([(weights * (neighbour_labels == c)).sum(1) for c in range(int(bank_labels.max()) + 1)], axis=1)
    return top_k(votes, labels, 1)


def rankme(features: Floats) -> float:
    """Effective rank: the exponential of the entropy of the singular values, in [1, d].

    The definition of Garrido et al. 2023 (RankMe, equation 1), on the matrix as it is, not centred.
    """
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    share = singular / max(singular.sum(), 1e-300) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def spectrum(features: Floats) -> NDArray[np.float64]:
    """Eigenvalues of the features' covariance as shares of the total variance, largest first: (d,), sums to 1."""
    eigenvalues = np.linalg.eigvalsh(np.atleast_2d(np.cov(features.astype(np.float64), rowvar=False)))[::-1].clip(0)
    return eigenvalues / max(eigenvalues.sum(), 1e-300)

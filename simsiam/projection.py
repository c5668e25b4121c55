"""Features on a plane, and how much of them the plane keeps."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE, trustworthiness
from sklearn.metrics import silhouette_score
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from simsiam.images import Floats, Labels


def pca(features: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal components of features (N, d): coordinates (N, min(N, d)), and each component's share of the variance.

    Features without any variance, as of a collapsed encoder, give shares of 0.
    """
    model = PCA(svd_solver="full")
    coordinates = model.fit_transform(features.astype(np.float64))
    return coordinates, np.nan_to_num(model.explained_variance_ratio_)


def tsne(features: Floats, *, perplexity: float, seed: int) -> NDArray[np.float32]:
    """t-SNE coordinates (N, 2) of features (N, d), scikit-learn's Barnes-Hut method started from PCA.

    More than 50 dimensions are first reduced to 50 principal components, as van der Maaten & Hinton 2008, section 4.2, do
    with 30. Raises ValueError when perplexity is not smaller than N.
    """
    reduced = pca(features)[0][:, :50].astype(np.float32)
    if reduced[:, 0].std() < 1e-12:  # all features are one: scikit-learn would divide by their spread and crash
        return np.zeros((len(features), 2), np.float32)
    model = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, n_jobs=-1)
    coordinates: NDArray[np.float32] = model.fit_transform(reduced)
    return coordinates


def silhouette(features: Floats, labels: Labels) -> float:
    """Mean silhouette of the classes as clusters, Euclidean, in [-1, 1]; 0 is overlap or a lone point (Rousseeuw 1987)."""
    if not 1 < len(np.unique(labels)) < len(labels):
        return 0.0
    return float(silhouette_score(features, labels))


def knn_in_plane(points: Floats, labels: Labels, k: int = 10) -> float:
    """Top-1 of a k-nearest-neighbour vote among the points of a map, 5-fold cross-validated; k is fewer where few are."""
    folds = KFold(min(5, len(points))) if np.bincount(labels).max() < 5 else 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer points than folds
        return float(cross_val_score(KNeighborsClassifier(few(k, points)), points, labels, cv=folds).mean())


def map_trustworthiness(features: Floats, points: Floats, k: int = 10) -> float:
    """How far the k neighbours on the map are neighbours in the features too, in [0, 1] (Venna & Kaski 2001)."""
    if len(points) < 3:  # everyone is everyone's neighbour
        return 1.0
    return float(trustworthiness(features, points, n_neighbors=few(k, points)))


def few(k: int, points: Floats) -> int:
    """k, or a quarter of the points where these are few."""
    return min(k, max(1, len(points) // 4))


def centroid_distances(features: Floats, labels: Labels) -> NDArray[np.float64]:
    """Euclidean distances (classes, classes) between the classes' mean features, in units of the mean distance of an example
    from its class's mean. They compare pairs of classes in one space; they say nothing of whether classes can be separated.
    """
    classes = np.unique(labels)
    centroids = np.stack([features[labels == c].mean(0, dtype=np.float64) for c in classes])
    within = np.linalg.norm(features - centroids[np.searchsorted(classes, labels)], axis=1).mean()
    between = np.linalg.norm(centroids[:, None] - centroids[None], axis=2)
    return between / max(within, 1e-300)

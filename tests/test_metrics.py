"""Accuracies against scikit-learn; ranks, spectra and likeness against their definitions, and at their analytic limits."""

from itertools import combinations, permutations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import i0
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from simsiam.images import ImageSet, Pixels
from simsiam.metrics import (
    alignment,
    explained_auc,
    knn_scores,
    linear_cka,
    nearest,
    precision_at,
    rankme,
    spectrum,
    top_k,
    uniformity,
)
from tests.some import rng


def flat(images: Pixels) -> NDArray[np.float32]:
    return (images.reshape(len(images), -1) / 255 - 0.5).astype(np.float32)


def knn(images: ImageSet, k: int, temperature: float) -> float:
    similarities, indices = nearest(flat(images.x_train), flat(images.x_test), k)
    return top_k(knn_scores(similarities, images.y_train[indices], 10, temperature=temperature), images.y_test, 1)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k(k: int) -> None:
    scores, labels = rng().normal(size=(300, 10)), rng(1).integers(0, 10, 300)
    assert top_k(scores, labels, k) == pytest.approx(top_k_accuracy_score(labels, scores, k=k))


def test_equal_scores_count_once() -> None:
    labels = np.arange(10)
    assert top_k(np.zeros((10, 10)), labels, 1) == pytest.approx(0.1)
    assert top_k(np.zeros((10, 10)), labels, 5) == pytest.approx(0.5)


def test_of_two_classes_both_are_among_the_top_five() -> None:
    assert top_k(rng().normal(size=(50, 2)), np.arange(50) % 2, 5) == 1


@pytest.mark.parametrize("k", [1, 20, 400])
def test_knn(cifar: ImageSet, k: int) -> None:
    def weights(distances: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp((1 - distances) / 0.1)

    oracle = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    expected = oracle.fit(flat(cifar.x_train), cifar.y_train).score(flat(cifar.x_test), cifar.y_test)
    assert knn(cifar, k, 0.1) == pytest.approx(expected, abs=1e-9)


def test_a_low_temperature_is_the_nearest_neighbour_and_does_not_overflow(cifar: ImageSet) -> None:
    assert knn(cifar, 50, 1e-6) == knn(cifar, 1, 0.1) > 0.1


def test_nearest_is_itself_in_the_bank(cifar: ImageSet) -> None:
    bank = cifar.x_train.reshape(len(cifar.x_train), -1).astype(np.float32)
    similarities, indices = nearest(bank, bank[:30], 5)
    assert (indices[:, 0] == np.arange(30)).all()
    assert np.allclose(similarities[:, 0], 1, atol=1e-5) and (np.diff(similarities, axis=1) <= 1e-6).all()


def test_a_bank_of_fewer_images_than_neighbours_votes_whole() -> None:
    similarities, indices = nearest(rng().normal(size=(7, 4)), rng(1).normal(size=(3, 4)), 200)
    assert similarities.shape == (3, 7) and (np.sort(indices, axis=1) == np.arange(7)).all()


def test_precision_is_the_share_of_neighbours_with_the_class() -> None:
    neighbours = np.array([[1, 1, 0, 1], [2, 0, 0, 2]])
    labels = np.array([1, 2])
    assert precision_at(1, neighbours, labels) == 1
    assert precision_at(2, neighbours, labels) == 0.75
    assert precision_at(4, neighbours, labels) == 0.625


def test_rankme_counts_equal_directions() -> None:
    basis = np.linalg.qr(rng().normal(size=(200, 12)))[0]
    assert rankme(basis) == pytest.approx(12, rel=1e-9)
    assert rankme(np.outer(rng().normal(size=200), rng(1).normal(size=12))) == pytest.approx(1, rel=1e-3)
    assert rankme(7 * basis) == pytest.approx(rankme(basis))


@pytest.mark.parametrize("d", [1, 2, 64, 2048])
def test_rankme_lies_between_1_and_d(d: int) -> None:
    assert d * (1 - 1e-6) <= rankme(np.eye(d)) <= d
    assert rankme(np.zeros((10, d))) == 1
    assert 1 <= rankme(np.ones((10, d))) <= 1 + 1e-6
    assert 1 <= rankme(rng().normal(size=(20, d))) <= min(d, 20)


def test_rankme_is_the_exponential_of_the_entropy_of_the_singular_values() -> None:
    features = np.diag([4.0, 2.0, 1.0, 1.0])  # shares 1/2, 1/4, 1/8, 1/8: 7/4 bits
    assert rankme(features) == pytest.approx(2**1.75)


def test_spectrum() -> None:
    scales = np.array([3.0, 2.0, 1.0])
    shares = spectrum(rng().normal(size=(50_000, 3)) * scales + 100)
    assert shares == pytest.approx(scales**2 / (scales**2).sum(), abs=0.01)
    assert spectrum(rng().normal(size=(100, 20))).sum() == pytest.approx(1)
    assert spectrum(np.ones((100, 20))).sum() == pytest.approx(0)  # no variance to share
    assert spectrum(rng().normal(size=(100, 1))).tolist() == [1]


def test_explained_auc_is_the_area_under_the_cumulative_singular_values() -> None:
    features = rng().normal(size=(300, 7)) * [9, 5, 3, 2, 1, 0.5, 0.1] + 20
    singular = np.linalg.svd(features - features.mean(0), compute_uv=False)
    area = 0.0
    for count in range(1, 8):
        area += singular[:count].sum() / singular.sum() / 7
    assert explained_auc(spectrum(features)) == pytest.approx(area, rel=1e-9)


def test_explained_auc_of_an_even_spectrum_and_of_one_direction() -> None:
    for d in (2, 16, 500):
        assert explained_auc(np.full(d, 1 / d)) == pytest.approx((d + 1) / (2 * d))
        assert explained_auc(np.eye(d)[0]) == 1
    assert explained_auc(spectrum(np.ones((100, 20)))) == 1  # no variance to explain


def unit(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / np.sqrt((x * x).sum())


def test_alignment_and_uniformity_are_their_definitions() -> None:
    one, other = rng().normal(size=(30, 5)), rng(1).normal(size=(30, 5))
    squared = [((unit(a) - unit(b)) ** 2).sum() for a, b in zip(one, other, strict=True)]
    assert alignment(one, other) == pytest.approx(np.mean(squared))
    potentials = [np.exp(-2 * ((unit(a) - unit(b)) ** 2).sum()) for a, b in combinations(one, 2)]
    assert uniformity(one) == pytest.approx(np.log(np.mean(potentials)))
    assert uniformity(one * 10 ** rng(2).uniform(-6, 3, (30, 1))) == pytest.approx(uniformity(one))  # of directions alone


def test_alignment_lies_between_0_and_4() -> None:
    x = rng().normal(size=(50, 8))
    assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-12)
    assert alignment(x, -x) == pytest.approx(4)
    assert alignment(np.eye(4), np.eye(4)[::-1]) == pytest.approx(2)  # at right angles


def test_uniformity_of_points_spread_evenly() -> None:
    circle, sphere = rng().normal(size=(3000, 2)), rng(1).normal(size=(3000, 3))
    assert uniformity(circle) == pytest.approx(np.log(np.exp(-4) * i0(4)), abs=0.01)
    assert uniformity(sphere) == pytest.approx(np.log((1 - np.exp(-8)) / 8), abs=0.01)
    assert uniformity(np.array([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(-8)
    for point in (np.ones((1200, 3), np.float32), np.zeros((1200, 3))):  # the latter of an encoder that is dead
        assert uniformity(point) == pytest.approx(0, abs=1e-6)


def test_uniformity_of_many_images_is_that_of_as_many_as_are_asked_for() -> None:
    x = np.concatenate([rng().normal(size=(900, 3)), np.ones((900, 3))])  # half of them at one point
    assert uniformity(x, most=600) == pytest.approx(uniformity(x), abs=0.02) and uniformity(x, most=600) != uniformity(x)
    assert uniformity(x, most=1800) == uniformity(x, most=9999) == uniformity(x)


def hsic(k: NDArray[np.float64], m: NDArray[np.float64]) -> float:
    """The mean over all quadruples of different images, of which the estimator is a quicker form (Song et al. 2007)."""
    terms = [k[a, b] * (m[a, b] + m[c, d] - 2 * m[a, c]) for a, b, c, d in permutations(range(len(k)), 4)]
    return float(np.mean(terms))


def test_linear_cka_is_the_ratio_of_unbiased_hsic() -> None:
    one = rng().normal(size=(9, 4)) + 3
    other = one @ rng(1).normal(size=(4, 6)) + rng(2).normal(size=(9, 6))
    k, m = one @ one.T, other @ other.T
    expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    assert 0.1 < expected < 0.95
    assert linear_cka(one, other) == linear_cka(other, one) == pytest.approx(expected, rel=1e-9)


def test_linear_cka_of_the_same_features_is_1_however_they_are_turned() -> None:
    x = rng().normal(size=(300, 20)) * np.arange(1, 21)
    rotation = np.linalg.qr(rng(1).normal(size=(20, 20)))[0]
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, 0.01 * (x @ rotation)[:, ::-1] + 1e7) == pytest.approx(1)
    assert linear_cka(x, x @ np.diag(1 / np.arange(1, 21))) < 0.9  # but not when directions change their lengths
    assert linear_cka(x.astype(np.float16), x) == pytest.approx(1, abs=1e-3)  # as they are kept


@pytest.mark.parametrize("d", [10, 2000])
def test_linear_cka_of_unrelated_features_is_about_0(d: int) -> None:
    found = [linear_cka(rng(seed).normal(size=(200, d)), rng(1000 + seed).normal(size=(200, d))) for seed in range(20)]
    assert abs(np.mean(found)) < 0.01 and min(found) < 0 < max(found)  # the plain estimate has .05 and .91


def test_linear_cka_of_features_at_one_point_is_nobody_s() -> None:
    assert np.isnan(linear_cka(np.full((10, 3), 0.1), rng().normal(size=(10, 3))))

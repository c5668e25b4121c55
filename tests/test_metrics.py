"""Accuracies against scikit-learn; ranks and spectra at their analytic limits."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from simsiam.images import ImageSet, Pixels
from simsiam.metrics import knn_scores, nearest, precision_at, rankme, spectrum, top_k
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

"""Accuracies against scikit-learn; ranks and spectra at their analytic limits."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from simsiam.images import ImageSet
from simsiam.metrics import knn_scores, nearest, precision_at, rankme, spectrum, top_k
from tests.conftest import rng


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k(k: int) -> None:
    scores, labels = rng().normal(size=(300, 10)), rng(1).integers(0, 10, 300).astype(np.uint8)
    assert top_k(scores, labels, k) == pytest.approx(top_k_accuracy_score(labels, scores, k=k))


def test_equal_scores_count_once() -> None:
    labels = np.arange(10, dtype=np.uint8)
    assert top_k(np.zeros((10, 10)), labels, 1) == pytest.approx(0.1)
    assert top_k(np.zeros((10, 10)), labels, 5) == pytest.approx(0.5)


@pytest.mark.parametrize("k", [1, 20, 400])
def test_knn(cifar: ImageSet, k: int) -> None:
    bank = cifar.x_train.reshape(len(cifar.x_train), -1) / np.float32(255) - np.float32(0.5)
    queries = cifar.x_test.reshape(len(cifar.x_test), -1) / np.float32(255) - np.float32(0.5)

    def weights(distances: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.exp((1 - distances) / 0.1)

    oracle = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights).fit(bank, cifar.y_train)
    ours = knn_accuracy(bank, cifar.y_train, queries, cifar.y_test, k=k, temperature=0.1)
    assert ours == pytest.approx(oracle.score(queries, cifar.y_test), abs=1e-9)


def test_a_low_temperature_is_the_nearest_neighbour(cifar: ImageSet) -> None:
    bank, queries = (x.reshape(len(x), -1).astype(np.float32) for x in (cifar.x_train, cifar.x_test))
    one = knn_accuracy(bank, cifar.y_train, queries, cifar.y_test, k=1, temperature=0.1)
    assert knn_accuracy(bank, cifar.y_train, queries, cifar.y_test, k=50, temperature=1e-6) == one > 0.1


def test_nearest_is_itself_in_the_bank(cifar: ImageSet) -> None:
    bank = cifar.x_train.reshape(len(cifar.x_train), -1).astype(np.float32)
    similarities, indices = nearest(bank, bank[:30], 5)
    assert (indices[:, 0] == np.arange(30)).all()
    assert np.allclose(similarities[:, 0], 1, atol=1e-5) and (np.diff(similarities, axis=1) <= 1e-6).all()


def test_rankme_counts_equal_directions() -> None:
    basis = np.linalg.qr(rng().normal(size=(200, 12)))[0]
    assert rankme(basis) == pytest.approx(12, rel=1e-3)
    assert rankme(np.outer(rng().normal(size=200), rng(1).normal(size=12))) == pytest.approx(1, rel=1e-3)
    assert rankme(7 * basis) == pytest.approx(rankme(basis))


def test_spectrum() -> None:
    scales = np.array([3.0, 2.0, 1.0])
    shares = spectrum(rng().normal(size=(50_000, 3)) * scales + 100)
    assert shares == pytest.approx(scales**2 / (scales**2).sum(), abs=0.01)
    assert spectrum(rng().normal(size=(100, 20))).sum() == pytest.approx(1)
    assert spectrum(np.ones((100, 20))).sum() == pytest.approx(0)  # no variance to share

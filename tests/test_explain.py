"""SHAP values that add up, on a network whose answer is known; maps against an oracle and by their properties."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.explain import MaxPoolOfRelus, explain, mass_by_quadrant, mass_radius
from simsiam.images import ImageSet
from simsiam.metrics import spectrum
from simsiam.networks import BasicBlock, Classifier, Encoder
from simsiam.projection import centroid_distances, knn_in_plane, map_trustworthiness, pca, silhouette, tsne
from simsiam.settings import EncoderSettings
from stages.explain import background, classes_to_show, interval
from tests.some import but, rng


@pytest.mark.parametrize("stem", ["strided", "imagenet"])
def test_values_add_up(tiny: EncoderSettings, images: Tensor, stem: str) -> None:
    pixels = images.float() / 255
    classifier = Classifier(Encoder(but(tiny, stem=stem)), nn.Linear(tiny.latent_dim, 10))
    classifier(pixels)  # moves the BatchNorm buffers away from where they do nothing
    found = explain(classifier, pixels[:3], pixels[100:110], name="test")
    assert found.values.shape == (3, 3, 32, 32, 10)
    with torch.inference_mode():
        logits = classifier.eval()(pixels[:3]).numpy()
        expected = classifier(pixels[100:110]).mean(0).numpy()
    np.testing.assert_allclose(found.logits, logits, atol=1e-5)
    np.testing.assert_allclose(found.values.sum((1, 2, 3)), logits - expected, atol=1e-3)
    assert found.residual < 1e-3 and np.abs(found.values).max() > 1e-4


def test_as_the_stock_network_is_written_values_do_not_add_up(tiny: EncoderSettings, images: Tensor) -> None:
    pixels = images.float() / 255
    classifier = Classifier(Encoder(tiny), nn.Linear(tiny.latent_dim, 10))
    for block in (module for module in classifier.modules() if isinstance(module, BasicBlock)):
        nn.init.ones_(block.bn2.weight)  # else blocks are shortcuts, and their first ReLU has no part
    ours, stock = (explain(classifier, pixels[:2], pixels[100:110], name="test", stock=stock) for stock in (False, True))
    np.testing.assert_allclose(stock.logits, ours.logits, atol=1e-5)
    assert ours.residual < 1e-5 and stock.residual > 1e-3


def test_mass_by_quadrant_and_radius() -> None:
    values = np.zeros((6, 3, 32, 32, 10), np.float32)
    for number, (row, column) in enumerate(((0, 0), (0, 31), (31, 0), (31, 31))):
        values[number, 1, row, column, 7] = -2.0  # whatever its sign
    values[4, :, :16] = 1.0
    values[5, 0, 15:17, 15:17, 3] = 1.0
    values[5, 0, 0, 0] = 1.0
    values[5, 1, 0, 0] = -1.0  # channels that cancel out are no mass
    np.testing.assert_allclose(mass_by_quadrant(values), [*np.eye(4), [0.5, 0.5, 0, 0], [0.25] * 4])
    radius = mass_radius(values)
    np.testing.assert_allclose(radius[[0, 1, 2, 3, 5]], [15.5 * 2**0.5] * 4 + [0.5**0.5])
    assert mass_radius(np.ones((1, 3, 32, 32, 10), np.float32))[0] == pytest.approx(12.2, abs=0.05)
    assert mass_by_quadrant(np.zeros((1, 3, 8, 8, 2), np.float32)).tolist() == [[0] * 4]  # of a network that sees nothing


def test_values_add_up_with_the_head_on_the_backbone(tiny: EncoderSettings, images: Tensor) -> None:
    pixels = images.float() / 255
    classifier = Classifier(Encoder(tiny), nn.Linear(64, 10), "backbone")
    classifier(pixels)
    found = explain(classifier, pixels[:2], pixels[100:110], name="test")
    with torch.inference_mode():
        logits = classifier.eval()(pixels[:2]).numpy()
    np.testing.assert_allclose(found.logits, logits, atol=1e-5)
    assert found.residual < 1e-3 and np.abs(found.values).max() > 1e-4


def test_values_of_a_linear_network_are_weight_times_difference(tiny: EncoderSettings, images: Tensor) -> None:
    pixels = images[:8].float() / 255
    classifier = Classifier(Encoder(tiny), nn.Linear(5, 10))
    weight = torch.randn(5, 3 * 32 * 32, generator=torch.Generator().manual_seed(0)) / 100
    flat = nn.Linear(3 * 32 * 32, 5)
    flat.weight.data = weight
    classifier.encoder.backbone = nn.Flatten()  # type: ignore[assignment]
    classifier.encoder.projector = nn.Sequential(flat)
    found = explain(classifier, pixels[:1], pixels[1:], name="test")
    effective = classifier.head.weight.detach() @ weight  # (10, pixels)
    expected = effective * (pixels[0] - pixels[1:].mean(0)).flatten()
    np.testing.assert_allclose(found.values[0].reshape(-1, 10).T, expected.numpy(), atol=1e-5)


def test_values_that_do_not_add_up_are_an_error(tiny: EncoderSettings, images: Tensor) -> None:
    class Stock(nn.Module):  # a ReLU that shap cannot see
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x - 0.5) * 40

    classifier = Classifier(Encoder(tiny), nn.Linear(8, 10))
    classifier.encoder.backbone = nn.Sequential(Stock(), nn.Flatten(), nn.Linear(3072, 64))  # type: ignore[assignment]
    with pytest.raises(UserError, match="do not add up"):
        explain(classifier, images[:1].float() / 255, images[1:9].float() / 255, name="test")


@pytest.mark.parametrize("side", [8, 9, 16])
def test_max_pooling_by_relus_is_max_pooling(side: int) -> None:
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(MaxPoolOfRelus()(x), nn.functional.max_pool2d(x, 3, 2, 1))


def test_the_own_class_is_shown_first_then_the_highest() -> None:
    logits = np.array([[5.0, 1.0, 3.0, 2.0], [0.0, 9.0, 7.0, 8.0]])
    assert classes_to_show(np.array([1, 1]), logits, 3).tolist() == [[1, 0, 2], [1, 3, 2]]


def test_of_two_classes_both_are_shown() -> None:
    assert classes_to_show(np.array([1, 0]), np.array([[5.0, 1.0], [5.0, 1.0]]), 4).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(("count", "images"), [(50, 50), (399, 399), (1000, 399)])
def test_the_background_has_every_class_and_no_more_images_than_there_are(cifar: ImageSet, count: int, images: int) -> None:
    found = background(cifar, count, 0, torch.device("cpu"))
    assert found.shape == (images, 3, 32, 32) and 0 <= float(found.min()) < float(found.max()) <= 1
    known = {image.tobytes(): label for image, label in zip(cifar.x_train, cifar.y_train, strict=True)}
    pixels = (255 * found).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    counts = np.bincount([known[image.tobytes()] for image in pixels], minlength=10)
    assert counts.min() == images // 10


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    samples = np.array([1.0, 2.0, 3.0, 6.0])
    found = interval(samples)
    assert found["mean"] == 3 and found["half_width"] == pytest.approx(1.96 * (14 / 3) ** 0.5 / 2)


def test_pca_is_the_singular_value_decomposition() -> None:
    features = rng().normal(size=(200, 6)) * [5, 4, 3, 2, 1, 0.1] + 10
    coordinates, shares = pca(features)
    centred = features - features.mean(0)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(coordinates), np.abs(centred @ directions.T), atol=1e-9)
    np.testing.assert_allclose(shares, singular**2 / (singular**2).sum(), atol=1e-12)
    np.testing.assert_allclose(shares, spectrum(features), atol=1e-9)


def test_features_without_variance_have_a_map_too() -> None:
    coordinates, shares = pca(np.ones((60, 4)))
    assert np.isfinite(coordinates).all() and (shares == 0).all()
    assert (tsne(np.ones((60, 4)), perplexity=20, seed=0) == 0).all()


def test_tsne_keeps_neighbours_and_is_reproducible() -> None:
    labels = np.arange(150) % 3
    features = 6 * np.eye(3, 60)[labels] + rng().normal(size=(150, 60))
    shuffled = rng(1).permutation(150)
    plane = tsne(features, perplexity=20, seed=0)
    assert knn_in_plane(plane, labels) > 0.95 > knn_in_plane(plane[shuffled], labels)
    assert map_trustworthiness(features, plane) > map_trustworthiness(features, plane[shuffled]) + 0.2
    assert np.array_equal(plane, tsne(features, perplexity=20, seed=0))


def test_cluster_quality_at_its_limits() -> None:
    labels = np.arange(90) % 3
    apart, noise = 1000.0 * np.eye(3, 2)[labels] + rng().normal(size=(90, 2)), rng().normal(size=(90, 2))
    assert silhouette(apart, labels) > 0.95 and abs(silhouette(noise, labels)) < 0.15
    assert knn_in_plane(apart, labels) == 1 and knn_in_plane(noise, labels) < 0.6
    assert map_trustworthiness(apart, 3 * apart) == pytest.approx(1)


def test_distances_of_the_classes_are_in_units_of_their_spread() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    features = np.array([[-1, 0], [1, 0], [9, 0], [11, 0], [0, 4], [0, 6]], np.float32)  # each 1 from its mean
    expected = [[0, 10, 5], [10, 0, 125**0.5], [5, 125**0.5, 0]]
    np.testing.assert_allclose(centroid_distances(features, labels), expected, rtol=1e-6)
    np.testing.assert_allclose(centroid_distances(7 * features + 3, labels), expected, rtol=1e-6)

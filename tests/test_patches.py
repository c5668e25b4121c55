"""A dictionary of patches: each step against the paper, and features of real images."""

import numpy as np
import pytest
import torch
from torch import Tensor

from simsiam import patches
from simsiam.images import ImageSet, to_tensor
from simsiam.metrics import top_k
from simsiam.patches import Dictionary, extract, learn
from simsiam.probe import linear_probe
from tests.some import generator, rng

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dictionary(images: Tensor) -> Dictionary:
    return learn(images, centroids=50, patches=20_000, seed=0)


def noise(n: int, side: int, low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, (n, 3, side, side), generator=generator(), dtype=torch.uint8)


def by_hand(dictionary: Dictionary, image: np.ndarray) -> np.ndarray:
    """The features (4K,) of one image (3, S, S), patch by patch and centroid by centroid, in double precision."""
    mean, whitening, centroids = (part.double().numpy() for part in dictionary)
    places = image.shape[1] - 5
    middle = -(-places // 2)
    features = np.zeros((2, 2, len(centroids)))
    for y in range(places):
        for x in range(places):
            patch = image[:, y : y + 6, x : x + 6].astype(float).ravel()
            patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 10)
            white = whitening @ (patch - mean)
            z = [np.sqrt(sum((white - centroid) ** 2)) for centroid in centroids]
            for k in range(len(centroids)):
                features[int(y >= middle), int(x >= middle), k] += max(0.0, sum(z) / len(z) - z[k])
    return features.ravel()


@pytest.mark.parametrize("side", [32, 17, 11, 7, 6])
def test_features_are_the_paper_s(
    dictionary: Dictionary, images: Tensor, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "AT_ONCE", 2 * (side - 5) ** 2 * 50)  # two images at a time, of three
    pixels = images[:3, :, 32 - side :, :side]
    found = extract(dictionary, pixels)
    assert found.shape == (3, 200) and found.dtype == np.float32
    for features, image in zip(found, pixels.numpy(), strict=True):
        np.testing.assert_allclose(features, by_hand(dictionary, image), rtol=1e-3, atol=2e-3)


def test_quadrants_by_hand() -> None:
    maps = torch.tensor([[[1.0, 2, 4], [8, 16, 32], [64, 128, 256]]]).unsqueeze(-1) * torch.tensor([1.0, 1000])
    expected = [27, 27_000, 36, 36_000, 192, 192_000, 256, 256_000]
    assert patches.quadrants(maps).tolist() == [expected]
    assert patches.quadrants(maps[:, :2, :2]).tolist() == [[1, 1000, 2, 2000, 8, 8000, 16, 16_000]]


def test_triangle_is_a_loop() -> None:
    white, centroids = (torch.from_numpy(rng(seed).normal(size=(40, 5))) for seed in (0, 1))
    found = patches.triangle(white, centroids)
    for i in range(40):
        z = [float(np.linalg.norm(white[i] - centroid)) for centroid in centroids]
        for k in range(40):
            assert float(found[i, k]) == pytest.approx(max(0.0, np.mean(z) - z[k]), abs=1e-9)
    assert 0.3 < float((found == 0).float().mean()) < 0.7


def test_patches_are_cut_from_everywhere_and_in_the_order_of_unfold() -> None:
    pixels = noise(3, 8)
    every = torch.nn.functional.unfold(pixels.float(), 6).transpose(1, 2).reshape(27, 108)
    found = patches.sample(pixels, 500, 0)
    which = (found[:, None] == every).all(2)
    assert (which.sum(1) == 1).all() and (which.sum(0) > 5).all()  # 18.5 of each are expected


def test_a_normalised_patch_has_no_brightness_and_contrast_of_one() -> None:
    given = torch.from_numpy(rng().normal(100, 50, (30, 108)))
    found = patches.normalise(given)
    np.testing.assert_allclose(found.mean(1), 0, atol=1e-12)
    variance = given.numpy().var(1, ddof=1)
    np.testing.assert_allclose(found.numpy().var(1, ddof=1), variance / (variance + 10), rtol=1e-9)
    assert (patches.normalise(torch.full((2, 108), 255.0)) == 0).all()


def test_white_patches_have_the_identity_as_covariance() -> None:
    mixing = rng().normal(size=(20, 20)) + 5 * np.eye(20)
    given = torch.from_numpy(1000 * rng(1).normal(size=(500, 20)) @ mixing + 7)
    mean, whitening = patches.zca(given)
    white = (given - mean) @ whitening.double()
    np.testing.assert_allclose(np.cov(white.numpy().T), np.eye(20), atol=1e-3)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-3)


def test_what_hardly_varies_is_not_blown_up(images: Tensor) -> None:
    """Whitened, the covariance C of real patches is C (C + .1)^-1; theirs is symmetric, and brightness has no share."""
    given = patches.normalise(patches.sample(images, 5_000, 0))
    mean, whitening = patches.zca(given)
    white = ((given - mean) @ whitening).double().numpy()
    covariance = np.cov(given.double().numpy().T)
    np.testing.assert_allclose(np.cov(white.T), covariance @ np.linalg.inv(covariance + 0.1 * np.eye(108)), atol=1e-4)
    np.testing.assert_allclose(whitening, whitening.T, atol=1e-5)
    np.testing.assert_allclose(white.sum(1), 0, atol=1e-3)


def test_kmeans_finds_the_directions_that_there_are() -> None:
    """Clusters along axes, some the other way round; the first centroid of each is next to it."""
    axes = np.linalg.qr(rng().normal(size=(30, 30)))[0][:5]
    which, sign = rng(1).integers(5, size=2000), rng(2).choice([-1, 1], (2000, 1))
    white = 3 * sign * axes[which] + 0.1 * rng(3).normal(size=(2000, 30))
    found = patches.spherical_kmeans(torch.from_numpy(white).float(), 40, 0).numpy()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert (np.abs(found @ axes.T).max(0) > 0.99).all()


def test_kmeans_is_the_paper_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """One round after another, patch by patch, from where it began; however many patches are looked at together."""
    white = torch.from_numpy(rng().normal(size=(200, 6))).float()
    monkeypatch.setattr(patches, "ROUNDS", 0)
    expected = patches.spherical_kmeans(white, 7, 0).double().numpy()
    for rounds in (1, 2, 3):
        total = expected.copy()
        for patch in white.double().numpy():
            s = [patch @ direction for direction in expected]
            total[np.argmax(np.abs(s))] += s[np.argmax(np.abs(s))] * patch
        expected = total / np.linalg.norm(total, axis=1, keepdims=True)
        monkeypatch.setattr(patches, "ROUNDS", rounds)
        for together in (200 * 7, 33 * 7, 1):
            monkeypatch.setattr(patches, "AT_ONCE", together)
            np.testing.assert_allclose(patches.spherical_kmeans(white, 7, 0), expected, atol=1e-4)


def test_the_seed_decides(images: Tensor, dictionary: Dictionary) -> None:
    again, other = (learn(images, centroids=50, patches=20_000, seed=seed) for seed in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(again, dictionary, strict=True))
    assert not torch.allclose(other.centroids, dictionary.centroids, atol=0.1)
    assert not torch.equal(other.mean, dictionary.mean)
    white = torch.from_numpy(rng().normal(size=(100, 6))).float()
    assert not torch.equal(*(patches.spherical_kmeans(white, 5, seed) for seed in (0, 1)))


def test_brightness_changes_nothing(dictionary: Dictionary, images: Tensor) -> None:
    dim = (images[:20] // 2).contiguous()
    np.testing.assert_allclose(extract(dictionary, dim + 100), extract(dictionary, dim), rtol=1e-3, atol=1e-2)
    shifted = extract(dictionary, dim + 100 * torch.tensor([1, 0, 0], dtype=torch.uint8).view(3, 1, 1))
    assert np.abs(shifted - extract(dictionary, dim)).max() > 1  # red is not brightness


def test_a_mirrored_picture_swaps_the_quadrants_of_centroids_that_are_mirrored(
    dictionary: Dictionary, images: Tensor
) -> None:
    """Of an even number of places, so that both halves are equally large."""
    mirrored = dictionary.centroids.view(-1, 3, 6, 6).flip(3).flatten(1)
    order = torch.arange(108).view(3, 6, 6).flip(2).flatten()
    other = Dictionary(dictionary.mean[order], dictionary.whitening[order][:, order], mirrored)
    pixels = images[:5, :, :31, :31]
    left, right = extract(dictionary, pixels).reshape(5, 2, 2, 50), extract(other, pixels.flip(3)).reshape(5, 2, 2, 50)
    np.testing.assert_allclose(right[:, :, ::-1], left, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("side", [33, 64, 47])
def test_larger_images_are_made_smaller(dictionary: Dictionary, side: int) -> None:
    """Smooth ones lose nothing: a picture drawn on more pixels has the features of the same one on 32."""

    def drawn(size: int) -> Tensor:
        y, x = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * 2, indexing="ij")
        picture = torch.stack([torch.sin(5 * x + y), torch.cos(4 * y), torch.sin(3 * x * y)])
        return (127 + 120 * picture).round().byte()[None]

    small, large = patches.shrink(drawn(32)), patches.shrink(drawn(side))
    assert torch.equal(small, drawn(32)) and large.shape == small.shape and large.dtype == torch.uint8
    assert (large.float() - small.float()).abs().max() <= 3
    assert np.array_equal(extract(dictionary, drawn(side)), extract(dictionary, large))
    assert torch.equal(
        learn(noise(4, side), centroids=3, patches=1000, seed=0).mean,
        learn(patches.shrink(noise(4, side)), centroids=3, patches=1000, seed=0).mean,
    )


def test_what_is_too_fine_for_a_smaller_image_becomes_grey() -> None:
    board = (torch.arange(160)[:, None] + torch.arange(160)) % 2 * 255
    small = patches.shrink(board.byte().expand(1, 3, 160, 160)).float()
    assert (small - 127.5).abs().max() < 10


@pytest.mark.parametrize("value", [0, 255])
def test_flat_images_have_finite_features(value: int) -> None:
    flat = torch.full((4, 3, 16, 16), value, dtype=torch.uint8)
    found = extract(learn(flat, centroids=10, patches=1000, seed=0), flat)
    assert np.isfinite(found).all() and (found == found[0]).all()


def test_it_tells_classes_apart_where_raw_pixels_do_not(cifar: ImageSet, images: Tensor) -> None:
    """By a linear probe of the 400 training images, on the 100 test images; chance is 10 %, pixels are those of 16x16."""
    dictionary = learn(images, centroids=100, patches=20_000, seed=0)
    pixels = to_tensor(cifar.x_test, CPU)
    features = extract(dictionary, images), extract(dictionary, pixels)
    raw = [torch.nn.functional.avg_pool2d(part.float(), 2).flatten(1).numpy() for part in (images, pixels)]
    found: dict[str, float] = {}
    for name, (train, test) in {"patches": features, "raw": raw}.items():
        probe = linear_probe(train, cifar.y_train, classes=10, held_out=80, seed=0, device=CPU, name=name)
        found[name] = top_k(probe.scores(test), cifar.y_test, 1)
    assert found["patches"] > max(0.3, found["raw"] + 0.05)

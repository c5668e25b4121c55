"""First filters made from the images: against the definition, on images whose patches are known, and in an encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from simsiam.images import ImageSet
from simsiam.methods import build
from simsiam.networks import FIRST_KERNEL, Encoder, load_encoder, save_encoder
from simsiam.settings import EncoderSettings, load
from simsiam.whitening import PATCHES, RIDGE, whitening
from tests.some import but

PARAMS = Path(__file__).parents[1] / "params.yaml"
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def filters_of(images: ImageSet, side: int) -> torch.Tensor:
    mean, std = images.normalisation
    return torch.tensor(whitening(images.x_train, mean, std, side)).view(-1, 3, side, side)


def first_of(encoder: Encoder) -> torch.Tensor:
    return encoder.state_dict()["backbone.layers.0.weight"]


@pytest.mark.parametrize("side", [3, 7])
def test_outputs_are_uncorrelated_and_as_strong_as_the_ridge_leaves_them(cifar: ImageSet, side: int) -> None:
    """On the patches they were made of: variance v becomes v / (v + RIDGE), strongest first; then the same, negative."""
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in cifar.normalisation)
    pixels = (torch.from_numpy(cifar.x_train).permute(0, 3, 1, 2).double() / 255 - mean) / std
    filters = filters_of(cifar, side).double()
    half = len(filters) // 2
    assert torch.equal(filters[half:], -filters[:half]) and half <= 3 * side**2
    outputs = F.conv2d(pixels, filters[:half], stride=side).permute(1, 0, 2, 3).flatten(1)
    covariance = torch.cov(outputs)
    strength = covariance.diagonal()
    assert (covariance - strength.diag()).abs().max() < 2e-3  # of filters to five places
    norms = filters[:half].flatten(1).norm(dim=1)
    values = 1 / norms**2 - RIDGE  # an eigenvector is 1 long
    torch.testing.assert_close(strength, values / (values + RIDGE), atol=2e-3, rtol=0)
    assert (values.diff() <= 1e-3).all()


def test_noise_needs_no_whitening() -> None:
    """Pixels that are independent and of variance v: all filters are as long, 1 / sqrt(v + RIDGE)."""
    noise = np.random.default_rng(0).integers(0, 256, (3000, 16, 16, 3), dtype=np.uint8)
    filters = np.reshape(whitening(noise, **PLAIN, side=3), (54, 27))
    expected = ((256**2 - 1) / 12 / 255**2 + RIDGE) ** -0.5
    np.testing.assert_allclose(np.linalg.norm(filters, axis=1), expected, rtol=0.03)
    np.testing.assert_allclose(filters[:27] @ filters[:27].T / expected**2, np.eye(27), atol=0.06)


def test_directions_that_images_do_not_have_are_no_filters(cifar: ImageSet) -> None:
    """Of grey images a third; of plain ones, with a colour each, the three colours."""
    grey = np.repeat(cifar.x_train[..., :1], 3, axis=3)
    assert len(whitening(grey, **PLAIN, side=3)) == 2 * 9 * 27
    plain = np.repeat(np.repeat(cifar.x_train[:, :1, :1], 32, axis=1), 32, axis=2)
    assert len(whitening(plain, **PLAIN, side=3)) == 2 * 3 * 27
    assert whitening(np.zeros((5, 16, 16, 3), np.uint8), **PLAIN, side=3) == ()


@pytest.mark.parametrize("stem", ["strided", "cifar", "imagenet"])
def test_an_encoder_begins_with_them_and_all_else_is_as_without(cifar: ImageSet, tmp_path: Path, stem: str) -> None:
    changes = ["recipe=laptop", f"recipes.laptop.model.stem={stem}", "seed=4"]
    with_, without = (
        build(load(PARAMS, [*changes, f"recipes.laptop.model.first_filters={word}"]), cifar).encoder
        for word in ("whitening", "random")
    )
    filters = filters_of(cifar, FIRST_KERNEL[stem])
    first = first_of(with_)
    count = min(len(filters), len(first))
    assert torch.equal(first[:count], filters[:count])
    ours, theirs = with_.state_dict(), without.state_dict()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == ["backbone.layers.0.weight"]
    save_encoder(tmp_path / "encoder.pt", with_)
    loaded = load_encoder(tmp_path / "encoder.pt")
    assert loaded.settings == with_.settings
    assert torch.equal(first_of(Encoder(loaded.settings)), first)  # the random encoder has them, too


def test_where_there_are_fewer_filters_than_channels_the_others_are_random(tiny: EncoderSettings) -> None:
    some = tuple(np.arange(54.0).tolist())
    first, random = (first_of(Encoder(but(tiny, filters=of))) for of in (some, ()))
    assert torch.equal(first[:2].flatten(), torch.arange(54.0)) and torch.equal(first[2:], random[2:])


def test_of_large_images_some_patches_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of CIFAR-10's 50,000, two thousand images'."""
    looked: list[int] = []

    def cov(patches: np.ndarray, rowvar: bool) -> np.ndarray:
        looked.append(len(patches))
        return np.eye(patches.shape[1])

    monkeypatch.setattr(np, "cov", cov)
    for count, size, side in ((400, 224, 7), (399, 224, 7), (5, 224, 7)):
        whitening(np.zeros((count, size, size, 3), np.uint8), **PLAIN, side=side)
    assert looked == [200 * 32**2, 200 * 32**2, 5 * 32**2] and max(looked) <= 2 * PATCHES + 32**2
    whitening(np.zeros((50_000, 32, 32, 3), np.uint8), **PLAIN, side=3)
    assert looked[-1] == 2000 * 100

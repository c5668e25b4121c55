"""Linear evaluation against scikit-learn; frozen means that not one bit of the encoder moves."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from simsiam.data import Cifar10
from simsiam.engine import TrainSettings
from simsiam.features import extract
from simsiam.metrics import top_k
from simsiam.models import Encoder, EncoderSettings
from simsiam.probe import linear_probe
from tests.conftest import rng

CPU = torch.device("cpu")
SETTINGS = TrainSettings(epochs=60, batch_size=64, lr=0.1, momentum=0.9, weight_decay=0.0, seed=0, precision="fp32")


def snapshot(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
def test_extracting_features_moves_no_bit_of_the_encoder(tiny: EncoderSettings, images: Tensor, training: bool) -> None:
    encoder = Encoder(tiny).train(training)
    before = snapshot(encoder)
    extract(encoder, images, batch_size=64)
    assert encoder.training == training
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    encoder.train()(images[:64].float() / 255)  # what frozen must not do: this is how a difference shows
    assert not all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_features_do_not_depend_on_the_batch(tiny: EncoderSettings, images: Tensor) -> None:
    encoder = Encoder(tiny)
    encoder(images[:64].float() / 255)
    whole, pieces = extract(encoder, images, batch_size=400), extract(encoder, images, batch_size=33)
    assert whole[0].shape == (400, 64) and whole[1].shape == (400, 8)
    for a, b in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)
    with torch.inference_mode():
        h, z = encoder.eval()(images[:10].float() / 255)
    np.testing.assert_allclose(whole[0][:10], h.numpy(), atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(whole[1][:10], z.numpy(), atol=1e-5, rtol=1e-4)


def test_a_probe_is_as_good_as_logistic_regression() -> None:
    labels = np.arange(1200, dtype=np.uint8) % 10
    centres = rng().normal(size=(10, 12))
    features = (centres[labels] + 0.9 * rng(1).normal(size=(1200, 12))).astype(np.float32)
    train, test = slice(0, 800), slice(800, 1200)
    probe = linear_probe(
        features[train], labels[train], settings=SETTINGS, lrs=[0.003, 0.1], held_out=100, device=CPU, name="t"
    )
    oracle = LogisticRegression(C=100, max_iter=2000).fit(features[train], labels[train])
    ours = top_k(probe.scores(features[test]), labels[test], 1)
    assert ours == pytest.approx(oracle.score(features[test], labels[test]), abs=0.02)
    assert ours > 0.7


def test_scale_and_offset_of_the_features_do_not_matter(cifar: Cifar10) -> None:
    features = cifar.x_train.reshape(400, -1)[:, ::32].astype(np.float32)
    one = linear_probe(features, cifar.y_train, settings=SETTINGS, lrs=[0.01], held_out=50, device=CPU, name="t")
    other = linear_probe(
        1000 * features - 7, cifar.y_train, settings=SETTINGS, lrs=[0.01], held_out=50, device=CPU, name="t"
    )
    agree = (one.scores(features).argmax(1) == other.scores(1000 * features - 7).argmax(1)).mean()
    assert agree > 0.97


def test_the_rate_is_chosen_on_the_held_out_slice() -> None:
    labels = np.arange(600, dtype=np.uint8) % 10
    features = (3 * np.eye(10)[labels] + rng().normal(size=(600, 10))).astype(np.float32)
    lrs = [1e-7, 0.1]  # the first learns nothing
    probe = linear_probe(features, labels, settings=SETTINGS, lrs=lrs, held_out=100, device=CPU, name="t")
    assert probe.lr == 0.1 and probe.held_out_top1 > 0.5

"""Features are the encoder's own, and the encoder comes back as it was."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simsiam.features import extract
from simsiam.networks import Encoder
from simsiam.settings import EncoderSettings


@pytest.fixture
def encoder(tiny: EncoderSettings, images: Tensor) -> Encoder:
    """One whose BatchNorm has seen images, so that the two modes differ."""
    encoder = Encoder(tiny).train()
    encoder(images[:64].float() / 255)
    return encoder


@pytest.mark.parametrize("batch_size", [500, 37, 1])
def test_features_are_those_of_the_plain_images_in_evaluation_mode(
    encoder: Encoder, images: Tensor, batch_size: int
) -> None:
    pixels = images[:80]
    expected = [output.detach().numpy() for output in copy.deepcopy(encoder).eval()(pixels.float() / 255)]
    backbone, latent = extract(encoder, pixels, batch_size=batch_size)
    np.testing.assert_allclose(backbone, expected[0], atol=1e-5)
    np.testing.assert_allclose(latent, expected[1], atol=1e-5)
    assert backbone.dtype == latent.dtype == np.float32 and backbone.shape == (80, 64) and latent.shape == (80, 8)


def test_weights_buffers_and_every_part_s_mode_stay(encoder: Encoder, images: Tensor) -> None:
    encoder.backbone.layers[1].eval()  # as somebody has who freezes a BatchNorm
    encoder.projector.eval()
    modes = {name: module.training for name, module in encoder.named_modules()}
    assert len(set(modes.values())) == 2
    before = copy.deepcopy(encoder.state_dict())
    own = {name: parameter.data_ptr() for name, parameter in encoder.named_parameters()}
    extract(encoder, images[:40])
    assert {name: module.training for name, module in encoder.named_modules()} == modes
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert {name: parameter.data_ptr() for name, parameter in encoder.named_parameters()} == own
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_the_encoder_goes_to_the_images_device_and_back(encoder: Encoder, images: Tensor) -> None:
    """Without a second device here, the moves are watched."""
    moves: list[object] = []
    plain = encoder.to

    def to(device: torch.device) -> nn.Module:
        moves.append(device)
        return plain(device)

    encoder.to = to  # type: ignore[method-assign, assignment]
    home, there = torch.device("cpu"), torch.device("cpu", 0)
    pixels = images[:10].to(there)
    extract(encoder, pixels)
    assert moves == [pixels.device, home]

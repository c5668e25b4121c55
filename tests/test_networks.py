"""The networks against torchvision's, and what SHAP and the random-encoder control need of them."""

import unittest.mock
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torchvision
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.models import (
    BasicBlock,
    Conv2d,
    Encoder,
    EncoderSettings,
    ResNet,
    SimSiam,
    bottleneck,
    load_encoder,
    predictor,
    save_encoder,
)
from tests.conftest import generator


def test_is_torchvisions_resnet18(tiny: EncoderSettings, images: Tensor) -> None:
    ours = ResNet(replace(tiny, stem="imagenet", depth=18, width=64)).eval()
    theirs = torchvision.models.resnet18().eval()
    theirs.fc = nn.Identity()
    # Both register their weights in the order of use, but for the shortcut, which both have last in its block.
    state = dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
    ours.load_state_dict(state)
    pixels = images[:16].float() / 255
    with torch.inference_mode():
        expected = theirs((pixels - ours.mean) / ours.std)
        torch.testing.assert_close(ours(pixels), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "padding", "stride", "size", "matrix_product"),
    [
        (3, 1, 1, 1, True),
        (3, 1, 2, 2, True),
        (1, 0, 2, 2, True),
        (3, 1, 2, 1, True),
        (3, 1, 1, 2, True),
        (1, 0, 1, 2, False),
        (3, 1, 2, 4, False),
    ],
)
def test_a_convolution_to_a_few_pixels_is_still_a_convolution(
    kernel: int, padding: int, stride: int, size: int, matrix_product: bool
) -> None:
    layer = Conv2d(8, 6, kernel, stride, padding, bias=False).double()
    x = torch.randn(5, 8, size, size, dtype=torch.double, generator=generator(), requires_grad=True)
    expected = nn.functional.conv2d(x, layer.weight, stride=stride, padding=padding)
    out = torch.randn(expected.shape, dtype=torch.double, generator=generator(1))
    gradients = torch.autograd.grad(expected, [x, layer.weight], out)

    with unittest.mock.patch.object(nn.functional, "linear", wraps=nn.functional.linear) as linear:
        result = layer(x)
    assert linear.called == matrix_product
    torch.testing.assert_close(result, expected)
    for ours, theirs in zip(torch.autograd.grad(result, [x, layer.weight], out), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("cifar", 32), ("strided", 16)])
def test_stems(tiny: EncoderSettings, images: Tensor, stem: Literal["imagenet", "cifar", "strided"], side: int) -> None:
    backbone = ResNet(replace(tiny, stem=stem))
    first_block = next(layer for layer in backbone.layers if isinstance(layer, BasicBlock))
    shapes = []
    first_block.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    assert backbone(images[:2].float() / 255).shape == (2, 8 * tiny.width)
    assert shapes == [(2, tiny.width, side, side)]


def test_standardises_with_the_statistics_of_the_data(tiny: EncoderSettings) -> None:
    backbone = ResNet(tiny)
    grey = backbone.mean.expand(1, 3, 32, 32)
    seen = []
    backbone.layers.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    backbone.eval()(torch.cat([grey, grey + backbone.std]))
    assert seen[0][0].abs().max() < 1e-6 and (seen[0][1] - 1).abs().max() < 1e-5


def test_the_same_seed_gives_the_same_encoder(tiny: EncoderSettings) -> None:
    before = torch.get_rng_state()
    one, two, other = Encoder(tiny), Encoder(tiny), Encoder(replace(tiny, seed=4))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    assert torch.equal(before, torch.get_rng_state())


def test_blocks_start_as_their_shortcuts(tiny: EncoderSettings) -> None:
    block = next(module for module in Encoder(tiny).modules() if isinstance(module, BasicBlock))
    x = torch.rand(4, tiny.width, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(x), block.shortcut(x).relu())


def test_every_relu_is_used_once_and_not_in_place(tiny: EncoderSettings, images: Tensor) -> None:
    model = SimSiam(Encoder(tiny), 8)
    uses: dict[str, int] = {}
    for name, module in model.encoder.named_modules():
        if isinstance(module, nn.ReLU):
            assert not module.inplace
            uses[name] = 0
            module.register_forward_hook(lambda m, i, o, name=name: uses.update({name: uses[name] + 1}))
    model.encoder(images[:4].float() / 255)
    assert set(uses.values()) == {1}


def test_views_get_a_prediction_and_a_latent_each(tiny: EncoderSettings, images: Tensor) -> None:
    model = SimSiam(Encoder(tiny), 8)
    view = images[:6].float() / 255
    p1, p2, z1, z2 = model(view, view.flip(3))
    assert p1.shape == p2.shape == z1.shape == z2.shape == (6, tiny.latent_dim)
    torch.testing.assert_close(p1, model.predictor(z1))
    assert [name for name, _ in model.named_children()] == ["encoder", "predictor"]
    assert [name for name, _ in model.encoder.named_children()] == ["backbone", "projector"]


@pytest.mark.parametrize(("latent_dim", "hidden"), [(2, 32), (32, 32), (128, 32), (512, 128), (2048, 512)])
def test_bottleneck(latent_dim: int, hidden: int) -> None:
    assert bottleneck(latent_dim) == hidden
    assert predictor(latent_dim, hidden)(torch.zeros(3, latent_dim)).shape == (3, latent_dim)


def test_an_encoder_survives_its_file(tiny: EncoderSettings, tmp_path: Path, images: Tensor) -> None:
    encoder = Encoder(tiny)
    encoder(images[:32].float() / 255)  # moves the BatchNorm buffers
    save_encoder(tmp_path / "encoder.pt", encoder)
    again = load_encoder(tmp_path / "encoder.pt")
    assert again.settings == tiny
    assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("content", [b"", b"no encoder", None])
def test_a_file_that_is_no_encoder_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "encoder.pt"
    if content is None:
        torch.save({"weights": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"encoder\.pt"):
        load_encoder(path)

"""The networks against torchvision's, and what SHAP and the random-encoder control need of them."""

import unittest.mock
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torchvision
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.networks import (
    BasicBlock,
    Classifier,
    Conv2d,
    Encoder,
    ResNet,
    load_classifier,
    load_encoder,
    projector,
    save_classifier,
    save_encoder,
    seeded,
    with_head,
)
from simsiam.settings import EncoderSettings, load
from tests.some import but, generator


def test_is_torchvisions_resnet18(tiny: EncoderSettings, images: Tensor) -> None:
    ours = ResNet(but(tiny, stem="imagenet", depth=18, width=64)).eval()
    theirs = torchvision.models.resnet18().eval()
    theirs.fc = nn.Identity()
    # Both register their weights in the order of use, but for the shortcut, which both have last in its block.
    state = dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
    ours.load_state_dict(state)
    pixels = images[:16].float() / 255
    # Not with our own buffers: that they are right is part of the claim.
    standardised = (pixels - torch.tensor([[[0.49]], [[0.48]], [[0.45]]])) / torch.tensor([[[0.25]], [[0.24]], [[0.26]]])
    with torch.inference_mode():
        torch.testing.assert_close(ours(pixels), theirs(standardised), atol=1e-4, rtol=1e-4)


def check_convolution(kernel: int, stride: int, height: int, width: int) -> bool:
    """Output and gradients are torch's; whether it was computed as a matrix product."""
    layer = Conv2d(5, 4, kernel, stride, kernel // 2, bias=False).double()
    x = torch.randn(3, 5, height, width, dtype=torch.double, generator=generator(), requires_grad=True)
    expected = nn.functional.conv2d(x, layer.weight, stride=stride, padding=kernel // 2)
    out = torch.randn(expected.shape, dtype=torch.double, generator=generator(1))
    gradients = torch.autograd.grad(expected, [x, layer.weight], out)
    with unittest.mock.patch.object(nn.functional, "linear", wraps=nn.functional.linear) as linear:
        result = layer(x)
    torch.testing.assert_close(result, expected)
    for ours, theirs in zip(torch.autograd.grad(result, [x, layer.weight], out), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    return linear.called


@pytest.mark.parametrize("height", range(1, 6))
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_a_convolution_of_any_map_is_still_a_convolution(kernel: int, stride: int, height: int) -> None:
    for width in range(1, 6):
        check_convolution(kernel, stride, height, width)


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "matrix_product"),
    [(3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 1), (3, 2, 2, 1), (1, 2, 2, 1), (1, 2, 16, 1), (1, 1, 17, 0), (3, 1, 3, 0)],
)
def test_small_maps_of_a_resnet_are_a_matrix_product(kernel: int, stride: int, size: int, matrix_product: int) -> None:
    assert check_convolution(kernel, stride, size, size) == matrix_product


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("cifar", 32), ("strided", 16)])
def test_stems(tiny: EncoderSettings, images: Tensor, stem: Literal["imagenet", "cifar", "strided"], side: int) -> None:
    backbone = ResNet(but(tiny, stem=stem))
    first_block = next(layer for layer in backbone.layers if isinstance(layer, BasicBlock))
    shapes = []
    first_block.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    assert backbone(images[:2].float() / 255).shape == (2, 8 * tiny.width)
    assert shapes == [(2, tiny.width, side, side)]


def test_standardises_with_the_numbers_it_is_given(tiny: EncoderSettings) -> None:
    backbone = ResNet(but(tiny, mean=(0.5, 0.25, 0.125), std=(0.25, 0.5, 0.0625))).eval()
    seen = []
    backbone.layers.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    colours = torch.tensor([[0.5, 0.25, 0.125], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    backbone(colours.view(3, 3, 1, 1).expand(3, 3, 32, 32))
    expected = [[0.0, 0.0, 0.0], [2.0, 1.5, 14.0], [-2.0, -0.5, -2.0]]
    torch.testing.assert_close(seen[0][:, :, 7, 9], torch.tensor(expected), atol=1e-6, rtol=0)


def test_the_same_seed_gives_the_same_encoder(tiny: EncoderSettings) -> None:
    before = torch.get_rng_state()
    one, two, other = Encoder(tiny), Encoder(tiny), Encoder(but(tiny, seed=4))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
    assert torch.equal(before, torch.get_rng_state())


def test_blocks_start_as_their_shortcuts(tiny: EncoderSettings) -> None:
    blocks = [module for module in Encoder(tiny).modules() if isinstance(module, BasicBlock)]
    assert len(blocks) == 4
    for block in blocks:
        x = torch.rand(4, block.conv1.in_channels, 8, 8, generator=generator())
        torch.testing.assert_close(block(x), block.shortcut(x).relu())


@pytest.mark.parametrize("depth", [10, 18])
def test_every_relu_is_used_once_and_not_in_place(tiny: EncoderSettings, images: Tensor, depth: int) -> None:
    encoder = Encoder(but(tiny, depth=depth))
    uses: dict[str, int] = {}
    for name, module in encoder.named_modules():
        if isinstance(module, nn.ReLU):
            assert not module.inplace
            uses[name] = 0
            module.register_forward_hook(lambda m, i, o, name=name: uses.update({name: uses[name] + 1}))
    encoder(images[:4].float() / 255)
    assert len(uses) == depth and set(uses.values()) == {1}  # one behind each convolution and hidden layer


def test_an_encoder_gives_features_and_their_projection(tiny: EncoderSettings, images: Tensor) -> None:
    encoder = Encoder(tiny).eval()
    features, latents = encoder(images[:6].float() / 255)
    assert features.shape == (6, 64) and latents.shape == (6, 8) and float(features.detach().min()) >= 0
    torch.testing.assert_close(latents, encoder.projector(encoder.backbone(images[:6].float() / 255)))


@pytest.mark.parametrize("hidden_norm", [True, False])
@pytest.mark.parametrize("latent_norm", [True, False])
def test_only_with_latent_norm_a_batch_of_latents_is_standardised(latent_norm: bool, hidden_norm: bool) -> None:
    """Chen & He 2020, section 4.4; that norm has no weights of its own, and the layer before it no bias."""
    with seeded(0):  # by chance a latent may hardly vary, and BatchNorm does not divide by less than a little
        layers = projector(6, 5, 4, 3, latent_norm, hidden_norm)
    latents = layers(10 + torch.randn(500, 6, generator=generator()))
    standardised = bool((latents.mean(0).abs() < 1e-4).all() and ((latents.std(0) - 1).abs() < 1e-2).all())
    assert standardised == latent_norm
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(6, 5), (5, 5), (5, 4)]
    assert (linear[-1].bias is None) == latent_norm and (linear[0].bias is None) == hidden_norm
    norms = [isinstance(layer, nn.BatchNorm1d) for layer in layers]
    assert sum(norms[:-1]) == 2 * hidden_norm and norms[-1] == latent_norm
    assert not (latent_norm and list(layers[-1].parameters()))


def test_an_encoder_survives_its_file(tiny: EncoderSettings, tmp_path: Path, images: Tensor) -> None:
    encoder = Encoder(tiny)
    encoder(images[:32].float() / 255)  # moves the BatchNorm buffers
    save_encoder(tmp_path / "encoder.pt", encoder)
    again = load_encoder(tmp_path / "encoder.pt")
    assert again.settings == tiny
    assert all(torch.equal(a, b) for a, b in zip(encoder.state_dict().values(), again.state_dict().values(), strict=True))
    pixels = images[:4].float() / 255
    assert torch.equal(again.eval()(pixels)[1], encoder.eval()(pixels)[1])  # mean and deviation too


def test_a_file_from_before_heads_could_be_without_batchnorm_is_read(tiny: EncoderSettings, tmp_path: Path) -> None:
    content = {"settings": tiny.model_dump(exclude={"hidden_norm"}), "weights": Encoder(tiny).state_dict()}
    torch.save(content, tmp_path / "encoder.pt")
    assert load_encoder(tmp_path / "encoder.pt").settings == tiny and tiny.hidden_norm


@pytest.mark.parametrize("space", ["latent", "backbone"])
def test_a_classifier_survives_its_file(
    tiny: EncoderSettings, tmp_path: Path, images: Tensor, space: Literal["latent", "backbone"]
) -> None:
    classifier = Classifier(Encoder(tiny), nn.Linear(64 if space == "backbone" else 8, 3), space).eval()
    save_classifier(tmp_path / "finetuned.pt", classifier)
    again = load_classifier(tmp_path / "finetuned.pt").eval()
    pixels = images[:4].float() / 255
    assert again.space == space and torch.equal(again(pixels), classifier(pixels))
    head: dict[str, Tensor] = dict(classifier.head.state_dict())
    assert torch.equal(with_head(classifier.encoder, head, space).eval()(pixels), classifier(pixels))


OTHER: list[Any] = [b"", b"no encoder", {"weights": {}}, [1, 2], {"settings": {"width": "eight"}, "weights": {}}]


@pytest.mark.parametrize("load", [load_encoder, load_classifier])
@pytest.mark.parametrize("content", OTHER)
def test_a_file_of_something_else_is_refused(tmp_path: Path, load: Any, content: Any) -> None:
    path = tmp_path / "encoder.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"encoder\.pt") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(tiny: EncoderSettings, tmp_path: Path) -> None:
    path = tmp_path / "encoder.pt"
    torch.save({"settings": tiny.model_dump(), "weights": Encoder(but(tiny, latent_dim=9)).state_dict()}, path)
    with pytest.raises(UserError, match=r"encoder\.pt does not hold an encoder"):
        load_encoder(path)
    save_encoder(path, Encoder(tiny))
    with pytest.raises(UserError, match=r"encoder\.pt does not hold a classifier"):
        load_classifier(path)


def test_a_block_that_starts_as_its_shortcut_passes_on_few_pixels(tiny: EncoderSettings) -> None:
    """What docs/reading.md says of the random encoder of `laptop`: of 32 x 32 pixels it sees 25."""
    settings = load(Path(__file__).parents[1] / "params.yaml").chosen.model
    assert (settings.stem, settings.depth) == ("strided", 10)
    found = Encoder(but(tiny, stem="strided", depth=10, width=8)).eval()
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    found.backbone(image).square().sum().backward()
    assert image.grad is not None
    seen = image.grad[0].abs().sum(0) > 0
    assert int(seen.sum()) == 25

"""SimSiam pretraining and fine-tuning on real images, small."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from simsiam.augment import AugmentSettings
from simsiam.data import Cifar10, to_tensor
from simsiam.engine import TrainSettings
from simsiam.finetune import finetune, predict
from simsiam.metrics import top_k
from simsiam.models import Classifier, Encoder, EncoderSettings, SimSiam, Space
from simsiam.pretrain import pretrain

VIEW = AugmentSettings(16, (0.5, 1.0), 0.5, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.0)
SETTINGS = TrainSettings(epochs=6, batch_size=50, lr=0.4, momentum=0.9, weight_decay=5e-4, seed=0, precision="fp32")


def test_pretraining_learns_and_is_reproducible(tiny: EncoderSettings, images: Tensor) -> None:
    runs = []
    for _ in range(2):
        model = SimSiam(Encoder(tiny), 16)
        runs.append((pretrain(model, images, augment=VIEW, settings=SETTINGS), model))
    (first, one), (second, two) = runs
    assert first.records[-1]["loss"] < first.records[0]["loss"] - 0.1
    assert first.records[-1]["z_std"] > 0.5
    assert first.records == second.records
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_bf16_takes_the_step_of_fp32(tiny: EncoderSettings, images: Tensor) -> None:
    """A step from the same weights on the same views: the same loss, and the same direction for every parameter.

    The network is as wide as the `laptop` recipe's: in the tiny one a few roundings already turn the step.
    """
    start = SimSiam(Encoder(replace(tiny, latent_dim=64, width=32, projector_hidden=128)), 32)
    pretrain(start, images, augment=VIEW, settings=replace(SETTINGS, epochs=3))  # past the zeros of the initial weights
    one_step = replace(SETTINGS, epochs=1, batch_size=400, momentum=0.0, weight_decay=0.0, lr=0.1)
    losses, moves = {}, {}
    for precision in ("fp32", "bf16"):
        model = copy.deepcopy(start)
        result = pretrain(model, images, augment=VIEW, settings=replace(one_step, precision=precision))
        losses[precision] = result.records[0]["loss"]
        after = dict(model.named_parameters())
        moves[precision] = {name: (after[name] - before).detach().flatten() for name, before in start.named_parameters()}
    assert losses["bf16"] != losses["fp32"] and losses["bf16"] == pytest.approx(losses["fp32"], abs=2e-3)
    whole = {precision: torch.cat(list(steps.values())) for precision, steps in moves.items()}
    assert torch.cosine_similarity(whole["bf16"], whole["fp32"], dim=0) > 0.99
    assert float(whole["bf16"].norm()) == pytest.approx(float(whole["fp32"].norm()), rel=0.05)
    for name, expected in moves["fp32"].items():
        assert torch.cosine_similarity(moves["bf16"][name], expected, dim=0) > 0.9, name


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_without_stop_gradient_the_latent_collapses(tiny: EncoderSettings, images: Tensor, stop_gradient: bool) -> None:
    model = SimSiam(Encoder(replace(tiny, latent_norm=False)), 16)
    settings = replace(SETTINGS, epochs=20)
    last = pretrain(model, images, augment=VIEW, settings=settings, stop_gradient=stop_gradient).records[-1]
    assert (last["z_std"] > 0.5) if stop_gradient else (last["z_std"] < 0.1 and last["loss"] < -0.99)


def test_two_latent_dimensions_train(tiny: EncoderSettings, images: Tensor) -> None:
    model = SimSiam(Encoder(replace(tiny, latent_dim=2)), 32)
    records = pretrain(model, images, augment=VIEW, settings=replace(SETTINGS, epochs=20)).records
    assert records[-1]["loss"] < records[0]["loss"] - 0.1 and records[-1]["z_std"] > 0.5


def test_finetuning_fits_real_images_and_leaves_the_encoder_alone(
    tiny: EncoderSettings, images: Tensor, cifar: Cifar10
) -> None:
    encoder = Encoder(tiny)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    plain = replace(VIEW, crop_scale=(0.9, 1.0), jitter_probability=0.0, grey=0.0)
    settings = replace(SETTINGS, epochs=80)
    images = torch.nn.functional.interpolate(images.float(), 16, mode="area").byte()  # the size of the views
    tuned = finetune(encoder, images, cifar.y_train, augment=plain, settings=settings, lrs=[0.4], held_out=50)
    assert top_k(predict(tuned.classifier, images)[0], cifar.y_train, 1) > 0.9
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())


def test_the_rate_is_chosen_on_held_out_images(tiny: EncoderSettings, images: Tensor, cifar: Cifar10) -> None:
    images = torch.nn.functional.interpolate(images.float(), 16, mode="area").byte()
    settings = replace(SETTINGS, epochs=10)
    tuned = finetune(Encoder(tiny), images, cifar.y_train, augment=VIEW, settings=settings, lrs=[1e-6, 0.2], held_out=100)
    assert tuned.lr == 0.2 and tuned.held_out_top1[0.2] > tuned.held_out_top1[1e-6]


def test_with_its_head_on_the_backbone_the_projector_has_no_part(
    tiny: EncoderSettings, images: Tensor, cifar: Cifar10
) -> None:
    encoder = Encoder(tiny)
    settings = replace(SETTINGS, epochs=1)
    tuned = finetune(
        encoder, images, cifar.y_train, augment=VIEW, settings=settings, lrs=[0.1], held_out=50, space="backbone"
    ).classifier
    assert all(map(torch.equal, tuned.encoder.projector.state_dict().values(), encoder.projector.state_dict().values()))
    assert not any(map(torch.equal, tuned.encoder.backbone.parameters(), encoder.backbone.parameters()))


@pytest.mark.parametrize("space", ["backbone", "latent"])
def test_predict_is_the_classifier(tiny: EncoderSettings, cifar: Cifar10, space: Space) -> None:
    size = 64 if space == "backbone" else 8
    classifier = Classifier(Encoder(tiny), torch.nn.Linear(size, 10), space).eval()
    pixels = to_tensor(cifar.x_test, torch.device("cpu"))
    logits, read = predict(classifier, pixels)
    with torch.inference_mode():
        expected = classifier(pixels.float() / 255).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-4)
    assert read.shape == (100, size)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_stop_gradient_decides_which_way_the_encoder_gets_its_gradient(
    tiny: EncoderSettings, images: Tensor, stop_gradient: bool
) -> None:
    """With a predictor that ignores its input, only the path through the targets can move the encoder."""
    model = SimSiam(Encoder(tiny), 16)
    torch.nn.init.zeros_(model.predictor[3].weight)  # type: ignore[arg-type]
    before = [parameter.clone() for parameter in model.encoder.parameters()]
    one_step = replace(SETTINGS, epochs=1, batch_size=400, weight_decay=0.0)
    pretrain(model, images, augment=VIEW, settings=one_step, stop_gradient=stop_gradient)
    moved = any(not torch.equal(a, b) for a, b in zip(before, model.encoder.parameters(), strict=True))
    assert moved != stop_gradient

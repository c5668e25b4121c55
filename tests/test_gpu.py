"""What only a GPU can show; skipped where there is none."""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from simsiam.augment import draw, make_view, random_views
from simsiam.checkpoint import Store
from simsiam.engine import Recorded, StoreFor, pick_device, train
from simsiam.explain import explain
from simsiam.features import extract
from simsiam.finetune import finetune, predict
from simsiam.images import ImageSet
from simsiam.methods import options
from simsiam.methods.every import METHODS
from simsiam.methods.method import Method
from simsiam.methods.simsiam import SimSiam
from simsiam.networks import Classifier, Encoder
from simsiam.parallel import local_device
from simsiam.pretrain import pretrain
from simsiam.settings import EncoderSettings, Finetune, Pretrain, load
from tests.some import COLOURFUL, SIMSIAM, but, generator
from tests.some_latents import PARAMS, N, given, latents_for

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
VIEW = but(COLOURFUL, blur=0.5)
SETTINGS = Pretrain(
    epochs=2,
    min_steps=0,
    batch_size=50,
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,
    precision="auto",
    compile="never",
    knn=0,
    augment=VIEW,
)
# Here and not in its test, so that a machine without a GPU sees when a setting is missing.
TUNING = Finetune(
    **SETTINGS.model_dump(exclude={"lr", "knn"}),
    lr=[0.05, 0.1],
    scratch_lr=None,
    held_out=50,
    space="latent",
    labels=1.0,
    budget="fixed",
)


@pytest.fixture
def model(tiny: EncoderSettings) -> SimSiam:
    return SimSiam(Encoder(tiny), SIMSIAM)


def made(name: str, settings: EncoderSettings) -> Method:
    own = options(load(PARAMS, [f"method={name}"]), classes=10)
    return METHODS[name](Encoder(settings), own)


def kept(folder: Path) -> StoreFor:
    return lambda identity: nullcontext(Store(folder))


def test_views_are_those_of_the_cpu(images: Tensor) -> None:
    drawn = draw(50, 32, generator(), VIEW)
    views = make_view(images[:50].to(pick_device()) / 255, drawn, VIEW).cpu()
    torch.testing.assert_close(views, make_view(images[:50] / 255, drawn, VIEW), atol=5e-3, rtol=0)  # TF32


@pytest.mark.parametrize("name", list(METHODS))
def test_the_host_does_not_wait_within_a_step(name: str, tiny: EncoderSettings, images: Tensor) -> None:
    """Of the loop, too: only a look at the numbers waits, every 20 steps."""
    device, method = pick_device(), made(name, tiny)
    method.to(device)
    pixels, labels, steps = images.to(device), (torch.arange(len(images)) % 10).to(device), 0

    def loss_of(network: nn.Module, batch: Tensor, random: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal steps
        steps += 1
        if steps == 3:  # the first two set things up
            torch.cuda.set_sync_debug_mode("error")
        elif steps == 8:
            torch.cuda.set_sync_debug_mode("default")
        known = {"labels": labels[batch]} if method.labelled else {}
        loss, latents = network(*random_views(pixels[batch], random, method.views(VIEW)), **known)
        return loss, {"std": latents.std()}

    given: dict[str, Any] = {"settings": but(SETTINGS, batch_size=40), "lr": 0.1, "seed": 0, "device": device, "name": "x"}
    try:
        train(method, loss_of, examples=400, own_rates=method.own_rates, after_step=method.after_step, **given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == 20


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_finished_training_is_found(tiny: EncoderSettings, images: Tensor, tmp_path: Path, precision: str) -> None:
    settings, pixels = but(SETTINGS, precision=precision), images.to(pick_device())
    one, two = SimSiam(Encoder(tiny), SIMSIAM), SimSiam(Encoder(tiny), SIMSIAM)
    whole = pretrain(one, pixels, settings=settings, seed=0, store_for=kept(tmp_path))
    again = pretrain(two, pixels, settings=settings, seed=0, store_for=kept(tmp_path))
    assert again.records == whole.records and whole.records[-1]["loss"] < whole.records[0]["loss"] + 0.05
    assert whole.machine["precision"] == {"fp32": "tf32", "bf16": "bf16"}[precision]


def test_a_killed_training_goes_on(
    tiny: EncoderSettings, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simsiam.engine.SAVE_EVERY", -1.0)
    monkeypatch.setattr("simsiam.engine.LOOK_EVERY", 1)
    pixels = images.to(pick_device())
    whole = pretrain(SimSiam(Encoder(tiny), SIMSIAM), pixels, settings=SETTINGS, seed=0)
    killed = SimSiam(Encoder(tiny), SIMSIAM)
    steps = 0

    def views(*given: Any) -> list[Tensor]:
        nonlocal steps
        steps += 1
        if steps == 11:
            raise RuntimeError("killed")
        return random_views(*given)

    monkeypatch.setattr("simsiam.pretrain.random_views", views)
    with pytest.raises(RuntimeError, match="killed"):
        pretrain(killed, pixels, settings=SETTINGS, seed=0, store_for=kept(tmp_path))
    monkeypatch.setattr("simsiam.pretrain.random_views", random_views)
    resumed = pretrain(SimSiam(Encoder(tiny), SIMSIAM), pixels, settings=SETTINGS, seed=0, store_for=kept(tmp_path))
    assert [record["step"] for record in resumed.records] == [8, 16]
    assert resumed.records[-1]["loss"] == pytest.approx(whole.records[-1]["loss"], abs=0.02)  # not bit for bit here


@pytest.mark.parametrize("name", list(METHODS))
def test_what_is_replayed_is_what_was_recorded(name: str, tiny: EncoderSettings, images: Tensor) -> None:
    """Loss and gradients of a second batch, and recording leaves no trace in BatchNorm's statistics."""
    device = pick_device()
    launched = made(name, tiny).to(device).train()
    network = copy.deepcopy(launched)
    recorded, generator_ = Recorded(network), generator()
    for start in (0, 100):
        pixels, labels = images[start : start + 100].to(device), (torch.arange(100) % 10).to(device)
        views = random_views(pixels, generator_, launched.views(VIEW))
        known = {"labels": labels} if launched.labelled else {}
        losses = []
        for module, owner in ((launched, launched), (recorded, network)):
            owner.zero_grad(set_to_none=True)
            loss, _ = module(*views, **known)
            loss.backward()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-4)
        for (key, ours), theirs in zip(network.named_parameters(), launched.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None), key
            if ours.grad is not None and theirs.grad is not None:
                assert (ours.grad - theirs.grad).norm() <= 0.01 * theirs.grad.norm() + 1e-6, key  # TF32
    for (key, mine), plain in zip(network.named_buffers(), launched.buffers(), strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-3, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", ["simsiam", "supervised"])  # half a minute each
def test_a_compiled_training_is_the_same_training(name: str, tiny: EncoderSettings, images: Tensor) -> None:
    pixels, losses = images.to(pick_device()), []
    for word in ("never", "always"):
        method = made(name, tiny)
        labels = (torch.arange(len(images)) % 10).to(pixels.device) if method.labelled else None
        settings = but(SETTINGS, compile=word, precision="fp32", epochs=1)
        losses.append(pretrain(method, pixels, labels, settings=settings, seed=0).records[-1]["loss"])
    assert losses[0] == pytest.approx(losses[1], abs=0.02, rel=0.01)


@pytest.mark.parametrize("name", list(METHODS))
def test_the_loss_is_the_cpu_s(name: str) -> None:
    """Of equal latents."""
    method, device = given(name), pick_device()
    latents, labels = latents_for(method), torch.arange(N) % 3
    losses = []
    for where in (torch.device("cpu"), device):
        known = {"labels": labels.to(where)} if method.labelled else {}
        fresh = copy.deepcopy(method).to(where)  # as a step moves what a method keeps of the ones before, such as a queue
        losses.append(fresh(*(z.to(where) for z in latents), **known)[0].item())
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)  # TF32


def test_features_are_those_of_the_cpu_and_the_encoder_comes_home(model: SimSiam, images: Tensor) -> None:
    encoder = model.encoder.eval()
    expected = extract(encoder, images[:80])
    found = extract(encoder, images[:80].to(pick_device()))
    assert not next(encoder.parameters()).is_cuda
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.02)  # TF32


def test_finetuning_and_its_predictions(model: SimSiam, images: Tensor, cifar: ImageSet) -> None:
    pixels = images.to(pick_device())
    tuned = finetune(model.encoder, pixels, cifar.y_train, classes=10, settings=TUNING, seed=0, name="test")
    logits, _ = predict(tuned.classifier, pixels[:60])
    assert len(tuned.trials) == 2 and logits.shape == (60, 10) and np.isfinite(logits).all()


def test_shap_values_add_up(tiny: EncoderSettings, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # as the stage has it
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        classifier = Classifier(Encoder(tiny), nn.Linear(8, 10)).to(local_device())
        pixels = images.to(local_device()).float() / 255
        assert explain(classifier, pixels[:2], pixels[100:110], name="test").residual < 1e-3
    finally:
        torch.set_float32_matmul_precision(before)

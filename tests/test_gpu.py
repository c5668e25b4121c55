"""What only a GPU can show; skipped where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simsiam.augment import AugmentSettings, draw, make_view
from simsiam.checkpoint import Store
from simsiam.engine import TrainSettings, pick_device
from simsiam.models import Encoder, EncoderSettings, SimSiam
from simsiam.pretrain import pretrain
from tests.conftest import generator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
VIEW = AugmentSettings(32, (0.2, 1.0), 0.5, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5)
SETTINGS = TrainSettings(epochs=2, batch_size=50, lr=0.1, momentum=0.9, weight_decay=5e-4, seed=0)


def test_views_are_those_of_the_cpu(images: Tensor) -> None:
    drawn = draw(50, 32, generator(), VIEW)
    views = make_view(images[:50].to(pick_device()), drawn, VIEW).cpu()
    torch.testing.assert_close(views, make_view(images[:50], drawn, VIEW), atol=5e-3, rtol=0)  # TF32


def test_the_host_does_not_wait_within_a_step(tiny: EncoderSettings, images: Tensor) -> None:
    device = pick_device()
    model, pixels = SimSiam(Encoder(tiny), 16).to(device), images.to(device)
    indices = torch.arange(50, device=device)
    random = generator()

    def step() -> None:
        views = [make_view(pixels[indices], draw(50, 32, random, VIEW), VIEW) for _ in range(2)]
        sum(output.sum() for output in model(*views)).backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_finished_training_is_found(tiny: EncoderSettings, images: Tensor, tmp_path: Path, precision: str) -> None:
    settings = replace(SETTINGS, precision=precision)  # type: ignore[arg-type]
    pixels = images.to(pick_device())
    whole = pretrain(SimSiam(Encoder(tiny), 16), pixels, augment=VIEW, settings=settings, store=Store(tmp_path))
    again = pretrain(SimSiam(Encoder(tiny), 16), pixels, augment=VIEW, settings=settings, store=Store(tmp_path))
    assert again.records == whole.records and whole.records[-1]["loss"] < whole.records[0]["loss"] + 0.05

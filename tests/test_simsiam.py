"""SimSiam's loss against the paper's pseudo-code and its analytic limits, and its switches: what flows where."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simsiam.methods.simsiam import SimSiam, bottleneck, distance
from simsiam.networks import Encoder
from simsiam.pretrain import pretrain
from simsiam.settings import EncoderSettings, Pretrain
from tests.some import COLOURFUL, SIMSIAM, but, generator


@pytest.fixture
def model(tiny: EncoderSettings) -> SimSiam:
    return SimSiam(Encoder(tiny), SIMSIAM)


@pytest.fixture
def views(images: Tensor) -> tuple[Tensor, Tensor]:
    """Two pictures of 16 images: as they are, and mirrored."""
    view = images[:16].float() / 255
    return view, view.flip(3)


def random(n: int = 16, d: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=generator(seed))


def papers(p: Tensor, z: Tensor) -> float:
    """Algorithm 1, D, in numpy."""
    a, b = p.detach().double().numpy(), z.detach().double().numpy()
    a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    return float(-(a * b).sum(axis=1).mean())


def test_the_papers_pseudo_code(model: SimSiam, views: tuple[Tensor, Tensor]) -> None:
    (_, z1), (_, z2) = (model.encoder(view) for view in views)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    loss, latents = model(*views)
    assert loss.item() == pytest.approx(papers(p1, z2) / 2 + papers(p2, z1) / 2, abs=1e-6)
    assert torch.equal(latents, z1) and not latents.requires_grad


def test_limits() -> None:
    z = random()
    assert distance(3 * z, z).item() == pytest.approx(-1, abs=1e-6)  # the same direction, whatever the length
    assert distance(-z, z).item() == pytest.approx(1, abs=1e-6)
    assert distance(torch.eye(4), torch.eye(4).roll(1, 0)).item() == pytest.approx(0, abs=1e-6)


def test_half_precision_is_summed_in_full() -> None:
    p, z = random(64, 512).bfloat16(), random(64, 512, seed=1).bfloat16()
    assert distance(p, z).item() == pytest.approx(papers(p, z), abs=1e-6)


def test_symmetric_in_the_views(model: SimSiam, views: tuple[Tensor, Tensor]) -> None:
    assert model(*views)[0].item() == pytest.approx(model(*views[::-1])[0].item(), abs=1e-6)


@pytest.mark.parametrize(("latent_dim", "hidden"), [(2, 32), (32, 32), (128, 32), (512, 128), (2048, 512)])
def test_bottleneck(tiny: EncoderSettings, latent_dim: int, hidden: int) -> None:
    assert bottleneck(latent_dim) == hidden
    model = SimSiam(Encoder(but(tiny, latent_dim=latent_dim)), but(SIMSIAM, predictor_hidden=None))
    assert model.predictor(torch.zeros(3, latent_dim)).shape == (3, latent_dim)
    assert [layer.weight.shape for layer in model.predictor.modules() if isinstance(layer, nn.Linear)] == [
        (hidden, latent_dim),
        (latent_dim, hidden),
    ]


def test_a_seed_makes_the_predictor_too_and_another_stream_than_the_encoder(tiny: EncoderSettings) -> None:
    before = torch.get_rng_state()
    one, two, other = (SimSiam(Encoder(settings), SIMSIAM) for settings in (tiny, tiny, but(tiny, seed=4)))
    weights = [next(model.predictor.parameters()) for model in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(before, torch.get_rng_state())
    plain = Encoder(tiny).state_dict()  # the random encoder that embed compares with
    assert all(torch.equal(plain[name], value) for name, value in one.encoder.state_dict().items())


def test_the_parts_have_names_that_files_rely_on(model: SimSiam) -> None:
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "predictor"}
    assert [name for name, _ in model.encoder.named_children()] == ["backbone", "projector"]


def test_the_predictor_s_rates(tiny: EncoderSettings) -> None:
    (own,) = SimSiam(Encoder(tiny), SIMSIAM).own_rates
    assert own[1:] == (1.0, False)
    model = SimSiam(Encoder(tiny), but(SIMSIAM, predictor_lr="constant", predictor_lr_times=10.0))
    (own,) = model.own_rates
    assert own.part is model.predictor and own[1:] == (10.0, True)


@pytest.mark.parametrize("predictor", ["mlp", "none", "fixed", "linear"])
def test_each_predictor_predicts_what_it_says(tiny: EncoderSettings, views: tuple[Tensor, Tensor], predictor: str) -> None:
    model = SimSiam(Encoder(tiny), but(SIMSIAM, predictor=predictor))
    z1, z2 = (model.encoder(view)[1] for view in views)
    if predictor == "none":
        p1, p2 = z1, z2
    elif predictor == "linear":
        (matrix,) = model.predictor.parameters()
        p1, p2 = z1 @ matrix.T, z2 @ matrix.T
    else:
        p1, p2 = model.predictor(z1), model.predictor(z2)
    loss = model(*views)[0]
    assert loss.item() == pytest.approx(papers(p1, z2) / 2 + papers(p2, z1) / 2, abs=1e-6)
    loss.backward()
    assert all((p.grad is not None) == (predictor != "fixed") for p in model.predictor.parameters())
    assert all(p.grad is not None for p in model.encoder.parameters())


def test_a_fixed_predictor_stays_and_the_others_are_trained(tiny: EncoderSettings, images: Tensor) -> None:
    """Its running means are not weights."""
    settings = Pretrain(
        epochs=1, min_steps=0, batch_size=100, lr=0.4, momentum=0.9, weight_decay=0.1, precision="fp32", compile="never",
        knn=0, augment=but(COLOURFUL, view_size=16),
    )  # fmt: skip
    for predictor in ("mlp", "fixed", "linear"):
        model = SimSiam(Encoder(tiny), but(SIMSIAM, predictor=predictor))
        before = [p.detach().clone() for p in model.predictor.parameters()]
        pretrain(model, images, settings=settings, seed=0)
        same = [torch.equal(old, new) for old, new in zip(before, model.predictor.parameters(), strict=True)]
        assert all(same) if predictor == "fixed" else not any(same)


def reached(model: SimSiam, views: tuple[Tensor, Tensor]) -> bool:
    """Whether a gradient comes to the encoder through what predictions are compared with, and through nothing else."""
    for parameter in model.predictor.parameters():
        nn.init.zeros_(parameter)
    *_, bias = model.predictor.parameters()
    nn.init.normal_(bias, generator=generator())  # a prediction that does not look at its input
    model(*views)[0].backward()
    return any(p.grad is not None and bool(p.grad.any()) for p in model.encoder.parameters())


@pytest.mark.parametrize(
    ("target", "stop_gradient", "flows"),
    [
        ("stop_gradient", True, False),
        ("stop_gradient", False, True),
        ("none", True, True),
        ("none", False, True),
        ("ema", True, False),
        ("ema", False, True),
    ],
)
def test_where_the_gradient_flows(
    tiny: EncoderSettings, views: tuple[Tensor, Tensor], target: str, stop_gradient: bool, flows: bool
) -> None:
    model = SimSiam(Encoder(tiny), but(SIMSIAM, target=target, stop_gradient=stop_gradient))
    assert model.stop_gradient != flows
    assert reached(model, views) == flows
    assert model.target is None or all(p.grad is None for p in model.target.parameters())


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_a_moving_average_is_what_predictions_are_compared_with(
    tiny: EncoderSettings, views: tuple[Tensor, Tensor], stop_gradient: bool
) -> None:
    model = SimSiam(Encoder(tiny), but(SIMSIAM, target="ema", stop_gradient=stop_gradient))
    assert model.target is not None
    for parameter in model.target.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator()))
    (_, z1), (_, z2) = (model.encoder(view) for view in views)
    (_, t1), (_, t2) = (model.target(view) for view in views)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    found = model(*views)[0].item()
    assert found == pytest.approx(papers(p1, t2) / 2 + papers(p2, t1) / 2, abs=1e-6)
    assert abs(found - papers(p1, z2) / 2 - papers(p2, z1) / 2) > 1e-3


def test_the_moving_average_after_some_steps(tiny: EncoderSettings) -> None:
    model = SimSiam(Encoder(tiny), but(SIMSIAM, target="ema", target_momentum=0.9))
    assert model.target is not None
    online, target = next(model.encoder.parameters()), next(model.target.parameters())
    expected = online.detach().clone()
    for step in range(5):
        nn.init.constant_(online, float(step))
        model.after_step((step + 1) / 5)
        expected = 0.9 * expected + 0.1 * step
    torch.testing.assert_close(target.detach(), expected)


def test_heads_without_batchnorm(tiny: EncoderSettings, views: tuple[Tensor, Tensor]) -> None:
    def norms(**changes: Any) -> int:
        model = SimSiam(Encoder(but(tiny, **changes)), SIMSIAM)
        heads = [*model.encoder.projector.modules(), *model.predictor.modules()]
        assert model(*views)[0].isfinite()
        return sum(isinstance(layer, nn.BatchNorm1d) for layer in heads)

    assert norms(hidden_norm=True, latent_norm=True) == 3
    assert norms(hidden_norm=True, latent_norm=False) == 2
    assert norms(hidden_norm=False, latent_norm=True) == 1
    assert norms(hidden_norm=False, latent_norm=False) == 0

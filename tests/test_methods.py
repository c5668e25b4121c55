"""SimSiam's loss against the paper's pseudo-code and its analytic limits; where gradients do and do not flow."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simsiam.errors import UserError
from simsiam.methods import METHODS, build, options
from simsiam.methods.simsiam import SimSiam, SimSiamOptions, bottleneck, predictor
from simsiam.networks import Encoder
from simsiam.settings import EncoderSettings, Params, Section, load
from tests.some import but, generator

ROOT = Path(__file__).parent.parent
OPTIONS = SimSiamOptions(stop_gradient=True, predictor_hidden=16, predictor_lr="cosine")


@pytest.fixture
def model(tiny: EncoderSettings) -> SimSiam:
    return SimSiam(Encoder(tiny), OPTIONS)


def random(n: int = 16, d: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=generator(seed))


def test_the_papers_pseudo_code(model: SimSiam, images: Tensor) -> None:
    def distance(p: Tensor, z: Tensor) -> float:  # Algorithm 1, D, in numpy
        a, b = p.detach().numpy(), z.detach().numpy()
        a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
        return float(-(a * b).sum(axis=1).mean())

    x1, x2 = images[:6].float() / 255, images[6:12].float() / 255
    (_, z1), (_, z2) = model.encoder(x1), model.encoder(x2)
    p1, p2 = model.predictor(z1), model.predictor(z2)
    expected = distance(p1, z2) / 2 + distance(p2, z1) / 2
    loss, latents = model(x1, x2)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-6)
    assert torch.equal(latents, z1) and not latents.requires_grad


def test_limits(model: SimSiam) -> None:
    z = random()
    assert float(model.distance(3 * z, z)) == pytest.approx(-1, abs=1e-6)  # the same direction, whatever the length
    assert float(model.distance(-z, z)) == pytest.approx(1, abs=1e-6)
    assert float(model.distance(torch.eye(4), torch.eye(4).roll(1, 0))) == pytest.approx(0, abs=1e-6)


def test_half_precision_is_summed_in_full(model: SimSiam) -> None:
    p, z = random(64, 512).bfloat16(), random(64, 512, seed=1).bfloat16()
    exact = -nn.functional.cosine_similarity(p.double(), z.double()).mean()
    assert float(model.distance(p, z)) == pytest.approx(float(exact), abs=1e-6)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_where_gradients_flow(tiny: EncoderSettings, stop_gradient: bool) -> None:
    model = SimSiam(Encoder(tiny), but(OPTIONS, stop_gradient=stop_gradient))
    p, z = random(seed=0).requires_grad_(), random(seed=1).requires_grad_()
    model.distance(p, z).backward()
    assert p.grad is not None and float(p.grad.abs().max()) > 0
    assert (z.grad is None) == stop_gradient


def test_symmetric_in_the_views(model: SimSiam, images: Tensor) -> None:
    x1, x2 = images[:6].float() / 255, images[6:12].float() / 255
    assert model(x1, x2)[0].item() == pytest.approx(model(x2, x1)[0].item(), abs=1e-6)


@pytest.mark.parametrize(("latent_dim", "hidden"), [(2, 32), (32, 32), (128, 32), (512, 128), (2048, 512)])
def test_bottleneck(tiny: EncoderSettings, latent_dim: int, hidden: int) -> None:
    assert bottleneck(latent_dim) == hidden
    assert predictor(latent_dim, hidden)(torch.zeros(3, latent_dim)).shape == (3, latent_dim)
    model = SimSiam(Encoder(but(tiny, latent_dim=latent_dim)), but(OPTIONS, predictor_hidden=None))
    assert [layer.weight.shape for layer in model.predictor if isinstance(layer, nn.Linear)] == [
        (hidden, latent_dim),
        (latent_dim, hidden),
    ]


def test_the_predictor_keeps_the_peak_rate_when_told_to(tiny: EncoderSettings) -> None:
    model = SimSiam(Encoder(tiny), but(OPTIONS, predictor_lr="constant"))
    assert model.constant_lr is model.predictor
    assert SimSiam(Encoder(tiny), OPTIONS).constant_lr is None


def test_a_seed_makes_the_predictor_too_and_another_stream_than_the_encoder(tiny: EncoderSettings) -> None:
    before = torch.get_rng_state()
    one, two, other = (SimSiam(Encoder(settings), OPTIONS) for settings in (tiny, tiny, but(tiny, seed=4)))
    weights = [next(model.predictor.parameters()) for model in (one, two, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert torch.equal(before, torch.get_rng_state())
    plain = Encoder(tiny).state_dict()  # the random encoder that embed compares with
    assert all(torch.equal(plain[name], value) for name, value in one.encoder.state_dict().items())


def test_the_parts_have_names_that_files_rely_on(model: SimSiam) -> None:
    assert [name for name, _ in model.named_children()] == ["encoder", "predictor"]
    assert [name for name, _ in model.encoder.named_children()] == ["backbone", "projector"]


class Bare(nn.Module):
    """A method without options."""

    class Options(Section):
        pass


def params(**changes: Any) -> Params:
    return load(ROOT / "params.yaml", [f"{key.replace('__', '.')}={value}" for key, value in changes.items()])


def test_options_are_of_the_chosen_recipe_and_method() -> None:
    ours = options(params())
    assert isinstance(ours, SimSiamOptions)
    assert (ours.stop_gradient, ours.predictor_hidden, ours.predictor_lr) == (True, None, "cosine")
    assert not options(params(stop_gradient="false")).stop_gradient
    assert options(params(recipe="report")).predictor_hidden == 128  # Lind, Bosch & Hu
    assert options(params(recipe="report")).predictor_lr == "cosine"  # which only base says


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "byol"}, "method is 'byol': it should be one of simsiam"),
        (
            {"recipes__laptop__methods__simsiam__hidden": 3},
            "unknown key recipes.laptop.methods.simsiam.hidden: allowed here are stop_gradient, predictor_hidden",
        ),
        (
            {"recipes__laptop__methods__simsiam__predictor_lr": "fast"},
            "recipes.laptop.methods.simsiam.predictor_lr is 'fast': it should be 'cosine' or 'constant'",
        ),
        ({"recipes__laptop__methods__simsiam__predictor_hidden": 0}, "predictor_hidden is 0: it should be at least"),
    ],
)
def test_bad_options_are_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        options(params(**change))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_options_are_named() -> None:
    ours = params()
    recipe = ours.chosen.model_copy(update={"methods": {"simsiam": {"predictor_lr": "cosine"}}})
    ours = ours.model_copy(update={"recipes": ours.recipes.model_copy(update={"laptop": recipe})})
    with pytest.raises(UserError, match=r"^params.yaml: recipes.laptop.methods.simsiam.predictor_hidden is missing$"):
        options(ours)


def test_a_method_without_a_stop_gradient_is_not_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "bare", Bare)
    assert options(params(method="bare")) == Bare.Options()
    with pytest.raises(UserError, match="stop_gradient is false, but bare has no stop-gradient to leave out"):
        options(params(method="bare", stop_gradient="false"))


def test_the_network_is_built_of_the_params() -> None:
    given = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    method = build(params(latent_dim=6, seed=9, recipes__laptop__model__width=8), given)
    settings = method.encoder.settings
    assert (settings.latent_dim, settings.seed, settings.width, settings.stem) == (6, 9, 8, "strided")
    assert (settings.mean, settings.std) == given
    half = build(params(recipes__laptop__model__normalisation="half", recipes__laptop__model__width=8), given)
    assert (half.encoder.settings.mean, half.encoder.settings.std) == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_stop_gradient_decides_which_way_the_encoder_gets_its_gradient(
    tiny: EncoderSettings, images: Tensor, stop_gradient: bool
) -> None:
    """With a predictor that ignores its input, only the path through the targets can reach the encoder."""
    model = SimSiam(Encoder(tiny), but(OPTIONS, stop_gradient=stop_gradient))
    nn.init.zeros_(model.predictor[3].weight)  # type: ignore[arg-type]
    nn.init.normal_(model.predictor[3].bias, generator=generator())  # type: ignore[arg-type]
    view = images[:32].float() / 255
    model(view, copy.deepcopy(view).flip(3))[0].backward()
    reached = any(p.grad is not None and bool(p.grad.any()) for p in model.encoder.parameters())
    assert reached != stop_gradient

"""What all methods have in common: their settings, what they are built of, and what a training of each does."""

from pathlib import Path
from typing import Any

import pytest

from simsiam.errors import UserError
from simsiam.images import ImageSet
from simsiam.methods import METHODS, build, options
from simsiam.methods.method import Method, MethodOptions
from simsiam.methods.simsiam import SimSiamOptions
from simsiam.settings import Params, load

ROOT = Path(__file__).parent.parent


class Bare(Method):
    """A method without options of its own."""


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
        (
            {"method": "simklr"},
            "method is 'simklr': it should be one of simsiam, fastsiam, simclr, byol, barlow_twins, vicreg, swav, supervised",
        ),
        (
            {"recipes__laptop__methods__simsiam__hidden": 3},
            "unknown key recipes.laptop.methods.simsiam.hidden: allowed here are lr, stop_gradient, predictor, ",
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
    ours = params(method="simclr")
    recipe = ours.chosen.model_copy(update={"methods": {"simclr": {"lr": None}}})
    ours = ours.model_copy(update={"recipes": ours.recipes.model_copy(update={"laptop": recipe})})
    with pytest.raises(UserError, match=r"^params.yaml: recipes.laptop.methods.simclr.temperature is missing$"):
        options(ours)


def test_a_method_without_a_stop_gradient_is_not_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "bare", Bare)
    assert options(params(method="bare", recipes__base__methods__bare__lr="null")) == MethodOptions(lr=None)
    with pytest.raises(UserError, match="stop_gradient is false, but bare has no stop-gradient to leave out"):
        options(params(method="bare", stop_gradient="false"))


def test_the_network_is_built_of_the_params(cifar: ImageSet) -> None:
    method = build(params(latent_dim=6, seed=9, recipes__laptop__model__width=8), cifar)
    settings = method.encoder.settings
    assert (settings.latent_dim, settings.seed, settings.width, settings.stem) == (6, 9, 8, "strided")
    assert (settings.mean, settings.std) == cifar.normalisation
    half = build(params(recipes__laptop__model__normalisation="half", recipes__laptop__model__width=8), cifar)
    assert (half.encoder.settings.mean, half.encoder.settings.std) == ((0.5,) * 3, (0.5,) * 3)

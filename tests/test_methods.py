"""What all methods have in common: their settings, what they are built of, and what a training of each does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from ablation.point import run_point
from simsiam import settings
from simsiam.errors import UserError
from simsiam.images import UNLABELLED, ImageSet
from simsiam.methods import build, check_all, options
from simsiam.methods.every import METHODS
from simsiam.methods.method import Method, MethodOptions
from simsiam.methods.simsiam import SimSiamOptions
from simsiam.networks import load_encoder
from simsiam.settings import Params, load
from stages.check import check
from stages.common import load_images
from stages.pretrain import pretrain
from tests.through import quick

ROOT = Path(__file__).parent.parent


class Bare(Method):
    """A method without options of its own."""


def params(**changes: Any) -> Params:
    return load(ROOT / "params.yaml", [f"{key.replace('__', '.')}={value}" for key, value in changes.items()])


def test_options_are_of_the_chosen_recipe_and_method() -> None:
    ours = options(params())
    assert isinstance(ours, SimSiamOptions)
    assert (ours.stop_gradient, ours.predictor_hidden, ours.predictor_lr) == (True, 512, "constant")
    assert not options(params(stop_gradient="false")).stop_gradient
    assert options(params(recipe="report")).predictor_hidden == 128  # Lind, Bosch & Hu
    assert options(params(recipe="report")).predictor_lr == "cosine"  # which only base says


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"method": "simklr"},
            f"method is 'simklr': it should be one of {', '.join(METHODS)}",
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
        (
            {"method": "supervised", "recipes__laptop__methods__supervised__classes": 3},
            "unknown key recipes.laptop.methods.supervised.classes: it is no setting of the method's own",
        ),
        (
            {"method": "swav", "recipes__laptop__methods__swav__small_scale": [0.2, 0.1]},
            "recipes.laptop.methods.swav.small_scale is [0.2, 0.1]: it should be [smallest, largest]",
        ),
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


def test_the_latent_is_normalised_where_a_method_s_authors_do_it(cifar: ImageSet) -> None:
    narrow = {"recipes__laptop__model__width": 8}
    found = {name for name in METHODS if build(params(method=name, **narrow), cifar).encoder.settings.latent_norm}
    assert found == {"simsiam", "fastsiam", "simclr", "barlow_twins"}
    for norm in (True, False):  # a recipe may decide it for all
        for name in ("simsiam", "vicreg"):
            chosen = {"method": name, "recipes__laptop__model__latent_norm": str(norm).lower()}
            assert build(params(**chosen, **narrow), cifar).encoder.settings.latent_norm == norm


def test_a_method_of_labels_wants_images_that_have_them(cifar: ImageSet) -> None:
    assert build(params(method="supervised"), cifar).options.classes == 10
    nameless = replace(cifar, labels=np.full_like(cifar.labels, -1), classes=())
    with pytest.raises(UserError, match="method is supervised, which learns from labels, and these images have none"):
        build(params(method="supervised"), nameless)
    assert build(params(), nameless)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: ImageSet) -> Path:
    """A folder with real images, and a store of its own."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    cifar.save(tmp_path / "data/images.npz")
    return tmp_path


class Killed(Exception):
    """What happens to a training in the middle of a step."""


@pytest.mark.parametrize("name", list(METHODS))
def test_each_method_trains_and_goes_on_bit_for_bit_after_a_kill(
    name: str, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = quick(
        method=name,
        recipes__laptop__pretrain__epochs=1,
        recipes__laptop__pretrain__batch_size=50,
        recipes__laptop__methods={"swav": {"small_views": 1, "frozen": 0.3}, "moco": {"queue": 130}},
    )
    trained = pretrain(ours, root)
    assert trained and trained["trained"][0]["method"] == name and np.isfinite(trained["loss"])
    whole, curve = load_encoder(root / "models/encoder.pt").state_dict(), pd.read_csv(root / "reports/curves/pretrain.csv")
    initial = build(ours, load_images(root)).encoder.state_dict()
    assert not any(torch.equal(initial[key], value) for key, value in whole.items())

    after_step = METHODS[name].after_step

    def killed(method: Method, done: float) -> None:
        after_step(method, done)
        if done == 6 / 8:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(METHODS[name], "after_step", killed)
        patch.setattr("simsiam.engine.SAVE_EVERY", -1.0)  # a checkpoint after every step
        with pytest.raises(Killed):
            pretrain(ours, root, fresh=True)
    capsys.readouterr()
    pretrain(ours, root)
    assert "going on from step 5 of 8" in capsys.readouterr().err
    again = load_encoder(root / "models/encoder.pt").state_dict()
    assert all(torch.equal(again[key], value) for key, value in whole.items())
    assert pd.read_csv(root / "reports/curves/pretrain.csv").drop(columns="seconds").equals(curve.drop(columns="seconds"))


def test_a_learning_rate_of_its_own(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = {"recipes__laptop__pretrain__epochs": 1, "recipes__laptop__pretrain__batch_size": 100}

    def settings(lr: float | None) -> Any:
        metrics = pretrain(quick(method="simclr", recipes__laptop__methods={"simclr": {"lr": lr}}, **short), root)
        assert metrics
        return metrics["settings"][0]["pretrain"]

    theirs = settings(None)
    assert theirs["lr"] == 0.3 and "simclr" not in capsys.readouterr().err
    assert settings(0.2) == theirs | {"lr": 0.2}
    assert "pretrain: lr 0.2 is that of simclr in this recipe, instead of 0.3\n" in capsys.readouterr().err
    settings(0.3)  # the recipe's, said twice, is the same training
    assert "going on from step 4 of 4" in capsys.readouterr().err


def test_only_labelled_images_are_trained_on_with_labels(root: Path, cifar: ImageSet) -> None:
    """And other labels are another training."""
    split, labels = cifar.split.copy(), cifar.labels.copy()
    split[100:400], labels[100:400] = UNLABELLED, -1
    ours = quick(method="supervised", recipes__laptop__pretrain__batch_size=64)
    folders = []
    for first in (labels[0], (labels[0] + 1) % 10):
        replace(cifar, split=split, labels=np.where(np.arange(500) == 0, first, labels)).save(root / "data/images.npz")
        metrics = pretrain(ours, root)
        assert metrics and metrics["settings"][0]["pretrain"]["batch_size"] == 50  # half of 100
        assert metrics["trained"][0]["with_labels"]
        folders.append(len(list((root / ".checkpoints/pretrain").iterdir())))
    assert folders == [1, 2]


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a folder with another params.yaml the current one."""

    def other(method: str, **points: Any) -> Path:
        content = YAML().load(ROOT / "params.yaml")
        content["method"] = method
        content["ablation"]["points"] |= points
        YAML().dump(content, tmp_path / "params.yaml")
        monkeypatch.chdir(tmp_path)
        return tmp_path / "params.yaml"

    return other


@pytest.mark.parametrize("name", list(METHODS))
def test_any_of_them_may_be_chosen_without_touching_the_studies(name: str) -> None:
    content = YAML(typ="safe").load(ROOT / "params.yaml") | {"method": name}
    for point, changes in content["ablation"]["points"].items():
        check_all(settings.check(settings.changed(content, changes), point))


def test_a_point_that_does_not_fit_its_method_is_named(other: Callable[..., Path]) -> None:
    ours = load(other("simclr", odd={"stop_gradient": False}))
    with pytest.raises(UserError, match=r"simclr has no stop-gradient to leave out \(at ablation\.points\.odd\)$"):
        check(ours, Path())


def test_a_method_that_is_misspelt_among_the_rates_is_named(tmp_path: Path) -> None:
    content = YAML().load(ROOT / "params.yaml")
    content["ablation"]["rates"]["simclrr"] = content["ablation"]["rates"].pop("simclr")
    YAML().dump(content, tmp_path / "params.yaml")
    with pytest.raises(UserError, match=r"unknown key ablation\.rates\.simclrr: there are simsiam, "):
        check(load(tmp_path / "params.yaml"), tmp_path)


@pytest.mark.parametrize("recipe", ["base", "laptop"])
def test_a_point_that_changes_another_method_s_settings_is_refused(recipe: str, other: Callable[..., Path]) -> None:
    key = f"recipes.{recipe}.methods.simclr.temperature"
    other("simsiam", idle={key: 0.2})
    with pytest.raises(UserError, match=f"it changes {key}, but method is simsiam: it would change nothing"):
        run_point("idle", 0, ["pretrain"])

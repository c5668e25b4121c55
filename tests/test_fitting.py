"""Settings made for 50,000 colour images of 32 pixels, and what other images make of them."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simsiam import fitting
from simsiam.images import TEST, TRAIN, UNLABELLED, ImageSet, numbered
from simsiam.settings import Params, Recipe, Section, load
from tests.some import but

PARAMS = load(Path(__file__).parent.parent / "params.yaml")
RECIPES = ("laptop", "report", "paper")
SIZES, COUNTS, CLASSES = (16, 24, 28, 32, 64, 95, 96, 224), (12, 60, 300, 5000, 100_000), (0, 2, 10, 100)


def some(
    train: int, test: int, size: int = 32, classes: int = 10, unlabelled: int = 0, grey: bool = False, mirrors: bool = True
) -> ImageSet:
    """As many images as one likes, none of which takes any memory."""
    count = train + unlabelled + test
    split = np.repeat(np.array([TRAIN, UNLABELLED, TEST], np.uint8), [train, unlabelled, test])
    labels = np.where(split == UNLABELLED, -1, np.arange(count) % classes if classes else -1)
    pixels = np.broadcast_to(np.zeros(1, np.uint8), (count, size, size, 3))
    names = numbered(any=count)
    images = ImageSet(pixels, labels, split, tuple(f"class {n}" for n in range(classes)), names, mirrors)
    vars(images)["grey"] = grey  # as it takes long to see it of so many
    return images


def recipe(name: str) -> Recipe:
    found: Recipe = getattr(PARAMS.recipes, name)
    return found


def sections(params: Params, of: str, images: ImageSet) -> dict[str, tuple[Section, Section]]:
    """Each section as it is given, and as it fits."""
    chosen, test = recipe(of), len(images.x_test)
    return {
        "model": (chosen.model, fitting.model(chosen.model, images)),
        "pretrain": (chosen.pretrain, fitting.pretrain(chosen.pretrain, images)),
        "finetune": (chosen.finetune, fitting.finetune(chosen.finetune, images)),
        "embed": (params.embed, fitting.embed(params.embed, images)),
        "linear_eval": (params.linear_eval, fitting.linear_eval(params.linear_eval, images.y_train.clip(0))),
        "project": (params.project, fitting.project(params.project, test)),
        "explain": (params.explain, fitting.explain(params.explain, images)),
    }


@pytest.mark.parametrize("of", RECIPES)
@pytest.mark.parametrize("classes", [10, 100])
def test_nothing_changes_for_images_like_cifar(of: str, classes: int) -> None:
    for name, (given, fitted) in sections(PARAMS, of, some(50_000, 10_000, classes=classes)).items():
        assert fitted == given, name


@pytest.mark.parametrize("of", RECIPES)
def test_any_images_have_settings_that_work(of: str) -> None:
    """What the stages and the networks ask for, of every size, number and number of classes."""
    measured = PARAMS.model_copy(update={"explain": but(PARAMS.explain, mass_images=100)})
    for size, count, classes, grey in product(SIZES, COUNTS, CLASSES, (False, True)):
        if count < 3 * classes:
            continue
        test = max(classes, round(count / 5))
        train = count - test
        images = some(train, test, size, classes, grey=grey)
        fitted: dict[str, Any] = {name: after for name, (_, after) in sections(measured, of, images).items()}
        case = f"{size} px, {count} images, {classes} classes"
        for name in ("model", "pretrain", "finetune", "embed", "linear_eval", "explain"):
            type(fitted[name]).model_validate(fitted[name].model_dump())  # in its range still
        for name in ("pretrain", "finetune"):
            training, asked = fitted[name], getattr(recipe(of), name)
            steps = training.epochs * (train // training.batch_size)
            assert steps >= max(1, asked.min_steps) and training.epochs >= asked.epochs, case
            assert 4 <= training.batch_size <= max(4, min(train // 2, asked.batch_size)), case
            assert 8 <= training.augment.view_size <= max(size, asked.augment.view_size * size / 32 + 1), case
            assert training.augment.view_size <= size, case
        for name in ("finetune", "linear_eval"):
            assert 1 <= fitted[name].held_out <= train / 5, case
        for share in fitted["linear_eval"].few_labels:
            assert share * np.bincount(images.y_train.clip(0)).min() >= 4, case
        assert 1 <= fitted["embed"].knn_k <= train / max(1, classes), case
        assert fitted["embed"].queries and max(fitted["embed"].queries) < test, case
        assert fitted["explain"].images and max(fitted["explain"].images) < test, case
        assert fitted["explain"].mass_images == 0 or 2 <= fitted["explain"].mass_images <= test / 2, case
        assert 1 <= fitted["project"].perplexity < fitted["project"].points <= test, case


def test_few_images_get_more_epochs_of_smaller_batches() -> None:
    laptop = recipe("laptop")
    fitted = fitting.pretrain(laptop.pretrain, some(200, 60, classes=2, unlabelled=40))
    assert fitted.batch_size == 120 and fitted.epochs == 200  # of two steps each
    assert fitting.pretrain(laptop.pretrain, some(10, 2, classes=2)).batch_size == 5
    assert fitting.pretrain(laptop.pretrain, some(6, 2, classes=2)).batch_size == 4
    tuned = fitting.finetune(laptop.finetune, some(200, 60, classes=2, unlabelled=40))
    assert (tuned.batch_size, tuned.epochs, tuned.held_out) == (100, 75, 40)  # unlabelled images are not tuned on


@pytest.mark.parametrize(
    ("size", "pretrain", "finetune"), [(16, 16, 16), (28, 16, 28), (32, 16, 32), (64, 32, 64), (224, 112, 224)]
)
def test_views_grow_with_the_images(size: int, pretrain: int, finetune: int) -> None:
    images, laptop = some(1000, 200, size), recipe("laptop")
    assert fitting.pretrain(laptop.pretrain, images).augment.view_size == pretrain
    assert fitting.finetune(laptop.finetune, images).augment.view_size == finetune


def test_views_do_what_the_images_allow() -> None:
    asked = recipe("paper").pretrain.augment
    assert fitting.augment(asked, some(100, 20, mirrors=False)) == but(asked, flip=0.0)
    assert fitting.augment(asked, some(100, 20, grey=True)) == but(asked, jitter=[0.4, 0.4, 0.0, 0.0], grey=0.0)


def test_small_images_have_a_stem_that_does_not_halve_them() -> None:
    assert fitting.model(recipe("laptop").model, some(100, 20, 16)) == but(recipe("laptop").model, stem="cifar")
    assert fitting.model(recipe("laptop").model, some(100, 20, 17)) == recipe("laptop").model
    assert fitting.model(recipe("report").model, some(100, 20, 16)) == recipe("report").model


def test_large_images_have_a_stem_that_halves_them_twice() -> None:
    model = recipe("laptop").model
    assert fitting.model(model, some(100, 20, 95)).stem == "strided"
    assert fitting.model(model, some(100, 20, 96)) == but(model, stem="imagenet")


def test_analyses_take_what_there_is() -> None:
    images = some(300, 10, 64, classes=10)
    embed, explain = fitting.embed(PARAMS.embed, images), fitting.explain(PARAMS.explain, images)
    assert embed.knn_k == 15 and embed.queries == [0, 1, 3, 4, 6] and explain.images == [0, 1, 3]
    assert explain.background == 25  # a quarter, as an image takes four times as much
    assert fitting.linear_eval(but(PARAMS.linear_eval, few_labels=[0.1, 0.5]), np.repeat(np.arange(10), 30)).few_labels == [
        0.5
    ]
    project = fitting.project(PARAMS.project, 31)
    assert (project.points, project.perplexity) == (31, 10)


@pytest.mark.parametrize(("test", "measured"), [(2, 0), (3, 0), (4, 2), (150, 75), (1000, 100)])
def test_no_interval_of_one_image(test: int, measured: int) -> None:
    explain = but(PARAMS.explain, mass_images=100)
    assert fitting.explain(explain, some(8 * test, test, classes=2)).mass_images == measured


def test_a_change_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    images = some(40, 11, 24, classes=2, unlabelled=7, grey=True)
    for given, fitted in [(PARAMS.project, PARAMS.project), (PARAMS.project, fitting.project(PARAMS.project, 11))]:
        assert fitting.say("project", given, fitted, fitting.of(images)) is fitted
    asked, views = recipe("laptop").pretrain, fitting.pretrain(recipe("laptop").pretrain, images)
    fitting.say("pretrain", asked, views, fitting.of(some(40, 11)))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "project: for 40 labelled and 7 unlabelled grey images of 24 pixels: points 11 instead of 1500, "
        "perplexity 3.33 instead of 30.0"
    )
    assert len(lines) == 2 and "batch_size 23 instead of 128" in lines[1] and "grey 0 instead of 0.2" in lines[1]
    assert lines[1].startswith("pretrain: for 40 images of 32 pixels: ")

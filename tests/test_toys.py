"""A method and an image set that nobody has prepared for go through every room without touching one.

The method regresses one view's latent on the other's. The images have 28 pixels and two classes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ablation.point import arrays_of
from simsiam import fitting
from simsiam.files import read_json, read_npz
from simsiam.images import ImageSet, from_arrays, load, to_tensor
from simsiam.methods.every import METHODS
from simsiam.methods.method import Method, MethodOptions
from simsiam.metrics import alignment, explained_auc, linear_cka, spectrum, uniformity
from simsiam.networks import Encoder, load_classifier, load_encoder, seeded
from simsiam.pretrain import pretrain as pretrain_method
from simsiam.settings import EncoderSettings, Params, Pretrain
from stages.common import run
from stages.embed import embed, two_views
from stages.pretrain import pretrain
from stages.report import FIGURES
from tests.some import COLOURFUL, but, rng
from tests.through import STAGES, quick

CLASSES = ("sunrise", "sunset")


class RegressionOptions(MethodOptions):
    bias: bool


class Regression(Method):
    """A linear map of one view's latent comes as near as it can to the other's."""

    Options = RegressionOptions
    title = "Regression"

    def __init__(self, encoder: Encoder, options: RegressionOptions) -> None:
        super().__init__(encoder, options)
        with seeded(encoder.settings.seed):
            self.map = nn.Linear(encoder.settings.latent_dim, encoder.settings.latent_dim, bias=options.bias)

    def loss(self, *latents: Tensor) -> Tensor:
        z1, z2 = latents
        return (self.map(z1) - z2.detach()).square().mean()


def toys() -> ImageSet:
    """Noise that is brighter at the top or at the bottom: 40 training and 20 test images of each class."""

    def some(count: int, seed: int) -> tuple[Any, Any]:
        labels = np.arange(count) % 2
        light = np.linspace(0, 160, 28)
        rows = np.where(labels[:, None] == 0, light[::-1], light)
        noise = rng(seed).uniform(0, 90, (count, 28, 28, 3))
        return (rows[:, :, None, None] + noise).astype(np.uint8), labels

    return from_arrays(*some(80, 0), *some(40, 1), CLASSES)


def params(**changes: Any) -> Params:
    return quick(report__title="Toys", **changes)


@pytest.fixture
def regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "regression", Regression)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the toys and nothing else, in which DVC has no part."""
    monkeypatch.delenv("DVC_ROOT", raising=False)
    toys().save(tmp_path / "data/images.npz")
    return tmp_path


def test_a_method_of_its_own_trains(tiny: EncoderSettings) -> None:
    images = to_tensor(toys().x_train, torch.device("cpu"))
    settings = Pretrain(
        epochs=10,
        min_steps=0,
        batch_size=16,
        lr=0.4,
        momentum=0.9,
        weight_decay=0.0,
        precision="fp32",
        compile="never",
        knn=0,
        augment=but(COLOURFUL, view_size=16),
    )
    model = Regression(Encoder(tiny), RegressionOptions(lr=None, bias=True))
    before = {name: value.clone() for name, value in model.encoder.named_parameters()}
    records = pretrain_method(model, images, settings=settings, seed=0).records
    assert records[-1]["loss"] < records[0]["loss"] - 0.2
    assert all(np.isfinite(list(record.values())).all() for record in records)
    assert set(records[0]) >= {"epoch", "step", "lr", "loss", "z_std", "rankme", "first_share"}
    assert not any(torch.equal(before[name], value) for name, value in model.encoder.named_parameters())


@pytest.mark.usefixtures("regression")
def test_a_method_of_its_own_goes_through_its_stage(root: Path) -> None:
    ours = params(method="regression", recipes__base__methods__regression={"lr": None, "bias": True})
    run(pretrain, ours, root)
    found = read_json(root / "reports/metrics/pretrain.json")["pretrain"]
    assert found["trained"][0]["method"] == "regression" and found["epochs"] == 2
    assert load_encoder(root / "models/encoder.pt").settings.latent_dim == 8
    settings = [read_json(path) for path in root.glob(".checkpoints/pretrain/*/settings.json")]
    assert [each["options"] for each in settings] == [{"bias": True}]


@pytest.mark.usefixtures("regression")
def test_two_methods_and_two_options_are_two_trainings(root: Path) -> None:
    pretrain(params(method="regression", recipes__base__methods__regression={"lr": None, "bias": True}), root)
    pretrain(params(method="regression", recipes__base__methods__regression={"lr": None, "bias": False}), root)
    pretrain(params(), root)
    assert len(list(root.glob(".checkpoints/pretrain/*"))) == 3
    pretrain(params(), root)
    assert len(list(root.glob(".checkpoints/pretrain/*"))) == 3


def test_another_formula_of_the_method_is_another_training(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training loop does not import the method, so its code has to be told."""
    pretrain(params(), root)
    other = type(METHODS["simsiam"].__name__, (METHODS["simsiam"],), {"__module__": "simsiam.probe"})  # of other code
    monkeypatch.setitem(METHODS, "simsiam", other)
    pretrain(params(), root)
    assert len(list(root.glob(".checkpoints/pretrain/*"))) == 2


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toys after every stage."""
    root = tmp_path_factory.mktemp("toys")
    toys().save(root / "data/images.npz")

    toys().save(root / "toys.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DVC_ROOT", raising=False)
        for stage in STAGES:
            run(stage, params(data__source=str(root / "toys.npz")), root)
    return root


def metrics(done: Path, stage: str) -> Any:
    return read_json(done / f"reports/metrics/{stage}.json")[stage]


def test_every_space_is_embedded(done: Path) -> None:
    features = read_npz(done / "data/features.npz")
    assert features["classes"].tolist() == list(CLASSES)
    for space, size in (("backbone", 64), ("latent", 8), ("random_backbone", 64), ("random_latent", 8)):
        assert features[f"{space}_train"].shape == (80, size) and features[f"{space}_test"].shape == (40, size)
    found = metrics(done, "embed")
    for name in ("knn", "rankme", "explained_auc", "alignment", "uniformity"):
        assert set(found[name]) == {"backbone", "latent", "random_backbone", "random_latent"}
        for space, value in found[name].items():
            if name == "uniformity":
                assert value == uniformity(features[f"{space}_test"])
            elif name == "explained_auc":
                assert value == explained_auc(spectrum(features[f"{space}_test"]))


def test_alignment_is_of_two_views_as_the_recipe_makes_them(done: Path) -> None:
    """Drawn by seed; and of views that nothing tells apart it is 0."""
    images, trained = load(done / "data/images.npz"), load_encoder(done / "models/encoder.pt")
    augment = fitting.augment(params().chosen.pretrain.augment, images)
    views = two_views(to_tensor(images.x_test, torch.device("cpu")), augment, 0)
    assert [view.shape for view in views] == [(40, 3, 16, 16)] * 2 and views[0].dtype == torch.uint8
    found = metrics(done, "embed")["alignment"]
    for prefix, encoder in (("", trained), ("random_", Encoder(trained.settings))):
        one, other = ([each.detach().numpy() for each in encoder.eval()(view.float() / 255)] for view in views)
        assert found[f"{prefix}backbone"] == pytest.approx(alignment(one[0], other[0]), rel=1e-3)
        assert found[f"{prefix}latent"] == pytest.approx(alignment(one[1], other[1]), rel=1e-3)

    assert embed(params(seed=1), done)["alignment"] != found  # of the same encoder
    plain = {"crop_scale": [1.0, 1.0], "flip": 0.0, "jitter_probability": 0.0, "grey": 0.0}
    changes = {f"recipes__laptop__pretrain__augment__{key}": value for key, value in plain.items()}
    assert max(embed(params(**changes), done)["alignment"].values()) < 1e-12 < 1e-3 < min(found.values())


def test_what_a_point_keeps_of_the_features(done: Path) -> None:
    kept, features = arrays_of(done)["cka_backbone"], read_npz(done / "data/features.npz")
    assert kept.dtype == np.float16 and kept.shape == (40, 64)
    np.testing.assert_allclose(kept, features["backbone_test"], rtol=1e-3)
    assert linear_cka(kept, features["backbone_test"]) == pytest.approx(1, abs=1e-4)


def test_the_images_own_normalisation_is_used(done: Path) -> None:
    encoder = load_encoder(done / "models/encoder.pt")
    pixels = toys().x_train.astype(np.float64) / 255
    assert encoder.settings.mean == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-5)
    assert encoder.settings.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-5)


def test_two_classes_are_two_everywhere(done: Path) -> None:
    """A linear classifier tells them apart, whatever the encoder has learned."""
    linear, tuned = metrics(done, "linear_eval"), metrics(done, "finetune")
    assert linear["random_backbone"]["top1"] > 0.9 and linear["backbone"]["top1"] > 0.8
    assert all("top5" not in found and 0.5 < found["auc"] <= 1 for found in (linear["backbone"], linear["latent"], tuned))
    assert np.array(linear["backbone"]["confusion"]).sum(1).tolist() == [20, 20]
    assert set(linear["few_labels"]) == {"50%"}
    assert load_classifier(done / "models/finetuned.pt").head.out_features == 2
    assert np.array(metrics(done, "project")["centroid_distances"]["backbone"]).shape == (2, 2)
    assert set(pd.read_csv(done / "reports/projection.csv")["class"]) == set(CLASSES)


def test_both_outputs_are_explained_at_28_pixels(done: Path) -> None:
    values = read_npz(done / "data/shap.npz")
    assert values["shown"].shape == (2, 2) and values["shown"][:, 0].tolist() == values["labels"].tolist() == [0, 1]
    assert values["frozen_values"].shape == (2, 3, 28, 28, 2)
    found = metrics(done, "explain")
    assert found["additivity_residual"] < 1e-3 and found["mass"]["images"] == 4
    for network in ("frozen", "finetuned", "random"):
        shares = [quadrant["mean"] for quadrant in found["mass"][network]["quadrants"]]
        assert sum(shares) == pytest.approx(1)


def test_the_page_is_of_the_toys(done: Path) -> None:
    page = (done / "reports/index.html").read_text()
    assert "Toys" in page and "50.0%" in page  # the chance of two classes
    for measure in ("explained_auc", "alignment", "uniformity"):
        assert all(f'<td class="n">{value:.3f}</td>' in page for value in metrics(done, "embed")[measure].values())
    for word in ("airplane", "automobile", "CIFAR", "10,000", "12.2"):
        assert word not in page, word


def test_every_figure_was_drawn(done: Path) -> None:
    """A figure that cannot be drawn is replaced by a flat one that says so."""
    names = {path.stem for path in (done / "reports/figures").glob("*.png")}
    assert names == set(FIGURES)
    for path in (done / f"reports/figures/{name}.png" for name in names - {"copies"}):  # of which there are none
        with Image.open(path) as picture:
            assert picture.size != (880, 220), path.name

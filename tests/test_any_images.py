"""Images of every kind go through the whole pipeline: what their numbers, figures and page are."""

import html
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from simsiam import released
from simsiam.checkpoint import load_weights, save_weights
from simsiam.errors import UserError
from simsiam.files import read_json, read_npz, write_json, write_npz
from simsiam.images import ImageSet, Pixels, load
from simsiam.metrics import nearest, precision_at
from simsiam.networks import Encoder, load_encoder, save_encoder
from simsiam.settings import Params
from stages.common import run
from stages.release import release
from stages.report import FIGURES
from tests.some import but, rng
from tests.through import STAGES, quick

SPACES = {"backbone", "latent", "random_backbone", "random_latent"}
UNLABELLED, ODD = "unlabelled", "é, (7) b"


@dataclass(frozen=True)
class Run:
    """What the stages left of a source."""

    root: Path
    told: str  # on stderr
    images: ImageSet
    metrics: dict[str, Any]  # every stage's, by its name
    page: str

    def features(self) -> dict[str, Any]:
        return read_npz(self.root / "data/features.npz")

    def figure(self, name: str) -> tuple[int, int]:
        with Image.open(self.root / f"reports/figures/{name}.png") as picture:
            return picture.size


def through(root: Path, params: Params) -> Run:
    """Every stage in an empty folder, in which DVC has no part."""
    told = StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(told), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        patch.delenv("DVC_ROOT", raising=False)
        for stage in STAGES:
            run(stage, params, root)
    numbers = {path.stem: read_json(path)[path.stem] for path in root.glob("reports/metrics/*.json")}
    page = (root / "reports/index.html").read_text()
    return Run(root, told.getvalue(), load(root / "data/images.npz"), numbers, page)


def scan(side: int, number: int, at: tuple[int, int], seed: int) -> Pixels:
    """Grey noise with a bright spot, (number, side, side)."""
    y, x = np.mgrid[:side, :side]
    spot = 150 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / 20)
    return (spot + rng(seed).uniform(0, 90, (number, side, side))).astype(np.uint8)


def write(folder: Path, images: Pixels) -> None:
    folder.mkdir(parents=True)
    for n, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{n}.png")


@pytest.fixture(scope="module")
def drawn() -> dict[str, Pixels]:
    """The digits 0, 1 and 7 at 24 pixels."""
    found = load_digits()
    images = (found.images * 255 / 16).round().astype(np.uint8).repeat(3, 1).repeat(3, 2)
    return {str(digit): images[found.target == digit] for digit in (0, 1, 7)}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return through(tmp_path_factory.mktemp("digits"), quick(data__source="digits", recipes__laptop__pretrain__epochs=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Pixels]) -> Run:
    """Classes 0, 1 and an odd one of which half lies deeper; other digits 0 without labels."""
    source = tmp_path_factory.mktemp("folder")
    write(source / "0", drawn["0"][:40])
    write(source / "1", drawn["1"][:40])
    write(source / ODD, drawn["7"][:20])
    write(source / ODD / "deeper/still", drawn["7"][20:40])
    write(source / UNLABELLED / "any", drawn["0"][40:70])
    return through(tmp_path_factory.mktemp("of folder"), quick(data__source=str(source)))


@pytest.fixture(scope="module")
def medmnist(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two classes, one of which has 14 times as many images."""
    source = tmp_path_factory.mktemp("medmnist") / "spotsmnist.npz"
    arrays: dict[str, Any] = {}
    for part, few, many in (("train", 8, 112), ("val", 2, 28), ("test", 4, 56)):
        images = np.concatenate([scan(28, few, (8, 8), few), scan(28, many, (18, 18), many)])
        labels = np.repeat(np.array([0, 1], np.uint8), [few, many])
        order = rng().permutation(len(labels))
        arrays |= {f"{part}_images": images[order], f"{part}_labels": labels[order, None]}
    write_npz(source, **arrays)
    changes = {"explain__images": [0, 59], "linear_eval__few_labels": [0.01, 0.5]}
    return through(tmp_path_factory.mktemp("of medmnist"), quick(data__source=str(source), **changes))


@pytest.fixture(scope="module")
def without_labels(tmp_path_factory: pytest.TempPathFactory, drawn: dict[str, Pixels]) -> Run:
    source = tmp_path_factory.mktemp("without") / "pictures"
    write(source, np.concatenate([drawn["0"][:80], drawn["7"][:80]]))
    return through(tmp_path_factory.mktemp("of pictures"), quick(data__source=str(source)))


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A colour for each of 100 classes, with noise: 3 training images and 1 test image each."""
    source = tmp_path_factory.mktemp("hundred")
    for n, colour in enumerate(rng().integers(40, 216, (100, 3))):
        images = (colour + rng(n).normal(0, 30, (4, 16, 16, 3))).clip(0, 255).astype(np.uint8)
        write(source / f"train/kind {n}", images[:3])
        write(source / f"test/kind {n}", images[3:])
    return through(
        tmp_path_factory.mktemp("of hundred"), quick(data__source=str(source), explain__mass_images=0, explain__images=[0])
    )


RUNS = ("digits", "folder", "medmnist", "without_labels", "hundred")


@pytest.fixture(params=RUNS)
def done(request: pytest.FixtureRequest) -> Run:
    """Each of them in turn."""
    found: Run = request.getfixturevalue(request.param)
    return found


def numbers_of(content: object) -> Iterator[float]:
    """All numbers in what a JSON file holds."""
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from numbers_of(value)
    elif isinstance(content, float | int):
        yield content


def test_every_figure_is_drawn(done: Run) -> None:
    assert "could not be drawn" not in done.told
    assert {path.stem for path in done.root.glob("reports/figures/*.png")} == set(FIGURES)
    notes = {name for name in FIGURES if done.figure(name) == (880, 220)}  # which say that there is nothing to draw
    none = {"copies"} if not done.metrics["look"]["copies"]["test"]["exact"] else set()
    assert notes == none | (set() if done.images.labelled else {"confusion", "shap"})


def test_the_page_has_no_holes(done: Run) -> None:
    text = html.unescape(
        re.sub(r'src="data:[^"]*"', "", done.page).partition("<pre>")[0]
    )  # before the parameters, which have nulls
    assert not re.findall(r"\b(None|nan|inf|Undefined|null|\[\]|\(\))\b", text)
    assert "CIFAR" not in text and "airplane" not in text and done.metrics["download"]["name"] in text
    assert done.page.count("<img") == text.count("<img") and text.count("<figure>") == text.count("<figcaption>")


def test_numbers_are_finite_and_shares_are_shares(done: Run) -> None:
    assert np.isfinite(list(numbers_of(done.metrics))).all()
    embedded = done.metrics["embed"]
    assert set(embedded["rankme"]) == SPACES
    assert all(1 <= embedded["rankme"][space] <= embedded["dimensions"][space] for space in SPACES)
    for space in SPACES:
        assert sum(embedded["spectrum"][space]) == pytest.approx(1, abs=0.01)
    shares = [embedded.get("knn", {}), embedded.get("precision_at_8", {})]
    for found in [done.metrics["linear_eval"].get(space, {}) for space in SPACES] + [done.metrics["finetune"]]:
        shares.append({key: found[key] for key in ("top1", "top5", "balanced", "auc") if key in found})
    assert all(0 <= value <= 1 for each in shares for value in each.values())
    assert sum(len(each) for each in shares) >= 13 or not done.images.labelled


def test_all_training_images_and_no_others_are_the_bank(done: Run) -> None:
    features, images = done.features(), done.images
    assert len(features["backbone_train"]) == len(features["y_train"]) == len(images.x_train)
    assert len(features["random_latent_test"]) == len(features["y_test"]) == len(images.x_test)
    assert features["classes"].tolist() == list(images.classes)
    assert load_encoder(done.root / "models/encoder.pt").settings.mean == images.normalisation[0]


def test_the_labelled_have_every_control(done: Run) -> None:
    linear, tuned, explained = (done.metrics[stage] for stage in ("linear_eval", "finetune", "explain"))
    if not done.images.labelled:
        pytest.skip("images without labels have nothing to control")
    assert set(linear) >= SPACES and set(done.metrics["embed"]["knn"]) == SPACES
    assert set(tuned["scratch"]) >= {"top1", "loss"} and set(tuned["scratch"]) <= set(tuned)
    rates = quick().chosen.finetune
    assert [tuned["lr"]] == rates.lr != [tuned["scratch"]["lr"]] == rates.scratch_lr
    assert set(explained["residual"]) == {"frozen", "finetuned", "random"} and explained["additivity_residual"] < 1e-3
    assert "random encoder" in done.page
    values, heads = read_npz(done.root / "data/shap.npz"), load_weights(done.root / "models/linear.pt")
    for network, space in (("frozen", rates.space), ("random", f"random_{rates.space}")):
        head = {name: array.numpy() for name, array in heads[space].items()}
        logits = done.features()[f"{space}_test"][:1] @ head["weight"].T + head["bias"]
        assert values[f"{network}_logits"][0] == pytest.approx(logits[0], abs=1e-3)
    counts = np.bincount(done.images.y_test)
    assert done.metrics["download"]["chance"] == pytest.approx(counts.max() / counts.sum())
    for space in SPACES:
        confusion = np.array(linear[space]["confusion"])
        assert confusion.sum(1).tolist() == counts.tolist()
        assert confusion.trace() / counts.sum() == pytest.approx(linear[space]["top1"])


def test_digits_are_not_mirrored_and_their_classes_are_read(digits: Run) -> None:
    assert "flip 0 instead of 0.5" in digits.told and "jitter [0.4, 0.4, 0.0, 0.0] instead of" in digits.told
    assert digits.images.size == 16 and digits.images.grey and not digits.images.mirrors
    linear = digits.metrics["linear_eval"]
    assert linear["backbone"]["top1"] > 0.5 and linear["random_backbone"]["top1"] > 0.4  # of a corner it would be .16
    assert "stem cifar instead of strided" in digits.told
    features = digits.features()
    assert np.abs(features["backbone_test"] - features["random_backbone_test"]).mean() > 0.1
    assert linear["backbone"]["top1"] < linear["backbone"]["top5"] <= 1
    assert set(linear["few_labels"]) == {"50%"}
    frame = pd.read_csv(digits.root / "reports/projection.csv")
    assert len(frame) == 359 and sorted(set(frame["class"])) == list(range(10))


def test_unlabelled_images_are_pretrained_on_and_never_probed(folder: Run) -> None:
    images, counts = folder.images, folder.metrics["download"]
    assert (counts["train"], counts["test"], counts["unlabelled"]) == (96, 24, 30)
    assert images.classes == ("0", "1", ODD) and len(images.x_pretrain) == 126
    assert sum("/deeper/still/" in name for name in images.names) == 20
    pretraining = pd.read_csv(folder.root / "reports/curves/pretrain.csv")
    assert pretraining["step"].iloc[-1] == 2 * (126 // 16)  # of 96 images it would be 12
    assert "for 96 labelled and 30 unlabelled grey images of 24 pixels" in folder.told and "flip" not in folder.told
    assert folder.features()["y_train"].tolist() == images.y_train.tolist() and images.y_train.min() == 0
    assert folder.metrics["finetune"]["images"] == 96
    assert sum(map(sum, folder.metrics["linear_eval"]["backbone"]["confusion"])) == 24
    assert "30 without labels for pretraining only" in folder.page
    assert set(pd.read_csv(folder.root / "reports/projection.csv")["class"]) == {"0", "1", ODD}


def test_two_uneven_classes(medmnist: Run) -> None:
    images, linear = medmnist.images, medmnist.metrics["linear_eval"]
    assert images.y_train.tolist().count(0) == 10 and len(images.x_train) == 150 and images.size == 28
    assert medmnist.metrics["download"]["chance"] == pytest.approx(56 / 60)
    for found in [
        *(linear[space] for space in SPACES),
        medmnist.metrics["finetune"],
        medmnist.metrics["finetune"]["scratch"],
    ]:
        assert {"top1", "balanced", "auc"} <= set(found) and "top5" not in found
    assert linear["random_backbone"]["auc"] > 0.9
    confusion = np.array(linear["latent"]["confusion"])
    assert linear["latent"]["balanced"] == pytest.approx((confusion.diagonal() / confusion.sum(1)).mean())
    assert linear["few_labels"].keys() == {"50%"} and "few_labels [0.5] instead of [0.01, 0.5]" in medmnist.told
    assert "validation images join those for training" in medmnist.told
    assert "the classes are very uneven (140 training images of 1, 10 of 0)" in medmnist.told
    for words in ("balanced accuracy", "ROC AUC", "93.3%", "50.0%", "the classes are very uneven"):
        assert words in medmnist.page, words
    assert "top-5" not in medmnist.page


def test_without_labels_all_else_is_done(without_labels: Run) -> None:
    found = without_labels.metrics
    assert without_labels.told.count("left out, as the images have no labels") == 3
    assert all(found[stage]["left_out"] for stage in ("linear_eval", "finetune", "explain"))
    assert not {"knn", "precision_at_8"} & set(found["embed"]) and found["download"]["chance"] == 0
    assert set(found["project"]) - {"run", "settings"} == {"backbone", "latent", "random_backbone"}
    assert all(set(found["project"][space]) == {"pca_variance_2", "pca", "tsne"} for space in ("backbone", "latent"))
    page = without_labels.page
    assert "no labels, so nothing can be read out" in page and "without labels" in page and 'id="neighbours"' in page
    for words in ("top-1</th>", 'id="shap"', "silhouette", "SHAP</a>"):
        assert words not in page, words


def test_a_hundred_classes_are_readable(hundred: Run) -> None:
    assert hundred.metrics["download"]["classes"] == 100 and hundred.images.classes[99] == "kind 99"
    assert hundred.metrics["linear_eval"]["random_backbone"]["top5"] > 0.2  # by chance .05
    assert "knn_k 1 instead of 200" in hundred.told and "flip" not in hundred.told and "jitter" not in hundred.told
    assert hundred.metrics["look"]["imbalance"] == 1 and hundred.metrics["linear_eval"]["few_labels"] == {}
    assert min(hundred.figure("confusion")) > 1500 and hundred.figure("maps")[1] > 900
    # Eight neighbours are shown and counted, though but one votes.
    features = hundred.features()
    neighbours = nearest(features["backbone_train"], features["backbone_test"], 8)[1]
    counted = precision_at(8, features["y_train"][neighbours], features["y_test"])
    assert hundred.metrics["embed"]["precision_at_8"]["backbone"] == pytest.approx(counted)
    assert hundred.figure("neighbours")[0] > 1300
    assert "few labels" not in hundred.page


def test_what_is_released_is_of_one_run(medmnist: Run, without_labels: Run, tmp_path: Path) -> None:
    release(medmnist.root, tmp_path / "out")
    found = released.read(tmp_path / "out")
    assert found.card["images"]["classes"] == list(medmnist.images.classes)
    assert found.card["linear_top1"]["backbone"] == medmnist.metrics["linear_eval"]["backbone"]["top1"]
    with pytest.raises(UserError, match="the images have no labels"):
        release(without_labels.root, tmp_path / "none")

    root = tmp_path / "mixed"
    shutil.copytree(medmnist.root, root)
    heads = load_weights(root / "models/linear.pt")
    save_weights(
        root / "models/linear.pt", {space: {"weight": torch.zeros(10, 64), "bias": torch.zeros(10)} for space in heads}
    )
    with pytest.raises(UserError, match=r"linear\.pt and .* are of different runs: `dvc repro` first"):
        release(root, tmp_path / "none")
    for damaged in ({"backbone": heads["backbone"]}, {space: {"weight": head["weight"]} for space, head in heads.items()}):
        save_weights(root / "models/linear.pt", damaged)
        with pytest.raises(UserError, match=r"linear\.pt does not hold the linear heads"):
            release(root, tmp_path / "none")
    save_weights(root / "models/linear.pt", heads)
    encoder = load_encoder(root / "models/encoder.pt")
    for changes in ({"seed": 1}, {"latent_dim": 4}, {"first_filters": "random", "filters": ()}):
        save_encoder(root / "models/encoder.pt", Encoder(but(encoder.settings, **changes)))
        with pytest.raises(UserError, match=r"encoder\.pt and .*pretrain\.json are of different runs"):
            release(root, tmp_path / "none")
    save_encoder(root / "models/encoder.pt", encoder)
    for stage, part in (("download", {"test": 7}), ("embed", {"dimensions": {"backbone": 7, "latent": 8}})):
        write_json(root / f"reports/metrics/{stage}.json", {stage: medmnist.metrics[stage] | part})
        with pytest.raises(UserError, match=rf"{stage}\.json are of different runs"):
            release(root, tmp_path / "none")
        write_json(root / f"reports/metrics/{stage}.json", {stage: medmnist.metrics[stage]})
    save_weights(root / "models/linear.pt", {space: head | {"bias": head["bias"].flip(0)} for space, head in heads.items()})
    with pytest.raises(UserError, match=r"linear\.pt and .*linear_eval\.json are of different runs"):
        release(root, tmp_path / "none")
    save_weights(root / "models/linear.pt", heads)
    first = next(encoder.backbone.parameters())
    kept = first.detach().clone()
    with torch.no_grad():  # as another training of the same settings would leave it
        first.mul_(-1)
    save_encoder(root / "models/encoder.pt", encoder)
    with pytest.raises(UserError, match=r"features\.npz is of another encoder or other images"):
        release(root, tmp_path / "none")
    with torch.no_grad():
        first.copy_(kept)
    save_encoder(root / "models/encoder.pt", encoder)
    release(root, tmp_path / "again")
    assert not (tmp_path / "none").exists()

"""The controls: what each leaves, against what it is said to be, and when it is made anew."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ablation import controls
from simsiam import code, fitting
from simsiam.errors import UserError
from simsiam.features import extract as features_of
from simsiam.images import ImageSet, to_tensor
from simsiam.methods import build
from simsiam.metrics import rankme
from simsiam.patches import extract, learn
from simsiam.probe import linear_probe
from simsiam.settings import Params, load
from tests.clones import ROOT

CPU = torch.device("cpu")


@pytest.fixture
def params() -> Params:
    changes = ["ablation.patches.centroids=20", "ablation.patches.patches=5000", "linear_eval.few_labels=[0.01, 0.25]"]
    return load(ROOT / "params.yaml", [*changes, "linear_eval.draws=2", "seed=3"])


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As what is expected is computed there, to the last digit."""
    monkeypatch.setattr(controls, "pick_device", lambda: CPU)


@pytest.fixture
def root(cifar: ImageSet, tmp_path: Path) -> Path:
    cifar.save(tmp_path / "data/images.npz")
    return tmp_path


def test_a_control_leaves_what_was_measured(params: Params, root: Path, cifar: ImageSet, images: Tensor) -> None:
    controls.run("patches", params, root)
    found = json.loads((root / "ablation/results/patches/3.json").read_text())
    assert (found["point"], found["seed"], found["test_images"]) == ("patches", 3, 100)
    assert found["made_with"]["params"]["patches"] == {"centroids": 20, "patches": 5000}
    assert found["made_with"]["images"] == cifar.digest and found["made_with"]["machine"]["device"]

    dictionary = learn(images, centroids=20, patches=5000, seed=3)
    train, test = extract(dictionary, images), extract(dictionary, to_tensor(cifar.x_test, CPU))
    assert found["embed"]["dimensions"] == {"backbone": 80} == {"backbone": train.shape[1]}
    assert found["embed"]["rankme"]["backbone"] == rankme(test)
    probe = linear_probe(train, cifar.y_train, classes=10, held_out=80, seed=3, device=CPU, name="")
    linear = found["linear_eval"]["backbone"]
    assert linear["top1"] == (probe.scores(test).argmax(1) == cifar.y_test).mean() and linear["l2"] == probe.l2
    assert linear["held_out_top1"] == probe.held_out[probe.l2]

    def knn(bank: np.ndarray, queries: np.ndarray) -> float:
        bank, queries = (x.astype(float) / np.linalg.norm(x.astype(float), axis=1, keepdims=True) for x in (bank, queries))
        right = []
        for similarities, label in zip(queries @ bank.T, cifar.y_test, strict=True):
            nearest = np.argsort(-similarities)[:20]  # half of a class
            votes = np.bincount(cifar.y_train[nearest], np.exp(similarities[nearest] / 0.1), 10)
            right.append(votes.argmax() == label)
        return float(np.mean(right))

    assert found["embed"]["knn"]["backbone"] == pytest.approx(knn(train, test), abs=0.011)  # a tie of rounding at most
    standard = [(x - train.mean(0)) / train.std(0) for x in (train, test)]
    assert found["embed"]["knn_standardised"]["backbone"] == pytest.approx(knn(*standard), abs=0.011)
    few = found["linear_eval"]["few_labels"]  # 1 % of 40 images of a class are none
    assert list(few) == ["25%"] and 0.1 < few["25%"]["backbone"]["top1"] < linear["top1"] + 0.1
    assert few["25%"]["backbone"]["sd"] > 0  # each draw takes other images


def test_random_blocks_are_those_of_the_random_encoder_but_not_zero_initialised(params: Params, cifar: ImageSet) -> None:
    """Every weight is the random encoder's but those of each block's last BatchNorm; so more of the image is seen."""
    train, test = controls.of_random_blocks(params, cifar, CPU)
    assert (len(train), len(test)) == (400, 100)
    encoder = build(params, cifar, fitting.model(params.chosen.model, cifar)).encoder
    before = features_of(encoder, to_tensor(cifar.x_test, CPU))[0]
    weights = [value for name, value in encoder.named_parameters() if name.endswith("bn2.weight")]
    assert len(weights) == 4 and all((value == 0).all() for value in weights)  # a ResNet-10 has four blocks
    with torch.no_grad():
        for value in weights:
            value.fill_(1)
    np.testing.assert_array_equal(test, features_of(encoder, to_tensor(cifar.x_test, CPU))[0])

    def seen(backbone: nn.Module) -> int:
        """Of 32x32 pixels those that the features depend on."""
        image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
        backbone.eval()(image).sum().backward()
        assert image.grad is not None
        return int((image.grad.abs().sum(1) > 0).sum())

    assert not np.array_equal(test, before)
    assert (seen(encoder.backbone), seen(build(params, cifar).encoder.backbone)) == (1024, 25)


def test_one_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["controls", "patch"])
    with pytest.raises(SystemExit):
        controls.main()
    assert capsys.readouterr().err == "error: patch is no control: there are patches and random_blocks\n"


@pytest.mark.parametrize(
    ("name", "change"), [("patches", "ablation.patches.centroids=21"), ("random_blocks", "recipes.laptop.model.width=24")]
)
def test_it_is_made_once_and_anew_where_something_else_is_asked_for(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, change: str
) -> None:
    made: list[str] = []

    def counted(name: str, params: Params, images: ImageSet) -> dict[str, int]:
        made.append(name)
        return {"n": len(made)}

    def run(*changes: str) -> int:
        controls.run(name, load(ROOT / "params.yaml", list(changes)), root)
        return int(json.loads(path.read_text())["n"])

    monkeypatch.setattr(controls, "measure", counted)
    path = root / f"ablation/results/{name}/3.json"
    assert [run("seed=3"), run("seed=3")] == [1, 1] and "there already" in capsys.readouterr().err
    assert [run("seed=3", change), run("seed=3", change)] == [2, 2]
    assert run("seed=3") == 3
    assert run("seed=3", "method=simclr", "latent_dim=7") == 3  # which what is not trained does not depend on
    monkeypatch.setattr(code, "digest", lambda *given, method: f"other {method}")
    assert [run("seed=3"), run("seed=3", "method=simclr")] == [4, 4]
    path.write_text("{")
    assert run("seed=3") == 5
    controls.run(name, load(ROOT / "params.yaml", ["seed=4"]), root)
    assert {p.name for p in path.parent.iterdir()} == {"3.json", "4.json"} and set(made) == {name}


def test_both_are_measured_where_none_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch, images: Tensor, cifar: ImageSet
) -> None:
    monkeypatch.chdir(root)
    (root / "params.yaml").symlink_to(ROOT / "params.yaml")
    monkeypatch.setattr("sys.argv", ["controls", "--seed", "4"])
    monkeypatch.setitem(controls.CONTROLS, "patches", controls.CONTROLS["random_blocks"])  # which is quicker
    controls.main()
    found = [json.loads((root / f"ablation/results/{name}/4.json").read_text()) for name in controls.CONTROLS]
    assert [each["point"] for each in found] == ["patches", "random_blocks"]
    _, test = controls.of_random_blocks(load(ROOT / "params.yaml", ["seed=4"]), cifar, CPU)
    assert [each["embed"]["rankme"]["backbone"] for each in found] == [rankme(test)] * 2


def test_a_run_that_fails_leaves_the_old_result(params: Params, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = root / "ablation/results/patches/3.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")

    def fails(*given: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(controls, "measure", fails)
    with pytest.raises(MemoryError):
        controls.run("patches", params, root)
    assert path.read_text() == "{}" and list(path.parent.iterdir()) == [path]


def test_the_test_labels_choose_nothing(params: Params, cifar: ImageSet) -> None:
    wrong = cifar.labels.copy()
    wrong[400:] = (wrong[400:] + 1) % 10
    true, other = (
        controls.measure("patches", params, replace(cifar, labels=labels))["linear_eval"] for labels in (cifar.labels, wrong)
    )
    for key in ("l2", "held_out_top1", "whitened"):
        assert true["backbone"][key] == other["backbone"][key]
    assert true["backbone"]["top1"] > other["backbone"]["top1"] + 0.1


def test_images_without_labels_are_refused(params: Params, root: Path, cifar: ImageSet) -> None:
    replace(cifar, labels=np.full(500, -1), classes=()).save(root / "data/images.npz")
    with pytest.raises(UserError, match="no labels"):
        controls.run("patches", params, root)


@pytest.mark.parametrize("change", ["centroids=1", "centroids=1.5", "patches=10", "centroid=400"])
def test_a_dictionary_that_cannot_be_is_refused(change: str) -> None:
    with pytest.raises(
        UserError, match=r"ablation\.patches\.(centroids|patches) is|unknown key ablation\.patches\.centroid"
    ):
        load(ROOT / "params.yaml", [f"ablation.patches.{change}"])

"""Training images that are held out while a method trains: what is told of them, and that nothing comes of it."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from simsiam import fitting
from simsiam.features import extract, knn_look
from simsiam.files import read_json
from simsiam.images import ImageSet, split, to_tensor
from simsiam.methods.simsiam import SimSiam
from simsiam.networks import Encoder, load_encoder
from simsiam.pretrain import pretrain as pretrain_method
from simsiam.settings import EncoderSettings, Pretrain
from stages import pretrain as module
from stages.common import run
from stages.pretrain import pretrain
from tests.some import COLOURFUL, SIMSIAM, but
from tests.through import quick

CPU = torch.device("cpu")
HELD = 30


def voted(bank: NDArray[Any], labels: NDArray[Any], query: NDArray[Any], k: int) -> int:
    """The weighted vote of Wu et al. 2018, section 3.4, at T = .1, written out."""
    cosines = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
    votes = np.zeros(10)
    for index in np.argsort(-cosines)[:k]:
        votes[labels[index]] += math.exp(cosines[index] / 0.1)
    return int(votes.argmax())


def test_a_look_is_the_knn_of_the_held_out_images_among_others(tiny: EncoderSettings, cifar: ImageSet) -> None:
    """Of 400 images 20 are held out, and 200 of the others, of each class as many, are the bank; half of 20 vote."""
    encoder, pixels = Encoder(tiny), to_tensor(cifar.x_train, CPU)
    kept, held = split(cifar.y_train, 20, 5)
    found = knn_look(pixels, cifar.y_train, kept, held, 5)(encoder)
    bank = kept[split(cifar.y_train[kept], 200, 5)[1]]
    assert np.bincount(cifar.y_train[bank]).tolist() == [20] * 10 and not set(bank) & set(held)
    features = extract(encoder, pixels)[0].astype(float)
    right = [voted(features[bank], cifar.y_train[bank], features[i], 10) == cifar.y_train[i] for i in held]
    assert found == np.mean(right) and 0.05 < found < 0.95
    few = knn_look(pixels, cifar.y_train, *split(cifar.y_train, HELD, 5), 5)  # of 370 others 300
    assert few(encoder) != found
    every = knn_look(pixels, cifar.y_train, *split(cifar.y_train, 100, 5), 5)  # and 300 are fewer than a thousand
    kept, held = split(cifar.y_train, 100, 5)
    right = [voted(features[kept], cifar.y_train[kept], features[i], 15) == cifar.y_train[i] for i in held]
    assert every(encoder) == np.mean(right)


SETTINGS = Pretrain(
    epochs=3, min_steps=0, batch_size=50, lr=0.2, momentum=0.9, weight_decay=5e-4, precision="fp32", compile="never", knn=0,
    augment=but(COLOURFUL, view_size=16),
)  # fmt: skip


def test_a_look_changes_nothing_of_the_training(tiny: EncoderSettings, images: Tensor, cifar: ImageSet) -> None:
    kept, held = split(cifar.y_train, 50, 0)
    look = knn_look(images, cifar.y_train, kept, held, 0)
    others = images[torch.from_numpy(kept)]
    seen, plain = SimSiam(Encoder(tiny), SIMSIAM), SimSiam(Encoder(tiny), SIMSIAM)
    with_look = pretrain_method(seen, others, settings=SETTINGS, seed=0, look=look).records
    without = pretrain_method(plain, others, settings=SETTINGS, seed=0).records
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in seen.state_dict().items())
    assert [record["loss"] for record in with_look] == [record["loss"] for record in without]
    assert with_look[-1]["knn"] == look(seen.encoder) and all("knn" not in record for record in without)


@pytest.fixture
def root(tmp_path: Path, cifar: ImageSet) -> Path:
    cifar.save(tmp_path / "data/images.npz")
    return tmp_path


def held_out(**changes: Any) -> Any:
    return quick(recipes__laptop__pretrain__knn=HELD, recipes__laptop__pretrain__epochs=3, **changes)


def curve(root: Path) -> pd.DataFrame:
    return pd.read_csv(root / "reports/curves/pretrain.csv")


def test_the_curve_has_the_look_at_each_epoch_s_end(root: Path, cifar: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """370 images are 23 batches of 16: a record at the 10th and the 20th, and one at the end."""
    monkeypatch.setattr("simsiam.engine.RECORD_EVERY", 10)
    run(pretrain, held_out(), root)
    text = (root / "reports/curves/pretrain.csv").read_text()
    assert ",nan" not in text
    frame = curve(root)
    ends = frame["step"] % 23 == 0
    assert frame["step"].tolist() == [10, 23, 33, 46, 56, 69]
    assert frame["knn"].notna().tolist() == ends.tolist()
    look = knn_look(to_tensor(cifar.x_train, CPU), cifar.y_train, *split(cifar.y_train, HELD, 0), 0)
    assert frame["knn"].iloc[-1] == look(load_encoder(root / "models/encoder.pt"))
    assert (np.diff(frame["seconds"], prepend=0) > 0).all()
    metrics = read_json(root / "reports/metrics/pretrain.json")["pretrain"]
    assert frame["seconds"].iloc[-1] <= metrics["seconds"] + 0.1
    assert metrics["peak_memory"] > 100  # MiB: torch alone has that
    run(pretrain, quick(), root)
    assert "knn" not in curve(root) and "seconds" in curve(root)


def test_a_killed_training_has_the_same_looks(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.engine.SAVE_EVERY", -1.0)  # a checkpoint after every step
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "whole"))
    run(pretrain, held_out(), root)
    whole = curve(root)
    real = knn_look

    def dies_at(number: int, *given: Any) -> Any:
        look, calls = real(*given), []

        def counted(encoder: Encoder) -> float:
            calls.append(1)
            if len(calls) == number:
                raise RuntimeError("killed")
            return look(encoder)

        return counted

    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "killed"))
    monkeypatch.setattr(module, "knn_look", partial(dies_at, 2))  # in the middle of a look
    with pytest.raises(RuntimeError, match="killed"):
        run(pretrain, held_out(), root)
    monkeypatch.setattr(module, "knn_look", partial(dies_at, 3))  # which has two to do
    run(pretrain, held_out(), root)
    resumed = curve(root)
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), whole.drop(columns="seconds"))
    assert (np.diff(resumed["seconds"]) > 0).all()
    assert resumed["knn"].notna().sum() == 3


class Caught(Exception):
    """What the training is given."""


@pytest.mark.parametrize("method", ["simsiam", "supervised"])
def test_a_held_out_image_is_in_no_batch(root: Path, cifar: ImageSet, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def caught(*given: Any, **named: Any) -> None:
        raise Caught(*given[1:], named["settings"].knn, named["about"])

    monkeypatch.setattr(module, "train_method", caught)
    with pytest.raises(Caught) as told:
        pretrain(held_out(method=method, seed=7), root)
    pixels, labels, knn, about = told.value.args
    kept, held = split(cifar.y_train, HELD, 7)
    assert knn == len(held) == HELD and about["knn"] == HELD and about["images"] == cifar.digest
    assert torch.equal(pixels, to_tensor(cifar.x_train[kept], CPU))
    assert labels is None if method == "simsiam" else labels.tolist() == cifar.y_train[kept].tolist()


def test_without_labels_nothing_is_held_out_and_of_few_images_a_fifth(cifar: ImageSet) -> None:
    settings = but(SETTINGS, knn=1000, min_steps=40, epochs=1)
    few = fitting.pretrain(settings, cifar)
    assert few.knn == 80 and few.epochs == 7  # 320 images are 6 batches of 50
    bare = ImageSet(cifar.images, np.full_like(cifar.labels, -1), cifar.split, (), cifar.names)
    assert fitting.pretrain(settings, bare).knn == 0 and fitting.pretrain(settings, bare).epochs == 5  # and 400 are 8

"""The search of learning rates on 500 real images: what a trial sees and measures, what is run once, what is chosen."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from ablation import search as module
from ablation.rates import chosen, every_trial, lines, of_now, said
from ablation.results import Found
from ablation.search import COLUMNS, RESULTS, checked, rows, run, search
from ablation.study import study
from ablation.trial import trial, without
from simsiam.checkpoint import store_folder
from simsiam.engine import Diverged
from simsiam.errors import UserError
from simsiam.features import extract
from simsiam.files import Busy, locked
from simsiam.images import UNLABELLED, ImageSet, split, to_tensor
from simsiam.networks import load_encoder
from simsiam.settings import Params, load
from tests.clones import ROOT, set_params

HELD_OUT = 50


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cifar: ImageSet) -> Path:
    """A folder with images and params in which a trial takes a second."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    yaml = YAML()
    content = yaml.load(tmp_path / "params.yaml")
    content["ablation"] |= {"points": {}, "studies": {}, "rates": {"simsiam": [0.1, 0.4], "simclr": [0.1, 0.4]}}
    content["recipes"]["laptop"] |= {"methods": {}}
    content["recipes"]["laptop"]["pretrain"] |= {"lr": 0.4}
    yaml.dump(content, tmp_path / "params.yaml")
    monkeypatch.setattr(module, "HELD_OUT", HELD_OUT)
    set_params(tmp_path, latent_dim=8, seed=3, recipes__laptop__model__width=8)
    short = {"epochs": 1, "min_steps": 0, "batch_size": 64}
    set_params(tmp_path, **{f"recipes__laptop__pretrain__{key}": value for key, value in short.items()})
    cifar.save(tmp_path / "data/images.npz")
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The trials that were run, which here take no time and find the better the larger the rate."""
    ran: list[str] = []

    def quick(params: Any, images: ImageSet, held_out: int, scratch: Path) -> dict[str, Any]:
        lr = params.chosen.methods[params.method]["lr"]
        ran.append(f"{params.method} {lr:g}")
        return {"linear": 0.3, "knn": 0.2 + 0.1 * lr, "rankme": 9.0, "z_std": 0.8, "verdict": "healthy", "seconds": 1.0}

    monkeypatch.setattr(module, "trial", quick)
    return ran


def run_all(root: Path, images: ImageSet) -> None:
    search(root, images, list(lines(load(root / "params.yaml"))))


def line(method: str, lr: float) -> str:
    return f"method={method} recipes.laptop.methods.{method}.lr={lr}"


def params_of(root: Path, method: str, lr: float) -> Params:
    return checked(root, line(method, lr).split())


def test_a_slice_of_the_training_images_takes_the_test_images_place(cifar: ImageSet) -> None:
    part = cifar.split.copy()
    part[300:400] = UNLABELLED
    some = replace(cifar, split=part, labels=np.where(part == UNLABELLED, -1, cifar.labels))
    apart = without(some, HELD_OUT, 3)
    kept, held = split(some.y_train, HELD_OUT, 3)
    assert (apart.x_test == some.x_train[held]).all() and (apart.y_test == some.y_train[held]).all()
    assert (apart.x_train == some.x_train[kept]).all() and len(apart.x_pretrain) == 400 - HELD_OUT
    assert apart.names[-1] == some.names[held[-1]] and apart.names[len(kept)] == some.names[300]
    seen = {image.tobytes() for image in apart.images}
    assert not seen & {image.tobytes() for image in some.x_test}


def test_a_trial_trains_without_the_held_out_images_and_scores_them(root: Path, cifar: ImageSet) -> None:
    params = params_of(root, "simsiam", 0.4)
    found = trial(params, cifar, HELD_OUT, root / "a")
    kept, held = split(cifar.y_train, HELD_OUT, params.seed)
    encoder = load_encoder(root / "a/models/encoder.pt")
    bank, queries = (extract(encoder, to_tensor(cifar.x_train[of], torch.device("cpu")))[0] for of in (kept, held))
    bank, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank.astype(float), queries.astype(float)))
    right = 0
    for query, label in zip(queries, cifar.y_train[held], strict=True):
        cosines = bank @ query
        votes = np.zeros(10)
        for index in np.argsort(-cosines)[:17]:  # half of what a class has: 350 / 20
            votes[cifar.y_train[kept][index]] += np.exp(cosines[index] / 0.1)
        right += votes.argmax() == label
    assert found["knn"] == pytest.approx(right / HELD_OUT)
    assert 0.1 < found["linear"] <= 1 and found["z_std"] > 0 and 1 <= found["rankme"] <= 64 and found["seconds"] > 0

    changed = cifar.images.copy()
    changed[len(cifar.x_train) :] = 0  # the test images
    assert trial(params, replace(cifar, images=changed), HELD_OUT, root / "b") | {"seconds": 0} == found | {"seconds": 0}
    changed[held] = 255 - changed[held]
    shutil.rmtree(store_folder(root) / "pretrain")
    assert trial(params, replace(cifar, images=changed), HELD_OUT, root / "c")["knn"] != found["knn"]
    before, after = (load_encoder(root / name / "models/encoder.pt").state_dict() for name in ("a", "c"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_line_is_a_trial_of_a_real_training_and_says_what_it_was_made_with(root: Path, cifar: ImageSet) -> None:
    search(root, cifar, ["latent_dim=4", "", f"  {line('simclr', 0.4)}   latent_dim=4"])
    found = rows(root / RESULTS / "laptop.csv")
    assert [row["changes"] for row in found] == ["latent_dim=4", f"{line('simclr', 0.4)} latent_dim=4"]
    for row in found:
        assert tuple(row) == COLUMNS and 0 < row["linear"] < 1 and 0 < row["knn"] < 1 and row["seconds"] > 0
        assert row["failed"] != row["failed"] and row["threads"] == torch.get_num_threads()  # NaN: it did not
        assert row["images"] == cifar.digest[:16] and len(row["code"]) == len(row["params"]) == 16
    trained = [json.loads(path.read_text()) for path in store_folder(root).glob("pretrain/*/settings.json")]
    assert sorted((each["method"], each["lr"], each["seed"]) for each in trained) == [
        ("simclr", 0.4, 3),
        ("simsiam", 0.4, 3),
    ]
    assert list((store_folder(root) / "scratch").iterdir()) == []


def test_a_trial_that_diverges_has_failed_and_stops_no_other(
    root: Path, cifar: ImageSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def diverges(params: Any, scratch: Path) -> None:
        raise Diverged("pretrain: the loss is nan at step 3")

    monkeypatch.setattr("ablation.trial.pretrain", diverges)
    run_all(root, cifar)
    assert [row["failed"] for row in rows(root / RESULTS / "laptop.csv")] == ["pretrain: the loss is nan at step 3"] * 4
    run_all(root, cifar)
    study(root)
    told = capsys.readouterr().err
    assert told.count(f"{line('simclr', 0.4)}: failed: pretrain: the loss is nan") == 1
    assert "study rates: simclr: every trial failed: try smaller rates" in told


def test_features_that_are_not_finite_are_a_failure(root: Path, cifar: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ablation.trial.extract", lambda encoder, images, name: (np.full((len(images), 4), np.nan), None))
    assert trial(params_of(root, "simsiam", 0.1), cifar, HELD_OUT, root / "a")["failed"].endswith("not finite")


def test_what_is_there_and_matches_is_not_run_again(root: Path, cifar: ImageSet, calls: list[str]) -> None:
    run_all(root, cifar)
    assert calls == ["simsiam 0.1", "simsiam 0.4", "simclr 0.1", "simclr 0.4"]
    before = (root / RESULTS / "laptop.csv").read_bytes()
    # None of these is what a trial depends on.
    set_params(root, recipes__laptop__finetune__epochs=7, recipes__base__methods__byol__lr=0.3, embed__queries=[0])
    set_params(root, recipes__base__methods__simsiam__lr=0.4, linear_eval__draws=2)
    run_all(root, cifar)
    assert len(calls) == 4 and (root / RESULTS / "laptop.csv").read_bytes() == before
    set_params(root, recipes__base__methods__simclr__temperature=0.2)
    run_all(root, cifar)
    assert calls[4:] == ["simclr 0.1", "simclr 0.4"]
    set_params(root, recipes__base__pretrain__weight_decay=0.001)
    run_all(root, cifar)
    assert len(calls) == 10
    other = cifar.images.copy()
    other[0] = 0
    run_all(root, replace(cifar, images=other))
    assert len(calls) == len(rows(root / RESULTS / "laptop.csv")) == 14
    set_params(root, seed=8)
    run_all(root, cifar)
    assert len(calls) == 18


def test_other_code_is_another_trial(
    root: Path, cifar: ImageSet, calls: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(root, cifar)
    with monkeypatch.context() as newer:
        newer.setattr(module, "code_of", lambda method: "newer")
        study(root)
        assert "study rates: simclr, lr 0.1 was made with other code" in capsys.readouterr().err
        assert len(json.loads((root / "reports/study/rates/study.json").read_text())["stale"]) == 4
        run_all(root, cifar)
        assert len(calls) == 8
    assert {each.stale for each in of_now(root, cifar)[0]} == {""}  # of several trials that which is made as it would be now
    assert {each.stale for each in of_now(root, None)[0]} == {""}


def test_trials_count_by_what_they_were_made_with(root: Path, cifar: ImageSet, calls: list[str]) -> None:
    search(root, cifar, ["recipes.laptop.methods.simsiam.lr=0.10 method=simsiam"])
    there, missing = of_now(root, cifar)
    assert [each.point for each in there] == ["simsiam, lr 0.1"] and len(missing) == 3
    run_all(root, cifar)
    assert len(calls) == 4
    set_params(root, recipes__laptop__pretrain__epochs=2)
    for images in (cifar, None):  # simsiam's .1 was another line
        assert [each.stale for each in of_now(root, images)[0]] == ["params"] * 3
    search(root, cifar, [line("simclr", 0.1)])
    best = chosen(of_now(root, cifar)[0], load(root / "params.yaml")).set_index("method")
    assert best.loc["simclr", ["lr", "trials"]].tolist() == [0.1, 1]  # .4 is better, but was trained for one epoch
    assert best.loc["simsiam", ["lr", "trials"]].tolist() == [0.4, 1]


def test_two_at_once_run_each_trial_once(root: Path, cifar: ImageSet, calls: list[str]) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: run_all(root, cifar), range(3)))
    assert sorted(calls) == ["simclr 0.1", "simclr 0.4", "simsiam 0.1", "simsiam 0.4"]
    assert len(rows(root / RESULTS / "laptop.csv")) == 4


def test_a_trial_that_another_is_at_is_left_for_later(root: Path, cifar: ImageSet, calls: list[str]) -> None:
    given, params = module.made_with(params_of(root, "simsiam", 0.1), cifar), params_of(root, "simsiam", 0.1)
    with locked(store_folder(root) / f"locks/search-{'-'.join(given.values())}.lock", wait=False, waiting=""):
        with pytest.raises(Busy):
            run(root, cifar, line("simsiam", 0.1), params, wait=False)
    assert calls == []
    run_all(root, cifar)
    assert sorted(calls) == ["simclr 0.1", "simclr 0.4", "simsiam 0.1", "simsiam 0.4"]


@pytest.mark.parametrize("damage", ["", "a,b\n1,2\n", "knn 20", "knn text", "binary \0"])
def test_a_file_of_something_else_is_a_line(root: Path, cifar: ImageSet, calls: list[str], damage: str) -> None:
    path = root / RESULTS / "laptop.csv"
    if damage.startswith("knn"):  # a share above one, and none
        run_all(root, cifar)
        damage = path.read_text().replace("0.3,0.2", "0.3,20.2" if damage == "knn 20" else "0.3,<<<0.2")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(damage)
    with pytest.raises(UserError, match=r"laptop\.csv does not hold trials: `git checkout"):
        run_all(root, cifar)
    assert path.read_text() == damage


def test_the_committed_trials_are_read() -> None:
    assert len(rows(ROOT / RESULTS / "laptop.csv")) > 20


def test_methods_get_equally_many_rates(root: Path) -> None:
    set_params(root, ablation__rates={"simsiam": [0.1, 0.2], "simclr": [0.1]})
    with pytest.raises(UserError, match="each method should have the same number of learning rates"):
        load(root / "params.yaml")


def put(method: str, knn: dict[float, float | None]) -> list[Found]:
    """Trials of a method by rate; None is one that failed."""
    every = []
    for lr, value in knn.items():
        result: dict[str, Any] = {"method": method, "lr": lr, "made_with": {}}
        result |= {"failed": "nan"} if value is None else {"knn": value, "linear": 0.5, "rankme": 9.0, "seconds": 3.0}
        every.append(Found(f"{method}, lr {lr}", 0, result, {}, {}))
    return every


def test_the_rate_in_use_is_among_those_that_are_tried() -> None:
    params = load(ROOT / "params.yaml")
    for method, rates in params.ablation.rates.items():
        assert (params.chosen.methods[method]["lr"] or params.chosen.pretrain.lr) in rates, method


@pytest.mark.parametrize(
    ("knn", "best", "edge"),
    [
        ({0.1: 0.3, 0.2: 0.4, 0.4: 0.35}, 0.2, False),
        ({0.1: 0.5, 0.2: 0.4, 0.4: 0.35}, 0.1, True),
        ({0.1: 0.3, 0.2: 0.4, 0.4: 0.45}, 0.4, True),
        ({0.1: 0.4, 0.2: 0.4, 0.4: 0.3}, 0.1, True),  # of equals the smallest
        ({0.4: 0.3, 0.2: 0.4, 0.1: 0.4, 0.05: 0.1}, 0.1, False),  # in any order
        ({0.1: 0.3, 0.2: 0.4, 0.4: None}, 0.2, False),  # beyond it lies what diverges
        ({0.4: 0.3}, 0.4, True),
    ],
)
def test_the_rate_with_the_best_knn_is_chosen(knn: dict[float, float | None], best: float, edge: bool) -> None:
    params = load(ROOT / "params.yaml", ["recipes.laptop.methods.simclr.lr=0.2"])
    row = chosen(put("simclr", knn), params).iloc[0]
    assert (row["lr"], row["edge"], row["used"], row["differs"]) == (best, edge, 0.2, best != 0.2)
    words = said(row.to_dict(), "laptop")
    assert words.startswith(f"simclr: lr {best:g} has the best kNN")
    assert ("at the edge of what was tried" in words) == edge
    assert ("set recipes.laptop.methods.simclr.lr" in words) == (best != 0.2)


def test_without_a_rate_of_its_own_a_method_has_the_recipe_s(root: Path) -> None:
    set_params(root, recipes__laptop__pretrain__lr=0.7)
    assert chosen(put("simsiam", {0.7: 0.3}), load(root / "params.yaml"))["used"].tolist() == [0.7]
    both = chosen(put("simsiam", {0.7: 0.3}) + put("simclr", {0.1: None}), load(root / "params.yaml"))
    assert both["method"].tolist() == ["simsiam", "simclr"] and pd.isna(both["lr"][1])


def test_the_tables_are_on_the_page_and_stay_there(
    root: Path, cifar: ImageSet, calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_all(root, cifar)
    set_params(root, ablation__rates={method: [0.1, 0.4, 0.8] for method in ("simsiam", "simclr")})
    for _ in range(2):
        study(root)  # which deletes the studies that params.yaml has not
        folder = root / "reports/study/rates"
        page = json.loads((folder / "study.json").read_text())
    assert page["missing"] == [line("simsiam", 0.8), line("simclr", 0.8)] and page["stale"] == []
    table = pd.read_csv(folder / "chosen.csv").set_index("method")
    assert table.loc["simsiam", ["lr", "edge", "used", "differs"]].tolist() == [0.4, True, 0.4, False]
    assert len(pd.read_csv(folder / "trials.csv")) == len(every_trial(of_now(root, cifar)[0])) == 4
    assert "| simclr | 0.4 | 24.0 |" in (folder / "trials.md").read_text()
    told = capsys.readouterr().err
    assert "simsiam: lr 0.4 has the best kNN (24.0%) of 2 rates, at the edge of what was tried" in told
    assert "deleted" not in told


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("latent_dims=3", "no such key"),
        ("latent_dim", "key=value"),
        ("method=telepathy", "method is 'telepathy': it should be one of simsiam"),
        ("latent_dim=1", "latent_dim"),
        ("data.source=digits", "data.source has no part"),
        ("recipes.paper.pretrain.epochs=3", "has no part in a trial with recipe laptop"),
        ("recipes.laptop.methods.simclr.temperature=0.2", "has no part in a trial with recipe laptop and method simsiam"),
        ("recipes.laptop.finetune.epochs=3", "has no part"),
    ],
)
def test_what_is_wrong_with_any_line_is_said_before_hours_go_by(
    root: Path, cifar: ImageSet, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    monkeypatch.setattr(module, "trial", lambda *given: pytest.fail("a trial was run"))
    with pytest.raises(UserError, match=words):
        search(root, cifar, ["latent_dim=3", line])

"""Trials of a recipe's settings: what is run, what is kept of it, what is refused."""

from pathlib import Path
from typing import Any

import pytest

from ablation import search as module
from ablation.search import COLUMNS, HELD_OUT, RESULTS, rows, search
from simsiam.errors import UserError
from simsiam.images import ImageSet
from tests.clones import set_params
from tests.test_rates import root  # noqa: F401 (a fixture)

GIVEN = {"linear": 0.3, "knn": 0.2, "rankme": 9.0, "z_std": 0.8, "verdict": "healthy", "seconds": 1.0}


def test_a_line_is_a_trial_of_a_real_training(root: Path, cifar: ImageSet) -> None:  # noqa: F811
    set_params(root, recipes__laptop__pretrain__epochs=1)
    search(root, cifar, ["latent_dim=4", "", "  method=simclr   latent_dim=4"])
    found = rows(root / RESULTS / "laptop.csv")
    assert [row["changes"] for row in found] == ["latent_dim=4", "method=simclr latent_dim=4"]
    for row in found:
        assert tuple(row) == COLUMNS and 0 < row["linear"] < 1 and 0 < row["knn"] < 1 and row["seconds"] > 0
        assert row["failed"] != row["failed"] and row["threads"] > 0  # NaN: it did not


def test_each_once_and_failures_too(root: Path, cifar: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    ran: list[Any] = []

    def trial(params: Any, images: ImageSet, held_out: int, scratch: Path) -> dict[str, Any]:
        ran.append((params.latent_dim, held_out))
        assert scratch.is_dir()
        return {"failed": "the loss, inf"} if params.latent_dim == 3 else dict(GIVEN)

    monkeypatch.setattr(module, "trial", trial)
    search(root, cifar, ["latent_dim=3"])
    search(root, cifar, ["latent_dim=4", "latent_dim=3", "latent_dim=4"])
    assert ran == [(3, 80), (4, 80)] and HELD_OUT > 80  # a fifth of the images at most
    found = rows(root / RESULTS / "laptop.csv")
    assert [(row["failed"], row["knn"]) for row in found][0][0] == "the loss, inf" and found[1]["knn"] == 0.2
    assert not list((root / ".checkpoints/scratch").iterdir())


@pytest.mark.parametrize(
    ("line", "words"),
    [("latent_dims=3", "no such key"), ("latent_dim", "key=value"), ("method=moco", "method"), ("latent_dim=1", "latent_dim")],
)
def test_what_is_wrong_with_any_line_is_said_before_hours_go_by(
    root: Path, cifar: ImageSet, monkeypatch: pytest.MonkeyPatch, line: str, words: str  # noqa: F811
) -> None:
    monkeypatch.setattr(module, "trial", lambda *given: pytest.fail("a trial was run"))
    with pytest.raises(UserError, match=words):
        search(root, cifar, ["latent_dim=4", line])

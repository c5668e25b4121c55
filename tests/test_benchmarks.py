"""The benchmark of the throughput refuses what it would not measure, before it measures anything."""

import sys

import pytest

from benchmarks import throughput
from simsiam.errors import UserError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "laptop"], "say with --out where"),
        (["--compile", "always"], "say with --out where"),
        (["latent_dim=2"], "say with --out where"),
        (["--out", "x", "recipe=report"], "recipes are named by --recipe"),
        (["--out", "x", "recipes.laptop.pretrain.batch_size=64"], "batches are what they are"),
        (["--out", "x", "recipes.laptop.pretrain.compile=always"], "compiling by --compile"),
        (["--out", "x", "data.source=digits"], "images and batches"),
        (["--rounds", "0"], "--rounds is 0"),
    ],
)
def test_what_would_not_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch, words: list[str], message: str) -> None:
    monkeypatch.setattr(sys, "argv", ["throughput", *words])
    with pytest.raises(UserError, match=message):
        throughput.main()

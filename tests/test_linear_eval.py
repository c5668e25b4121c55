"""The stage shares its work out among threads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simsiam.files import write_npz
from simsiam.probe import Probe, linear_probe
from simsiam.settings import load
from stages import linear_eval as module
from tests.clones import ROOT
from tests.some import CLASSES, rng


def test_a_probe_of_few_labels_is_one_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that shared it would mostly wait for each other, and on a busy machine for very long."""
    labels = np.arange(600) % 10
    arrays = {f"{space}_{part}": rng().normal(size=(600, 4)) for space in module.SPACES for part in ("train", "test")}
    write_npz(
        tmp_path / "data/features.npz",
        **{name: array.astype(np.float32) for name, array in arrays.items()},
        **dict.fromkeys(("y_train", "y_test"), labels),
        classes=np.array(CLASSES),
    )
    threads: dict[int, set[int]] = {}  # examples -> threads that torch uses

    def watched(features: np.ndarray, *given: Any, **named: Any) -> Probe:
        threads.setdefault(len(features), set()).add(torch.get_num_threads())
        return linear_probe(features, *given, **named)

    monkeypatch.setattr(module, "linear_probe", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        changes = ["linear_eval.held_out=50", "linear_eval.few_labels=[0.1, 0.5]", "linear_eval.draws=3"]
        metrics = module.linear_eval(load(ROOT / "params.yaml", changes), tmp_path)
        assert threads == {600: {2}, 60: {1}, 300: {1}} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert list(metrics["few_labels"]) == ["10%", "50%"]

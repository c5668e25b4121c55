"""The training loop: the optimiser against a plain one, resume bit for bit, and how it ends when it has to."""

import itertools
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from simsiam.checkpoint import Store
from simsiam.engine import COMPILE_FROM, Interrupted, Result, TrainSettings, resolve_compile, resolve_precision, train
from simsiam.errors import UserError
from simsiam.schedule import cosine
from simsiam.seeds import derive
from tests.conftest import generator

SETTINGS = TrainSettings(epochs=3, batch_size=16, lr=0.5, momentum=0.9, weight_decay=1e-3, seed=5, precision="fp32")
X = torch.randn(70, 6, generator=generator())
Y = X @ torch.randn(6, 1, generator=generator(1))


class Watched:
    """Linear regression with noise from the loop's generator, counting the batches it is given."""

    def __init__(self) -> None:
        self.model = nn.Linear(6, 1)
        nn.init.zeros_(self.model.weight)
        nn.init.zeros_(self.model.bias)
        self.batches: list[list[int]] = []
        self.stop_at = self.nan_at = self.signal_at = -1
        self.signal = signal.SIGTERM

    def __call__(self, network: nn.Module, batch: Tensor, random: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        self.batches.append(batch.tolist())
        if len(self.batches) == self.stop_at:
            raise RuntimeError("killed")
        if len(self.batches) == self.signal_at:
            os.kill(os.getpid(), self.signal)
        noise = 0.01 * torch.randn(len(batch), 6, generator=random)
        loss = (network(X[batch] + noise) - Y[batch]).square().mean()
        return loss * (float("nan") if len(self.batches) == self.nan_at else 1), {"size": torch.tensor(float(len(batch)))}

    def run(self, settings: TrainSettings = SETTINGS, store: Store | None = None) -> Result:
        return train(
            self.model, self, examples=len(X), settings=settings, device=torch.device("cpu"), name="test", store=store
        )


def test_cosine() -> None:
    assert cosine(0, 10) == 1 and cosine(5, 10) == pytest.approx(0.5) and cosine(10, 10) == pytest.approx(0)
    assert all(cosine(step + 1, 100) < cosine(step, 100) for step in range(100))


@pytest.mark.parametrize(("record_every", "records"), [(50, [4, 8, 12]), (2, [2, 4, 6, 8, 10, 12]), (3, [4, 8, 12])])
def test_equals_a_loop_written_out(record_every: int, records: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.engine.RECORD_EVERY", record_every)
    ours = Watched()
    result = ours.run()
    theirs = Watched()
    optimizer = torch.optim.SGD(theirs.model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-3)
    losses = []
    for step, batch in enumerate(ours.batches):
        optimizer.param_groups[0]["lr"] = 0.5 * 16 / 256 * cosine(step, 12)
        loss, _ = theirs(theirs.model, torch.tensor(batch), generator(derive(5, 1, step, 0)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(ours.model.weight, theirs.model.weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.model.bias, theirs.model.bias, atol=1e-6, rtol=0)
    means = [sum(losses[start:end]) / (end - start) for start, end in itertools.pairwise([0, *records])]
    assert [record["loss"] for record in result.records] == pytest.approx(means, rel=1e-5)
    assert [record["step"] for record in result.records] == records
    assert [record["epoch"] for record in result.records] == [step / 4 for step in records]


def test_an_epoch_is_a_permutation_without_the_last_incomplete_batch() -> None:
    watched = Watched()
    watched.run()
    epochs = [[index for batch in watched.batches[n : n + 4] for index in batch] for n in range(0, 12, 4)]
    assert len(watched.batches) == 12
    assert all(len(set(epoch)) == 64 and set(epoch) <= set(range(70)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_constant_learning_rate_stays_at_the_peak() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.falling, self.constant = nn.Parameter(torch.zeros(1)), nn.Linear(1, 1, bias=False)

    model = Two()
    steps: list[tuple[float, float]] = []

    def loss_of(network: nn.Module, batch: Tensor, random: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        steps.append((model.falling.item(), model.constant.weight.item()))
        return model.falling.sum() + model.constant.weight.sum(), {}  # a gradient of 1 everywhere

    settings = TrainSettings(epochs=2, batch_size=16, lr=1.6, momentum=0.0, weight_decay=0.0, seed=0, precision="fp32")
    train(model, loss_of, examples=64, settings=settings, device=torch.device("cpu"), name="t", constant_lr=model.constant)
    falling, constant = zip(*steps, strict=True)
    assert [a - b for a, b in zip(constant, constant[1:], strict=False)] == pytest.approx([0.1] * 7, abs=1e-6)
    moved = [a - b for a, b in zip(falling, falling[1:], strict=False)]
    assert moved == pytest.approx([0.1 * cosine(n, 8) for n in range(7)], abs=1e-6)


@pytest.mark.parametrize("stop_at", [1, 3, 5, 9, 12])
def test_a_killed_run_ends_bit_for_bit_as_an_uninterrupted_one(
    tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simsiam.engine.SAVE_EVERY", 0.0)  # a checkpoint after every step
    monkeypatch.setattr("simsiam.engine.RECORD_EVERY", 2)
    whole = Watched()
    expected = whole.run()
    killed, resumed = Watched(), Watched()
    killed.stop_at = stop_at
    with pytest.raises(RuntimeError, match="killed"):
        killed.run(store=Store(tmp_path))
    result = resumed.run(store=Store(tmp_path))
    assert len(resumed.batches) == 12 - (stop_at - 1)
    assert torch.equal(whole.model.weight, resumed.model.weight)
    assert result.records == expected.records


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    first, second = Watched(), Watched()
    expected = first.run(store=Store(tmp_path))
    result = second.run(store=Store(tmp_path))
    assert second.batches == [] and torch.equal(first.model.weight, second.model.weight)
    assert result.records == expected.records


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_so(tmp_path: Path, number: signal.Signals, exit_code: int) -> None:
    before = signal.getsignal(number)
    whole, stopped, resumed = Watched(), Watched(), Watched()
    whole.run()
    stopped.signal_at, stopped.signal = 6, number
    with pytest.raises(Interrupted, match="step 6 of 12, saved") as caught:
        stopped.run(store=Store(tmp_path))
    assert caught.value.exit_code == exit_code
    resumed.run(store=Store(tmp_path))
    assert len(resumed.batches) == 6 and torch.equal(whole.model.weight, resumed.model.weight)
    assert signal.getsignal(number) == before


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(tmp_path: Path) -> None:
    watched = Watched()
    watched.nan_at = 7
    with pytest.raises(UserError, match="nan at step 7: try a smaller lr"):
        watched.run(store=Store(tmp_path))
    assert not list(tmp_path.glob("*.pt"))  # nothing broken is kept


def test_more_than_the_data_in_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size is 71 but there are only 70"):
        Watched().run(TrainSettings(1, 71, 0.1, 0.9, 0.0, 0))


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for able, expected in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert resolve_precision("auto", cpu) == expected
    assert resolve_precision("bf16", cpu) == "bf16"


def test_compiling_follows_the_length_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, enough = torch.device("cpu"), COMPILE_FROM["cpu"]
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert resolve_compile("auto", cpu, enough) and not resolve_compile("auto", cpu, enough - 1)
    assert resolve_compile("always", cpu, 1) and not resolve_compile("never", cpu, enough)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not resolve_compile("auto", cpu, enough)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_training_is_the_same_training(tmp_path: Path) -> None:
    eager, compiled = Watched(), Watched()
    expected = eager.run()
    result = compiled.run(replace(SETTINGS, compile="always"))
    torch.testing.assert_close(compiled.model.weight, eager.model.weight, atol=1e-5, rtol=0)
    assert result.machine["compiled"] and not expected.machine["compiled"]


def test_derived_seeds_differ() -> None:
    seeds = {derive(seed, purpose, step) for seed in range(10) for purpose in range(3) for step in range(100)}
    assert len(seeds) == 3000 and max(seeds) < 2**32
    assert derive(0, 2) not in (derive(1, 2), derive(0, 2, 0)) and derive(0, 1, 5, 0) != derive(0, 1, 5, 1)

"""The training loop: the optimiser against a plain one, resume bit for bit, and how it ends when it has to."""

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from simsiam.checkpoint import Store, fingerprint, open_store
from simsiam.engine import (
    COMPILE_FROM,
    Diverged,
    Interrupted,
    Record,
    Recorded,
    Result,
    StoreFor,
    _parameter_groups,
    arithmetic,
    resolve_compile,
    resolve_precision,
    train,
)
from simsiam.errors import UserError
from simsiam.machine import machine
from simsiam.schedule import OwnRate, cosine
from simsiam.seeds import derive
from simsiam.settings import Training
from tests.some import but, generator, timeless

SETTINGS = Training(epochs=3, min_steps=0, batch_size=16, momentum=0.9, weight_decay=1e-3, precision="fp32", compile="never")
CPU = torch.device("cpu")
X = torch.randn(70, 6, generator=generator())
Y = X @ torch.randn(6, 1, generator=generator(1))


def kept(folder: Path) -> StoreFor:
    """Always the same place, whatever the training is."""
    return lambda identity: nullcontext(Store(folder))


class Watched:
    """Linear regression with noise from the loop's generator, counting the batches it is given."""

    def __init__(self) -> None:
        self.model = nn.Linear(6, 1)
        nn.init.zeros_(self.model.weight)
        nn.init.zeros_(self.model.bias)
        self.batches: list[list[int]] = []
        self.stop_at = self.nan_at = self.signal_at = -1
        self.signals = [signal.SIGTERM]
        self.epochs: list[list[Record]] = []  # what on_epoch was given

    def __call__(self, network: nn.Module, batch: Tensor, random: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        self.batches.append(batch.tolist())
        if len(self.batches) == self.stop_at:
            raise RuntimeError("killed")
        if len(self.batches) == self.signal_at:
            for number in self.signals:
                os.kill(os.getpid(), number)
        noise = 0.01 * torch.randn(len(batch), 6, generator=random)
        loss = (network(X[batch] + noise) - Y[batch]).square().mean()
        return loss * (float("nan") if len(self.batches) == self.nan_at else 1), {"size": torch.tensor(float(len(batch)))}

    def run(self, settings: Training = SETTINGS, **others: Any) -> Result:
        given: dict[str, Any] = {"lr": 0.5, "seed": 5, "device": CPU, "name": "test", "on_epoch": self.epochs.append}
        return train(self.model, self, examples=len(X), settings=settings, **given | others)


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
    losses, rates = [], [0.5 * 16 / 256 * cosine(step, 12) for step in range(12)]
    for step, batch in enumerate(ours.batches):
        optimizer.param_groups[0]["lr"] = rates[step]
        loss, _ = theirs(theirs.model, torch.tensor(batch), generator(derive(5, 1, step, 0)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(ours.model.weight, theirs.model.weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.model.bias, theirs.model.bias, atol=1e-6, rtol=0)
    means = [sum(losses[start:end]) / (end - start) for start, end in itertools.pairwise([0, *records])]
    assert [record["loss"] for record in result.records] == pytest.approx(means, rel=1e-5)
    assert [record["lr"] for record in result.records] == [rates[step - 1] for step in records]
    assert [record["step"] for record in result.records] == records
    assert [record["epoch"] for record in result.records] == [step / 4 for step in records]
    assert all(record["size"] == 16 for record in result.records)
    ends = [[record for record in result.records if record["step"] <= 4 * epoch] for epoch in (1, 2, 3)]
    assert ours.epochs == ends


def test_an_epoch_is_a_permutation_without_the_last_incomplete_batch() -> None:
    watched = Watched()
    watched.run()
    epochs = [[index for batch in watched.batches[n : n + 4] for index in batch] for n in range(0, 12, 4)]
    assert len(watched.batches) == 12
    assert all(len(set(epoch)) == 64 and set(epoch) <= set(range(70)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_seed_decides_order_and_noise() -> None:
    one, two, other = Watched(), Watched(), Watched()
    one.run()
    two.run()
    other.run(seed=6)
    assert one.batches == two.batches != other.batches and torch.equal(one.model.weight, two.model.weight)


def test_parts_with_learning_rates_of_their_own() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.falling, self.still = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1), requires_grad=False)
            self.constant, self.faster, self.nothing = (
                nn.Linear(1, 1, bias=False),
                nn.Linear(1, 1, bias=False),
                nn.Identity(),
            )

    model = Parts()
    steps: list[tuple[float, ...]] = []

    def loss_of(network: nn.Module, batch: Tensor, random: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        parts = model.falling, model.constant.weight, model.faster.weight, model.still
        steps.append(tuple(part.item() for part in parts))
        return torch.stack([part.sum() for part in parts]).sum(), {}  # a gradient of 1 everywhere

    settings = but(SETTINGS, epochs=2, momentum=0.0, weight_decay=0.0)
    own = [OwnRate(model.constant, constant=True), OwnRate(model.faster, times=10.0), OwnRate(model.nothing)]
    train(model, loss_of, examples=64, settings=settings, lr=1.6, seed=0, device=CPU, name="t", own_rates=own)
    falling, constant, faster, still = (
        [a - b for a, b in itertools.pairwise(values)] for values in zip(*steps, strict=True)
    )
    assert constant == pytest.approx([0.1] * 7, abs=1e-6)
    assert falling == pytest.approx([0.1 * cosine(n, 8) for n in range(7)], abs=1e-6)
    assert faster == pytest.approx([cosine(n, 8) for n in range(7)], abs=1e-5)
    assert still == [0.0] * 7
    groups = [[id(parameter) for parameter in group["params"]] for group in _parameter_groups(model, own)]
    assert groups == [[id(model.falling)], [id(model.constant.weight)], [id(model.faster.weight)]]


def test_what_follows_a_step_is_told_how_much_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the step, before its checkpoint, and on a resumed training from there on."""
    monkeypatch.setattr("simsiam.engine.SAVE_EVERY", -1.0)
    whole, killed, resumed = Watched(), Watched(), Watched()

    def run(watched: Watched, **others: Any) -> list[tuple[float, float]]:
        told: list[tuple[float, float]] = []

        def halve(done: float) -> None:
            told.append((done, watched.model.weight.sum().item()))
            with torch.no_grad():
                watched.model.weight.mul_(0.5)

        with suppress(RuntimeError):
            watched.run(after_step=halve, **others)
        return told

    expected = run(whole)
    assert [done for done, _ in expected] == [n / 12 for n in range(1, 13)] and expected[0][1] != 0
    killed.stop_at = 6
    first = run(killed, store_for=kept(tmp_path))
    assert first + run(resumed, store_for=kept(tmp_path)) == expected and len(first) == 5
    assert torch.equal(whole.model.weight, resumed.model.weight)


@pytest.mark.parametrize("stop_at", [1, 3, 5, 9, 12])
def test_a_killed_run_ends_bit_for_bit_as_an_uninterrupted_one(
    tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simsiam.engine.SAVE_EVERY", -1.0)  # a checkpoint after every step
    monkeypatch.setattr("simsiam.engine.RECORD_EVERY", 2)
    whole, killed, resumed = Watched(), Watched(), Watched()

    def watching(watched: Watched) -> Callable[[Record], Record]:
        """A number of the weights and of the record, which only the session that makes the record can know."""
        return lambda record: {"weight": watched.model.weight.abs().sum().item() + record["loss"]}

    expected = whole.run(watch=watching(whole))
    killed.stop_at = stop_at
    with pytest.raises(RuntimeError, match="killed"):
        killed.run(store_for=kept(tmp_path), watch=watching(killed))
    result = resumed.run(store_for=kept(tmp_path), watch=watching(resumed))
    assert len(resumed.batches) == 12 - (stop_at - 1)
    assert torch.equal(whole.model.weight, resumed.model.weight)
    assert len({record["weight"] for record in result.records}) == 6
    assert timeless(result.records) == timeless(resumed.epochs[-1]) == timeless(expected.records)
    # What was known before is told at once, for a curve that starts where it was.
    before = [record for record in expected.records if record["step"] < stop_at]
    assert stop_at == 1 or timeless(resumed.epochs[0]) == timeless(before)


class Clock:
    """Time that passes only where it is told to: a step takes 1 s, a look 100 s, a checkpoint 10,000 s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr("simsiam.engine.time", SimpleNamespace(monotonic=lambda: self.now))
        take, save = Watched.__call__, Store.save

        def step(watched: Watched, *given: Any) -> tuple[Tensor, dict[str, Tensor]]:
            self.now += 1
            return take(watched, *given)

        def saving(store: Store, *given: Any) -> None:
            self.now += 10_000
            save(store, *given)

        monkeypatch.setattr(Watched, "__call__", step)
        monkeypatch.setattr(Store, "save", saving)

    def look(self, record: Record) -> Record:
        self.now += 100
        return {}


@pytest.mark.parametrize("stop_at", [0, 1, 5, 8, 12])
def test_the_seconds_are_those_of_the_steps_alone(tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of looks, checkpoints, what is between two sessions, or steps that a killed session did not save."""
    clock, killed, resumed = Clock(monkeypatch), Watched(), Watched()
    monkeypatch.setattr("simsiam.engine.SAVE_EVERY", -1.0)
    monkeypatch.setattr("simsiam.engine.RECORD_EVERY", 2)
    if stop_at:
        killed.stop_at = stop_at
        with pytest.raises(RuntimeError, match="killed"):
            killed.run(store_for=kept(tmp_path), watch=clock.look)
        clock.now += 1_000_000
    result = resumed.run(store_for=kept(tmp_path), watch=clock.look)
    assert [record["seconds"] for record in result.records] == [2, 4, 6, 8, 10, 12]
    assert result.images_per_second == 16  # a batch in a second
    # In the loop, but for the last checkpoint of a session that was killed, which could not know how long it took.
    assert result.seconds == 12 + 6 * 100 + (12 - (stop_at > 1)) * 10_000


def test_the_peak_of_memory_is_the_highest_of_all_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, resumed, told = Watched(), Watched(), Watched()
    stopped.signal_at = 6
    monkeypatch.setattr("simsiam.engine.peak_memory", lambda: 500.0)
    with pytest.raises(Interrupted):
        stopped.run(store_for=kept(tmp_path))
    monkeypatch.setattr("simsiam.engine.peak_memory", lambda: 300.0)
    assert resumed.run(store_for=kept(tmp_path)).peak_memory == 500
    monkeypatch.setattr("simsiam.engine.peak_memory", lambda: 700.0)
    assert told.run(store_for=kept(tmp_path)).peak_memory == 500  # there was nothing left to train
    assert Watched().run().peak_memory == 700


def test_a_finished_training_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Watched(), Watched()
    expected = first.run(store_for=kept(tmp_path))
    monkeypatch.setattr("simsiam.engine.machine", lambda: {"device": "another"})
    result = second.run(store_for=kept(tmp_path))
    assert second.batches == [] and torch.equal(first.model.weight, second.model.weight)
    assert result.records == expected.records and result.machine == expected.machine
    assert second.epochs == [expected.records]


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_so(tmp_path: Path, number: signal.Signals, exit_code: int) -> None:
    before = signal.getsignal(number)
    whole, stopped, resumed = Watched(), Watched(), Watched()
    whole.run()
    stopped.signal_at, stopped.signals = 6, [number]
    with pytest.raises(Interrupted, match="step 6 of 12, saved; the same command goes on") as caught:
        stopped.run(store_for=kept(tmp_path))
    assert caught.value.exit_code == exit_code
    assert signal.getsignal(number) == before
    resumed.run(store_for=kept(tmp_path))
    assert len(resumed.batches) == 6 and torch.equal(whole.model.weight, resumed.model.weight)
    assert signal.getsignal(number) == before


def test_without_a_store_a_signal_says_that_nothing_is_saved() -> None:
    watched = Watched()
    watched.signal_at = 6
    with pytest.raises(Interrupted, match="step 6 of 12, nothing of it was saved"):
        watched.run()


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    watched = Watched()
    watched.signal_at, watched.signals = 6, [signal.SIGINT, signal.SIGINT]
    with pytest.raises(KeyboardInterrupt):
        watched.run(store_for=kept(tmp_path))
    assert signal.getsignal(signal.SIGINT) == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize("signals", [[signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]])
def test_a_second_signal_of_another_kind_still_saves(tmp_path: Path, signals: list[signal.Signals]) -> None:
    """DVC and a terminal may each send one."""
    watched = Watched()
    watched.signal_at, watched.signals = 6, signals
    with pytest.raises((Interrupted, KeyboardInterrupt)) as caught:
        watched.run(store_for=kept(tmp_path))
    assert isinstance(caught.value, Interrupted) and "saved" in str(caught.value)
    assert [path.name[:8] for path in tmp_path.iterdir()] == ["00000006"]


def test_an_epoch_s_end_that_cannot_be_told_loses_no_step(tmp_path: Path) -> None:
    """Its folder may be gone: what is to be saved is saved before."""
    watched = Watched()
    watched.signal_at = 8

    def gone(records: list[Record]) -> None:
        if len(records) == 2:
            raise FileNotFoundError("the folder is gone")

    with pytest.raises(FileNotFoundError):
        watched.run(store_for=kept(tmp_path), on_epoch=gone)
    state = Store(tmp_path).latest()
    assert state and state["progress"]["step"] == 8 and len(state["progress"]["records"]) == 2


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(tmp_path: Path) -> None:
    watched = Watched()
    watched.nan_at = 7
    with pytest.raises(Diverged, match="nan at step 7: try a smaller lr"):
        watched.run(store_for=kept(tmp_path))
    assert not list(tmp_path.glob("*.pt"))  # nothing broken is kept


def test_a_broken_step_is_never_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.engine.SAVE_EVERY", -1.0)
    watched = Watched()
    watched.nan_at = 7
    with pytest.raises(Diverged):
        watched.run(store_for=kept(tmp_path))
    assert [path.name[:8] for path in sorted(tmp_path.iterdir())] == ["00000005", "00000006"]


def test_more_than_the_data_in_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size is 71 but there are only 70"):
        Watched().run(but(SETTINGS, batch_size=71))


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for able, expected in (({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert resolve_precision("auto", CPU) == expected
    assert resolve_precision("bf16", CPU) == "bf16" and resolve_precision("fp32", CPU) == "fp32"


def test_a_gpu_s_fp32_is_called_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for able, auto in ((True, "bf16"), (False, "tf32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        found = [resolve_precision(precision, torch.device("cuda")) for precision in ("auto", "fp32", "bf16")]
        assert found == [auto, "tf32", "bf16"]


def test_compiling_follows_the_length_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    enough = COMPILE_FROM["cpu"]
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert resolve_compile("auto", CPU, enough) and not resolve_compile("auto", CPU, enough - 1)
    assert resolve_compile("always", CPU, 1) and not resolve_compile("never", CPU, enough)
    monkeypatch.setattr("simsiam.parallel.size", lambda: 2)
    assert not resolve_compile("auto", CPU, enough) and resolve_compile("always", CPU, 1)
    monkeypatch.undo()
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not resolve_compile("auto", CPU, enough)
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(Path, "exists", lambda path: False)  # Python without its headers
    assert not resolve_compile("auto", CPU, enough)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_a_compiled_training_is_the_same_training() -> None:
    eager, compiled = Watched(), Watched()
    expected = eager.run()
    result = compiled.run(but(SETTINGS, compile="always"))
    torch.testing.assert_close(compiled.model.weight, eager.model.weight, atol=1e-5, rtol=0)
    assert result.machine["compiled"] and not expected.machine["compiled"]


def identity_of(settings: Training = SETTINGS, **others: Any) -> dict[str, Any]:
    """What a training of these settings is identified by, without training."""
    found: list[dict[str, Any]] = []

    def store_for(identity: dict[str, Any]) -> nullcontext[None]:
        found.append(identity)
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        Watched().run(settings, store_for=store_for, **others)
    return found[0]


def test_a_training_is_identified_by_all_that_it_depends_on() -> None:
    about = {"images": "digest"}
    ours = identity_of(about=about)
    assert ours["images"] == "digest" and ours["training"] == SETTINGS.model_dump()
    assert set(ours["arithmetic"]) == {"precision", "compiled", "units", "threads", "torch", "numpy"}
    assert ours["arithmetic"]["torch"] == str(torch.__version__) and ours["arithmetic"]["numpy"] == np.__version__
    json.dumps(ours)  # it is written for people, too

    others = [identity_of(about={"images": "other"}), identity_of(lr=0.4, about=about), identity_of(seed=6, about=about)]
    for change in ({"epochs": 4}, {"batch_size": 17}, {"momentum": 0.8}, {"weight_decay": 0.0}):
        others.append(identity_of(but(SETTINGS, **change), about=about))
    assert len({fingerprint("simsiam.pretrain", identity) for identity in [ours, *others]}) == 8
    assert identity_of(about=about) == ours


def test_a_training_is_identified_by_how_it_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resolved, not as it is asked for: `auto` is another training on another processor."""

    def found() -> str:
        return fingerprint("simsiam.pretrain", identity_of(but(SETTINGS, precision="auto", compile="auto")))

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    prints = [found()]
    for name, value in (
        ("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True}),
        ("simsiam.engine.resolve_compile", lambda *_: True),
        ("simsiam.engine.vector_units", lambda: "avx9"),
        ("torch.get_num_threads", lambda: 77),
        ("torch.__version__", "9.9.9"),
        ("numpy.__version__", "9.9.9"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            prints.append(found())
    assert len(set(prints)) == len(prints) == 7 and found() == prints[0]


def test_a_gpu_is_identified_by_its_name_and_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    found = arithmetic(but(SETTINGS, precision="auto"), torch.device("cuda"), 100)
    assert (found["precision"], found["units"], found["threads"]) == ("bf16", "H100", 0)


def test_a_training_that_was_killed_in_one_precision_is_not_gone_on_with_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simsiam.engine.SAVE_EVERY", -1.0)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    auto, store_for = but(SETTINGS, precision="auto"), partial(open_store, tmp_path, "simsiam.pretrain")
    killed, other, again = Watched(), Watched(), Watched()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    killed.stop_at = 5
    with pytest.raises(RuntimeError, match="killed"):
        killed.run(auto, store_for=store_for)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        assert other.run(auto, store_for=store_for).machine["precision"] == "bf16"
    assert len(other.batches) == 12
    assert again.run(auto, store_for=store_for).machine["precision"] == "fp32"
    assert len(again.batches) == 8


def test_the_machine_is_recorded_with_the_arithmetic() -> None:
    result = Watched().run()
    assert result.machine == machine() | arithmetic(SETTINGS, CPU, 64) | {"processes": 1}
    assert result.machine["precision"] == "fp32" and result.machine["threads"] == torch.get_num_threads()
    assert result.seconds > 0 and result.images_per_second > 0


def test_derived_seeds_differ() -> None:
    seeds = {derive(seed, purpose, step) for seed in range(10) for purpose in range(3) for step in range(100)}
    assert len(seeds) == 3000 and max(seeds) < 2**32
    assert derive(0, 2) not in (derive(1, 2), derive(0, 2, 0)) and derive(0, 1, 5, 0) != derive(0, 1, 5, 1)


def test_a_signal_while_the_end_is_written_is_not_swallowed() -> None:
    watched = Watched()
    ends: list[int] = []

    def write(records: list[Record]) -> None:
        ends.append(len(records))
        if len(ends) == 3:  # the last of three epochs
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="step 12 of 12"):
        watched.run(on_epoch=write)


def test_recording_leaves_batchnorm_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a GPU does it: the network runs some times while it is recorded. What is passed by name arrives by name."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, one: Tensor, two: Tensor, *, labels: Tensor) -> Tensor:
            return self.norm(one) - self.norm(two) + labels

    def record(network: nn.Module, samples: tuple[Tensor, ...], allow_unused_input: bool) -> nn.Module:
        for _ in range(4):
            network(*samples)
        network.forward = network.forward  # as torch replaces it
        return network

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    network, alone = Network(), Network()
    one, two, labels = torch.randn(3, 8, 3).unbind()
    recorded = Recorded(network)
    for _ in range(2):
        assert torch.equal(recorded(one, two, labels=labels), alone(one, two, labels=labels))
    for ours, theirs in zip(network.buffers(), alone.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert network.norm.num_batches_tracked == 4

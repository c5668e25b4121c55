"""The one training loop. It knows batches, learning rates and checkpoints; no method, and no data."""

import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from simsiam import parallel
from simsiam.checkpoint import Store
from simsiam.errors import UserError
from simsiam.machine import forget_peak_memory, machine, peak_memory, vector_units
from simsiam.schedule import OwnRate, cosine
from simsiam.seeds import derive
from simsiam.settings import Training

Record = dict[str, float]
LossOf = Callable[[nn.Module, Tensor, Generator], tuple[Tensor, dict[str, Tensor]]]
StoreFor = Callable[[dict[str, Any]], AbstractContextManager[Store | None]]  # by what identifies a training

LOOK_EVERY = 20  # steps between two looks at the numbers: a look makes a GPU wait
RECORD_EVERY = 50  # steps of an epoch that share a record; fewer than half of it are not left for the last
SAVE_EVERY = 60.0  # seconds between two checkpoints
# Examples in a training from which compiling it pays. On an H200 a ResNet-18 won its half minute back after 6 million.
COMPILE_FROM = {"cpu": 1_000_000, "cuda": 6_000_000}


@dataclass(frozen=True)
class Result:
    """What a training leaves besides the weights."""

    # Every 50 steps or so and at an epoch's end: epoch, step, lr, seconds, and means since the last of what is watched. Its
    # seconds are those of training so far, over all sessions, without compiling, saving and `watch`.
    records: list[Record]
    seconds: float  # in the loop, over all sessions of a resumed training
    images_per_second: float  # examples per second of training
    peak_memory: float  # MiB, of process 0 (`simsiam.machine.peak_memory`)
    machine: dict[str, Any]  # what it ran on, with its arithmetic


class Interrupted(UserError):
    """The training was asked to stop (Ctrl-C or SIGTERM) and has saved where it was."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # the shell's convention for a death by signal


class Diverged(UserError):
    """The loss is not a finite number any more."""


@dataclass
class Progress:
    """All that moves in a training besides weights and optimiser. Random numbers are made anew from the step."""

    step: int = 0
    seconds: float = 0.0
    paused: float = 0.0  # seconds of these that went into compiling, saving and watching
    peak_memory: float = 0.0
    records: list[Record] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of the columns of `watched`
    watched: Tensor = field(default_factory=lambda: torch.empty(0))  # (steps of an epoch, names), of the running epoch
    machine: dict[str, Any] = field(default_factory=dict)


def pick_device() -> torch.device:
    """The GPU when there is one, else the CPU; a GPU is set up for speed: TF32, and the fastest convolutions of cuDNN."""
    device = parallel.local_device()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    return device


def arithmetic(settings: Training, device: torch.device, examples: int) -> dict[str, Any]:
    """All that decides how a training of `examples` images rounds, besides its settings."""
    units = f"{vector_units()}, kernels {torch.backends.cpu.get_cpu_capability()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else units
    return {
        "precision": resolve_precision(settings.precision, device),
        "compiled": resolve_compile(settings.compile, device, settings.epochs * examples),
        "units": name,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def resolve_precision(precision: str, device: torch.device) -> Literal["fp32", "tf32", "bf16"]:
    """`auto` becomes bf16 where the processor multiplies it in hardware; emulated it is slower. fp32 is TF32 on a GPU."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if precision == "bf16" or (precision == "auto" and able) else "tf32"
    units = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    able = bool(units.get("avx512_bf16") or units.get("amx_bf16"))
    return "bf16" if precision == "bf16" or (precision == "auto" and able) else "fp32"


def resolve_compile(compile: str, device: torch.device, examples: int) -> bool:
    """`auto` compiles a training of so many examples (COMPILE_FROM) that networks as `laptop`'s win back what it takes.

    It needs a compiler. With a smaller network, or in bf16, that may take more or fewer.

    Several processes do not compile unless told to: nobody has measured what it does to synchronised BatchNorm.
    """
    if compile != "auto":
        return compile == "always"
    if parallel.size() > 1:
        return False
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return examples >= COMPILE_FROM[device.type] and shutil.which("g++") is not None and headers.exists()


def train(
    module: nn.Module,
    loss_of: LossOf,
    *,
    examples: int,
    settings: Training,
    lr: float,
    seed: int,
    device: torch.device,
    name: str,
    about: dict[str, Any] | None = None,
    own_rates: Sequence[OwnRate] = (),
    after_step: Callable[[float], None] = lambda done: None,
    store_for: StoreFor = lambda identity: nullcontext(),
    watch: Callable[[Record], Record] = lambda record: {},
    on_epoch: Callable[[list[Record]], None] = lambda records: None,
) -> Result:
    """Minimise `loss_of` over the parameters of `module`, which are on `device`, by SGD with a cosine schedule.

    loss_of(network, batch, generator): `network` is the module as it is trained here (compiled, or shared with other
    processes), `batch` the indices (B,) int64, on the device, of the examples in this step, `generator` a source of
    random numbers, on the CPU, that is new in every step. Returns the scalar loss and named scalars to watch.
    lr: for a batch of 256; the peak rate is lr * batch_size / 256.
    own_rates: the parts of `module` with another learning rate. What requires no gradient is not trained.
    after_step: called after every step of the optimiser with the share of the training that is done, in (0, 1].
    about: all else that module and loss_of are made of, which with the settings and the arithmetic identifies the training.
    store_for: gives the place of its checkpoints; a training that was cut short is taken up again, bit for bit on a CPU.
    watch: more numbers for a new record, that are too dear for every step. on_epoch: called after every epoch with all
    records so far. Both are called by process 0 alone.

    An epoch is a new permutation of the examples without its last incomplete batch. Where several processes train together
    (`simsiam.parallel`), each takes its share of every batch with random numbers of its own.
    Raises Diverged when a loss is not finite, and Interrupted, once saved, on SIGINT or SIGTERM.
    """
    batch_size, steps = settings.batch_size, examples // settings.batch_size
    rank, processes = parallel.rank(), parallel.size()
    if steps == 0:
        raise UserError(f"{name}: batch_size is {batch_size} but there are only {examples} images: make it smaller")
    if batch_size % processes:
        raise UserError(f"{name}: batch_size is {batch_size}, which {processes} processes cannot share evenly")
    total, peak = settings.epochs * steps, lr * batch_size / 256
    rounding = arithmetic(settings, device, steps * batch_size)
    identity = (about or {}) | {"lr": lr, "seed": seed, "arithmetic": rounding}
    identity["training"] = settings.model_dump(include=set(Training.model_fields))

    with store_for(identity) as store, _stop_signals() as stop:
        network = parallel.share(module)
        optimizer = torch.optim.SGD(
            _parameter_groups(module, own_rates),
            lr=peak,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        now = _resume(store, module, optimizer, total, name, device)
        if now.step < total:  # else nothing is left to do, and this machine has no part in it
            now.machine = machine() | rounding | {"processes": processes}
            forget_peak_memory()
        if now.step > 0 and rank == 0:
            on_epoch(now.records)
        if rounding["compiled"]:
            network = torch.compile(network)  # type: ignore[assignment]
        if device.type == "cuda" and processes == 1:
            network = Recorded(network)

        def save() -> None:
            if store and rank == 0:
                state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(now)}
                store.save(now.step, state)

        module.train()
        with progress_bar(total * batch_size, name, now.step * batch_size) as bar:
            books = _Books(now, steps, total, name, save if store else None, watch, on_epoch, bar, stop)
            while now.step < total:
                epoch, step = divmod(now.step, steps)
                if step == 0 or now.step == books.first:
                    order = torch.randperm(examples, generator=Generator().manual_seed(derive(seed, 0, epoch))).to(device)
                rate = peak * cosine(now.step, total)
                for group in optimizer.param_groups:
                    group["lr"] = group["times"] * (peak if group["constant"] else rate)
                batch = order[step * batch_size : (step + 1) * batch_size].chunk(processes)[rank]
                generator = Generator().manual_seed(derive(seed, 1, now.step, rank))
                bf16 = rounding["precision"] == "bf16"
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=device.type == "cpu"):
                    loss, extras = loss_of(network, batch, generator)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                now.step += 1
                after_step(now.step / total)
                bar.update(batch_size)
                books.note({"loss": loss.detach(), **extras}, rate)
    speed = total * batch_size / max(now.seconds - now.paused, 1e-9)
    return Result(now.records, now.seconds, speed, now.peak_memory, now.machine)


class Recorded(nn.Module):
    """A network whose forward and backward pass on a GPU are recorded at the first call, and replayed from then on.

    Launching a ResNet-18's thousand kernels takes the host longer than it takes the GPU to run them, even at a batch of 512.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.replayed: Callable[..., Any] | None = None

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:
        inputs += tuple(named.values())
        if self.replayed is None:
            # Recording runs the network some times, which moves BatchNorm's statistics.
            before = [buffer.clone() for buffer in self.network.buffers()]
            whole, samples = _Called(self.network, list(named)), tuple(each.clone() for each in inputs)
            # It records in a stream of its own, which autograd waits for as it should, and remarks upon.
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
            torch.cuda.make_graphed_callables(whole, samples, allow_unused_input=True)
            self.replayed = whole.forward
            del whole.forward  # which holds `whole`: the graph's memory is free as soon as this is
            for buffer, value in zip(self.network.buffers(), before, strict=True):
                buffer.copy_(value)
        return self.replayed(*inputs)


class _Called(nn.Module):
    """A network inside a plain module, since recording replaces `forward`, which a compiled one does not let it.

    names: of the last inputs, which recording wants without.
    """

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: Tensor) -> Any:
        unnamed = len(inputs) - len(self.names)
        return self.network(*inputs[:unnamed], **dict(zip(self.names, inputs[unnamed:], strict=True)))


class _Books:
    """The books of a training while it runs: its numbers, records, checkpoints and time, all kept in `now`."""

    def __init__(
        self,
        now: Progress,
        steps: int,
        total: int,
        name: str,
        save: Callable[[], None] | None,
        watch: Callable[[Record], Record],
        on_epoch: Callable[[list[Record]], None],
        bar: "tqdm[Any]",
        stop: list[int],
    ) -> None:
        self.now, self.steps, self.total, self.name = now, steps, total, name
        self.save, self.watch, self.on_epoch, self.bar, self.stop = save, watch, on_epoch, bar, stop
        self.first, self.before = now.step, now.seconds  # of this session
        self.started = self.saved = time.monotonic()

    def note(self, watched: dict[str, Tensor], rate: float) -> None:
        """Keep the numbers of a step that was taken; now and then look at them, record, save, and stop where asked to."""
        now, step = self.now, (self.now.step - 1) % self.steps
        device = watched["loss"].device
        if step == 0:
            now.names, now.watched = list(watched), torch.zeros(self.steps, len(watched), device=device)
        now.watched[step] = torch.stack([value.float() for value in watched.values()])  # without waiting for a GPU
        now.seconds = self._clock()
        if now.step == self.first + 1 and now.machine.get("compiled"):
            now.paused += now.seconds - self.before  # the first step compiles
        last = step == self.steps - 1
        record = last or ((step + 1) % RECORD_EVERY == 0 and 2 * (self.steps - step - 1) >= RECORD_EVERY)
        overdue = time.monotonic() - self.saved > SAVE_EVERY
        if not (record or self._look_due(overdue, device)):
            return
        seen = now.watched[: step + 1] = parallel.mean(now.watched[: step + 1])
        _check_finite(seen[:, 0], now.step - step - 1, self.name)
        shown = zip(now.names, seen[-1].tolist(), strict=True)
        self.bar.set_postfix({key: f"{number:.3f}" for key, number in shown}, refresh=False)
        if record:
            self._record(seen, rate)
        stopping = parallel.any_of(bool(self.stop), device)
        if stopping or overdue or now.step == self.total:
            self._save()
        if last and parallel.rank() == 0:
            self.on_epoch(now.records)
        if stopping or (now.step == self.total and parallel.any_of(bool(self.stop), device)):  # or asked to while it saved
            kept = "saved; the same command goes on, without --fresh" if self.save else "nothing of it was saved"
            number = self.stop[0] if self.stop else signal.SIGTERM
            raise Interrupted(f"{self.name}: stopped at step {now.step} of {self.total}, {kept}", number)

    def _look_due(self, overdue: bool, device: torch.device) -> bool:
        """Several processes have to look together, so they go by the step alone."""
        if parallel.size() > 1:
            return device.type == "cpu" or self.now.step % LOOK_EVERY == 0
        return self.now.step % LOOK_EVERY == 0 or bool(self.stop) or overdue

    def _record(self, seen: Tensor, rate: float) -> None:
        """Add a record of what was seen in this epoch since the one before."""
        now, start = self.now, self.now.step - len(seen)
        since = max(0, int(now.records[-1]["step"]) - start) if now.records else 0
        new = {"epoch": round(now.step / self.steps, 3), "step": now.step, "lr": rate}
        new["seconds"] = round(now.seconds - now.paused, 3)
        new |= dict(zip(now.names, seen[since:].mean(0).tolist(), strict=True))
        with self._paused():
            now.records = [*now.records, new | (self.watch(new) if parallel.rank() == 0 else {})]

    def _save(self) -> None:
        self.now.peak_memory = max(self.now.peak_memory, peak_memory())
        with self._paused():
            if self.save:
                self.save()
        self.saved = time.monotonic()

    @contextmanager
    def _paused(self) -> Iterator[None]:
        """What is done inside is no training."""
        began = self._clock()
        yield
        self.now.seconds = self._clock()
        self.now.paused += self.now.seconds - began

    def _clock(self) -> float:
        """Seconds in the loop, over all sessions."""
        return self.before + time.monotonic() - self.started


def _resume(
    store: Store | None, module: nn.Module, optimizer: torch.optim.Optimizer, total: int, name: str, device: torch.device
) -> Progress:
    """Where the training was cut short, with module and optimiser set to that, or its beginning."""
    now = Progress()
    if state := parallel.first_alone(store.latest) if store else None:
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        now = Progress(**state["progress"])
        now.watched = now.watched.to(device)
        if parallel.rank() == 0:
            print(f"{name}: going on from step {now.step} of {total}", file=sys.stderr)
    if parallel.mean(torch.tensor(float(now.step), device=device)) != now.step:
        raise UserError(f"{name}: the processes do not see the same checkpoints: let them share one folder")
    return now


def progress_bar(total: int, name: str, initial: int = 0) -> "tqdm[Any]":
    """A progress bar over images; where the output is not a terminal, a line now and then. Without a name there is none."""
    seconds = 0.3 if sys.stderr.isatty() else 20
    return tqdm(
        total=total,
        initial=initial,
        desc=name,
        unit=" images",
        unit_scale=True,
        mininterval=seconds,
        dynamic_ncols=True,
        disable=parallel.rank() > 0 or not name,
    )


def _parameter_groups(module: nn.Module, own_rates: Sequence[OwnRate]) -> list[dict[str, Any]]:
    own = {id(parameter) for rate in own_rates for parameter in rate.part.parameters()}
    rest = nn.ParameterList(p for p in module.parameters() if id(p) not in own)
    groups = [
        {"params": [p for p in part.parameters() if p.requires_grad], "times": times, "constant": constant}
        for part, times, constant in (OwnRate(rest), *own_rates)
    ]
    return [group for group in groups if group["params"]]


def _check_finite(losses: Tensor, steps_before: int, name: str) -> None:
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        step = steps_before + int(bad[0]) + 1
        raise Diverged(
            f"{name}: the loss is {float(losses[bad[0]])} at step {step}: "
            "try a smaller lr, a larger batch_size, or precision: fp32"
        )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying in the middle of a step. A second Ctrl-C does not wait."""
    caught: list[int] = []

    def note(number: int, frame: object) -> None:
        if number == signal.SIGINT and number in caught:
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us there takes care of signals
        before = {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

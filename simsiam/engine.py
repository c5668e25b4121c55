"""The one training loop. It knows batches, learning rates and checkpoints; not SimSiam, and not CIFAR-10."""

import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from simsiam import parallel
from simsiam.checkpoint import Store
from simsiam.errors import UserError
from simsiam.machine import machine
from simsiam.schedule import cosine
from simsiam.seeds import derive

Precision = Literal["auto", "fp32", "bf16"]
Compile = Literal["auto", "always", "never"]
Record = dict[str, float]
LossOf = Callable[[nn.Module, Tensor, Generator], tuple[Tensor, dict[str, Tensor]]]

LOOK_EVERY = 20  # steps between two looks at the numbers: a look makes a GPU wait
RECORD_EVERY = 50  # steps of an epoch that share a record; fewer than half of it are not left for the last
SAVE_EVERY = 60.0  # seconds between two checkpoints
COMPILE_FROM = {"cpu": 1_000_000, "cuda": 10_000_000}  # examples in a training from which compiling it pays


@dataclass(frozen=True)
class TrainSettings:
    """Everything about a training that is neither the model nor the data."""

    epochs: int
    batch_size: int  # of all processes together
    lr: float  # for a batch of 256; the peak rate is lr * batch_size / 256 (Goyal et al. 2017)
    momentum: float
    weight_decay: float
    seed: int
    precision: Precision = "auto"
    compile: Compile = "never"


@dataclass(frozen=True)
class Result:
    """What a training leaves besides the weights."""

    # Every 50 steps or so and at an epoch's end: epoch, step, lr, and means since the last of what is watched.
    records: list[Record]
    seconds: float  # in the loop, over all sessions of a resumed training
    images_per_second: float  # examples per second of the loop
    machine: dict[str, Any]  # what it ran on, with its `precision`


class Interrupted(UserError):
    """The training was asked to stop (Ctrl-C or SIGTERM) and has saved where it was."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # the shell's convention for a death by signal


@dataclass
class Progress:
    """All that moves in a training besides weights and optimiser. Random numbers are made anew from the step."""

    step: int = 0
    seconds: float = 0.0
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


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` becomes bf16 where the processor multiplies bf16 in hardware, else fp32: emulated, it is slower."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


def resolve_compile(compile: Compile, device: torch.device, examples: int) -> bool:
    """`auto` compiles a training of so many examples that it wins back the minute it takes, where there is a compiler.

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
    settings: TrainSettings,
    device: torch.device,
    name: str,
    constant_lr: nn.Module | None = None,
    store: Store | None = None,
    on_epoch: Callable[[list[Record]], None] = lambda records: None,
) -> Result:
    """Minimise `loss_of` over the parameters of `module`, which are on `device`, by SGD with a cosine schedule.

    loss_of(network, batch, generator): `network` is the module as it is trained here (compiled, or shared with other
    processes), `batch` the indices (B,) int64, on the device, of the examples in this step, `generator` a source of
    random numbers, on the CPU, that is new in every step. Returns the scalar loss and named scalars to watch.
    constant_lr: a child of `module` whose learning rate stays at the peak (Chen & He, section 4.2).
    store: where checkpoints go, and where a training that was cut short is taken up again, bit for bit on a CPU.
    on_epoch: called, by process 0, after every epoch with all records so far.

    An epoch is a new permutation of the examples without its last incomplete batch. Where several processes train together
    (`simsiam.parallel`), each takes its share of every batch with random numbers of its own.
    Raises UserError when a loss is not finite, and Interrupted, once saved, on SIGINT or SIGTERM.
    """
    batch_size, steps = settings.batch_size, examples // settings.batch_size
    rank, processes = parallel.rank(), parallel.size()
    if steps == 0:
        raise UserError(f"{name}: batch_size is {batch_size} but there are only {examples} images: make it smaller")
    if batch_size % processes:
        raise UserError(f"{name}: batch_size is {batch_size}, which {processes} processes cannot share evenly")
    total, peak = settings.epochs * steps, settings.lr * batch_size / 256
    precision = resolve_precision(settings.precision, device)
    compiled = resolve_compile(settings.compile, device, total * batch_size)

    network = parallel.share(module)
    optimizer = torch.optim.SGD(
        _parameter_groups(module, constant_lr),
        lr=peak,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    here = machine() | {"precision": precision, "compiled": compiled, "processes": processes}
    now = Progress(machine=here)
    if state := parallel.first_alone(store.latest) if store else None:
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        now = Progress(**state["progress"])
        now.watched = now.watched.to(device)
        if now.step < total:  # else nothing is left to do, and this machine has no part in it
            now.machine = here
        if rank == 0:
            print(f"{name}: going on from step {now.step} of {total}", file=sys.stderr)
            on_epoch(now.records)
    if parallel.mean(torch.tensor(float(now.step), device=device)) != now.step:
        raise UserError(f"{name}: the processes do not see the same checkpoints: let them share one folder")
    if compiled:
        network = torch.compile(network)  # type: ignore[assignment]

    look_every = 1 if processes > 1 and device.type == "cpu" else LOOK_EVERY
    before, started = now.seconds, time.monotonic()
    saved = started

    def save() -> None:
        nonlocal saved
        now.seconds = before + time.monotonic() - started
        if store and rank == 0:
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(now)}
            store.save(now.step, state)
        saved = time.monotonic()

    module.train()
    with _stop_signals() as stop, progress_bar(total * batch_size, name, now.step * batch_size) as bar:
        while now.step < total:
            epoch, first = divmod(now.step, steps)
            order = torch.randperm(examples, generator=Generator().manual_seed(derive(settings.seed, 0, epoch))).to(device)
            for step in range(first, steps):
                factor = cosine(now.step, total)
                for group in optimizer.param_groups:
                    group["lr"] = peak * (1.0 if group["constant"] else factor)
                batch = order[step * batch_size : (step + 1) * batch_size].chunk(processes)[rank]
                generator = Generator().manual_seed(derive(settings.seed, 1, now.step, rank))
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    loss, extras = loss_of(network, batch, generator)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                now.step += 1

                if step == 0:
                    now.names = ["loss", *extras]
                    now.watched = torch.zeros(steps, len(now.names), device=device)
                now.watched[step] = torch.stack([loss.detach().float(), *(value.float() for value in extras.values())])
                bar.update(batch_size)
                last, overdue = step == steps - 1, time.monotonic() - saved > SAVE_EVERY
                record = last or ((step + 1) % RECORD_EVERY == 0 and 2 * (steps - step - 1) >= RECORD_EVERY)
                look = record or now.step % look_every == 0
                if not look and (processes > 1 or not (stop or overdue)):  # several processes have to look together
                    continue
                seen = now.watched[: step + 1] = parallel.mean(now.watched[: step + 1])
                _check_finite(seen[:, 0], epoch * steps, name)
                numbers = zip(now.names, seen[-1].tolist(), strict=True)
                bar.set_postfix({key: f"{number:.3f}" for key, number in numbers}, refresh=False)
                if record:
                    since = max(0, int(now.records[-1]["step"]) - epoch * steps) if now.records else 0
                    means = dict(zip(now.names, seen[since:].mean(0).tolist(), strict=True))
                    at = {"epoch": round(epoch + (step + 1) / steps, 3), "step": now.step, "lr": peak * factor}
                    now.records = [*now.records, at | means]
                if last and rank == 0:
                    on_epoch(now.records)
                stopping = parallel.any_of(bool(stop), device)
                if stopping or overdue or now.step == total:
                    save()
                if stopping:
                    kept = "saved; the same command goes on, without --fresh" if store else "nothing of it was saved"
                    number = stop[0] if stop else signal.SIGTERM
                    raise Interrupted(f"{name}: stopped at step {now.step} of {total}, {kept}", number)
    seconds = before + time.monotonic() - started
    return Result(now.records, seconds, total * batch_size / seconds, now.machine)


def progress_bar(total: int, name: str, initial: int = 0) -> "tqdm[Any]":
    """A progress bar over images; where the output is not a terminal, a line now and then."""
    seconds = 0.3 if sys.stderr.isatty() else 20
    return tqdm(
        total=total,
        initial=initial,
        desc=name,
        unit=" images",
        unit_scale=True,
        mininterval=seconds,
        dynamic_ncols=True,
        disable=parallel.rank() > 0,
    )


def _parameter_groups(module: nn.Module, constant_lr: nn.Module | None) -> list[dict[str, Any]]:
    constant = {id(parameter) for parameter in constant_lr.parameters()} if constant_lr else set()
    groups = [
        {"params": [p for p in module.parameters() if (id(p) in constant) == is_constant], "constant": is_constant}
        for is_constant in (False, True)
    ]
    return [group for group in groups if group["params"]]


def _check_finite(losses: Tensor, steps_before: int, name: str) -> None:
    bad = (~torch.isfinite(losses)).nonzero()
    if len(bad):
        step = steps_before + int(bad[0]) + 1
        raise UserError(
            f"{name}: the loss is {float(losses[bad[0]])} at step {step}: "
            "try a smaller lr, a larger batch_size, or precision: fp32"
        )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying in the middle of a step."""
    caught: list[int] = []
    try:
        before = {number: signal.signal(number, lambda n, _: caught.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us there takes care of signals
        before = {}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

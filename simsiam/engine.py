"""The one training loop. It knows batches, learning rates and checkpoints; not SimSiam, and not CIFAR-10."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from simsiam.checkpoint import Store
from simsiam.errors import UserError
from simsiam.machine import machine
from simsiam.schedule import cosine

Precision = Literal["auto", "fp32", "bf16"]
Record = dict[str, float]
LossOf = Callable[[Tensor, Generator], tuple[Tensor, dict[str, Tensor]]]

LOOK_EVERY = 20  # steps between two looks at the numbers: a look makes a GPU wait
SAVE_EVERY = 60.0  # seconds between two checkpoints


@dataclass(frozen=True)
class TrainSettings:
    """Everything about a training that is neither the model nor the data."""

    epochs: int
    batch_size: int
    lr: float  # for a batch of 256; the peak rate is lr * batch_size / 256 (Goyal et al. 2017)
    momentum: float
    weight_decay: float
    seed: int
    precision: Precision = "auto"


@dataclass(frozen=True)
class Result:
    """What a training leaves besides the weights."""

    records: list[Record]  # one an epoch: epoch, step, lr, and the mean over its steps of loss and what was watched
    seconds: float  # in the loop, over all sessions of a resumed training
    images_per_second: float  # examples per second of the loop
    machine: dict[str, Any]  # what it ran on, with its `precision`


class Interrupted(UserError):
    """The training was asked to stop (Ctrl-C or SIGTERM) and has saved where it was."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number  # the shell's convention for a death by signal


def pick_device() -> torch.device:
    """The GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` becomes bf16 where the processor multiplies bf16 in hardware, else fp32: emulated, it is slower."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "fp32"


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
    """Minimise `loss_of` over the parameters of `module` by SGD with a cosine schedule.

    loss_of(batch, generator): `batch` holds the indices (B,) int64, on the CPU, of the examples in this step; returns the
    scalar loss and named scalars to watch. The generator, on the device, is for augmentation.
    constant_lr: a child of `module` whose learning rate stays at the peak (Chen & He, section 4.2).
    store: where checkpoints go, and where a training that was cut short is taken up again, bit for bit on a CPU.
    on_epoch: called after every epoch with all records so far.

    An epoch is a new permutation of the examples without its last incomplete batch.
    Raises UserError when a loss is not finite, and Interrupted, once saved, on SIGINT or SIGTERM.
    """
    batch_size, steps = settings.batch_size, examples // settings.batch_size
    if steps == 0:
        raise UserError(f"{name}: batch_size is {batch_size} but there are only {examples} images: make it smaller")
    peak = settings.lr * batch_size / 256
    optimizer = torch.optim.SGD(
        _parameter_groups(module, constant_lr),
        lr=peak,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=device.type == "cuda",
    )
    precision = resolve_precision(settings.precision, device)
    generator = Generator(device).manual_seed(settings.seed)
    records: list[Record] = []
    watched = torch.empty(0)  # (steps, numbers) of the running epoch
    names: list[str] = []
    done, seconds_before = 0, 0.0
    where = machine() | {"precision": precision}

    state = store.latest() if store else None
    if state:
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        for group in optimizer.param_groups:
            group["fused"] = device.type == "cuda"
        if state["device"] == device.type:
            generator.set_state(state["generator"])
        elif state["step"] < settings.epochs * steps:
            print(f"{name}: the checkpoint is from another device: its random numbers cannot go on here", file=sys.stderr)
        if state["step"] == settings.epochs * steps:  # nothing is left to do, so this machine has no part in it
            where = state["machine"]
        records, names, watched = state["records"], state["names"], state["watched"].to(device)
        done, seconds_before = state["step"], state["seconds"]
        print(f"{name}: going on from step {done} of {settings.epochs * steps}", file=sys.stderr)
        on_epoch(records)

    started = saved = time.monotonic()

    def save() -> None:
        if store:
            store.save(
                done,
                {
                    "step": done,
                    "device": device.type,
                    "machine": where,
                    "module": module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "generator": generator.get_state(),
                    "records": records,
                    "names": names,
                    "watched": watched,
                    "seconds": seconds_before + time.monotonic() - started,
                },
            )

    module.train()
    with _stop_signals() as stop, progress(settings.epochs * steps * batch_size, name, done * batch_size) as bar:
        while done < settings.epochs * steps:
            epoch, first = divmod(done, steps)
            order = torch.randperm(examples, generator=Generator().manual_seed((settings.seed << 20) + epoch))
            for step in range(first, steps):
                factor = cosine(done, settings.epochs * steps)
                for group in optimizer.param_groups:
                    group["lr"] = peak * (1.0 if group["constant"] else factor)
                batch = order[step * batch_size : (step + 1) * batch_size]
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    loss, extras = loss_of(batch, generator)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                done += 1

                if step == 0:
                    names = ["loss", *extras]
                    watched = torch.zeros(steps, len(names), device=device)
                watched[step] = torch.stack([loss.detach().float(), *(value.float() for value in extras.values())])
                bar.update(batch_size)
                last, finished = step == steps - 1, done == settings.epochs * steps
                save_now = stop or finished or time.monotonic() - saved > SAVE_EVERY
                if last or save_now or done % LOOK_EVERY == 0:
                    _check_finite(watched[: step + 1, 0], epoch * steps, name)
                    bar.set_postfix(
                        {key: f"{value:.3f}" for key, value in zip(names, watched[step].tolist(), strict=True)},
                        refresh=False,
                    )
                if last:
                    means = watched.mean(0).tolist()
                    records = [
                        *records,
                        {"epoch": epoch + 1, "step": done, "lr": peak * factor, **dict(zip(names, means, strict=True))},
                    ]
                    on_epoch(records)
                if save_now:
                    save()
                    saved = time.monotonic()
                if stop:
                    kept = "saved; the same command goes on from here" if store else "nothing of it was saved"
                    raise Interrupted(f"{name}: stopped at step {done} of {settings.epochs * steps}, {kept}", stop[0])
    seconds = seconds_before + time.monotonic() - started
    return Result(records, seconds, settings.epochs * steps * batch_size / seconds, where)


def progress(total: int, name: str, initial: int = 0) -> "tqdm[Any]":
    """A progress bar over images; where the output is not a terminal, a line now and then."""
    seconds = 0.3 if sys.stderr.isatty() else 20
    return tqdm(
        total=total, initial=initial, desc=name, unit=" images", unit_scale=True, mininterval=seconds, dynamic_ncols=True
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

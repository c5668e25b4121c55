"""Pairs of views per second of our pretraining and of others, in one run on one machine: python -m benchmarks.throughput

Four loops train the same network on the same images with the same batch:
  ours      simsiam.pretrain, end to end: views, step, looks at the numbers
  bare      our model's step alone, on two fixed views: what `ours` could reach if views cost nothing
  lightly   lightly's SimSiam example with its own transform and DataLoader, around torchvision's ResNet
  plain     torchvision transforms in a DataLoader, and a step of torchvision's ResNet in fp32
They take turns, round after round; each turn warms up before its clock starts. Written are the median of the rounds and
their spread, to reports/benchmarks/throughput.json and .png.
"""

import os
import statistics
import sys
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import lightly_steps, plain_steps
from simsiam import images
from simsiam.augment import random_views
from simsiam.engine import Recorded, pick_device, resolve_precision
from simsiam.errors import UserError
from simsiam.files import write_json
from simsiam.images import ImageSet, to_tensor
from simsiam.machine import machine
from simsiam.methods import build
from simsiam.methods.every import METHODS
from simsiam.pretrain import pretrain
from simsiam.settings import Params, Pretrain, load
from stages.common import plainly

LATENT_DIM = {"laptop": 512, "report": 512, "paper": 2048}
OUT = Path("reports/benchmarks/throughput")
BATCH = {"cpu": {"laptop": 128, "report": 128, "paper": 64}, "cuda": {"laptop": 128, "report": 128, "paper": 512}}
# That are timed in a round.
STEPS = {"cpu": {"laptop": 60, "report": 15, "paper": 4}, "cuda": {"laptop": 200, "report": 200, "paper": 50}}
WARM_UP = {
    "cpu": 2,
    "cuda": 40,
}  # steps before; DataLoaders have two batches a worker ready when the clock starts and when it stops
LOOPS = {
    "ours": "this project, end to end",
    "bare": "its model step alone",
    "lightly": "lightly's SimSiam loop",
    "plain": "plain torchvision loop",
}


def timed(steps: Iterator[Any], warm_up: int, count: int, device: torch.device) -> float:
    """Seconds that `count` steps take, after `warm_up` others."""
    for _ in range(warm_up):
        next(steps)
    wait(device)
    started = time.perf_counter()
    for _ in range(count):
        next(steps)
    wait(device)
    return time.perf_counter() - started


def has_lightly() -> bool:
    """Whether lightly is there to be measured; the others are measured without it."""
    try:
        return bool(version("lightly"))
    except PackageNotFoundError:
        return False


def wait(device: torch.device) -> None:
    """Until the GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def ours(model: Any, pictures: Tensor, settings: Pretrain, steps: int, warm_up: int, labels: Tensor | None = None) -> float:
    """Seconds of the second epoch, of `steps` batches, of a training that comes after one of `warm_up` batches."""
    ends = []

    def note(records: Any) -> None:
        wait(pictures.device)
        ends.append(time.perf_counter())

    for epochs, count in ((1, warm_up), (2, steps)):
        some, size = settings.model_copy(update={"epochs": epochs}), count * settings.batch_size
        ends.clear()
        torch.compiler.reset()  # what was compiled for a training of this model would call that one's hooks
        known = None if labels is None else labels[:size]
        pretrain(model, pictures[:size], known, settings=some, seed=0, on_epoch=note)
    return ends[1] - ends[0]


def bare_steps(model: Any, views: list[Tensor], settings: Pretrain) -> Iterator[None]:
    """Forward, backward and update on two fixed views, as the engine does them; a step each `next`."""
    device = views[0].device
    model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)
    bf16 = resolve_precision(settings.precision, device) == "bf16"
    network: nn.Module = torch.compile(model) if settings.compile == "always" else model  # type: ignore[assignment]
    if device.type == "cuda":
        network = Recorded(network)
    while True:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=device.type == "cpu"):
            loss, _ = network(*views)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield


def peak(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product, the median of ten."""
    n = 8192 if device.type == "cuda" else 3072
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = []
    for _ in range(12):
        wait(device)
        started = time.perf_counter()
        a @ a
        wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / statistics.median(seconds[2:])


def flops_of(step: Callable[[], Any]) -> int:
    """Multiplications and additions in the convolutions and matrix products of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def where_the_time_goes(step: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Share of each operator in the time of a step of the model, the ten greatest, by torch.profiler."""
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        step()
        wait(device)
    events = profiler.key_averages()
    times = {event.key: float(event.self_device_time_total if cuda else event.self_cpu_time_total) for event in events}
    whole = sum(times.values())
    greatest = sorted(times, key=times.__getitem__, reverse=True)[:10]
    return {name: round(times[name] / whole, 4) for name in greatest}


def measure(name: str, params: Params, data: ImageSet, device: torch.device, rounds: int, compile: str) -> dict[str, Any]:
    """Rates, ratios and FLOP/s of one recipe's model."""
    batch, steps, warm_up = BATCH[device.type][name], STEPS[device.type][name], WARM_UP[device.type]
    settings = params.chosen.pretrain.model_copy(update={"batch_size": batch, "compile": compile})
    augment, pictures = settings.augment, data.x_train[: (warm_up + steps) * batch]
    on_device, generator = to_tensor(pictures, device), torch.Generator().manual_seed(0)
    views = random_views(on_device[:batch], generator, [augment, augment])
    workers = os.cpu_count() or 1

    def model() -> Any:
        return build(params, data)

    ours_model, bare = model(), bare_steps(model(), views, settings)
    peer = (pictures, batch, 0.01, workers, device)
    # DataLoaders have two batches a worker ready when the clock starts: as many steps more do not count.
    peer_warm_up = warm_up + 2 * workers
    loops: dict[str, Callable[[], float]] = {
        "ours": lambda: ours(ours_model, on_device, settings, steps, warm_up),
        "bare": lambda: timed(bare, warm_up, steps, device),
        "lightly": lambda: timed(lightly_steps(model(), *peer, augment), peer_warm_up, steps, device),
        "plain": lambda: timed(plain_steps(model(), *peer, augment), peer_warm_up, steps, device),
    }
    if not has_lightly():
        del loops["lightly"]
    rates: dict[str, list[float]] = {loop: [] for loop in loops}
    for turn in range(rounds):
        for loop, run in loops.items():
            rates[loop].append(steps * batch / run())
        print(f"{name} round {turn + 1}:", *(f"{loop} {values[-1]:.1f}" for loop, values in rates.items()), file=sys.stderr)

    medians = {loop: statistics.median(values) for loop, values in rates.items()}
    precision = resolve_precision(settings.precision, device)
    # On the CPU: of a GPU's replayed step the counter sees no operator.
    few = [view[:8].cpu() for view in views]
    flops, top = flops_of(lambda: model()(*few)[0].backward()) / 8, peak(device, precision)
    started = time.perf_counter()
    for _ in range(steps):
        random_views(on_device[:batch], generator, [augment, augment])
    wait(device)
    views_seconds = (time.perf_counter() - started) / steps
    return {
        "batch_size": batch,
        "latent_dim": params.latent_dim,
        "precision": precision,
        "compile": compile,
        "steps_a_round": steps,
        "pairs_per_second": {
            loop: {"median": round(medians[loop], 2), "low": round(min(values), 2), "high": round(max(values), 2)}
            for loop, values in rates.items()
        },
        "ratios": {f"ours/{loop}": round(medians["ours"] / medians[loop], 3) for loop in loops if loop != "ours"},
        "gflop_per_pair": round(flops / 1e9, 3),
        "gflop_per_second": round(medians["ours"] * flops / 1e9, 1),
        "matrix_product_gflop_per_second": round(top / 1e9, 1),
        "share_of_matrix_product": round(medians["ours"] * flops / top, 3),
        "seconds_an_epoch": round(len(data.x_train) // batch * batch / medians["ours"], 1),
        "share_of_views": round(views_seconds * medians["ours"] / batch, 4),
        "where_the_model_step_goes": where_the_time_goes(lambda: next(bare), device),
    }


def main() -> None:
    """Measure, print, write."""
    parser = ArgumentParser(
        prog="python -m benchmarks.throughput", description=__doc__, formatter_class=RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each loop (default: 5)")
    parser.add_argument(
        "--compile", choices=["always", "never"], default="never", help="torch.compile for `ours` and `bare`"
    )
    parser.add_argument("--recipe", choices=list(LATENT_DIM), action="append", help="of these alone; without, of all")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="of other settings, in the words of params.yaml")
    parser.add_argument("--out", type=Path, help=f"path without its ending (without, {OUT})")
    options = parser.parse_args()
    keys = [each.split("=")[0].split(".") for each in options.changes]
    if any(key[0] == "data" or key[-1] in ("recipe", "batch_size", "compile") for key in keys):
        raise UserError("recipes are named by --recipe, compiling by --compile; images and batches are what they are here")
    if options.rounds < 1:
        raise UserError(f"--rounds is {options.rounds}: one at least")
    if not options.out and (options.recipe or options.changes or options.compile == "always"):
        raise UserError(f"this is not what {OUT}.json is about: say with --out where to write it")
    out = options.out or OUT
    device, data = pick_device(), images.load(Path("data/images.npz"))
    results: dict[str, Any] = {}
    for name in options.recipe or LATENT_DIM:
        params = load(Path("params.yaml"), [f"recipe={name}", f"latent_dim={LATENT_DIM[name]}", *options.changes])
        if METHODS[params.method].labelled:
            raise UserError(f"{params.method} learns from labels, which no loop here has")
        results[name] = measure(name, params, data, device, options.rounds, options.compile)
        # Only now is a GPU in use, whose name is asked for.
        where = machine() | {"lightly": version("lightly") if has_lightly() else "not installed"}
        about = {"machine": where, "rounds": options.rounds, "changes": options.changes}
        write_json(out.with_suffix(".json"), about | {"models": results})
    for name, result in results.items():
        print(f"\n{name}: batch {result['batch_size']}, {result['precision']}, {result['gflop_per_pair']} GFLOP a pair")
        for loop, rate in result["pairs_per_second"].items():
            ratio = result["ratios"].get(f"ours/{loop}")
            print(
                f"  {LOOPS[loop]:28s}{rate['median']:9.1f} pairs/s  ({rate['low']:.1f} to {rate['high']:.1f})"
                + (f"   ours is {ratio:.2f} times that" if ratio else "")
            )
        print(
            f"  {result['gflop_per_second']:.0f} GFLOP/s, {result['share_of_matrix_product']:.0%} of a matrix product's "
            f"{result['matrix_product_gflop_per_second']:.0f}; views take {result['share_of_views']:.1%}; "
            f"{result['seconds_an_epoch']:.0f} s an epoch"
        )
    try:  # last, as a machine that only trains need not have matplotlib
        from benchmarks.figures import throughput_figure
        from simsiam.plots import save
    except ImportError as error:
        sys.exit(f"no figure was drawn: {error}")
    save(out.with_suffix(".png"), throughput_figure(results, LOOPS, where["device"]))


if __name__ == "__main__":
    with plainly("benchmark"):
        main()

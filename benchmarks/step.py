"""What other ways of computing a pretraining step of `laptop` would bring: python -m benchmarks.step

Forward, backward and update on two fixed views. The ways take turns, round after round. Written to
reports/benchmarks/step.json: each way's milliseconds (median, lowest, highest), how much shorter than the step as it is, and
what share of a large matrix product's rate that makes, counting the multiplications of the step as it is; and how long
a first compiled step takes, once with an empty cache and once with the one that is left.
"""

import os
import statistics
import subprocess
import sys
from argparse import SUPPRESS, ArgumentParser, RawTextHelpFormatter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.throughput import bare_steps, flops_of, peak, timed
from simsiam import images, networks
from simsiam.augment import random_views
from simsiam.files import write_json
from simsiam.images import ImageSet, to_tensor
from simsiam.machine import machine
from simsiam.methods import build
from simsiam.methods.simsiam import SimSiam, distance
from simsiam.settings import Params, Pretrain, load
from stages.common import plainly

ROUNDS, WARM_UP, STEPS = 5, 5, 30  # warm-up and steps of a round
AS_IT_IS = "as it is: fp32, not compiled"
CPU = torch.device("cpu")
UNFOLDED = 4  # side of the largest map whose convolutions one of the ways unfolds


class Unfolded(networks.Conv2d):
    """A 3x3 convolution of a map up to 4x4 as one matrix product over its unfolded patches, else as it is."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size[0] != 3 or not 2 < x.shape[-1] <= UNFOLDED:
            return super().forward(x)
        stride, out = self.stride[0], -(-x.shape[-1] // self.stride[0])
        patches = F.unfold(x, 3, padding=1, stride=stride).transpose(1, 2)
        return F.linear(patches, self.weight.flatten(1)).transpose(1, 2).unflatten(2, (out, out))


class OnePass(SimSiam):
    """Both views in one pass, so that BatchNorm's means and variances are those of both: not what the paper computes."""

    def forward(self, *views: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(torch.cat(views))[1]
        (z1, z2), (p1, p2) = z.chunk(2), self.predictor(z).chunk(2)
        return (distance(p1, z2.detach()) + distance(p2, z1.detach())) / 2, z1.detach()


def with_convolutions(method: SimSiam, kind: type[nn.Conv2d]) -> SimSiam:
    """The method with all its own convolutions of another class."""
    for module in method.modules():
        if isinstance(module, networks.Conv2d):
            module.__class__ = kind  # type: ignore[assignment]
    return method


def in_one_pass(method: SimSiam) -> SimSiam:
    """The method as `OnePass`."""
    method.__class__ = OnePass
    return method


def ways(params: Params, data: ImageSet, views: list[Tensor]) -> dict[str, Iterator[None]]:
    """Each way of computing steps, by its name; a step each `next`."""
    settings = params.chosen.pretrain.model_copy(update={"precision": "fp32", "compile": "never"})

    def steps(change: Callable[[Any], Any] = lambda method: method, **others: str) -> Iterator[None]:
        return bare_steps(change(build(params, data)), views, settings.model_copy(update=others))

    return {
        AS_IT_IS: steps(),
        "torch's own convolutions only": steps(lambda method: with_convolutions(method, nn.Conv2d)),
        "maps of 4x4 unfolded for a matrix product, too": steps(lambda method: with_convolutions(method, Unfolded)),
        "both views in one pass": steps(in_one_pass),
        "bf16": steps(precision="bf16"),
        "compiled": steps(compile="always"),
        "compiled, bf16": steps(precision="bf16", compile="always"),
        "compiled, bf16, both views in one pass": steps(in_one_pass, precision="bf16", compile="always"),
    }


def seconds_to_compile(cache: str) -> float:
    """Of a first step in a process of its own, with inductor's cache in a folder."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, "-m", "benchmarks.step", "--first"]
    return float(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    """Measure, print, write. With --first only print the seconds of a first compiled step."""
    parser = ArgumentParser(prog="python -m benchmarks.step", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--first", action="store_true", help=SUPPRESS)
    first = parser.parse_args().first
    params, data = load(Path("params.yaml"), ["recipe=laptop", "method=simsiam"]), images.load(Path("data/images.npz"))
    settings: Pretrain = params.chosen.pretrain
    pictures = to_tensor(data.x_train[: settings.batch_size], CPU)
    views = random_views(pictures, torch.Generator().manual_seed(0), [settings.augment, settings.augment])
    found = ways(params, data, views)
    if first:
        print(timed(found["compiled"], 0, 1, CPU))
        return
    with TemporaryDirectory() as cache:
        compiling = {cached: seconds_to_compile(cache) for cached in ("with an empty cache", "with its cache")}
    flops = flops_of(lambda: next(found[AS_IT_IS]))
    top = {precision: peak(CPU, precision) for precision in ("fp32", "bf16")}
    taken: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(ROUNDS):
        for name, steps in found.items():
            taken[name].append(1000 * timed(steps, WARM_UP, STEPS, CPU) / STEPS)
            print(f"round {turn + 1}, {name}: {taken[name][-1]:.1f} ms", flush=True)
    middle = {name: statistics.median(of) for name, of in taken.items()}
    write_json(
        Path("reports/benchmarks/step.json"),
        {
            "machine": machine(),
            "rounds": ROUNDS,
            "batch_size": settings.batch_size,
            "gflop_a_step": round(flops / 1e9, 2),
            "matrix_product_gflop_per_second": {precision: round(rate / 1e9, 1) for precision, rate in top.items()},
            "seconds_of_a_first_compiled_step": {cached: round(seconds, 1) for cached, seconds in compiling.items()},
            "ways": {
                name: {
                    "ms": {"median": round(middle[name], 2), "low": round(min(of), 2), "high": round(max(of), 2)},
                    "shorter_by": round(1 - middle[name] / middle[AS_IT_IS], 3),
                    "share_of_matrix_product": round(
                        flops / middle[name] * 1000 / top["bf16" if "bf16" in name else "fp32"], 3
                    ),
                }
                for name, of in taken.items()
            },
        },
    )


if __name__ == "__main__":
    with plainly("benchmark"):
        main()

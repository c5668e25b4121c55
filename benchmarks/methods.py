"""Images per second that each method of pretraining trains on, with `laptop`: python -m benchmarks.methods

Steps of the training itself, on the images of the pipeline; the methods take turns, five rounds. Written are their median,
lowest and highest, and how much longer a step takes than SimSiam's, to reports/benchmarks/methods.json.
"""

import statistics
import time
from pathlib import Path

import torch

from benchmarks.throughput import wait
from simsiam import images
from simsiam.engine import pick_device
from simsiam.files import write_json
from simsiam.images import to_tensor
from simsiam.machine import machine
from simsiam.methods import build
from simsiam.methods.every import METHODS
from simsiam.pretrain import pretrain
from simsiam.settings import load
from stages.common import plainly

ROUNDS = 5
WARM_UP, STEPS = 5, 25  # of a round


def main() -> None:
    """Measure, print, write."""
    device, data = pick_device(), images.load(Path("data/images.npz"))
    rates: dict[str, list[float]] = {name: [] for name in METHODS}
    for turn in range(ROUNDS):
        for name, of in rates.items():
            params = load(Path("params.yaml"), ["recipe=laptop", f"method={name}"])
            settings, method, ends = params.chosen.pretrain, build(params, data), []
            size = settings.batch_size
            for steps in (WARM_UP, STEPS):
                pixels = to_tensor(data.x_train[: steps * size], device)
                labels = torch.from_numpy(data.y_train[: steps * size]).to(device) if method.labelled else None
                once = settings.model_copy(update={"epochs": 1, "compile": "never"})
                wait(device)
                started = time.perf_counter()
                pretrain(method, pixels, labels, settings=once, seed=turn)
                wait(device)
                ends.append(time.perf_counter() - started)
            of.append(STEPS * size / ends[-1])
            print(f"round {turn + 1}, {name}: {of[-1]:.0f} images/s", flush=True)
    middle = {name: statistics.median(of) for name, of in rates.items()}
    found = {
        name: {
            "images_per_second": {"median": round(middle[name], 1), "low": round(min(of), 1), "high": round(max(of), 1)},
            "a_step_takes_simsiams": round(middle["simsiam"] / middle[name], 2),
        }
        for name, of in rates.items()
    }
    write_json(Path("reports/benchmarks/methods.json"), {"machine": machine(), "rounds": ROUNDS, "methods": found})


if __name__ == "__main__":
    with plainly("benchmark"):
        main()

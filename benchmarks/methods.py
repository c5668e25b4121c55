"""Images per second that each method of pretraining trains on, with `laptop`: python -m benchmarks.methods

Steps of the training itself, on the images of the pipeline; the methods take turns, five rounds. Written are their median,
lowest and highest, and how much longer a step takes than SimSiam's, to reports/benchmarks/methods.json.
"""

import statistics
from argparse import ArgumentParser, RawTextHelpFormatter
from pathlib import Path

import torch

from benchmarks.throughput import ours
from simsiam import images
from simsiam.engine import pick_device
from simsiam.files import write_json
from simsiam.images import to_tensor
from simsiam.machine import machine
from simsiam.methods import build
from simsiam.methods.every import METHODS
from simsiam.settings import load
from stages.common import plainly

ROUNDS = 5
WARM_UP, STEPS = 5, 25  # of a round


def main() -> None:
    """Measure, print, write."""
    ArgumentParser(
        prog="python -m benchmarks.methods", description=__doc__, formatter_class=RawTextHelpFormatter
    ).parse_args()
    device, data = pick_device(), images.load(Path("data/images.npz"))
    rates: dict[str, list[float]] = {name: [] for name in METHODS}
    for turn in range(ROUNDS):
        for name, of in rates.items():
            params = load(Path("params.yaml"), ["recipe=laptop", f"method={name}"])
            settings, method = params.chosen.pretrain.model_copy(update={"compile": "never"}), build(params, data)
            size = STEPS * settings.batch_size
            pixels = to_tensor(data.x_train[:size], device)
            labels = torch.from_numpy(data.y_train[:size]).to(device) if method.labelled else None
            of.append(size / ours(method, pixels, settings, STEPS, WARM_UP, labels))
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

"""Pairs of views per second that `laptop` pretrains on, by the side of the images: python -m benchmarks.sizes

The fastest of some steps on made-up images, with the views and the stem that `simsiam.fitting` gives them. Written to
reports/benchmarks/sizes.json.
"""

from argparse import ArgumentParser, RawTextHelpFormatter
from pathlib import Path

import numpy as np

from simsiam import fitting
from simsiam.engine import pick_device
from simsiam.files import write_json
from simsiam.images import from_arrays, to_tensor
from simsiam.machine import machine
from simsiam.methods import build
from simsiam.pretrain import seconds_a_step
from simsiam.settings import load
from stages.common import plainly

SIDES = (16, 32, 64, 128, 224)


def main() -> None:
    """Measure, print, write."""
    ArgumentParser(prog="python -m benchmarks.sizes", description=__doc__, formatter_class=RawTextHelpFormatter).parse_args()
    params, device, rng, found = load(Path("params.yaml"), ["recipe=laptop"]), pick_device(), np.random.default_rng(0), {}
    for side in SIDES:
        pixels, labels = rng.integers(0, 256, (300, side, side, 3), np.uint8), np.arange(300) % 2
        images = from_arrays(pixels[:260], labels[:260], pixels[260:], labels[260:], ("a", "b"))
        settings = fitting.pretrain(params.chosen.pretrain, images)
        model = fitting.model(params.chosen.model, images)
        method, on_device = build(params, images, model), to_tensor(images.x_pretrain, device)
        seconds = min(seconds_a_step(method, on_device, settings) for _ in range(3))
        found[str(side)] = {
            "view_size": settings.augment.view_size,
            "stem": model.stem,
            "batch_size": settings.batch_size,
            "pairs_per_second": round(settings.batch_size / seconds, 1),
        }
        print(f"{side:4d} pixels, views of {settings.augment.view_size:3d}, {model.stem:8s}: {found[str(side)]}")
    write_json(Path("reports/benchmarks/sizes.json"), {"machine": machine(), "sides": found})


if __name__ == "__main__":
    with plainly("benchmark"):
        main()

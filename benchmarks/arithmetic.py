"""Whether faster arithmetic learns the same: python -m benchmarks.arithmetic

Pretrains the `laptop` recipe from one seed in fp32, in bf16 and compiled, and from another seed in fp32 to see how far two
runs of the same thing lie apart. Compared are the curves of loss and z_std, and kNN on 5,000 training images held out.
Written to reports/benchmarks/arithmetic.json and .png.
"""

import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import arithmetic_figure
from simsiam import images
from simsiam.engine import pick_device
from simsiam.features import extract
from simsiam.files import write_json
from simsiam.images import split, to_tensor
from simsiam.machine import machine
from simsiam.methods import build
from simsiam.metrics import knn_top1
from simsiam.plots import save
from simsiam.pretrain import pretrain
from simsiam.settings import load
from stages.common import plainly

KNN, LOSS = 0.01, 0.01  # as far as faster arithmetic may lie from fp32 at the end
CURVE = 2.0  # and its loss curve, in root mean square, in units of the distance between two seeds
RUNS: dict[str, dict[str, Any]] = {  # how each differs from fp32, eager, seed 0
    "fp32": {},
    "fp32, another seed": {"seed": 1},
    "fp32, compiled": {"compile": "always"},
    "bf16": {"precision": "bf16"},
}


def main() -> None:
    """Train, compare, write."""
    parser = ArgumentParser(
        prog="python -m benchmarks.arithmetic", description=__doc__, formatter_class=RawTextHelpFormatter
    )
    parser.add_argument("--epochs", type=int, help="of each training (default: the recipe's)")
    options = parser.parse_args()
    params, device, data = load(Path("params.yaml"), ["recipe=laptop"]), pick_device(), images.load(Path("data/images.npz"))
    chosen = params.chosen.pretrain
    base = chosen.model_copy(update={"precision": "fp32", "compile": "never", "epochs": options.epochs or chosen.epochs})
    kept, held = split(data.y_train, 5000, 0)
    pictures = to_tensor(data.x_train, device)

    results: dict[str, dict[str, Any]] = {}
    for name, change in RUNS.items():
        seed, settings = change.get("seed", 0), base.model_copy(update={key: change[key] for key in change if key != "seed"})
        method = build(params.model_copy(update={"seed": seed}), data)
        result = pretrain(method, pictures[kept], settings=settings, seed=seed)
        features, _ = extract(method.encoder, pictures)
        accuracy = knn_top1(
            features[kept],
            data.y_train[kept],
            features[held],
            data.y_train[held],
            classes=len(data.classes),
            k=params.embed.knn_k,
            temperature=params.embed.knn_temperature,
        )
        curves = {key: [round(record[key], 5) for record in result.records] for key in ("epoch", "loss", "z_std")}
        results[name] = curves | {"knn": accuracy}
        print(f"{name}: kNN {accuracy:.4f}, loss {result.records[-1]['loss']:.4f}", file=sys.stderr)
    folder = Path("reports/benchmarks")
    write_json(folder / "arithmetic.json", {"machine": machine(), "epochs": base.epochs, "runs": results})
    save(folder / "arithmetic.png", arithmetic_figure(results))
    end = {name: (result["knn"], result["loss"][-1]) for name, result in results.items()}
    losses = {name: np.array(result["loss"]) for name, result in results.items()}
    apart = {name: float(np.sqrt(np.square(curve - losses["fp32"]).mean())) for name, curve in losses.items()}
    for name, (knn, loss) in end.items():
        knn, loss = knn - end["fp32"][0], loss - end["fp32"][1]
        print(f"{name}: kNN {100 * knn:+.2f} points from fp32, loss {loss:+.4f}, loss curve {apart[name]:.4f}")
        far = abs(knn) > KNN or abs(loss) > LOSS or apart[name] > CURVE * apart["fp32, another seed"]
        if name in ("fp32, compiled", "bf16") and far:
            sys.exit(
                f"{name} does not learn what fp32 learns: kNN may differ by {KNN}, the last loss by {LOSS}, and the loss "
                f"curve by {CURVE} times what another seed's does"
            )


if __name__ == "__main__":
    with plainly("benchmark"):
        main()

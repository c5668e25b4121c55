"""The control without a network, a dictionary of patches: python -m ablation.patches [--seed SEED]

What can be read out of its features is measured as the points' stages do, and stands in ablation/results/patches/SEED.json
under the keys that a point has, with `patches` as the space. Where that is there already, made with the same params, code
and images, nothing is done. `ablation.patches` in params.yaml says how large the dictionary is.
"""

import sys
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from pathlib import Path
from typing import Any

from sklearn.preprocessing import StandardScaler

from simsiam import code, fitting
from simsiam.checkpoint import store_folder
from simsiam.engine import pick_device
from simsiam.errors import UserError
from simsiam.files import locked, read_json, write_json
from simsiam.images import Floats, ImageSet, to_tensor
from simsiam.machine import machine
from simsiam.metrics import accuracies, knn_top1
from simsiam.patches import extract, learn
from simsiam.probe import linear_probe
from simsiam.settings import Params, load, percent
from stages.common import Metrics, load_images, plainly
from stages.linear_eval import few_labels

FOLDER = Path("ablation/results/patches")


def patches(params: Params, images: ImageSet) -> Metrics:
    """Learn the dictionary from the images for pretraining, and score the test images once: linear probes and kNN.

    `knn_standardised` is kNN on the features less their mean and over their deviation, by which a linear probe begins too.
    """
    started = time.monotonic()
    device, settings, labels = pick_device(), params.ablation.patches, images.y_train
    pixels = to_tensor(images.x_pretrain, device)
    dictionary = learn(pixels, centroids=settings.centroids, patches=settings.patches, seed=params.seed)
    train = extract(dictionary, pixels[: len(labels)], name="patches, train images")
    test = extract(dictionary, to_tensor(images.x_test, device), name="patches, test images")
    seconds = round(time.monotonic() - started, 1)

    linear, near = fitting.linear_eval(params.linear_eval, labels), fitting.embed(params.embed, images)
    common: dict[str, Any] = {"classes": len(images.classes), "seed": params.seed, "device": device, "name": "patches"}
    probe = linear_probe(train, labels, held_out=linear.held_out, **common)

    def knn(bank: Floats, queries: Floats) -> float:
        votes: dict[str, Any] = {"classes": len(images.classes), "k": near.knn_k, "temperature": near.knn_temperature}
        return knn_top1(bank, labels, queries, images.y_test, **votes)

    scaler = StandardScaler().fit(train)
    return {
        "linear_eval": {
            "patches": {
                **accuracies(probe.scores(test), images.y_test),
                "held_out_top1": probe.held_out[probe.l2],
                "l2": probe.l2,
                "whitened": probe.whitened,
            },
            "few_labels": {
                percent(share): {
                    "patches": few_labels(train, labels, test, images.y_test, share, draws=linear.draws, **common)
                }
                for share in linear.few_labels
            },
        },
        "embed": {
            "knn": {"patches": knn(train, test)},
            "knn_standardised": {"patches": knn(scaler.transform(train), scaler.transform(test))},
            "dimensions": {"patches": train.shape[1]},
        },
        "patches": {"features_seconds": seconds, "seconds": round(time.monotonic() - started, 1)},
    }


def made_with(params: Params, images: str) -> dict[str, Any]:
    """What a result depends on. images: their digest."""
    needed = {"patches": params.ablation.patches, "embed": params.embed, "linear_eval": params.linear_eval}
    return {
        "params": {"seed": params.seed} | {name: section.model_dump() for name, section in needed.items()},
        "code": code.digest("ablation.patches", code.NO_NUMBERS),
        "images": images,
    }


def run(params: Params, root: Path = Path()) -> None:
    """Write ablation/results/patches/<seed>.json. Raises UserError for images without labels."""
    images, path = load_images(root), root / FOLDER / f"{params.seed}.json"
    if not images.labelled:
        raise UserError("the images have no labels, and a dictionary is judged by what can be read out")
    given = made_with(params, images.digest)
    words = f"patches, seed {params.seed}"
    lock = store_folder(root) / f"locks/patches-{params.seed}.lock"
    with locked(lock, wait=True, waiting=f"{words}: another program is at it: waiting for it"):
        if matches(path, given):
            print(f"{words}: there already, made with the same params, code and images", file=sys.stderr)
            return
        result = {"point": "patches", "seed": params.seed, "classes": images.classes, "test_images": len(images.y_test)}
        result |= patches(params, images)
        write_json(path, result | {"made_with": given | {"machine": machine()}})


def matches(path: Path, given: dict[str, Any]) -> bool:
    """Whether a result is there, and was made with what is given."""
    try:
        made = read_json(path)["made_with"]
        return {key: made.get(key) for key in given} == given
    except (UserError, KeyError, TypeError, AttributeError):
        return False


def main() -> None:
    """Measure the dictionary, with the seed of params.yaml or another one."""
    parser = ArgumentParser(prog="python -m ablation.patches", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, help="of the dictionary and of every split; without, the one of params.yaml")
    seed = parser.parse_args().seed
    with plainly("patches"):
        run(load(Path("params.yaml"), [] if seed is None else [f"seed={seed}"]))


if __name__ == "__main__":
    main()

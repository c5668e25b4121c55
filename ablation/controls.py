"""The controls without a trained network: python -m ablation.controls [patches|random_blocks ...] [--seed SEED]

  patches         a dictionary of patches (Coates, Lee & Ng 2011)
  random_blocks   the random encoder with blocks that are not zero-initialised: as training begins with it, and as it stands
                  beside every point, they are shortcuts, and it sees little of an image

What can be read out of their features is measured as the points' stages do, and stands in
ablation/results/<control>/SEED.json under the keys that a backbone has there. Where that is there already, made with the
same params, code and images, nothing is done. `ablation.patches` in params.yaml says how large the dictionary is.
"""

import sys
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.preprocessing import StandardScaler

from simsiam import code, features, fitting, patches
from simsiam.checkpoint import store_folder
from simsiam.engine import pick_device
from simsiam.errors import UserError
from simsiam.files import locked, read_json, write_json
from simsiam.images import Floats, ImageSet, to_tensor
from simsiam.machine import machine
from simsiam.methods import build
from simsiam.metrics import accuracies, knn_top1, rankme
from simsiam.networks import BasicBlock
from simsiam.probe import linear_probe
from simsiam.settings import Params, load, percent
from stages.common import Metrics, load_images, plainly
from stages.linear_eval import few_labels

RESULTS = Path("ablation/results")


def of_patches(params: Params, images: ImageSet, device: torch.device) -> tuple[Floats, Floats]:
    """Features of the training and of the test images (N, d) by a dictionary that is learned from those for pretraining."""
    settings, pixels = params.ablation.patches, to_tensor(images.x_pretrain, device)
    dictionary = patches.learn(pixels, centroids=settings.centroids, patches=settings.patches, seed=params.seed)
    train = patches.extract(dictionary, pixels[: len(images.y_train)], name="patches, train images")
    return train, patches.extract(dictionary, to_tensor(images.x_test, device), name="patches, test images")


def of_random_blocks(params: Params, images: ImageSet, device: torch.device) -> tuple[Floats, Floats]:
    """The same by the random encoder's backbone, with the last BatchNorm's weight in each block 1, torchvision's default.

    As an encoder starts it is 0 (`simsiam.networks.ResNet`). All other weights are those of the random encoder.
    """
    encoder = build(params, images, fitting.model(params.chosen.model, images)).encoder
    for module in encoder.modules():
        if isinstance(module, BasicBlock):
            torch.nn.init.ones_(module.bn2.weight)
    train, test = (
        features.extract(encoder, to_tensor(pixels, device), name=f"random blocks, {part} images")[0]
        for part, pixels in (("train", images.x_train), ("test", images.x_test))
    )
    return train, test


class Control(NamedTuple):
    """What a control is called in tables, and how its features are made."""

    words: str
    features: Callable[[Params, ImageSet, torch.device], tuple[Floats, Floats]]


CONTROLS = {
    "patches": Control("dictionary of patches, no network", of_patches),
    "random_blocks": Control("random encoder, blocks not zero-initialised", of_random_blocks),
}


def measure(name: str, params: Params, images: ImageSet) -> Metrics:
    """Make a control's features, and score the test images once: linear probes, kNN, and RankMe.

    `knn_standardised` is kNN on the features less their mean and over their deviation, by which a linear probe begins too.
    """
    started, device, labels = time.monotonic(), pick_device(), images.y_train
    train, test = CONTROLS[name].features(params, images, device)
    seconds = round(time.monotonic() - started, 1)

    linear, near = fitting.linear_eval(params.linear_eval, labels), fitting.embed(params.embed, images)
    common: dict[str, Any] = {"classes": len(images.classes), "seed": params.seed, "device": device, "name": name}
    probe = linear_probe(train, labels, held_out=linear.held_out, **common)

    def knn(bank: Floats, queries: Floats) -> float:
        votes: dict[str, Any] = {"classes": len(images.classes), "k": near.knn_k, "temperature": near.knn_temperature}
        return knn_top1(bank, labels, queries, images.y_test, **votes)

    scaler = StandardScaler().fit(train)
    return {
        "linear_eval": {
            "backbone": {
                **accuracies(probe.scores(test), images.y_test),
                "held_out_top1": probe.held_out[probe.l2],
                "l2": probe.l2,
                "whitened": probe.whitened,
            },
            "few_labels": {
                percent(share): {
                    "backbone": few_labels(train, labels, test, images.y_test, share, draws=linear.draws, **common)
                }
                for share in linear.few_labels
            },
        },
        "embed": {
            "knn": {"backbone": knn(train, test)},
            "knn_standardised": {"backbone": knn(scaler.transform(train), scaler.transform(test))},
            "rankme": {"backbone": rankme(test)},
            "dimensions": {"backbone": train.shape[1]},
        },
        "control": {"features_seconds": seconds, "seconds": round(time.monotonic() - started, 1)},
    }


def made_with(name: str, params: Params, images: str) -> dict[str, Any]:
    """What a result depends on. images: their digest."""
    own = {"patches": params.ablation.patches} if name == "patches" else {"model": params.chosen.model}
    needed = own | {"embed": params.embed, "linear_eval": params.linear_eval}
    return {
        "params": {"seed": params.seed} | {name: section.model_dump() for name, section in needed.items()},
        # No method has a part in a dictionary, nor in what a backbone is before it is trained.
        "code": code.digest("ablation.controls", code.NO_NUMBERS, method=""),
        "images": images,
    }


def run(name: str, params: Params, root: Path = Path()) -> None:
    """Write ablation/results/<name>/<seed>.json. Raises UserError for images without labels."""
    images, path = load_images(root), root / RESULTS / name / f"{params.seed}.json"
    if not images.labelled:
        raise UserError("the images have no labels, and a control is judged by what can be read out")
    given = made_with(name, params, images.digest)
    words = f"{name}, seed {params.seed}"
    lock = store_folder(root) / f"locks/{name}-{params.seed}.lock"
    with locked(lock, wait=True, waiting=f"{words}: another program is at it: waiting for it"):
        if matches(path, given):
            print(f"{words}: there already, made with the same params, code and images", file=sys.stderr)
            return
        result = {"point": name, "seed": params.seed, "classes": images.classes, "test_images": len(images.y_test)}
        result |= measure(name, params, images)
        write_json(path, result | {"made_with": given | {"machine": machine()}})


def matches(path: Path, given: dict[str, Any]) -> bool:
    """Whether a result is there, and was made with what is given."""
    try:
        made = read_json(path)["made_with"]
        return {key: made.get(key) for key in given} == given
    except (UserError, KeyError, TypeError, AttributeError):
        return False


def main() -> None:
    """Measure the controls that are named, or all, with the seed of params.yaml or another one."""
    parser = ArgumentParser(prog="python -m ablation.controls", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="control", help=f"{' or '.join(CONTROLS)}; without, both")
    parser.add_argument("--seed", type=int, help="of what is drawn and of every split; without, the one of params.yaml")
    options = parser.parse_args()
    with plainly("controls"):
        if unknown := set(options.names) - CONTROLS.keys():
            raise UserError(f"{unknown.pop()} is no control: there are {' and '.join(CONTROLS)}")
        for name in options.names or CONTROLS:
            run(name, load(Path("params.yaml"), [] if options.seed is None else [f"seed={options.seed}"]))


if __name__ == "__main__":
    main()

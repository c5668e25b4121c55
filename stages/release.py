"""Make a folder to pass on of the encoder that was trained here: python -m stages.release FOLDER

It gets backbone, projector and linear classifiers in half precision (safetensors), and card.json: what they were made from,
how, on what, and what they score. No stage of the pipeline; the pipeline has to have run.
"""

import subprocess
from argparse import ArgumentParser, RawTextHelpFormatter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simsiam import released
from simsiam.checkpoint import load_weights
from simsiam.errors import UserError
from simsiam.features import extract
from simsiam.files import read_npz
from simsiam.images import ImageSet, to_tensor
from simsiam.metrics import top_k
from simsiam.networks import Encoder, load_encoder
from stages.common import Metrics, load_images, plainly
from stages.numbers import of_another_shape, read_metrics

SPACES = ("backbone", "latent")
LOOKED_AT = 100  # test images whose features are made again
ROUNDING = 0.01  # of the largest feature: what TF32 or another processor may change


def release(root: Path, folder: Path) -> None:
    """Write `folder` from what the stages left in `root`.

    Raises UserError where one has not run, where they ran for different encoders or images, and for images without labels.
    """
    metrics, images = read_metrics(root, ("download", "pretrain", "embed", "linear_eval")), load_images(root)
    if not images.labelled:
        raise UserError("release: the images have no labels, so there is no classifier, nor a score, to pass on")
    encoder, heads = load_encoder(root / "models/encoder.pt"), load_weights(root / "models/linear.pt")
    try:
        shapes = {space: (*heads[space]["bias"].shape, heads[space]["weight"].shape[1]) for space in SPACES}
    except (LookupError, TypeError, AttributeError):
        raise UserError("models/linear.pt does not hold the linear heads: delete it and run `dvc repro`") from None
    with of_another_shape(root):
        belong_together(metrics, images, encoder, shapes)
        score_alike(root, metrics, images, encoder, heads)
        card = card_of(metrics, images)
    released.write(folder, encoder, {space: heads[space] for space in SPACES}, card)


def belong_together(metrics: Metrics, images: ImageSet, encoder: Encoder, shapes: dict[str, tuple[int, ...]]) -> None:
    """Raises UserError where encoder, classifiers, numbers and images are not of one run, as sizes and settings tell."""
    trained = metrics["pretrain"]["trained"][0]
    of_training = {key: trained[key] for key in ("latent_dim", "seed")} | metrics["pretrain"]["settings"][0]["model"]
    settings = encoder.settings.model_dump()
    widths = {"backbone": encoder.backbone.dim, "latent": encoder.settings.latent_dim}
    counted = {"train": len(images.y_train), "test": len(images.y_test), "classes": len(images.classes)}
    for what, one, other in (
        (
            "models/encoder.pt and reports/metrics/pretrain.json",
            {key: value for key, value in of_training.items() if key in settings and value is not None},
            settings,
        ),
        ("models/encoder.pt and reports/metrics/embed.json", widths, metrics["embed"]["dimensions"]),
        ("data/images.npz and reports/metrics/download.json", counted, metrics["download"]),
        (
            "models/linear.pt and models/encoder.pt or data/images.npz",
            {space: (len(images.classes), width) for space, width in widths.items()},
            shapes,
        ),
    ):
        if any(other[key] != value for key, value in one.items()):
            raise UserError(f"release: {what} are of different runs: `dvc repro` first")


def score_alike(
    root: Path, metrics: Metrics, images: ImageSet, encoder: Encoder, heads: dict[str, released.Weights]
) -> None:
    """Raises UserError where the features are not the encoder's, of these images, or the classifiers score otherwise."""
    features = read_npz(root / "data/features.npz", *(f"{space}_test" for space in SPACES))
    of_some = extract(encoder, to_tensor(images.x_test[:LOOKED_AT], torch.device("cpu")), name="")
    for space, ours in zip(SPACES, of_some, strict=True):
        theirs, head = features[f"{space}_test"], heads[space]
        if len(theirs) != len(images.y_test) or np.abs(ours - theirs[:LOOKED_AT]).max() > ROUNDING * np.abs(theirs).max():
            raise UserError("release: data/features.npz is of another encoder or other images: `dvc repro` first")
        top1 = top_k(theirs @ head["weight"].numpy().T + head["bias"].numpy(), images.y_test, 1)
        if abs(top1 - metrics["linear_eval"][space]["top1"]) > 2 / len(theirs):  # a tie or two
            what = "models/linear.pt and reports/metrics/linear_eval.json"
            raise UserError(f"release: {what} are of different runs: `dvc repro` first")


def card_of(metrics: Metrics, images: ImageSet) -> dict[str, Any]:
    """What the encoder was made from, how, on what, and what it scores."""
    every = (*SPACES, *(f"random_{space}" for space in SPACES))
    describe = ("git", "describe", "--always", "--dirty", "--abbrev=40")
    linear, embed = metrics["linear_eval"], metrics["embed"]
    return {
        "released_at": subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip(),
        "images": {key: metrics["download"][key] for key in ("name", "train", "test", "size")}
        | {"sha256": images.digest, "pretraining_pixels_sha256": images.pixels_digest, "classes": images.classes},
        "pretrain": {key: value for key, value in metrics["pretrain"].items() if key != "run"},
        "linear_top1": {space: linear[space]["top1"] for space in every},
        "few_labels": linear["few_labels"],
        "knn_top1": {space: embed["knn"][space] for space in every},
        "rankme": {space: embed["rankme"][space] for space in every},
        "z_std": embed["collapse"]["z_std"],
        "scored_on": embed["run"][0],
    }


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m stages.release", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="folder in which the pipeline ran (default: this one)")
    parser.add_argument("folder", type=Path, help="where to put the encoder")
    options = parser.parse_args()
    with plainly("release"):
        release(options.root, options.folder)

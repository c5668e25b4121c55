"""Make a folder to pass on of the encoder that was trained here: python -m stages.release FOLDER

It gets backbone, projector and linear classifiers in half precision (safetensors), and card.json: what they were made from,
how, on what, and what they score. No stage of the pipeline; the pipeline has to have run.
"""

import subprocess
from argparse import ArgumentParser, RawTextHelpFormatter
from pathlib import Path
from typing import Any

from simsiam import released
from simsiam.checkpoint import load_weights
from simsiam.files import read_json
from simsiam.networks import load_encoder
from stages.common import load_images, plainly


def release(root: Path, folder: Path) -> None:
    """Write `folder` from what the stages left in `root`. Raises UserError where one has not run."""
    stages = ("download", "pretrain", "embed", "linear_eval")
    metrics, images = {name: read_json(root / f"reports/metrics/{name}.json")[name] for name in stages}, load_images(root)
    spaces = ("backbone", "latent")
    every = (*spaces, *(f"random_{space}" for space in spaces))
    linear, embed = metrics["linear_eval"], metrics["embed"]
    card: dict[str, Any] = {
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip(),
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
    heads = load_weights(root / "models/linear.pt")
    released.write(folder, load_encoder(root / "models/encoder.pt"), {space: heads[space] for space in spaces}, card)


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m stages.release", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="folder in which the pipeline ran (default: this one)")
    parser.add_argument("folder", type=Path, help="where to put the encoder")
    options = parser.parse_args()
    with plainly("release"):
        release(options.root, options.folder)

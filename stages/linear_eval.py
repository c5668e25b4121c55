"""Linear evaluation on frozen features: python -m stages.linear_eval"""

import math
from dataclasses import replace
from pathlib import Path

import torch
from sklearn.metrics import confusion_matrix

from simsiam.checkpoint import save_weights
from simsiam.data import CLASSES, split
from simsiam.engine import TrainSettings, pick_device
from simsiam.files import read_npz, write_csv
from simsiam.metrics import top_k
from simsiam.params import Params
from simsiam.plots import confusion_figure, save
from simsiam.probe import linear_probe
from stages.common import Metrics, main

SPACES = {  # name in the metrics -> arrays of data/features.npz
    "backbone": "backbone",
    "latent": "latent",
    "random": "random_backbone",
    "random_latent": "random_latent",
}
FEW_LABELS_STEPS = 500  # of training, at least, however few the labels


def linear_eval(params: Params, root: Path) -> Metrics:
    """Write models/linear.pt, the curves and the backbone's confusion matrix; the test images are scored once.

    With few labels the same is done on a part of the training images, as many of each class, of which a tenth is held out.
    """
    features, chosen = read_npz(root / "data/features.npz"), params.linear_eval
    settings = TrainSettings(
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        lr=chosen.lr[0],
        momentum=chosen.momentum,
        weight_decay=chosen.weight_decay,
        seed=params.seed,
        precision="fp32",
    )
    metrics: Metrics = {}
    heads: dict[str, dict[str, torch.Tensor]] = {}
    curves: list[dict[str, float]] = []
    for name, space in SPACES.items():
        probe = linear_probe(
            features[f"{space}_train"],
            features["y_train"],
            settings=settings,
            lrs=chosen.lr,
            held_out=chosen.held_out,
            device=pick_device(),
            name=f"linear {name}",
        )
        scores = probe.scores(features[f"{space}_test"])
        metrics[name] = {
            "top1": top_k(scores, features["y_test"], 1),
            "top5": top_k(scores, features["y_test"], 5),
            "held_out_top1": probe.held_out_top1,
            "lr": probe.lr,
        }
        heads[name] = {"weight": torch.from_numpy(probe.weight), "bias": torch.from_numpy(probe.bias)}
        curves = curves or [{"epoch": record["epoch"]} for record in probe.records]
        for row, record in zip(curves, probe.records, strict=True):
            row |= {f"{name}_loss": record["loss"], f"{name}_top1": record["top1"]}
        confusion = confusion_matrix(features["y_test"], scores.argmax(1), labels=range(len(CLASSES)))
        metrics[name]["confusion"] = confusion.tolist()  # rows: true class, columns: predicted
        if name == "backbone":
            save(root / "reports/figures/confusion.png", confusion_figure(confusion))

    metrics["few_labels"] = {}
    for share in chosen.few_labels:
        few = split(features["y_train"], round(share * len(features["y_train"])), params.seed)[1]
        held_out = len(few) // 10
        batch_size = min(chosen.batch_size, (len(few) - held_out) // 2)
        epochs = max(chosen.epochs, math.ceil(FEW_LABELS_STEPS / ((len(few) - held_out) // batch_size)))
        metrics["few_labels"][f"{100 * share:g}%"] = {}
        for name in ("backbone", "latent", "random"):
            space = SPACES[name]
            probe = linear_probe(
                features[f"{space}_train"][few],
                features["y_train"][few],
                settings=replace(settings, batch_size=batch_size, epochs=epochs),
                lrs=chosen.lr,
                held_out=held_out,
                device=pick_device(),
                name=f"linear {name} {100 * share:g}% of labels",
            )
            scores = probe.scores(features[f"{space}_test"])
            metrics["few_labels"][f"{100 * share:g}%"][name] = top_k(scores, features["y_test"], 1)

    save_weights(root / "models/linear.pt", heads)
    write_csv(root / "reports/curves/linear_eval.csv", curves)
    return metrics


if __name__ == "__main__":
    main(linear_eval)

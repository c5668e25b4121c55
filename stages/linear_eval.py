"""Linear evaluation on frozen features: python -m stages.linear_eval"""

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simsiam import fitting
from simsiam.checkpoint import save_weights
from simsiam.engine import pick_device
from simsiam.files import read_npz, write_csv, write_npz
from simsiam.images import Floats, Labels, split
from simsiam.metrics import accuracies, top_k
from simsiam.plots import confusion_figure, draw, note_figure
from simsiam.probe import ONE_THREAD, POOLS, linear_probe
from simsiam.settings import Params, percent
from stages.common import Metrics, main
from stages.left_out import REASON, left_out

SPACES = ("backbone", "latent", "random_backbone", "random_latent")


def linear_eval(params: Params, root: Path) -> Metrics:
    """Write models/linear.pt, the choice of the l2 strengths and the confusion matrix; the test images are scored once.

    data/predictions.npz has, by space, for each test image whether it was classified right.

    With few labels the same is done on some of the training images, the same share of each class, a tenth of them held out;
    each draw takes others. Where test images have copies in the training part (stage look), also the top-1 without them.
    """
    device = pick_device()
    features = read_npz(root / "data/features.npz", *(f"{space}_train" for space in SPACES), "y_train", "y_test", "classes")
    labels, test_labels, names = features["y_train"], features["y_test"], tuple(features["classes"].tolist())
    if not names:
        draw(root / "reports/figures/confusion.png", note_figure, f"The confusion matrix is left out: {REASON}")
        return left_out("linear_eval", root, "data/predictions.npz", "models/linear.pt", "reports/curves/linear_eval.csv")
    chosen = fitting.linear_eval(params.linear_eval, labels)
    fitting.say("linear_eval", params.linear_eval, chosen, f"{len(labels):,} images of {len(names)} classes")
    metrics: Metrics = {}
    heads: dict[str, dict[str, torch.Tensor]] = {}
    rows: list[dict[str, Any]] = []
    right: dict[str, np.ndarray] = {}
    for space in SPACES:
        probe = linear_probe(
            features[f"{space}_train"],
            labels,
            classes=len(names),
            held_out=chosen.held_out,
            seed=params.seed,
            device=device,
            name=f"linear_eval, {space}",
        )
        scores = probe.scores(features[f"{space}_test"])
        right[space] = scores.argmax(1) == test_labels
        confusion = np.zeros((len(names), len(names)), int)
        np.add.at(confusion, (test_labels, scores.argmax(1)), 1)
        metrics[space] = {
            **accuracies(scores, test_labels),
            "held_out_top1": probe.held_out[probe.l2],
            "l2": probe.l2,
            "whitened": probe.whitened,
            "loss": probe.loss,
            "gradient_norm": probe.gradient_norm,
            "iterations": probe.iterations,
            "confusion": confusion.tolist(),  # rows: true class, columns: predicted
        }
        heads[space] = {"weight": torch.from_numpy(probe.weight), "bias": torch.from_numpy(probe.bias)}
        rows += [{"space": space, "l2": l2, "held_out_top1": top1} for l2, top1 in sorted(probe.held_out.items())]

    metrics["settings"] = [chosen.model_dump()]
    metrics["few_labels"] = {percent(share): {} for share in chosen.few_labels}
    for share, space in product(chosen.few_labels, SPACES[:3]):
        train, test = features[f"{space}_train"], features[f"{space}_test"]
        metrics["few_labels"][percent(share)][space] = few_labels(
            *(train, labels, test, test_labels, share),
            classes=len(names),
            draws=chosen.draws,
            seed=params.seed,
            device=device,
            name=f"linear_eval, {space}",
        )

    copies = (root if (root / "data/images.npz").exists() else Path()) / "data/copies.npz"  # of the same images
    leaked = read_npz(copies, "of")["of"] >= 0 if copies.exists() else np.zeros(len(test_labels), bool)
    if len(leaked) == len(test_labels) and leaked.any() and not leaked.all():
        metrics["without_copies"] = {space: float(values[~leaked].mean()) for space, values in right.items()}
        metrics["without_copies"]["images"] = int((~leaked).sum())

    save_weights(root / "models/linear.pt", heads)
    write_npz(root / "data/predictions.npz", **right)
    write_csv(root / "reports/curves/linear_eval.csv", rows)
    draw(root / "reports/figures/confusion.png", confusion_figure, np.array(metrics["backbone"]["confusion"]), names)
    return metrics


def few_labels(
    train: Floats,
    labels: Labels,
    test: Floats,
    test_labels: Labels,
    share: float,
    *,
    classes: int,
    draws: int,
    seed: int,
    device: torch.device,
    name: str,
) -> dict[str, float | None]:
    """Mean `top1` on the test images, and its deviation `sd` over the draws, of probes that see a share of the labels.

    Features (N, d) and labels (N,) of both parts. Each draw takes others, the same share of each class; a tenth is held out.
    """

    def with_draw(number: int) -> float:
        few = split(labels, round(share * len(labels)), seed + number)[1]
        probe = linear_probe(
            train[few],
            labels[few],
            classes=classes,
            held_out=max(classes, len(few) // 10),
            seed=seed,
            device=device,
            name=f"{name}, {percent(share)} of the labels",
        )
        return top_k(probe.scores(test), test_labels, 1)

    # These are too small to share out among threads: a thread takes each whole. SciPy's limit is every thread's.
    threads = ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,))
    with POOLS.limit(limits=ONE_THREAD), threads as pool:
        found = list(pool.map(with_draw, range(draws)))
    return {"top1": float(np.mean(found)), "sd": float(np.std(found, ddof=1)) if len(found) > 1 else None}


if __name__ == "__main__":
    main(linear_eval)

"""One trial of a learning rate: a training without the held-out images, and what can be read out of it on them."""

from pathlib import Path
from typing import Any

import numpy as np

from simsiam import fitting
from simsiam.engine import Diverged, pick_device
from simsiam.features import extract
from simsiam.images import TEST, TRAIN, UNLABELLED, ImageSet, split, to_tensor
from simsiam.metrics import knn_top1, rankme, top_k
from simsiam.networks import load_encoder
from simsiam.probe import linear_probe
from simsiam.settings import Params
from stages.pretrain import pretrain


def trial(params: Params, images: ImageSet, held_out: int, scratch: Path) -> dict[str, Any]:
    """Pretrain as `params` say, in the folder `scratch`, and score the held-out training images once.

    linear, knn: top-1 of a linear classifier on the backbone and of kNN, as fractions of 1. rankme: of the backbone's
    features of the held-out images. z_std, verdict and seconds: of the training. failed: what went wrong where the loss or
    the features stopped being finite, and then there is nothing else. The test images have no part in it.
    """
    apart = without(images, held_out, params.seed)
    apart.save(scratch / "data/images.npz")
    try:
        trained = pretrain(params, scratch)
    except Diverged as error:
        return {"failed": str(error)}
    assert trained is not None  # as it would be of a process that helps another one
    encoder, device = load_encoder(scratch / "models/encoder.pt"), pick_device()
    kept, held = (
        extract(encoder, to_tensor(pixels, device), name="trial, features")[0] for pixels in (apart.x_train, apart.x_test)
    )
    if not (np.isfinite(kept).all() and np.isfinite(held).all()):
        return {"failed": "the encoder's features are not finite"}
    probe = linear_probe(
        kept,
        apart.y_train,
        classes=len(apart.classes),
        held_out=fitting.held_out(held_out, len(kept)),
        seed=params.seed,
        device=device,
        name="trial, backbone",
    )
    voters = fitting.embed(params.embed, apart)
    votes: dict[str, Any] = {"classes": len(apart.classes), "k": voters.knn_k, "temperature": voters.knn_temperature}
    return {
        "linear": top_k(probe.scores(held), apart.y_test, 1),
        "knn": knn_top1(kept, apart.y_train, held, apart.y_test, **votes),
        "rankme": rankme(held),
        **{name: trained[name] for name in ("z_std", "verdict", "seconds")},
    }


def without(images: ImageSet, held_out: int, seed: int) -> ImageSet:
    """The images with a slice of the training part, the same share of each class, in the test images' place."""
    kept, held = split(images.y_train, held_out, seed)
    unlabelled = np.arange(len(images.x_train), len(images.x_pretrain))
    order = np.concatenate([kept, unlabelled, held])
    return ImageSet(
        images.images[order],
        images.labels[order],
        np.repeat(np.array([TRAIN, UNLABELLED, TEST], np.uint8), [len(kept), len(unlabelled), len(held)]),
        images.classes,
        tuple(images.names[index] for index in order),
        images.mirrors,
    )

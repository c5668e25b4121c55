"""Features of all images from the trained and from the random encoder: python -m stages.embed"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simsiam import fitting
from simsiam.augment import random_views
from simsiam.engine import pick_device
from simsiam.errors import UserError
from simsiam.features import extract
from simsiam.files import write_npz
from simsiam.images import to_tensor
from simsiam.metrics import (
    alignment,
    explained_auc,
    knn_scores,
    nearest,
    precision_at,
    rankme,
    spectrum,
    top_k,
    uniformity,
)
from simsiam.networks import Encoder, load_encoder
from simsiam.plots import draw, neighbours_figure, spectrum_figure
from simsiam.seeds import derive
from simsiam.settings import Augment, Params
from simsiam.spread import z_std
from stages.common import Metrics, load_images, main

SHOWN = 8  # neighbours of a query
ALIGNED = 2000  # test images, at most, of which two views are compared


def embed(params: Params, root: Path) -> Metrics:
    """Write data/features.npz and the figures of the spectrum and of nearest neighbours.

    kNN has all training images as its bank; alignment is of two views of each of some test images, by the recipe's own
    augmentation; all other measures are of the test images.
    """
    images, device = load_images(root), pick_device()
    chosen = fitting.say("embed", params.embed, fitting.embed(params.embed, images), fitting.of(images))
    trained = load_encoder(root / "models/encoder.pt")
    encoders = {"": trained, "random_": Encoder(trained.settings)}  # the very weights that pretraining started from

    augment = fitting.augment(params.chosen.pretrain.augment, images)
    views = two_views(to_tensor(images.x_test[:ALIGNED], device), augment, params.seed)

    features: dict[str, np.ndarray] = {}
    aligned: dict[str, float] = {}
    for prefix, encoder in encoders.items():
        for part, pixels in (("train", images.x_train), ("test", images.x_test)):
            words = f"embed {prefix.rstrip('_') or 'trained'} encoder, {part} images"
            backbone, latent = extract(encoder, to_tensor(pixels, device), name=words)
            if not (np.isfinite(backbone).all() and np.isfinite(latent).all()):
                raise UserError("embed: the encoder's features are not finite: it has diverged; try a smaller pretrain.lr")
            features[f"{prefix}backbone_{part}"], features[f"{prefix}latent_{part}"] = backbone, latent
        both = zip(*(extract(encoder, view, name="embed two views of test images") for view in views), strict=True)
        aligned |= {f"{prefix}{space}": alignment(*of) for space, of in zip(("backbone", "latent"), both, strict=True)}
    write_npz(
        root / "data/features.npz",
        **features,
        y_train=images.y_train,
        y_test=images.y_test,
        classes=np.array(images.classes, str),
    )

    spaces = ("backbone", "latent", "random_backbone", "random_latent")
    metrics: Metrics = {"knn": {}, "precision_at_8": {}} if images.labelled else {}
    metrics |= {"rankme": {}, "explained_auc": {}, "alignment": aligned, "uniformity": {}, "dimensions": {}, "spectrum": {}}
    found = {}  # the queries' nearest training images, by space
    spectra = {}
    for space in spaces:
        bank, test = features[f"{space}_train"], features[f"{space}_test"]
        similarities, indices = nearest(bank, test, max(chosen.knn_k, SHOWN))
        if images.labelled:
            neighbours = images.y_train[indices]
            voters = similarities[:, : chosen.knn_k], neighbours[:, : chosen.knn_k]
            votes = knn_scores(*voters, len(images.classes), temperature=chosen.knn_temperature)
            metrics["knn"][space] = top_k(votes, images.y_test, 1)
            metrics["precision_at_8"][space] = precision_at(SHOWN, neighbours, images.y_test)
        metrics["rankme"][space] = rankme(test)
        metrics["uniformity"][space] = uniformity(test)
        metrics["dimensions"][space] = test.shape[1]
        spectra[space] = spectrum(test)
        metrics["explained_auc"][space] = explained_auc(spectra[space])
        metrics["spectrum"][space] = [float(f"{share:.4g}") for share in spectra[space]]
        found[space] = indices[chosen.queries, :SHOWN], similarities[chosen.queries, :SHOWN]
    metrics["settings"] = [chosen.model_dump()]
    metrics["collapse"] = {"z_std": float(z_std(torch.from_numpy(features["latent_test"])))}

    draw(root / "reports/figures/spectrum.png", spectrum_figure, spectra)
    draw(
        root / "reports/figures/neighbours.png",
        neighbours_figure,
        images.x_test[chosen.queries],
        images.y_test[chosen.queries],
        {
            space: (images.x_train[found[space][0]], images.y_train[found[space][0]], found[space][1])
            for space in ("backbone", "random_backbone")
        },
        images.classes,
        metrics.get("precision_at_8"),
    )
    return metrics


def two_views(images: Tensor, augment: Augment, seed: int) -> list[Tensor]:
    """Two random views, each (N, 3, V, V) uint8, of images (N, 3, S, S) uint8. In batches, which take less memory."""
    generator = torch.Generator().manual_seed(derive(seed, 4))
    pairs = (random_views(batch, generator, [augment] * 2) for batch in images.split(125))
    both = ([(255 * view).round().byte() for view in pair] for pair in pairs)
    return [torch.cat(views) for views in zip(*both, strict=True)]


if __name__ == "__main__":
    main(embed)

"""Features of all images from the trained and from the random encoder: python -m stages.embed"""

from pathlib import Path

import numpy as np
import torch

from simsiam import fitting
from simsiam.collapse import z_std
from simsiam.engine import pick_device
from simsiam.errors import UserError
from simsiam.features import extract
from simsiam.files import write_npz
from simsiam.images import to_tensor
from simsiam.metrics import knn_scores, nearest, precision_at, rankme, spectrum, top_k
from simsiam.networks import Encoder, load_encoder
from simsiam.plots import draw, neighbours_figure, spectrum_figure
from simsiam.settings import Params
from stages.common import Metrics, load_images, main

SHOWN = 8  # neighbours of a query


def embed(params: Params, root: Path) -> Metrics:
    """Write data/features.npz and the figures of the spectrum and of nearest neighbours.

    kNN has all training images as its bank; z_std, RankMe and the spectrum are of the test images.
    """
    images, device = load_images(root), pick_device()
    chosen = fitting.say("embed", params.embed, fitting.embed(params.embed, images), fitting.of(images))
    trained = load_encoder(root / "models/encoder.pt")
    encoders = {"": trained, "random_": Encoder(trained.settings)}  # the very weights that pretraining started from

    features: dict[str, np.ndarray] = {}
    for prefix, encoder in encoders.items():
        for part, pixels in (("train", images.x_train), ("test", images.x_test)):
            words = f"embed {prefix.rstrip('_') or 'trained'} encoder, {part} images"
            backbone, latent = extract(encoder, to_tensor(pixels, device), name=words)
            if not (np.isfinite(backbone).all() and np.isfinite(latent).all()):
                raise UserError("embed: the encoder's features are not finite: it has diverged; try a smaller pretrain.lr")
            features[f"{prefix}backbone_{part}"], features[f"{prefix}latent_{part}"] = backbone, latent
    write_npz(
        root / "data/features.npz",
        **features,
        y_train=images.y_train,
        y_test=images.y_test,
        classes=np.array(images.classes, str),
    )

    spaces = ("backbone", "latent", "random_backbone", "random_latent")
    metrics: Metrics = {"knn": {}, "precision_at_8": {}} if images.labelled else {}
    metrics |= {"rankme": {}, "dimensions": {}, "spectrum": {}}
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
        metrics["dimensions"][space] = test.shape[1]
        spectra[space] = spectrum(test)
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


if __name__ == "__main__":
    main(embed)

"""Features of all images from the trained and from the random encoder: python -m stages.embed"""

from pathlib import Path

import numpy as np
import torch

from simsiam.data import load, to_tensor
from simsiam.engine import pick_device
from simsiam.features import extract
from simsiam.files import write_npz
from simsiam.losses import z_std
from simsiam.metrics import knn_accuracy, nearest, rankme, spectrum
from simsiam.models import Encoder, load_encoder
from simsiam.params import Params
from simsiam.plots import neighbours_figure, save, spectrum_figure
from stages.common import Metrics, main


def embed(params: Params, root: Path) -> Metrics:
    """Write data/features.npz and the figures of the spectrum and of nearest neighbours.

    kNN has all training images as its bank; z_std, RankMe and the spectrum are of the test images.
    """
    data, device = load(root / "data/cifar10.npz"), pick_device()
    images = to_tensor(np.concatenate([data.x_train, data.x_test]), device)
    trained = load_encoder(root / "models/encoder.pt")
    random = Encoder(trained.settings)  # the very weights that pretraining started from

    features: dict[str, np.ndarray] = {}
    for prefix, encoder in (("", trained), ("random_", random)):
        both = extract(encoder, images, name=f"embed {prefix.rstrip('_') or 'trained'} encoder")
        for space, values in zip(("backbone", "latent"), both, strict=True):
            features[f"{prefix}{space}_train"], features[f"{prefix}{space}_test"] = np.split(values, [len(data.x_train)])

    def knn(space: str) -> float:
        return knn_accuracy(
            features[f"{space}_train"],
            data.y_train,
            features[f"{space}_test"],
            data.y_test,
            k=params.embed.knn_k,
            temperature=params.embed.knn_temperature,
        )

    spaces = ("backbone", "latent", "random_backbone", "random_latent")
    spectra = {space: spectrum(features[f"{space}_test"]) for space in spaces}
    queries = [index for index in params.embed.queries if index < len(data.x_test)]
    similarities, indices = nearest(features["backbone_train"], features["backbone_test"][queries], 8)

    write_npz(root / "data/features.npz", **features, y_train=data.y_train, y_test=data.y_test)
    save(root / "reports/figures/spectrum.png", spectrum_figure(spectra))
    save(
        root / "reports/figures/neighbours.png",
        neighbours_figure(
            data.x_test[queries], data.y_test[queries], data.x_train[indices], data.y_train[indices], similarities
        ),
    )
    return {
        "knn": {"backbone": knn("backbone"), "latent": knn("latent"), "random": knn("random_backbone")},
        "collapse": {"z_std": float(z_std(torch.from_numpy(features["latent_test"])))},
        "rankme": {
            "backbone": rankme(features["backbone_test"]),
            "latent": rankme(features["latent_test"]),
            "random": rankme(features["random_backbone_test"]),
        },
        "dimensions": {"backbone": features["backbone_test"].shape[1], "latent": features["latent_test"].shape[1]},
        "spectrum": {space: [float(f"{share:.4g}") for share in shares] for space, shares in spectra.items()},
    }


if __name__ == "__main__":
    main(embed)

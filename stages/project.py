"""The features on a plane, by PCA and t-SNE: python -m stages.project"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simsiam.errors import UserError
from simsiam.files import read_npz, write_text
from simsiam.images import Floats, split
from simsiam.plots import draw, maps_figure, plane_figure, variance_figure
from simsiam.projection import centroid_distances, knn_in_plane, map_trustworthiness, pca, silhouette, tsne
from simsiam.settings import Params
from stages.common import Metrics, main


def project(params: Params, root: Path) -> Metrics:
    """Write reports/projection.csv and the maps of a class-balanced sample of the test images."""
    features = read_npz(
        root / "data/features.npz", "backbone_test", "latent_test", "random_backbone_test", "y_test", "classes"
    )
    finetuned = read_npz(root / "data/finetuned.npz", "finetuned_test")
    if len({len(features["y_test"]), len(features["latent_test"]), len(finetuned["finetuned_test"])}) > 1:
        raise UserError("data/features.npz and data/finetuned.npz are of other images each: delete both and run `dvc repro`")
    labels, names = features["y_test"], features["classes"].tolist()
    points, perplexity = params.project.points, params.project.perplexity
    chosen = split(labels, points, params.seed)[1] if points < len(labels) else np.arange(len(labels))
    if perplexity >= len(chosen):
        raise UserError(
            f"project.perplexity is {perplexity:g}: it should be smaller than the {len(chosen)} test images there are"
        )
    labels = labels[chosen]
    spaces = {
        "backbone": features["backbone_test"],
        "latent": features["latent_test"],
        "random_backbone": features["random_backbone_test"],
        "finetuned": finetuned["finetuned_test"],
    }

    table: dict[str, Any] = {"index": chosen, "label": labels, "class": [names[label] for label in labels]}
    metrics: Metrics = {}
    variances = {}
    for name, values in spaces.items():
        sample = values[chosen]
        # Axes are those of all test images; the sample only decides which of them are drawn.
        coordinates, variances[name] = pca(values)
        plane: dict[str, Floats] = {
            "pca": coordinates[chosen, :2],
            "tsne": tsne(sample, perplexity=perplexity, seed=params.seed),
        }
        metrics[name] = {"silhouette": silhouette(sample, labels), "pca_variance_2": float(variances[name][:2].sum())}
        for method, xy in plane.items():
            table[f"{name}_{method}_1"], table[f"{name}_{method}_2"] = xy.T.astype(np.float64).round(4)
            metrics[name][method] = {"knn": knn_in_plane(xy, labels), "trustworthiness": map_trustworthiness(sample, xy)}
    for name in ("latent", "finetuned"):  # with latent_dim 2 there is a map that needs no projection
        if spaces[name].shape[1] == 2:
            table[f"{name}_1"], table[f"{name}_2"] = spaces[name][chosen].T.astype(np.float64).round(4)
    metrics["centroid_distances"] = {
        name: centroid_distances(values, features["y_test"]).round(4).tolist() for name, values in spaces.items()
    }

    frame = pd.DataFrame(table)
    write_text(root / "reports/projection.csv", frame.to_csv(index=False))
    draw(root / "reports/figures/maps.png", maps_figure, frame, names)
    draw(root / "reports/figures/latent_plane.png", plane_figure, frame, names)
    draw(root / "reports/figures/variance.png", variance_figure, variances)
    return metrics


if __name__ == "__main__":
    main(project)

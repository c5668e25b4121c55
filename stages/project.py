"""The features on a plane, by PCA and t-SNE: python -m stages.project"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simsiam.data import CLASSES, Floats, split
from simsiam.files import read_npz, write_text
from simsiam.params import Params
from simsiam.plots import maps_figure, plane_figure, save, variance_figure
from simsiam.projection import centroid_distances, knn_in_plane, map_trustworthiness, pca, silhouette, tsne
from stages.common import Metrics, main


def project(params: Params, root: Path) -> Metrics:
    """Write reports/projection.csv and the maps of a class-balanced sample of the test images."""
    features, finetuned = read_npz(root / "data/features.npz"), read_npz(root / "data/finetuned.npz")
    labels = features["y_test"]
    points = params.project.points
    chosen = split(labels, points, params.seed)[1] if points < len(labels) else np.arange(len(labels))
    labels = labels[chosen]
    spaces = {
        "backbone": features["backbone_test"],
        "latent": features["latent_test"],
        "random": features["random_backbone_test"],
        "finetuned": finetuned["latent_test"],
    }

    table: dict[str, Any] = {"index": chosen, "label": labels, "class": [CLASSES[label] for label in labels]}
    metrics: Metrics = {}
    variances = {}
    for name, values in spaces.items():
        sample = values[chosen]
        # Axes are those of all test images; the sample only decides which of them are drawn.
        coordinates, variances[name] = pca(values)
        plane: dict[str, Floats] = {
            "pca": coordinates[chosen, :2],
            "tsne": tsne(sample, perplexity=params.project.perplexity, seed=params.seed),
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
    save(root / "reports/figures/maps.png", maps_figure(frame))
    save(root / "reports/figures/latent_plane.png", plane_figure(frame))
    save(root / "reports/figures/variance.png", variance_figure(variances))
    return metrics


if __name__ == "__main__":
    main(project)

"""The features on a plane, by PCA and t-SNE: python -m stages.project"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simsiam import fitting
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
    labels, names = features["y_test"], features["classes"].tolist()
    spaces = {space: features[f"{space}_test"] for space in ("backbone", "latent", "random_backbone")}
    if names:  # else nothing was fine-tuned
        spaces["finetuned"] = read_npz(root / "data/finetuned.npz", "finetuned_test")["finetuned_test"]
    if {len(values) for values in spaces.values()} != {len(labels)}:
        raise UserError("data/features.npz and data/finetuned.npz are of other images each: delete both and run `dvc repro`")
    fitted = fitting.say(
        "project", params.project, fitting.project(params.project, len(labels)), f"{len(labels):,} test images"
    )
    # Without labels all images count as of one class.
    chosen = np.arange(len(labels))
    if fitted.points < len(labels):
        chosen = split(labels if names else np.zeros_like(labels), fitted.points, params.seed)[1]
    labels = labels[chosen]

    table: dict[str, Any] = {"index": chosen, "label": labels}
    table["class"] = [names[label] for label in labels] if names else "image"
    metrics: Metrics = {}
    variances = {}
    for name, values in spaces.items():
        sample = values[chosen]
        # Axes are those of all test images; the sample only decides which of them are drawn.
        coordinates, variances[name] = pca(values)
        plane: dict[str, Floats] = {
            "pca": coordinates[chosen, :2],
            "tsne": tsne(sample, perplexity=fitted.perplexity, seed=params.seed),
        }
        metrics[name] = {"pca_variance_2": float(variances[name][:2].sum())}
        if names:
            metrics[name]["silhouette"] = silhouette(sample, labels)
        for method, xy in plane.items():
            table[f"{name}_{method}_1"], table[f"{name}_{method}_2"] = xy.T.astype(np.float64).round(4)
            metrics[name][method] = {"trustworthiness": map_trustworthiness(sample, xy)}
            if names:
                metrics[name][method]["knn"] = knn_in_plane(xy, labels)
        if name in ("latent", "finetuned") and values.shape[1] == 2:  # a map that needs no projection
            table[f"{name}_1"], table[f"{name}_2"] = values[chosen].T.astype(np.float64).round(4)
    if names:
        metrics["centroid_distances"] = {
            name: centroid_distances(values, features["y_test"]).round(4).tolist() for name, values in spaces.items()
        }

    metrics["settings"] = [fitted.model_dump()]
    frame = pd.DataFrame(table)
    write_text(root / "reports/projection.csv", frame.to_csv(index=False))
    draw(root / "reports/figures/maps.png", maps_figure, frame, names or ["image"])
    draw(root / "reports/figures/latent_plane.png", plane_figure, frame, names or ["image"])
    draw(root / "reports/figures/variance.png", variance_figure, variances)
    return metrics


if __name__ == "__main__":
    main(project)

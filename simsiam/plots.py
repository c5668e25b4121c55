"""Arrays -> matplotlib figures. One palette, readable with colour-blind eyes; a class has the same colour everywhere."""

import io
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from simsiam.data import CLASSES
from simsiam.files import atomic_write

matplotlib.use("Agg")
matplotlib.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11})

# Petroff 2021, "Accessible Color Sequences for Data Visualization": ten colours told apart with any colour vision.
COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
CLASS_COLOURS = dict(zip(CLASSES, COLOURS, strict=True))
SPACES = {  # name in metrics and tables -> (how it is called in figures, colour, line style)
    "backbone": ("backbone", "#3f90da", "-"),
    "latent": ("latent", "#bd1f01", "-"),
    "random": ("random encoder's backbone", "#717581", "--"),
    "random_backbone": ("random encoder's backbone", "#717581", "--"),
    "random_latent": ("random encoder's latent", "#a96b59", "--"),
    "finetuned": ("fine-tuned latent", "#832db6", "-"),
}
NETWORKS = {"frozen": "frozen", "finetuned": "fine-tuned"}


def save(path: Path, figure: Figure) -> None:
    """Write a PNG, atomically. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


def curves_figure(pretraining: pd.DataFrame, finetuning: pd.DataFrame) -> Figure:
    """Loss, z_std and learning rate of pretraining, and top-1 of fine-tuning, over epochs."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, frame, column, title, label in (
        (next(panels), pretraining, "loss", "Pretraining: loss", "negative cosine similarity"),
        (next(panels), pretraining, "z_std", "Pretraining: spread of the latent", "z_std (1 healthy, 0 collapsed)"),
        (next(panels), pretraining, "lr", "Pretraining: learning rate", "learning rate"),
        (next(panels), finetuning, "top1", "Fine-tuning: on its own augmented training images", "top-1"),
    ):
        axes.plot(frame["epoch"], frame[column], marker=".", markersize=4, color=COLOURS[0])
        axes.set(title=title, xlabel="epoch", ylabel=label, xlim=(0, None))
        axes.grid(alpha=0.3)
        if column == "z_std":
            axes.axhline(1, color="#717581", linestyle="--", linewidth=1)
            axes.set_ylim(0, max(1.1, float(frame[column].max()) * 1.05))
        elif column in ("lr", "top1"):
            axes.set_ylim(bottom=0)
    return figure


def accuracies_figure(rows: list[tuple[str, float, str]]) -> Figure:
    """Horizontal bars of (name, accuracy as a fraction, group); a group has one colour."""
    figure = Figure(figsize=(8, 0.42 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    groups = list(dict.fromkeys(group for _, _, group in rows))
    for position, (_, accuracy, group) in enumerate(reversed(rows)):
        axes.barh(position, 100 * accuracy, color=(COLOURS[0], COLOURS[8], COLOURS[4])[groups.index(group) % 3])
        axes.text(100 * accuracy + 0.8, position, f"{accuracy:.1%}", va="center")
    axes.axvline(10, color="black", linestyle=":", linewidth=1)
    axes.text(10.6, len(rows) - 0.45, "chance", va="bottom", fontsize=8)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    axes.set(
        title="What can be read out of the encoder, and out of a random one",
        xlabel="top-1 on the 10,000 test images (%)",
        xlim=(0, 100),
        ylim=(-0.6, len(rows)),
    )
    return figure


def spectrum_figure(spectra: dict[str, NDArray[np.float64]]) -> Figure:
    """Covariance eigenvalues by rank, as shares of the total variance, on logarithmic axes."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for space, shares in spectra.items():
        name, colour, style = SPACES[space]
        axes.plot(np.arange(1, len(shares) + 1), shares.clip(1e-9), style, label=f"{name} ({len(shares)} d)", color=colour)
    axes.set(
        title="Covariance spectrum of the test images' features",
        xlabel="rank of the eigenvalue",
        ylabel="share of the total variance",
        xscale="log",
        yscale="log",
        ylim=(1e-7, 1.5),
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def variance_figure(variances: dict[str, NDArray[np.float64]], components: int = 30) -> Figure:
    """Cumulative share of the variance that the first principal components explain."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for space, shares in variances.items():
        name, colour, style = SPACES[space]
        cumulated = 100 * np.cumsum(shares[:components])
        axes.plot(np.arange(1, len(cumulated) + 1), cumulated, style, marker=".", label=name, color=colour)
    axes.set(
        title="Variance explained by the first principal components",
        xlabel="number of components",
        ylabel="explained variance (%)",
        ylim=(0, 102),
    )
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    return figure


def confusion_figure(matrix: NDArray[np.int64]) -> Figure:
    """Confusion matrix (classes, classes), rows true and columns predicted, in per cent of each row."""
    share = 100 * matrix / matrix.sum(1, keepdims=True).clip(1)
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.ndindex(*share.shape):
        colour = "white" if share[row, column] > 55 else "black"
        axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(CLASSES)), CLASSES, rotation=45, ha="right")
    axes.set_yticks(range(len(CLASSES)), CLASSES)
    axes.set(title="Linear evaluation of the backbone: who is taken for whom", xlabel="predicted class", ylabel="true class")
    figure.colorbar(picture, ax=axes, label="share of the true class (%)", shrink=0.8)
    return figure


def maps_figure(frame: pd.DataFrame) -> Figure:
    """PCA (above) and t-SNE (below) of the features on a plane, one dot a test image, coloured by class."""
    spaces = ("backbone", "latent", "random", "finetuned")
    figure = Figure(figsize=(16, 8.6), layout="constrained")
    grid = figure.subplots(2, len(spaces))
    for row, (method, label) in zip(grid, (("pca", "PCA"), ("tsne", "t-SNE")), strict=True):
        for axes, space in zip(row, spaces, strict=True):
            scatter(axes, frame, f"{space}_{method}")
            unit = "component" if method == "pca" else "dimension"
            axes.set(title=f"{label}: {SPACES[space][0]}", xlabel=f"{unit} 1", ylabel=f"{unit} 2")
    class_legend(figure, grid[0][0])
    return figure


def plane_figure(frame: pd.DataFrame) -> Figure:
    """The latent frozen beside fine-tuned: as it is when it has two dimensions, else on its principal components."""
    bare = "latent_1" in frame
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, space, title in zip(panels, ("latent", "finetuned"), ("frozen", "fine-tuned"), strict=True):
        scatter(axes, frame, space if bare else f"{space}_pca")
        name = "latent dimension" if bare else "principal component"
        axes.set(title=f"The latent, {title}", xlabel=f"{name} 1", ylabel=f"{name} 2")
    class_legend(figure, panels[0])
    return figure


def neighbours_figure(
    queries: NDArray[np.uint8],
    query_labels: NDArray[np.uint8],
    neighbours: NDArray[np.uint8],
    neighbour_labels: NDArray[np.uint8],
    similarities: NDArray[np.float32],
) -> Figure:
    """Each row a test image (S, S, 3) and its nearest training images, with class and cosine; framed where it agrees."""
    rows, columns = neighbour_labels.shape
    figure = Figure(figsize=(1.25 * (columns + 1), 1.55 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns + 1, squeeze=False)
    for row in range(rows):
        picture(grid[row][0], queries[row], f"{CLASSES[query_labels[row]]}", "black")
        for column in range(columns):
            label = neighbour_labels[row, column]
            colour = "#3f90da" if label == query_labels[row] else "#e76300"
            text = f"{CLASSES[label]}\n{similarities[row, column]:.2f}"
            picture(grid[row][column + 1], neighbours[row, column], text, colour)
    grid[0][0].set_title(f"test image\n{CLASSES[query_labels[0]]}", fontsize=8)
    figure.suptitle(
        "Nearest training images by cosine of backbone features: blue frame = same class, orange = another", fontsize=11
    )
    return figure


def shap_figure(
    images: NDArray[np.uint8],
    labels: NDArray[np.uint8],
    shown: NDArray[np.int64],
    networks: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> Figure:
    """Each row an image (S, S, 3); to its right, per network, what each pixel adds to some class outputs.

    shown (N, outputs): the classes; networks: name -> SHAP values (N, 3, S, S, classes) and logits (N, classes). A
    pixel's value is the sum over its channels. One colour scale per network, from its 99.5th percentile.
    """
    rows, outputs = shown.shape
    figure = Figure(figsize=(1.35 * (1 + outputs * len(networks)) + 0.8, 1.6 * rows + 1.4), layout="constrained")
    grid = figure.subplots(rows, 1 + outputs * len(networks), squeeze=False)
    for row in range(rows):
        picture(grid[row][0], images[row], CLASSES[labels[row]], "black")
    for number, (name, (values, logits)) in enumerate(networks.items()):
        pixels = values.sum(1)
        chosen = np.stack([pixels[row][..., shown[row]] for row in range(rows)])
        limit = max(float(np.quantile(np.abs(chosen), 0.995)), 1e-12)
        columns = slice(1 + number * outputs, 1 + (number + 1) * outputs)
        for row in range(rows):
            grey = images[row].mean(-1)
            for axes, label in zip(grid[row][columns], shown[row], strict=True):
                axes.imshow(grey, cmap="gray", alpha=0.25, vmin=0, vmax=255)
                shap = axes.imshow(pixels[row][..., label], cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.85)
                outline(axes, f"{CLASSES[label]}\n{logits[row, label]:+.1f}", "#b9b9b9")
        words, first = NETWORKS[name], grid[0][columns][0]
        first.set_title(f"{words.upper()}\n{first.get_title()}", fontsize=8)
        figure.colorbar(
            shap,
            ax=list(grid[-1][columns]),
            location="bottom",
            label=f"{words} network: pixel's share of the logit (SHAP value)",
            shrink=0.9,
            ticks=[-limit, 0, limit],
            format="%.2g",
        )
    figure.suptitle("What speaks for (red) and against (blue) a class; under its name, its logit", fontsize=11)
    return figure


def scatter(axes: Axes, frame: pd.DataFrame, columns: str) -> None:
    for name in CLASSES:
        rows = frame[frame["class"] == name]
        axes.scatter(
            rows[f"{columns}_1"], rows[f"{columns}_2"], s=5, linewidths=0, alpha=0.75, color=CLASS_COLOURS[name], label=name
        )


def class_legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    legend = figure.legend(handles, names, loc="outside lower center", ncols=len(CLASSES), frameon=False, markerscale=4)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def picture(axes: Axes, image: NDArray[np.uint8], text: str, colour: str) -> None:
    axes.imshow(image, interpolation="nearest")
    outline(axes, text, colour)


def outline(axes: Axes, text: str, colour: str) -> None:
    axes.set_title(text, fontsize=8)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.5)

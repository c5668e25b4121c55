"""Arrays -> matplotlib figures. One palette, readable with colour-blind eyes; a class has the same colour everywhere."""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from simsiam.files import write_bytes

matplotlib.use("Agg")
matplotlib.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11})

# Petroff 2021, "Accessible Color Sequences for Data Visualization": ten colours told apart with any colour vision.
COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd",
)  # fmt: skip
SPACES = {  # name in metrics and tables -> (how it is called in figures, colour, line style)
    "backbone": ("backbone", "#3f90da", "-"),
    "latent": ("latent", "#bd1f01", "-"),
    "random_backbone": ("random encoder's backbone", "#717581", "--"),
    "random_latent": ("random encoder's latent", "#a96b59", "--"),
    "finetuned": ("what the fine-tuned head reads", "#832db6", "-"),
}
NETWORKS = {"frozen": "frozen", "finetuned": "fine-tuned", "random": "random"}


def save(path: Path, figure: Figure) -> None:
    """Write a PNG, atomically. The same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def draw(path: Path, figure: Callable[..., Figure], *content: object) -> None:
    """Draw a figure of `content` and write it as a PNG. What cannot be drawn costs no numbers: a picture says so instead."""
    try:
        drawn = figure(*content)
        drawn.canvas.draw()
    except Exception as error:  # whatever matplotlib finds in odd data
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"{path.name} could not be drawn: {reason}", file=sys.stderr)
        drawn = note_figure(f"{path.stem} could not be drawn:\n{reason}")
    save(path, drawn)


MARKERS = "o^sDvP*X<>"


def class_looks(classes: Sequence[str]) -> list[tuple[str, str]]:
    """A colour and a marker for each class: beyond ten the colours come again with another marker."""
    return [(COLOURS[n % len(COLOURS)], MARKERS[n // len(COLOURS) % len(MARKERS)]) for n in range(len(classes))]


def note_figure(text: str) -> Figure:
    """A picture that says why there is none."""
    figure = Figure(figsize=(8, 2))
    figure.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
    return figure


def curves_figure(pretraining: pd.DataFrame, finetuning: dict[str, pd.DataFrame]) -> Figure:
    """Loss, spread and ranks over the epochs of pretraining; top-1 of fine-tuning, by what it started from.

    Where training images were held out while it pretrained, their kNN top-1, too.
    """
    looked = pretraining.dropna(subset="knn") if "knn" in pretraining else pretraining[:0]
    figure = Figure(figsize=(16.5 if len(looked) else 11, 6), layout="constrained")
    panels = figure.subplot_mosaic("LSR;TK." if len(looked) else "LS;RT")
    loss, spread, rank, tuned = (panels[letter] for letter in "LSRT")
    for axes, column, title, label in (
        (loss, "loss", "Pretraining: loss", "loss"),
        (spread, "z_std", "Pretraining: spread of the latent", "z_std (1 even, 0 a point)"),
    ):
        axes.plot(pretraining["epoch"], pretraining[column], marker=".", markersize=4, color=COLOURS[0])
        axes.set(title=title, xlabel="epoch", ylabel=label, xlim=(0, None))
    spread.axhline(1, color="#717581", linestyle="--", linewidth=1)
    spread.set_ylim(0, max(1.1, float(pretraining["z_std"].max()) * 1.05))
    for space, column in (("backbone", "backbone_rankme"), ("latent", "rankme")):
        name, colour, line = SPACES[space]
        rank.plot(pretraining["epoch"], pretraining[column], line, marker=".", markersize=4, color=colour, label=name)
    rank.set(title="Pretraining: directions in use, of the last batch", xlabel="epoch", ylabel="RankMe", xlim=(0, None))
    rank.set_ylim(0, 1.1 * float(pretraining[["rankme", "backbone_rankme"]].to_numpy().max()))
    rank.legend(frameon=False)
    if len(looked):
        panels["K"].plot(looked["epoch"], looked["knn"], marker=".", markersize=4, color=COLOURS[0])
        panels["K"].set(title="Pretraining: kNN of held-out training images", xlabel="epoch", ylabel="top-1", xlim=(0, None))
        panels["K"].set_ylim(0, None)
    for start, colour, style in (("encoder", COLOURS[4], "-"), ("scratch", COLOURS[8], "--")):
        if (rows := finetuning.get(start)) is None:
            continue
        tuned.plot(rows["epoch"], rows["top1"], style, marker=".", markersize=4, color=colour, label=f"from {start}")
    tuned.set(title="Fine-tuning: on its own augmented training images", xlabel="epoch", ylabel="top-1", xlim=(0, None))
    tuned.set_ylim(0, None)
    if finetuning:
        tuned.legend(frameon=False)
    else:
        tuned.set_axis_off()
    for axes in panels.values():
        axes.grid(alpha=0.3)
    return figure


def accuracies_figure(rows: list[tuple[str, float, str]], chance: float, images: int) -> Figure:
    """Horizontal bars of (name, accuracy as a fraction, group); a group has one colour."""
    figure = Figure(figsize=(8, 0.42 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    colours = {"trained": COLOURS[0], "random": COLOURS[8], "finetuned": COLOURS[4]}
    for position, (_, accuracy, group) in enumerate(reversed(rows)):
        axes.barh(position, 100 * accuracy, color=colours[group])
        axes.text(100 * accuracy + 0.8, position, f"{accuracy:.1%}", va="center")
    axes.axvline(100 * chance, color="black", linestyle=":", linewidth=1)
    axes.text(100 * chance + 0.6, len(rows) - 0.45, "chance", va="bottom", fontsize=8)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
    axes.set(
        title="What can be read out of the encoder, and out of a random one",
        xlabel=f"top-1 on the {images:,} test images (%)",
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


def confusion_figure(matrix: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Confusion matrix (classes, classes), rows true and columns predicted, in per cent of each row."""
    share = 100 * matrix / matrix.sum(1, keepdims=True).clip(1)
    classes = [shortened_at_end(name, 30) for name in classes]
    side, names = 0.5 * min(len(classes), 30), 0.07 * max(map(len, classes))  # in inches
    figure = Figure(
        figsize=(max(side + 2.2, side + names + 1.6, 5.6), max(side + 1.4, side + names + 0.8)), layout="constrained"
    )
    axes = figure.subplots()
    limit = max(float(share.max()), 1.0)
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=limit)
    if len(classes) <= 30:
        for row, column in np.ndindex(*share.shape):
            colour = "white" if share[row, column] > 0.55 * limit else "black"
            axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=9)
    words: dict[str, Any] = {"fontsize": 10 if len(classes) <= 30 else 5}
    axes.set_xticks(range(len(classes)), classes, rotation=45 if len(classes) <= 30 else 90, ha="right", **words)
    axes.set_yticks(range(len(classes)), classes, **words)
    between = "\n" if len(classes) < 8 else " "
    title = f"Linear evaluation of the backbone:{between}who is taken for whom"
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    figure.colorbar(
        picture,
        ax=axes,
        label=f"share of the{between}true class (%)",
        shrink=0.8,
    )
    return figure


def maps_figure(frame: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """PCA (above) and t-SNE (below) of the features on a plane, one dot a test image, coloured by class."""
    spaces = [space for space in SPACES if f"{space}_pca_1" in frame]
    figure = Figure(figsize=(4 * len(spaces), 8.6), layout="constrained")
    grid = figure.subplots(2, len(spaces))
    for row, (method, label) in zip(grid, (("pca", "PCA"), ("tsne", "t-SNE")), strict=True):
        for axes, space in zip(row, spaces, strict=True):
            scatter(axes, frame, f"{space}_{method}", classes)
            unit = "component" if method == "pca" else "dimension"
            axes.set(title=f"{label}: {SPACES[space][0]}", xlabel=f"{unit} 1", ylabel=f"{unit} 2")
    class_legend(figure, grid[0][0])
    return figure


def plane_figure(frame: pd.DataFrame, classes: Sequence[str]) -> Figure:
    """The frozen latent beside what the fine-tuned head reads: as they are where these are two numbers, else by PCA."""
    spaces = {"latent": "the frozen latent"}
    if "finetuned_pca_1" in frame:
        spaces["finetuned"] = SPACES["finetuned"][0]
    figure = Figure(figsize=(6 * len(spaces), 5.6), layout="constrained")
    panels = figure.subplots(1, len(spaces), squeeze=False)[0]
    for axes, (space, title) in zip(panels, spaces.items(), strict=True):
        bare = f"{space}_1" in frame
        scatter(axes, frame, space if bare else f"{space}_pca", classes)
        name = "dimension" if bare else "principal component"
        axes.set(title=title[0].upper() + title[1:], xlabel=f"{name} 1", ylabel=f"{name} 2")
    class_legend(figure, panels[0])
    return figure


def neighbours_figure(
    queries: NDArray[np.uint8],
    labels: NDArray[np.int64],
    neighbours: dict[str, tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float32]]],
    classes: Sequence[str],
    precision: dict[str, float] | None,
) -> Figure:
    """Each row a test image (S, S, 3) and, by space, its nearest training images, framed by whether the class agrees.

    neighbours: space -> images (rows, k, S, S, 3), labels and cosines (rows, k). precision: the share of such neighbours,
    over all test images, that have the image's class; None for images without labels.
    """
    rows, columns = next(iter(neighbours.values()))[1].shape
    # A column for the test image, and for each space an empty one and one for each neighbour.
    widths = [1.0] + len(neighbours) * [0.3, *columns * [1.0]]
    wide = max(1.0, 8 / columns)  # or the words above would not fit
    figure = Figure(figsize=(0.8 * wide * sum(widths), 1.2 * rows + 1.1), layout="constrained")
    grid = figure.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    for row in range(rows):
        picture(grid[row][0], queries[row], shortened_at_end(classes[labels[row]]) if precision else "", "black")
    for number, (space, (images, found, cosines)) in enumerate(neighbours.items()):
        gap = 1 + number * (1 + columns)
        for row in range(rows):
            grid[row][gap].set_axis_off()
            for column in range(columns):
                colour, text = "#b9b9b9", f"{cosines[row, column]:.3f}"
                if precision:
                    colour = "#3f90da" if found[row, column] == labels[row] else "#e76300"
                    text = f"{shortened_at_end(classes[found[row, column]])}\n{text}"
                picture(grid[row][gap + 1 + column], images[row, column], text, colour)
        words = SPACES[space][0]
        if precision:
            words += f": of all test images' {columns} nearest, {precision[space]:.1%} have their class"
        head = grid[0][gap + 1].annotate(
            words, (0, 1), xycoords="axes fraction", xytext=(0, 32), textcoords="offset points", fontsize=10, weight="bold"
        )
        head.set_in_layout(False)
    figure.suptitle(
        "Test images and their nearest training images, by cosine of features"
        + (": blue frame = same class, orange = another\n" if precision else "\n"),
        fontsize=11,
    )
    return figure


def twins_figure(
    pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    names: Sequence[tuple[str, str]],
    labels: Sequence[tuple[str, str]],
    title: str,
) -> Figure:
    """Pairs of an image (S, S, 3) above its copy, eight pairs a row; orange frames where the labels differ.

    names: where the two come from; labels: their classes, "" where there are none.
    """
    columns = min(8, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(max(1.45 * columns, 6), 3.4 * rows + 0.6), layout="constrained")
    grid = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (pair, places, classes) in enumerate(zip(pairs, names, labels, strict=True)):
        colour = "#3f90da" if classes[0] == classes[1] else "#e76300"
        for part in range(2):
            axes = grid[2 * (number // columns) + part][number % columns]
            axes.set_axis_on()
            picture(
                axes,
                pair[part],
                "\n".join(filter(None, (shortened_at_end(classes[part], 22), shortened(places[part])))),
                colour,
            )
    figure.suptitle(title, fontsize=11)
    return figure


def views_figure(images: NDArray[np.uint8], views: NDArray[np.float32], words: str) -> Figure:
    """Images (n, S, S, 3), each with a pair of views (n, 2, V, V, 3) in [0, 1]; `words`: what these may differ in."""
    rows = -(-len(images) // 4)
    # Four images beside each other, each with its views; an empty column between.
    figure = Figure(figsize=(12.5, 0.95 * rows + 1.1), layout="constrained")
    grid = figure.subplots(rows, 15, squeeze=False, width_ratios=[1, 1, 1, 0.3] * 3 + [1, 1, 1])
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (image, pair) in enumerate(zip(images, views, strict=True)):
        for axes, pixels in zip(grid[number // 4][4 * (number % 4) :], (image, *pair), strict=False):
            axes.imshow(pixels, interpolation="nearest")
    for first in grid[0][::4]:
        first.set_title("image", fontsize=8)
    for first in grid[0][1::4]:
        first.set_title("two views of it", fontsize=8, loc="left")
    figure.suptitle(
        f"Pretraining is told that the two views are one and the same. They may differ in:\n{words}", fontsize=11
    )
    return figure


def shap_figure(
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    shown: NDArray[np.int64],
    networks: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
    classes: Sequence[str],
) -> Figure:
    """Each row an image (S, S, 3); to its right, per network, what each pixel adds to some class outputs.

    shown (N, outputs): the classes; networks: name -> SHAP values (N, 3, S, S, classes) and logits (N, classes). A
    pixel's value is the sum over its channels. One colour scale per network, from its 99.5th percentile.
    """
    rows, outputs = shown.shape
    between = " " if outputs > 3 else "\n"
    figure = Figure(figsize=(1.35 * (1 + outputs * len(networks)) + 0.8, 1.6 * rows + 1.4), layout="constrained")
    grid = figure.subplots(rows, 1 + outputs * len(networks), squeeze=False)
    for row in range(rows):
        picture(grid[row][0], images[row], shortened_at_end(classes[labels[row]], 18), "black")
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
                outline(axes, f"{shortened_at_end(classes[label], 18)}\n{logits[row, label]:+.1f}", "#b9b9b9")
        words, first = NETWORKS[name], grid[0][columns][0]
        first.set_title(f"{words.upper()}\n{first.get_title()}", fontsize=8)
        figure.colorbar(
            shap,
            ax=list(grid[-1][columns]),
            location="bottom",
            label=f"{words} network: pixel's share{between}of the logit (SHAP value)",
            shrink=0.9,
            ticks=[-limit, 0, limit],
            format="%.2g",
        )
    figure.suptitle("What speaks for (red) and against (blue) a class; under its name, its logit", fontsize=11)
    return figure


def scatter(axes: Axes, frame: pd.DataFrame, columns: str, classes: Sequence[str]) -> None:
    for name, (colour, marker) in zip(classes, class_looks(classes), strict=True):
        rows = frame[frame["class"] == name]
        size = 5 if len(frame) > 500 else 12
        xy = rows[f"{columns}_1"], rows[f"{columns}_2"]
        axes.scatter(*xy, s=size, linewidths=0, alpha=0.75, color=[colour], marker=marker, label=name)


def class_legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    if len(names) == 1:  # images without labels
        return
    size = {"fontsize": 6, "markerscale": 2} if len(names) > 30 else {"fontsize": 10, "markerscale": 4}
    room = 110 / size["fontsize"] * figure.get_figwidth()  # in letters; a marker takes five
    columns = len(names) if sum(len(name) + 5 for name in names) < room else int(room / (max(map(len, names)) + 5))
    places: dict[str, Any] = {"loc": "outside lower center", "ncols": max(1, min(10, columns)), "frameon": False}
    legend = figure.legend(handles, names, **places, **size)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def shortened(name: str, longest: int = 22) -> str:
    """A name that fits above a small picture: of a long one the end, which tells files apart."""
    return name if len(name) <= longest else "…" + name[1 - longest :]


def shortened_at_end(name: str, longest: int = 13) -> str:
    """A class's name that fits above a small picture."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def picture(axes: Axes, image: NDArray[np.uint8] | NDArray[np.float32], text: str, colour: str) -> None:
    axes.imshow(image, interpolation="nearest")
    outline(axes, text, colour)


def outline(axes: Axes, text: str, colour: str) -> None:
    axes.set_title(text, fontsize=8)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.5)

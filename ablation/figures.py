"""The study's figures: results of the grid's points in, matplotlib figures out."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ablation.tables import Result
from simsiam.data import CLASSES
from simsiam.params import TEST_IMAGES
from simsiam.plots import COLOURS, NETWORKS, SPACES, class_legend, outline, picture, scatter

Arrays = dict[str, NDArray[Any]]  # one of ablation/results/<recipe>/*.npz
Point = tuple[Result, Arrays]
STYLES = ("-", "--", ":", "-.")
LINES = {  # what an accuracy was read from: its name, colour and style
    "finetuned": ("fine-tuned", COLOURS[4], "-o"),
    "finetuned_backbone": ("fine-tuned, head on backbone", COLOURS[6], "-o"),
    "backbone": ("linear on backbone", COLOURS[0], "-o"),
    "latent": ("linear on latent", COLOURS[2], "-o"),
    "finetuned_random": ("fine-tuned from a random encoder", COLOURS[4], "--s"),
    "random_backbone": ("linear on random encoder's backbone", COLOURS[8], "--s"),
    "random_latent": ("linear on random encoder's latent", COLOURS[5], "--s"),
}


def maps(arrays: Arrays) -> pd.DataFrame:
    """The coordinates of a point's maps, with the class of each row, as `simsiam.plots` draws them."""
    frame = pd.DataFrame({name.removeprefix("maps_"): array for name, array in arrays.items() if name.startswith("maps_")})
    return frame.assign(**{"class": [CLASSES[int(label)] for label in frame["label"]]})


def figure_2(point: Point) -> Figure:
    """The report's Figure 2: a frozen latent by PCA, with the variance that each axis explains, and by t-SNE."""
    result, frame = point[0], maps(point[1])
    dim, shares = result["point"]["latent_dim"], result["embed"]["spectrum"]["latent"]
    figure = Figure(figsize=(12, 5.8), layout="constrained")
    pca, tsne = figure.subplots(1, 2)
    scatter(pca, frame, "latent_pca")
    pca.set(
        title=f"The frozen latent of {dim} dimensions: PCA",
        xlabel=f"component 1 ({shares[0]:.0%} of the variance)",
        ylabel=f"component 2 ({shares[1]:.0%})",
    )
    scatter(tsne, frame, "latent_tsne")
    tsne.set(title=f"The frozen latent of {dim} dimensions: t-SNE", xlabel="dimension 1", ylabel="dimension 2")
    class_legend(figure, pca)
    return figure


def figure_3(points: list[Point]) -> Figure:
    """The report's Figure 3: SHAP values, fine-tuned above and frozen below, a block of columns for each latent dimension.

    The same images, classes and colour scale everywhere; the classes are those that the last dimension's fine-tuned network
    scores highest besides the image's own.
    """
    images, labels = points[0][1]["shap_images"], points[0][1]["shap_labels"]
    shown = points[-1][1]["shap_shown"]
    rows, outputs = shown.shape

    def values(arrays: Arrays, network: str, row: int) -> NDArray[np.float32]:  # (H, W, outputs)
        return arrays[f"shap_{network}"][row][..., shown[row]].astype(np.float32)

    networks = ("finetuned", "frozen")
    every = [values(arrays, network, row) for _, arrays in points for network in networks for row in range(rows)]
    limit = max(float(np.quantile(np.abs(every), 0.995)), 1e-12)
    # A column for the image, and for each dimension an empty one and one for each class.
    widths = [1.0] + len(points) * [0.25, *outputs * [1.0]]
    figure = Figure(figsize=(max(7, 1.05 * sum(widths) + 0.9), 2 * (1.35 * rows + 1.2)), layout="constrained")
    figure.suptitle("What speaks for (red) and against (blue) a class, by SHAP; under the class its logit", fontsize=11)
    for part, network in zip(np.ravel(np.array(figure.subfigures(2, 1))), networks, strict=True):
        grid = part.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
        for row in range(rows):
            picture(grid[row][0], images[row], CLASSES[labels[row]], "black")
        for number, (result, arrays) in enumerate(points):
            gap = 1 + number * (1 + outputs)
            block = grid[:, gap + 1 : gap + 1 + outputs]
            for row in range(rows):
                grid[row][gap].set_axis_off()
                for place, (axes, label) in enumerate(zip(block[row], shown[row], strict=True)):
                    axes.imshow(images[row].mean(-1), cmap="gray", alpha=0.25, vmin=0, vmax=255)
                    pixels = values(arrays, network, row)[..., place]
                    drawn = axes.imshow(pixels, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.85)
                    outline(axes, f"{CLASSES[label]}\n{arrays[f'shap_{network}_logits'][row, label]:+.1f}", "#b9b9b9")
            dim, residual = result["point"]["latent_dim"], result["explain"]["residual"][network]
            block[-1][0].set_xlabel(f"d = {dim}: adds up to within {residual:.0e}", fontsize=9, loc="left")
            above = {"xycoords": "axes fraction", "xytext": (0, 30), "textcoords": "offset points"}
            middle = block[0][(outputs - 1) // 2]
            head = middle.annotate(f"d = {dim}", (1, 1), **above, fontsize=10, weight="bold", ha="center")
            for words in (head, block[-1][0].xaxis.label):
                words.set_in_layout(False)  # else they push the columns apart
        part.suptitle(f"{NETWORKS[network]} network", fontsize=11, x=0.01, ha="left", weight="bold")
        ticks = [-limit, 0, limit]
        part.colorbar(drawn, ax=list(grid.flat), shrink=0.6, aspect=40, ticks=ticks, format="%.2g", label="SHAP value")
    return figure


def accuracy_figure(points: pd.DataFrame) -> Figure:
    """Top-1 against the latent dimension: frozen, fine-tuned, and a random encoder's, with stop-gradient.

    Bars are two deviations over seeds, or with one seed the 95 % interval that 10,000 test images allow.
    """
    figure = Figure(figsize=(8.5, 5.2), layout="constrained")
    axes = figure.subplots()
    trained = points[points["stop_gradient"]]
    seeds = int(trained.groupby("latent_dim").size().min())
    for space in ("finetuned", "finetuned_backbone", "backbone", "latent", "random_backbone", "random_latent"):
        name, colour, style = LINES[space]
        by_dim = trained.groupby("latent_dim")[f"{space}_top1"]
        mean = by_dim.mean()
        bars = half_bars(mean, by_dim.std())
        axes.errorbar(mean.index, 100 * mean, 100 * bars, fmt=style, color=colour, capsize=3, markersize=5, label=name)
    axes.axhline(10, color="black", linestyle=":", linewidth=1)
    axes.text(mean.index[0], 10.8, "chance", fontsize=8)
    words = f"two deviations over {seeds} seeds" if seeds > 1 else "what 10,000 test images leave open, 95 %; one seed"
    axes.set(title=f"Accuracy and the size of the latent (bars: {words})", xscale="log", ylim=(0, None))
    axes.set(xlabel="latent dimension d", ylabel="top-1 (%)")
    axes.set_xticks(list(mean.index), [str(dim) for dim in mean.index])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, loc="outside lower center", ncols=3)
    return figure


def half_bars(mean: pd.Series, deviation: pd.Series) -> pd.Series:
    """Two deviations over seeds, or with one seed half the 95 % interval of an accuracy on the test images."""
    return (2 * deviation).fillna(1.96 * np.sqrt(mean * (1 - mean) / TEST_IMAGES))


def collapse_figure(points: list[Point]) -> Figure:
    """Loss and z_std over the steps, with and without stop-gradient, at the dimensions that were trained both ways."""
    dims = sorted({result["point"]["latent_dim"] for result, _ in points if not result["point"]["stop_gradient"]})
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    loss, spread = figure.subplots(1, 2)
    for result, arrays in points:
        point = result["point"]
        if point["latent_dim"] in dims:
            style = {
                "color": COLOURS[0 if point["stop_gradient"] else 2],
                "linestyle": STYLES[dims.index(point["latent_dim"]) % len(STYLES)],
                "label": f"{'with' if point['stop_gradient'] else 'without'} stop-gradient, d = {point['latent_dim']}",
            }
            loss.plot(arrays["curve_step"], arrays["curve_loss"], **style)
            spread.plot(arrays["curve_step"], arrays["curve_z_std"], **style)
    loss.set(title="Loss", xlabel="step", ylabel="negative cosine similarity (−1: views agree)")
    spread.set(title="Spread of the latent", xlabel="step", ylabel="z_std (1 healthy, 0 collapsed)", ylim=(0, 1.1))
    spread.axhline(1, color="#717581", linestyle=":", linewidth=1)
    for axes in (loss, spread):
        axes.grid(alpha=0.3)
    loss.legend(frameon=False)
    figure.suptitle("Pretraining with and without stop-gradient: means over 50 steps or so", fontsize=11)
    return figure


def spectra_figure(points: list[Point]) -> Figure:
    """Covariance spectra of the frozen latents of the whole grid, and of their backbones, on the same axes."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    dims = sorted({result["point"]["latent_dim"] for result, _ in points})
    for axes, space in zip(panels, ("latent", "backbone"), strict=True):
        for result, _ in points:
            point, shares = result["point"], np.array(result["embed"]["spectrum"][space])
            style = {
                "color": COLOURS[dims.index(point["latent_dim"]) % len(COLOURS)],
                "linestyle": "-" if point["stop_gradient"] else "--",
                "marker": "." if len(shares) < 10 else None,
                "label": f"d = {point['latent_dim']}" + ("" if point["stop_gradient"] else ", no stop-gradient"),
            }
            axes.plot(np.arange(1, len(shares) + 1), shares.clip(1e-12), **style)
        axes.set(title=f"{SPACES[space][0]}, frozen", xlabel="rank of the eigenvalue", xscale="log", yscale="log")
        axes.set_ylim(1e-7, 1.5)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of the total variance")
    panels[0].legend(frameon=False, fontsize=9)
    figure.suptitle("Covariance spectra of the test images' features", fontsize=11)
    return figure


def few_labels_figure(table: pd.DataFrame) -> Figure:
    """Top-1 against the number of labels, linear and fine-tuned, pretrained and random: a panel for each dimension.

    Bars as in `accuracy_figure`.
    """
    dims = list(table["latent_dim"].unique())
    figure = Figure(figsize=(8.5, 4.6 * len(dims)), layout="constrained")
    for axes, dim in zip(figure.subplots(len(dims), 1, squeeze=False)[:, 0], dims, strict=True):
        rows = table[table["latent_dim"] == dim]
        for space, (name, colour, style) in LINES.items():
            if space in rows:
                bars = half_bars(rows[space], rows[f"{space}_sd"])
                axes.errorbar(rows["labels"], 100 * rows[space], 100 * bars, fmt=style, color=colour, capsize=3, label=name)
        axes.set(title=f"Learning from few labels (d = {dim})", xlabel="labelled training images", ylabel="top-1 (%)")
        axes.set(xscale="log", ylim=(0, None))
        axes.set_xticks(list(rows["labels"]), [f"{count:,.0f}" for count in rows["labels"]])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, loc="outside lower center", ncols=3)
    return figure

"""The report of Lind, Bosch & Hu ("Visualizing Representations Found in Simple Siamese Representation Learning") anew: its
tables and figures from whatever points of the ablation fit, and its conclusions put to the test.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablation.figures import maps
from ablation.lind_bosch_hu.claims import ByDim, grid_of, having, judged
from ablation.results import Found
from ablation.tables import EVERYTHING, Column, Picture, Table, means, write
from simsiam.plots import NETWORKS, class_legend, outline, picture, plane_figure, scatter

NAME = "lind_bosch_hu"
ABOUT = (
    "What Lind, Bosch & Hu concluded in Visualizing Representations Found in Simple Siamese Representation Learning, put to "
    "`dimension`, `stop_gradient` and `head`, and their tables and figures with ours beside."
)
SHAP_DIMS = (8, 32, 128)  # of the report's Figure 3
COLUMNS = {
    "latent_dim": Column("", "d"),
    "encoder": Column("", "encoder"),
    "stop_gradient": Column("", "stop-gradient"),
    "seeds": Column("", "seeds"),
    "epochs": Column("", "epochs", 1, ".0f"),
    "top1": Column("head on the latent", "top-1", 100, ".1f"),
    "top5": Column("head on the latent", "top-5", 100, ".1f"),
    "control": Column("random encoder, or from scratch", "top-1", 100, ".1f"),
    "backbone": Column("head on the backbone", "top-1", 100, ".1f"),
    "published_top1": Column("the report", "top-1", 100, ".1f"),
    "published_top5": Column("the report", "top-5", 100, ".1f"),
    "published_epochs": Column("the report", "epochs", 1, ".0f"),
}
ENCODERS = {  # encoder -> column -> the number
    "frozen": {name: f"linear_eval.latent.{name}" for name in ("top1", "top5")}
    | {"control": "linear_eval.random_latent.top1", "backbone": "linear_eval.backbone.top1"},
    "fine-tuned": {"top1": "finetune.top1", "top5": "finetune.top5", "control": "finetune.scratch.top1"},
}
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
MASS_NETWORKS = {"frozen": "frozen", "finetuned": "fine-tuned", "random": "random encoder"}
MASS_NETWORKS |= {"stock": "frozen, ReLUs used twice"}
MASS_COLUMNS = {
    **{name: Column("", title) for name, title in (("latent_dim", "d"), ("seed", "seed"), ("network", "network"))},
    **{place: Column("share of the mass (%)", place, 100, ".1f") for place in QUADRANTS},
    "radius": Column("", "distance from the middle", 1, ".1f"),
    "residual": Column("", "residual", 1, ".0e"),
}


def study(root: Path, found: list[Found]) -> bool:
    """Write reports/study/lind_bosch_hu/ and the verdicts as metrics, from the results that fit (`claims.grid_of`).

    It has what the points allow: Figure 1 needs d = 2, Figure 3 one of the report's 8, 32 and 128. Returns whether any does.
    """
    grid = grid_of(found)
    every = [each for cells in (grid.trained, grid.without, grid.on_backbone) for found in cells.values() for each in found]
    if not every:
        print(f"study {NAME}: no point of method simsiam has results: `{EVERYTHING}` makes them", file=sys.stderr)
        return False
    both = {dim: grid.trained[dim] for dim in grid.trained if dim in grid.without}
    beside = "Top-1 and top-5 on the test images in per cent, the report's beside ours."
    first = accuracies(grid.trained, {}, grid.on_backbone, "1")
    second = accuracies(both, grid.without, grid.on_backbone, "2")
    tables = {
        "table_1": Table(first, COLUMNS, f"Table 1: the latent dimension. {beside}"),
        "table_2": Table(second, COLUMNS, f"Table 2: stop-gradient. {beside}"),
        "shap_mass": Table(
            shap_mass(grid.trained),
            MASS_COLUMNS,
            "Where the SHAP mass lies: the quadrants' shares (evenly: 25) and its mean distance from the middle in pixels, "
            "with half of the 95 % interval over images. Residual: how far the values are from adding up to the logits.",
        ),
    }
    pictures = {}
    if mapped := {dim: found[0] for dim, found in having(grid.trained, "project").items()}:
        small, large = mapped[min(mapped)], mapped[max(mapped)]
        if "maps_latent_1" in small.arrays:
            words = "Figure 1: a latent of two dimensions, drawn as it is."
            pictures["figure_1"] = Picture(plane_figure, (maps(small), small.result["classes"]), words)
        words = "Figure 2: the largest latent on a plane. Distances between far clusters of a t-SNE map mean nothing."
        pictures["figure_2"] = Picture(figure_2, (large,), words)
    if explained := {dim: found[0] for dim, found in having(grid.trained, "explain").items() if dim in SHAP_DIMS}:
        words = "Figure 3: SHAP values of the fine-tuned, the frozen and, as a control, the random network."
        pictures["figure_3"] = Picture(figure_3, (explained,), words)
    claims = judged(grid)
    tables = {name: table for name, table in tables.items() if len(table.frame)}
    write(root, NAME, every, tables, pictures, claims=claims, about=ABOUT)
    return True


def published() -> pd.DataFrame:
    """What the report has, and Chen & He, each with its source (published.csv)."""
    return pd.read_csv(
        Path(__file__).with_name("published.csv"), dtype={"table": str, "frozen": bool, "stop_gradient": bool}
    )


def accuracies(trained: ByDim, without: ByDim, on_backbone: ByDim, table: str) -> pd.DataFrame:
    """Top-1 and top-5 of frozen and fine-tuned encoders, means and deviations over seeds, beside the report's `table`.

    The control of a frozen encoder is a random one's latent, that of a fine-tuned one a network trained from scratch.
    """
    rows: list[dict[str, Any]] = []
    for stop_gradient, dim, found in [(s, d, c[d]) for s, c in ((True, trained), (False, without)) for d in sorted(c)[::-1]]:
        for encoder, columns in ENCODERS.items():
            row: dict[str, Any] = {
                "latent_dim": dim,
                "encoder": encoder,
                "stop_gradient": stop_gradient,
                "seeds": len(found),
            } | means(found, "pretrain.epochs", "epochs")
            for name, key in columns.items():
                row |= means(found, key, name)
            if encoder == "fine-tuned" and stop_gradient:
                row |= means(on_backbone.get(dim, []), "finetune.top1", "backbone")
            if "top1" in row:
                rows.append(row)
    theirs = published().query("table == @table").rename(columns={c: f"published_{c}" for c in ("top1", "top5", "epochs")})
    theirs = theirs.assign(encoder=theirs["frozen"].map({True: "frozen", False: "fine-tuned"})).drop(
        columns=["table", "source"]
    )
    return pd.DataFrame(rows).merge(theirs, "left", ["latent_dim", "encoder", "stop_gradient"]) if rows else pd.DataFrame()


def shap_mass(trained: ByDim) -> pd.DataFrame:
    """Where in the image the SHAP mass lies, a row for each network of each encoder that was measured."""
    rows = []
    for dim, found in having(trained, "explain").items():
        for each, mass in [(each, each.result["explain"]["mass"]) for each in found if "mass" in each.result["explain"]]:
            for network, words in MASS_NETWORKS.items():
                row: dict[str, Any] = {"latent_dim": dim, "seed": each.seed, "network": words, "images": mass["images"]}
                found_there = (*mass[network]["quadrants"], mass[network]["radius"])
                for place, share in zip((*QUADRANTS, "radius"), found_there, strict=True):
                    row |= {place: share["mean"], f"{place}_sd": share["half_width"]}
                rows.append(row | {"residual": mass[network]["residual"]})
    return pd.DataFrame(rows)


def figure_2(found: Found) -> Figure:
    """The report's Figure 2: a frozen latent by PCA and by t-SNE."""
    frame, classes = maps(found), found.result["classes"]
    figure = Figure(figsize=(12, 5.8), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = f"PCA, {found.numbers['project.latent.pca_variance_2']:.0%} of the variance", "t-SNE"
    for axes, method, unit, title in zip(panels, ("pca", "tsne"), ("component", "dimension"), titles, strict=True):
        scatter(axes, frame, f"latent_{method}", classes)
        dim = found.params["latent_dim"]
        axes.set(title=f"The frozen latent of {dim} dimensions: {title}", xlabel=f"{unit} 1", ylabel=f"{unit} 2")
    class_legend(figure, panels[0])
    figure.suptitle(f"Seed {found.seed}", fontsize=11)
    return figure


def figure_3(explained: dict[int, Found]) -> Figure:
    """The report's Figure 3, with a control: SHAP values of the fine-tuned, the frozen and the random network, one below the
    other, a block of columns for each latent dimension.

    The same images, classes and colour scale everywhere; the classes are those that the last dimension's fine-tuned network
    scores highest besides the image's own.
    """
    last = list(explained.values())[-1]
    images, labels, shown = (last.arrays[f"shap_{name}"] for name in ("images", "labels", "shown"))
    blocks = {dim: each for dim, each in explained.items() if np.array_equal(each.arrays["shap_images"], images)}
    (rows, outputs), classes, networks = shown.shape, last.result["classes"], ("finetuned", "frozen", "random")
    pixels = {  # (rows, H, W, outputs)
        (dim, network): np.stack(
            [v[..., k] for v, k in zip(each.arrays[f"shap_{network}_values"].astype(np.float32), shown, strict=True)]
        )
        for dim, each in blocks.items()
        for network in networks
    }
    limit = max(float(np.quantile(np.abs(list(pixels.values())), 0.995)), 1e-12)
    # A column for the image, and for each dimension an empty one and one for each class.
    widths = [1.0] + len(blocks) * [0.25, *outputs * [1.0]]
    figure = Figure(figsize=(max(7, 1.05 * sum(widths) + 0.9), 3 * (1.35 * rows + 1.2)), layout="constrained")
    words = f"What speaks for (red) and against (blue) a class, by SHAP; under the class its logit; seed {last.seed}"
    figure.suptitle(words, fontsize=11)
    for part, network in zip(np.ravel(np.array(figure.subfigures(3, 1))), networks, strict=True):
        grid = part.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
        for row in range(rows):
            picture(grid[row][0], images[row], classes[labels[row]], "black")
        for number, (dim, each) in enumerate(blocks.items()):
            gap, logits = 1 + number * (1 + outputs), each.arrays[f"shap_{network}_logits"]
            block = grid[:, gap + 1 : gap + 1 + outputs]
            for row in range(rows):
                grid[row][gap].set_axis_off()
                for place, (axes, label) in enumerate(zip(block[row], shown[row], strict=True)):
                    axes.imshow(images[row].mean(-1), cmap="gray", alpha=0.25, vmin=0, vmax=255)
                    values = pixels[dim, network][row, ..., place]
                    drawn = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.85)
                    outline(axes, f"{classes[label]}\n{logits[row, label]:+.1f}", "#b9b9b9")
            above: dict[str, Any] = {"xycoords": "axes fraction", "xytext": (0, 30), "textcoords": "offset points"}
            middle = block[0][(outputs - 1) // 2]
            head = middle.annotate(f"d = {dim}", (1, 1), **above, fontsize=10, weight="bold", ha="center")
            words = f"adds up to within {each.numbers[f'explain.residual.{network}']:.0e}"
            block[-1][0].set_xlabel(words, fontsize=9, loc="left")
            for text in (head, block[-1][0].xaxis.label):
                text.set_in_layout(False)  # else they push the columns apart
        part.suptitle(f"{NETWORKS[network]} network", fontsize=11, x=0.01, ha="left", weight="bold")
        ticks = [-limit, 0, limit]
        part.colorbar(drawn, ax=list(grid.flat), shrink=0.6, aspect=40, ticks=ticks, format="%.2g", label="SHAP value")
    return figure

"""The report of Lind, Bosch & Hu ("Visualizing Representations Found in Simple Siamese Representation Learning") anew: its
tables and figures from whatever points of the ablation fit, and its conclusions put to the test.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ablation.lind_bosch_hu.claims import ByDim, grid_of, having, judged, numbers
from ablation.results import Found
from ablation.tables import Column, Drawing, Table, means, write
from simsiam.files import write_json
from simsiam.plots import NETWORKS, class_legend, outline, picture, plane_figure, scatter
from simsiam.report import published

NAME = "lind_bosch_hu"
SHAP_DIMS = (8, 32, 128)  # of the report's Figure 3
TEXTS = {
    "table_1": "Table 1: the latent dimension. Top-1 and top-5 on the test images in per cent, the report's beside ours.",
    "table_2": "Table 2: stop-gradient. Top-1 and top-5 on the test images in per cent, the report's beside ours.",
    "shap_mass": "Where the SHAP mass lies: shares of the quadrants in per cent (evenly: 25), and the mean distance from the middle in "
    "pixels, with half of the 95 % interval over the images. Residual: how far the values are from adding up to the logits.",
    "figure_1": "Figure 1: a latent of two dimensions, drawn as it is.",
    "figure_2": "Figure 2: the largest latent on a plane. Distances between far clusters of a t-SNE map mean nothing.",
    "figure_3": "Figure 3: SHAP values of the fine-tuned, the frozen and the random network. Under each block, how far the values are "
    "from adding up to the logits.",
}
COLUMNS = {
    "latent_dim": Column("", "d"),
    "encoder": Column("", "encoder"),
    "stop_gradient": Column("", "stop-gradient"),
    "seeds": Column("", "seeds"),
    "epochs": Column("", "epochs"),
    "top1": Column("head on the latent", "top-1", 100, 1),
    "top5": Column("head on the latent", "top-5", 100, 1),
    "backbone_top1": Column("head on the backbone", "top-1", 100, 1),
    "control_top1": Column("random encoder, or from scratch", "top-1", 100, 1),
    "published_top1": Column("the report", "top-1", 100, 1),
    "published_top5": Column("the report", "top-5", 100, 1),
    "published_epochs": Column("the report", "epochs", 1, 0),
}
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
MASS_NETWORKS = {
    "frozen": "frozen",
    "finetuned": "fine-tuned",
    "random": "random encoder",
    "stock": "frozen, ReLUs used twice",
}
MASS_COLUMNS = {
    "latent_dim": Column("", "d"),
    "seed": Column("", "seed"),
    "network": Column("", "network"),
    **{place: Column("share of the mass (%)", place, 100, 1) for place in QUADRANTS},
    "radius": Column("", "distance from the middle", 1, 1),
    "residual": Column("", "residual", 1, -1),
}


def study(root: Path, found: list[Found], commands: dict[str, str]) -> None:
    """Write reports/study/lind_bosch_hu/ and the verdicts as metrics, from the results that fit (`claims.grid_of`).

    It has what the points allow: Figure 1 needs d = 2, Figure 3 one of the report's 8, 32 and 128.
    """
    grid = grid_of(found)
    used = [
        each for cells in (grid.trained, grid.without, grid.on_backbone) for results in cells.values() for each in results
    ]
    if not used:
        print(f"study {NAME}: no point has results with method simsiam: `{commands['all']}` makes them", file=sys.stderr)
        return
    tables: dict[str, Table] = {
        "table_1": (accuracies(grid.trained, {}, grid.on_backbone, "1"), COLUMNS),
        "table_2": (accuracies(grid.trained, grid.without, grid.on_backbone, "2"), COLUMNS),
        "shap_mass": (shap_mass(grid.trained), MASS_COLUMNS),
    }
    tables = {name: table for name, table in tables.items() if not table[0].empty}
    figures: dict[str, Drawing] = {}
    if mapped := {dim: results[0] for dim, results in having(grid.trained, "project").items()}:
        if "maps_latent_1" in mapped[min(mapped)].arrays:
            figures["figure_1"] = plane_figure, (maps(mapped[min(mapped)]), mapped[min(mapped)].result.classes)
        figures["figure_2"] = figure_2, (mapped[max(mapped)],)
    if explained := {dim: each[0] for dim, each in having(grid.trained, "explain").items() if dim in SHAP_DIMS}:
        figures["figure_3"] = figure_3, (explained,)
    claims = judged(grid)
    page = {
        "name": NAME,
        "points": list(dict.fromkeys(each.point for each in used)),
        "seeds": sorted({each.seed for each in used}),
        "missing": [],
        "stale": [f"{each.point}, seed {each.seed}: {each.stale}" for each in used if each.stale],
        "commands": commands,
        "tables": {name: TEXTS[name] for name in tables},
        "figures": {name: TEXTS[name] for name in figures},
        "claims": claims,
    }
    write(root / "reports/study" / NAME, page, tables, figures)
    verdicts = {claim["name"]: claim["verdict"] for claim in claims}
    write_json(root / f"reports/metrics/study_{NAME}.json", {f"study_{NAME}": verdicts})
    for claim in claims:
        reason = f"{claim['verdict']}: {claim['reason']}" if claim["reason"] else claim["verdict"]
        print(f"study {NAME}: {claim['claim']} {reason}", file=sys.stderr)


def accuracies(trained: ByDim, without: ByDim, on_backbone: ByDim, table: str) -> pd.DataFrame:
    """Top-1 and top-5 of frozen and fine-tuned encoders, means and deviations over seeds, beside what the report has.

    table "1" has all dimensions with stop-gradient, "2" those that were trained both ways. The control of a frozen encoder is a
    random one's latent, that of a fine-tuned one the same training from scratch.
    """
    cells = [(True, dim, trained[dim]) for dim in sorted(trained, reverse=True) if table == "1" or dim in without]
    cells += [(False, dim, without[dim]) for dim in sorted(without, reverse=True) if dim in trained]
    rows: list[dict[str, Any]] = []
    for stop_gradient, dim, results in cells:
        backbone = having(on_backbone, "finetune").get(dim, []) if stop_gradient else []
        for encoder, stage, keys in (
            ("frozen", "linear_eval", {"top1": "latent.top1", "top5": "latent.top5", "backbone_top1": "backbone.top1"}),
            ("fine-tuned", "finetune", {"top1": "top1", "top5": "top5"}),
        ):
            if not (measured := having({dim: results}, stage).get(dim)):
                continue
            row: dict[str, Any] = {
                "latent_dim": dim,
                "encoder": encoder,
                "stop_gradient": stop_gradient,
                "seeds": len(measured),
            }
            row["epochs"] = measured[0].result.pretrain.epochs
            for name, key in keys.items():
                row |= means(numbers(measured, f"{stage}.{key}"), name)
            control = "linear_eval.random_latent.top1" if encoder == "frozen" else "finetune.scratch.top1"
            row |= means(numbers(measured, control), "control_top1")
            if encoder == "fine-tuned" and backbone:
                row |= means(numbers(backbone, "finetune.top1"), "backbone_top1")
            rows.append(row)
    if not rows:
        return pd.DataFrame()
    theirs = published().query("table == @table")
    theirs = theirs.assign(encoder=theirs["frozen"].map({True: "frozen", False: "fine-tuned"}))
    keys = ["latent_dim", "encoder", "stop_gradient"]
    theirs = theirs.rename(columns={name: f"published_{name}" for name in ("top1", "top5", "epochs")})
    return pd.DataFrame(rows).merge(theirs[[*keys, "published_top1", "published_top5", "published_epochs"]], "left", keys)


def shap_mass(trained: ByDim) -> pd.DataFrame:
    """Where in the image the SHAP mass lies, a row for each network of each encoder that was measured."""
    rows = []
    for dim, results in having(trained, "explain").items():
        for each in results:
            if each.result.explain and (masses := each.result.explain.mass):
                for network, words in MASS_NETWORKS.items():
                    mass = getattr(masses, network)
                    row = {"latent_dim": dim, "seed": each.seed, "network": words, "images": masses.images}
                    for place, found in zip((*QUADRANTS, "radius"), (*mass.quadrants, mass.radius), strict=True):
                        row |= {place: found.mean, f"{place}_sd": found.half_width}
                    rows.append(row | {"residual": mass.residual})
    return pd.DataFrame(rows)


def maps(found: Found) -> pd.DataFrame:
    """The coordinates of a point's maps, with the class of each row, as `simsiam.plots` draws them."""
    frame = pd.DataFrame({name.removeprefix("maps_"): a for name, a in found.arrays.items() if name.startswith("maps_")})
    return frame.assign(**{"class": [found.result.classes[int(label)] for label in frame["label"]]})


def figure_2(found: Found) -> Figure:
    """The report's Figure 2: a frozen latent by PCA and by t-SNE."""
    dim, frame, classes = found.result.made_with.params.latent_dim, maps(found), found.result.classes
    figure = Figure(figsize=(12, 5.8), layout="constrained")
    pca, tsne = figure.subplots(1, 2)
    share = f" ({found.result.project.latent.pca_variance_2:.0%} of the variance)" if found.result.project else ""
    for axes, method, title in ((pca, "pca", f"PCA, two components{share}"), (tsne, "tsne", "t-SNE")):
        scatter(axes, frame, f"latent_{method}", classes)
        unit = "component" if method == "pca" else "dimension"
        axes.set(title=f"The frozen latent of {dim} dimensions: {title}", xlabel=f"{unit} 1", ylabel=f"{unit} 2")
    class_legend(figure, pca)
    return figure


def figure_3(explained: dict[int, Found]) -> Figure:
    """The report's Figure 3, with a control: SHAP values of the fine-tuned, the frozen and the random network, one below the
    other, a block of columns for each latent dimension.

    The same images, classes and colour scale everywhere; the classes are those that the last dimension's fine-tuned network
    scores highest besides the image's own.
    """
    last = list(explained.values())[-1]
    images, labels, shown = (last.arrays[f"shap_{name}"] for name in ("images", "labels", "shown"))
    blocks = {dim: f for dim, f in explained.items() if np.array_equal(f.arrays["shap_images"], images)}
    rows, outputs = shown.shape
    networks, classes = ("finetuned", "frozen", "random"), last.result.classes
    pixels = {
        (dim, network): np.stack(
            [found.arrays[f"shap_{network}_values"][row][..., shown[row]] for row in range(rows)]
        ).astype(np.float32)
        for dim, found in blocks.items()
        for network in networks
    }  # (rows, H, W, outputs)
    limit = max(float(np.quantile(np.abs(list(pixels.values())), 0.995)), 1e-12)
    # A column for the image, and for each dimension an empty one and one for each class.
    widths = [1.0] + len(blocks) * [0.25, *outputs * [1.0]]
    figure = Figure(figsize=(max(7, 1.05 * sum(widths) + 0.9), 3 * (1.35 * rows + 1.2)), layout="constrained")
    figure.suptitle("What speaks for (red) and against (blue) a class, by SHAP; under the class its logit", fontsize=11)
    for part, network in zip(np.ravel(np.array(figure.subfigures(3, 1))), networks, strict=True):
        grid = part.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
        for row in range(rows):
            picture(grid[row][0], images[row], classes[labels[row]], "black")
        for number, (dim, found) in enumerate(blocks.items()):
            gap = 1 + number * (1 + outputs)
            block = grid[:, gap + 1 : gap + 1 + outputs]
            for row in range(rows):
                grid[row][gap].set_axis_off()
                for place, (axes, label) in enumerate(zip(block[row], shown[row], strict=True)):
                    axes.imshow(images[row].mean(-1), cmap="gray", alpha=0.25, vmin=0, vmax=255)
                    drawn = axes.imshow(
                        pixels[dim, network][row, ..., place], cmap="RdBu_r", vmin=-limit, vmax=limit, alpha=0.85
                    )
                    outline(axes, f"{classes[label]}\n{found.arrays[f'shap_{network}_logits'][row, label]:+.1f}", "#b9b9b9")
            residual = found.result.explain.residual[network] if found.result.explain else float("nan")
            block[-1][0].set_xlabel(f"d = {dim}: adds up to within {residual:.0e}", fontsize=9, loc="left")
            head = block[0][(outputs - 1) // 2].annotate(
                f"d = {dim}", (1, 1), xycoords="axes fraction", xytext=(0, 30), textcoords="offset points", fontsize=10,
                weight="bold", ha="center",
            )  # fmt: skip
            for words in (head, block[-1][0].xaxis.label):
                words.set_in_layout(False)  # else they push the columns apart
        part.suptitle(f"{NETWORKS[network]} network", fontsize=11, x=0.01, ha="left", weight="bold")
        ticks = [-limit, 0, limit]
        part.colorbar(drawn, ax=list(grid.flat), shrink=0.6, aspect=40, ticks=ticks, format="%.2g", label="SHAP value")
    return figure

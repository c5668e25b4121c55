"""Why SimSiam does not collapse, and what costs it directions: the points that fit, in a table, figures and verdicts."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablation.claims import judged
from ablation.results import Found
from ablation.tables import EVERYTHING, Column, Picture, Table, means, write
from ablation.why_no_collapse.claims import CLAIMS, RANK_CLAIMS, WORDS, Cases, Cell, Ranks, cases_of, kinds, ranks_of
from simsiam.plots import COLOURS

NAME = "why_no_collapse"
ABOUT = "What papers say of why SimSiam does not collapse, and of what costs it directions, put to `collapse` and `rank`."
NUMBERS = {
    "pretrain.loss": Column("pretraining, last batches", "loss"),
    "pretrain.z_std": Column("pretraining, last batches", "z_std"),
    "pretrain.first_share": Column("pretraining, last batches", "first direction"),
    "pretrain.rankme": Column("pretraining, last batches", "RankMe", 1, ".1f"),
    "embed.rankme.backbone": Column("backbone, test images", "RankMe", 1, ".1f"),
    "embed.knn.backbone": Column("backbone, test images", "kNN (%)", 100, ".1f"),
    "linear_eval.backbone.top1": Column("backbone, test images", "linear (%)", 100, ".1f"),
    "embed.knn.random_backbone": Column("random encoder", "kNN (%)", 100, ".1f"),
}
COLUMNS = {name: Column("", name) for name in ("change", "seeds", "collapse")} | NUMBERS
RANK_NUMBERS = NUMBERS | {
    "embed.explained_auc.backbone": Column("backbone, test images", "area under the explained variance")
}
RANK_COLUMNS = {
    name: Column("", name) for name in ("method", "epochs", "lr", "weight decay", "seeds", "verdict")
} | RANK_NUMBERS
CURVES = {
    "z_std": "z_std of a batch's latents",
    "rankme": "RankMe of a batch's latents",
    "knn": "kNN on held-out training images (%)",
}
RANK_CURVES = {
    "loss": "loss",
    "backbone_rankme": "RankMe of a batch's features, on the backbone",
    "knn": "kNN on held-out training images (%)",
}
ROWS = {  # what is drawn together, each beside the default
    "stop-gradient and target": ("no_stop_gradient", "ema", "ema_no_stop_gradient"),
    "predictor": ("no_predictor", "fixed_predictor", "linear_predictor", "cosine_predictor_lr", "fast_predictor"),
    "weight decay and BatchNorm": ("no_weight_decay", "no_head_norm"),
}


def study(root: Path, collapse: list[Found], rank: list[Found]) -> bool:
    """Write reports/study/why_no_collapse/ and the verdicts as metrics, from what fits of the results of two studies.

    Returns whether any does.
    """
    cases, ranks = cases_of(collapse), ranks_of(rank)
    every = [*cases.values(), *(results for cells in ranks.values() for results in cells.values())]
    used = list({id(each): each for results in every for each in results}.values())
    # A default alone, or one training of each method, says nothing.
    if len(cases) < 2 and max(map(len, ranks.values())) < 2:
        print(f"study {NAME}: no two points of it have results: `{EVERYTHING}` makes them", file=sys.stderr)
        return False
    words = "Means and deviations over seeds."
    tables, pictures = {}, {}
    if len(cases) > 1:
        tables["cases"] = Table(
            cases_table(cases), COLUMNS, f"SimSiam with one thing changed, and how it collapses. {words}"
        )
        caption = "A line for each seed; in every row the default beside what is changed."
        pictures["cases"] = Picture(cases_figure, (cases,), caption)
    if max(map(len, ranks.values())) > 1:
        tables["rank"] = Table(rank_table(ranks), RANK_COLUMNS, f"Epochs, rate and weight decay. {words}")
        caption = "Epochs, rate and weight decay; a line for each seed."
        pictures["rank"] = Picture(rank_figure, (ranks,), caption)
    claims = judged(CLAIMS, cases) + judged(RANK_CLAIMS, ranks)
    write(root, NAME, used, tables, pictures, claims=claims, about=ABOUT)
    return True


def row_of(found: Sequence[Found]) -> dict[str, Any]:
    row: dict[str, Any] = {"seeds": len(found)}
    for key in RANK_NUMBERS:
        row |= means(found, key)
    return row


def cases_table(cases: Cases) -> pd.DataFrame:
    """A row for the default and for each change of it."""
    default = cases["default"]
    return pd.DataFrame(
        [{"change": WORDS[case], "collapse": kinds(found, default)} | row_of(found) for case, found in cases.items()]
    )


def rank_table(ranks: Ranks) -> pd.DataFrame:
    """A row for each combination of each method."""
    rows = []
    for method, cells in ranks.items():
        for (epochs, lr, decay), found in sorted(cells.items()):
            row: dict[str, Any] = {"method": method, "epochs": epochs, "lr": f"{lr:g}", "weight decay": f"{decay:g}"}
            row["verdict"] = ", ".join(dict.fromkeys(each.verdict for each in found))
            rows.append(row | row_of(found))
    return pd.DataFrame(rows)


def cases_figure(cases: Cases) -> Figure:
    """z_std, RankMe and kNN over the steps: a column each; a row for each group of `ROWS`, with the default in each."""
    groups = {
        title: {WORDS[case]: (cases[case], COLOURS[n], "-") for n, case in enumerate(names) if case in cases}
        for title, names in ROWS.items()
    }
    default = {WORDS["default"]: (cases["default"], "black", "-")}
    return small_multiples({title: default | lines for title, lines in groups.items() if lines}, CURVES)


def rank_figure(ranks: Ranks) -> Figure:
    """Loss, the backbone's RankMe and kNN; a row a method, a colour a rate and weight decay, dashed for fewer epochs."""
    groups = {}
    for method, cells in ranks.items():
        kept = list(dict.fromkeys(cell[1:] for cell in sorted(cells)))
        most = max((cell[0] for cell in cells), default=0)
        groups[method] = {
            name_of(cell): look(found, kept.index(cell[1:]), cell, most) for cell, found in sorted(cells.items())
        }
    return small_multiples({method: lines for method, lines in groups.items() if lines}, RANK_CURVES)


def name_of(cell: Cell) -> str:
    epochs, lr, decay = cell
    return f"{epochs} epochs, lr {lr:g}, decay {decay:g}"


def look(found: list[Found], colour: int, cell: Cell, most: int) -> tuple[list[Found], str, str]:
    return found, COLOURS[colour % len(COLOURS)], "-" if cell[0] == most else "--"


def small_multiples(groups: Mapping[str, Mapping[str, tuple[list[Found], str, str]]], curves: dict[str, str]) -> Figure:
    """Group -> line -> results, colour and style: a row of panels for each group, its lines' names at the right.

    curves: column of a training's records -> the title of a column of panels.
    """
    figure = Figure(figsize=(13.5, 2.7 * len(groups) + 0.6), layout="constrained")
    panels = figure.subplots(len(groups), len(curves), squeeze=False, sharex=True)
    for row, (title, lines) in zip(panels, groups.items(), strict=True):
        for axes, first, column in zip(row, panels[0], curves, strict=True):
            if column != "loss" and axes is not first:  # the methods' losses have nothing in common
                axes.sharey(first)
            for label, (results, colour, style) in lines.items():
                for number, found in enumerate(results):
                    curve(axes, found, column, color=colour, linestyle=style, label=label if number == 0 else None)
            axes.set_xlim(0, None)
            axes.grid(alpha=0.3)
        row[0].set_ylabel(title)
        row[-1].legend(*row[0].get_legend_handles_labels(), frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    for top, bottom, name in zip(panels[0], panels[-1], curves.values(), strict=True):
        top.set_title(name)
        bottom.set_xlabel("step")
    for axes, column in zip(panels[0], curves, strict=True):  # once all rows are drawn, which share it
        if column not in ("knn", "loss"):
            axes.set_ylim(0, 1.1 if column == "z_std" else None)
    return figure


def curve(axes: Axes, found: Found, column: str, **style: Any) -> None:
    """A training's records of a column, which only some of them may have."""
    values = found.arrays.get(f"curve_{column}")
    if values is not None:
        there = np.isfinite(values)
        scale = 100 if column == "knn" else 1
        marker = "." if column == "knn" else None
        axes.plot(found.arrays["curve_step"][there], scale * values[there], **style, marker=marker, linewidth=1.2)

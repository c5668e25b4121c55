"""The figures that any study has. A point is a name, and its results with one seed or several."""

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from ablation.results import Found
from simsiam.plots import COLOURS, SPACES, class_legend, scatter

Points = dict[str, list[Found]]
Axis = tuple[str, dict[str, float]]  # a key of params.yaml, and its value at each point
STYLES = ("-", "--", ":", "-.")
LETTERS = 11  # of a legend to an inch
SPACE_LINES = {space: SPACES[space] for space in ("backbone", "latent", "random_backbone", "random_latent")}
PANELS = {  # title -> a line's number -> its name, colour and style
    "linear evaluation": {f"linear_eval.{space}.top1": line for space, line in SPACE_LINES.items()},
    "kNN": {f"embed.knn.{space}": line for space, line in SPACE_LINES.items()},
    "fine-tuned": {
        "finetune.top1": ("fine-tuned", COLOURS[4], "-"),
        "finetune.scratch.top1": ("from scratch", COLOURS[8], "--"),
    },
}


def accuracy_figure(points: Points, axis: Axis | None) -> Figure:
    """Top-1 of each point, beside the controls: against the axis where there is one, else a row for each name.

    Bars are the deviation over seeds or, where a point has one seed, the 95 % interval that the test images allow.
    """
    every = [found for results in points.values() for found in results]
    images, seeds = every[0].result["test_images"], {len(results) for results in points.values()}
    panels = {
        title: lines for title, lines in PANELS.items() if any(key in found.numbers for key in lines for found in every)
    }
    size = (max(6, 4.6 * len(panels)), 5.6) if axis else (3 + 3.6 * len(panels), 2 + 0.35 * len(points))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(panels), sharex=not axis, sharey=True, squeeze=False)[0]
    x = places(points, axis)
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for number, (key, (name, colour, style)) in enumerate(lines.items()):
            values = [(x[point], [f.numbers[key] for f in points[point] if key in f.numbers]) for point in x]
            values = [(place, found) for place, found in values if found]
            means = np.array([np.mean(found) for _, found in values])
            alone = 1.96 * np.sqrt(means * (1 - means) / images)
            bars = [np.std(f, ddof=1) if len(f) > 1 else bar for (_, f), bar in zip(values, alone, strict=True)]
            shift = 0 if axis else 0.08 * (number - (len(lines) - 1) / 2)  # so that bars do not lie on each other
            along, top1, half = [place + shift for place, _ in values], 100 * means, 100 * np.array(bars)
            axes.errorbar(
                **{"x": along, "y": top1, "yerr": half} if axis else {"x": top1, "y": along, "xerr": half},
                fmt=f"o{style if axis else ''}",
                color=colour,
                label=name,
                capsize=3,
                markersize=5,
                markerfacecolor=colour if style == "-" else "white",
            )
        chance = {"color": "black", "linestyle": ":", "linewidth": 1, "label": "chance"}
        (axes.axhline if axis else axes.axvline)(100 / len(every[0].result["classes"]), **chance)
        axes.set_title(title)
        ticks(axes, x, axis)
    grid[0].set(**{"ylabel": "top-1 (%)", "ylim": (0, None)} if axis else {"xlim": (0, None)})
    legend(figure, *grid)
    words = [f"deviation over {' or '.join(str(n) for n in sorted(seeds) if n > 1)} seeds"] * (max(seeds) > 1)
    words += [f"95 % interval of {images:,} test images{' where there is one seed' * (max(seeds) > 1)}"] * (1 in seeds)
    figure.suptitle(f"Top-1 accuracy on the test images; bars: {', '.join(words)}", fontsize=11)
    return figure


def learning_figure(points: Points, axis: Axis | None) -> Figure:
    """Loss, spread and rank over the steps of pretraining, a line for each seed of each point.

    Of points that share their trainings, as those do that differ in fine-tuning alone, one is drawn.
    """
    alike: dict[tuple[str, bytes], list[str]] = {}
    for point, results in points.items():
        losses = b"".join(each.arrays["curve_loss"].tobytes() for each in results)
        alike.setdefault((results[0].params["method"], losses), []).append(point)
    names = {
        first: first + f" (and {len(others)} more with this training)" * bool(others) for first, *others in alike.values()
    }
    points = {point: points[point] for point in names}
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, 3)
    style = styles(points, axis)
    titles = {"z_std": "z_std of a batch's latents (1 even, 0 a point)", "rankme": "RankMe of a batch's latents"}
    if len({results[0].params["method"] for results in points.values()}) == 1:
        titles = {"loss": "loss"} | titles
    else:  # the methods' losses have nothing in common
        titles |= {"backbone_rankme": "RankMe of a batch's features, on the backbone"}
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        for point, results in points.items():
            for number, found in enumerate(results):
                words = {"label": names[point]} if number == 0 else {}
                if f"curve_{column}" in found.arrays:
                    steps, values = found.arrays["curve_step"], found.arrays[f"curve_{column}"]
                    axes.plot(steps, values, **style[point], **words, linewidth=1.3)
        axes.set(title=title, xlabel="step", xlim=(0, None))
        axes.grid(alpha=0.3)
        if column != "loss":
            axes.set_ylim(0, 1.1 if column == "z_std" else None)
    legend(figure, panels[0])
    return figure


def spectra_figure(points: Points, axis: Axis | None) -> Figure:
    """Covariance spectra of the test images' latents and of their backbone features, with the first seed."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    style = styles(points, axis)
    for axes, space in zip(panels, ("latent", "backbone"), strict=True):
        for point, results in points.items():
            if results[0].has("embed"):
                shares = np.array(results[0].result["embed"]["spectrum"][space])
                marker = "." if len(shares) < 10 else None
                axes.plot(np.arange(1, len(shares) + 1), shares.clip(1e-12), **style[point], marker=marker, label=point)
        axes.set(title=space, xlabel="rank of the eigenvalue", xscale="log", yscale="log", ylim=(1e-7, 1.5))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("share of the total variance")
    legend(figure, panels[0])
    seeds = {results[0].seed for results in points.values()}
    figure.suptitle(f"Covariance spectra of the test images' features, {with_seed(seeds)}", fontsize=11)
    return figure


def looks_figure(points: Points, axis: Axis | None) -> Figure:
    """kNN top-1 of held-out training images after each epoch: the mean over seeds, and their deviation."""
    figure = Figure(figsize=(8.5, 5.6), layout="constrained")
    axes, style = figure.subplots(), styles(points, axis)
    for point, results in points.items():
        looks = [each.looks() for each in results if len(each.looks())]
        if not looks:
            continue
        every = np.stack([look[: min(map(len, looks))] for look in looks])  # (seeds, epochs)
        epochs, top1 = np.arange(1, 1 + every.shape[1]), every.mean(0)
        axes.plot(epochs, 100 * top1, marker=".", label=point, linewidth=1.5, **style[point])
        if len(every) > 1:
            spread, colour = every.std(0, ddof=1), style[point]["color"]
            band = [100 * (top1 + side * spread) for side in (-1, 1)]
            axes.fill_between(epochs, *band, color=colour, alpha=0.18, linewidth=0)
    axes.set(xlabel="epochs of pretraining", ylabel="kNN top-1 of held-out training images (%)", xlim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    legend(figure, axes)
    return figure


def rates_figure(trials: pd.DataFrame, used: dict[str, float]) -> Figure:
    """What held-out images say of each method at each learning rate: kNN, linear and RankMe, a line a method.

    trials: a row a trial: method, lr, knn, linear, rankme; NaN where it failed. used: the rate that each has in params.yaml,
    marked by a circle.
    """
    figure = Figure(figsize=(13, 4.8), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {"knn": "kNN top-1 (%)", "linear": "linear top-1 (%)", "rankme": "RankMe of the backbone"}
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        for n, (method, rows) in enumerate(trials.groupby("method", sort=False)):
            colour, line = _look(n)
            of = rows.sort_values("lr")
            values = of[column] * (1 if column == "rankme" else 100)
            axes.plot(of["lr"], values, marker=".", color=colour, linestyle=line, label=method)
            chosen = of["lr"] == used.get(str(method))
            axes.plot(of["lr"][chosen], values[chosen], marker="o", markersize=9, fillstyle="none", color=colour)
        axes.set(title=title, xlabel="learning rate (of 256 images)", xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].plot([], [], "o", markersize=9, fillstyle="none", color="black", label="the rate in params.yaml")
    legend(figure, panels[0])
    figure.suptitle("Pretrained without some of the training images, and measured on these", fontsize=11)
    return figure


def maps_figure(points: Points, axis: Axis | None) -> Figure:
    """t-SNE of the backbone's features, a panel for each point; of a seed that all have, since it chose the test images."""
    mapped = {point: [each for each in results if each.has("project")] for point, results in points.items()}
    mapped = {point: results for point, results in mapped.items() if results}
    common = set.intersection(*({each.seed for each in results} for results in mapped.values()))
    columns = min(4, len(mapped))
    rows = -(-len(mapped) // columns)
    figure = Figure(figsize=(max(3.6 * columns, 6), 3.7 * rows + 0.8), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    seeds = set()
    for axes, point in zip(panels, places(mapped, axis), strict=False):
        found = min(mapped[point], key=lambda each: (each.seed not in common, each.seed))
        seeds.add(found.seed)
        scatter(axes, maps(found), "backbone_tsne", found.result["classes"])
        axes.set_title(point)
    class_legend(figure, panels[0])
    figure.suptitle(f"The test images on the backbone, by t-SNE, {with_seed(seeds)}", fontsize=11)
    return figure


def with_seed(seeds: set[int]) -> str:
    """Which seeds' results a figure shows that has one of each point."""
    return f"with seed {' or '.join(map(str, sorted(seeds)))}"


def maps(found: Found) -> pd.DataFrame:
    """The coordinates of a point's maps, with the class of each row, as `simsiam.plots` draws them."""
    frame = pd.DataFrame({name.removeprefix("maps_"): a for name, a in found.arrays.items() if name.startswith("maps_")})
    return frame.assign(**{"class": [found.result["classes"][int(label)] for label in frame["label"]]})


def places(points: Points, axis: Axis | None) -> dict[str, float]:
    """Where each point stands on the axis, in order."""
    if axis is None:
        return {point: float(number) for number, point in enumerate(points)}
    return {point: axis[1][point] for point in sorted(points, key=axis[1].__getitem__)}


def ticks(axes: Axes, x: dict[str, float], axis: Axis | None) -> None:
    """Label the x axis with the key and its values, logarithmic where they span more than a factor of ten, or the rows."""
    if axis is None:
        axes.set_yticks(list(x.values()), list(x))
        axes.set(xlabel="top-1 (%)", ylim=(len(x) - 0.5, -0.5))
    else:
        values = list(x.values())
        wide = values[0] > 0 and values[-1] > 10 * values[0]
        axes.set(xlabel=axis[0], xscale="log" if wide else "linear")
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()
    axes.grid(alpha=0.3)


def styles(points: Points, axis: Axis | None) -> dict[str, dict[str, Any]]:
    """Of each point the colour and line: from dark to light along an axis, else colours that differ.

    Where methods are compared each has its colour, and its points have lines of their own.
    """
    if axis is None:
        methods: dict[str, list[str]] = {}
        for point, results in points.items():
            methods.setdefault(results[0].params["method"], []).append(point)
        if 1 < len(methods) <= len(COLOURS) and max(map(len, methods.values())) <= len(STYLES):
            return {
                point: {"color": colour, "linestyle": line}
                for colour, of in zip(COLOURS, methods.values(), strict=False)
                for line, point in zip(STYLES, of, strict=False)
            }
        return {point: dict(zip(("color", "linestyle"), _look(n), strict=True)) for n, point in enumerate(points)}
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(points)))
    return {point: {"color": tuple(shade)} for point, shade in zip(places(points, axis), shades, strict=True)}


def _look(n: int) -> tuple[str, str]:
    """Colour and line of the n-th of some: beyond ten the colours come again with another line."""
    return COLOURS[n % len(COLOURS)], STYLES[n // len(COLOURS) % len(STYLES)]


def legend(figure: Figure, *panels: Axes) -> None:
    """The lines' names below the figure, each once, in as many columns as the longest leaves room for."""
    lines = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    if lines:
        columns = int(LETTERS * figure.get_figwidth() / (max(map(len, lines)) + 8))  # 8: for the line before it
        figure.legend(lines.values(), lines.keys(), frameon=False, loc="outside lower center", ncols=max(1, columns))

"""Figures of the benchmarks."""

from typing import Any

from matplotlib.figure import Figure

from simsiam.plots import COLOURS


def throughput_figure(results: dict[str, dict[str, Any]], names: dict[str, str], device: str) -> Figure:
    """Bars of pairs per second: a panel for each model, a bar for each loop with its lowest and highest round."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle(f"Pretraining throughput on {device}")
    panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    panels[0].invert_yaxis()
    for axes, (model, result) in zip(panels, results.items(), strict=True):
        rates = result["pairs_per_second"]
        for place, (loop, rate) in enumerate(rates.items()):
            middle = rate["median"]
            spread = [[middle - rate["low"]], [rate["high"] - middle]]
            colour = COLOURS[0] if loop == "ours" else COLOURS[3]
            axes.barh(place, middle, xerr=spread, color=colour, capsize=3)
            words = f"{middle:.1f}" if middle < 100 else f"{middle:.0f}"
            axes.annotate(words, (rate["high"], place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(range(len(rates)), [names[loop] for loop in rates])
        axes.margins(x=0.25)
        axes.set(title=f"{model}, batch {result['batch_size']}, {result['precision']}", xlabel="pairs of views per second")
    return figure


def arithmetic_figure(results: dict[str, dict[str, Any]]) -> Figure:
    """Loss and z_std over epochs, and kNN, of trainings that differ in arithmetic alone."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle("The same pretraining in different arithmetic")
    loss, spread, accuracy = figure.subplots(1, 3)
    for place, (name, result) in enumerate(results.items()):
        style = {"color": COLOURS[place], "linestyle": ("-", "--", ":", "-.")[place], "label": name}
        loss.plot(result["epoch"], result["loss"], **style)
        spread.plot(result["epoch"], result["z_std"], **style)
        accuracy.barh(place, result["knn"], color=COLOURS[place])
        accuracy.annotate(
            f"{result['knn']:.1%}", (result["knn"], place), xytext=(4, 0), textcoords="offset points", va="center"
        )
    loss.set(title="Loss", xlabel="epoch", ylabel="negative cosine similarity")
    spread.set(title="Spread of the latent", xlabel="epoch", ylabel="z_std (1 healthy, 0 collapsed)")
    accuracy.set(title="kNN on the backbone", xlabel="top-1 on held-out training images")
    accuracy.set_yticks(range(len(results)), list(results))
    accuracy.invert_yaxis()
    accuracy.margins(x=0.2)
    loss.legend(frameon=False)
    for axes in (loss, spread):
        axes.grid(alpha=0.3)
    return figure

"""Each method's learning rate, chosen on held-out training images: python -m ablation.rates

`ablation.rates` in params.yaml says which rates are tried for which method, the same number for each; others that were
tried are in ablation/results/search. A trial is one of `python -m ablation.search`, at the settings of the recipe in use.
At the end the rate with the best kNN is named for each method: whether it goes into `recipes.RECIPE.methods.METHOD.lr` is
yours to say.
"""

import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from pathlib import Path
from typing import Any

import pandas as pd

from ablation.figures import rates_figure
from ablation.results import Found
from ablation.search import RESULTS, checked, made_with, rows, search
from ablation.tables import Column, Picture, Table, markdown, write
from simsiam.images import ImageSet
from simsiam.settings import Params, load
from stages.common import alone, load_images, plainly

NAME = "rates"
ABOUT = "How far the learning rate decides what a method gives: each at three rates, scored on training images held out."
COMMANDS = {"the trials that are not there yet, and this table": "python -m ablation.rates"}
MEASURED = {
    "knn": Column("held-out training images", "kNN (%)", 100, ".1f"),
    "linear": Column("held-out training images", "linear (%)", 100, ".1f"),
    "rankme": Column("held-out training images", "RankMe", 1, ".1f"),
    "z_std": Column("pretraining, last batches", "z_std"),
    "verdict": Column("pretraining, last batches", "latents"),
    "seconds": Column("", "seconds", 1, ".0f"),
}
TRIALS = {"method": Column("", "method"), "lr": Column("", "lr", 1, "g"), **MEASURED, "failed": Column("", "failed")}
CHOSEN = {"method": Column("", "method"), "lr": Column("", "best lr by kNN", 1, "g"), **MEASURED}
CHOSEN |= {"edge": Column("", "at the edge of those tried"), "trials": Column("", "trials")}
CHOSEN |= {"used": Column("", "lr in params.yaml", 1, "g"), "differs": Column("", "params.yaml differs")}


def lines(params: Params) -> dict[str, tuple[str, float]]:
    """The trials that params.yaml asks for, as lines for `ablation.search`, with the method and rate of each."""
    return {
        f"method={method} recipes.{params.recipe}.methods.{method}.lr={lr!r}": (method, lr)
        for method, rates in params.ablation.rates.items()
        for lr in rates
    }


def of_now(root: Path, images: ImageSet | None) -> tuple[list[Found], list[str]]:
    """Every trial that params.yaml asks for and that is there, and the lines of the others.

    images: None if they are not there. Where no trial was made as it would be now, the last one of the same line is taken,
    and says in what it was made otherwise.
    """
    params = load(root / "params.yaml")
    found, there, missing = rows(root / RESULTS / f"{params.recipe}.csv"), [], []
    if not found:
        return [], list(lines(params))
    for line, (method, lr) in lines(params).items():
        now = made_with(checked(root, line.split()), images)
        fresh = [row for row in found if all(row[key] == value for key, value in now.items())]
        tried = fresh or [row for row in found if row["changes"] == line]
        if not tried:
            missing.append(line)
            continue
        stale = ", ".join(key for key, value in now.items() if tried[-1][key] != value)
        machine = {key: tried[-1][key] for key in ("device", "threads")}
        result = tried[-1] | {"method": method, "lr": lr, "made_with": {"machine": machine}}
        there.append(Found(f"{method}, lr {lr:g}", params.seed, result, {}, {}, stale))
    return there, missing


def every_trial(trials: list[Found]) -> pd.DataFrame:
    """A row a trial."""
    columns = list(TRIALS)
    return pd.DataFrame([{key: each.result.get(key) for key in columns} for each in trials], columns=columns)


def chosen(trials: list[Found], params: Params) -> pd.DataFrame:
    """A row a method: the rate with the best kNN, of equals the smallest, and the rate that params.yaml has.

    It is at the edge where no smaller, or no larger, rate was tried. A trial that failed was tried. One that was made
    otherwise than it would be now counts where the method has no other.
    """
    fresh = {each.result["method"] for each in trials if not each.stale}
    table, found = every_trial([each for each in trials if not (each.stale and each.result["method"] in fresh)]), []
    for method, of in table.groupby("method", sort=False):
        used = params.chosen.methods.get(str(method), {}).get("lr") or params.chosen.pretrain.lr
        row: dict[str, Any] = {"method": method, "trials": len(of), "used": used}
        if of["knn"].notna().any():
            best = of.sort_values(["knn", "lr"], ascending=[False, True]).iloc[0]
            row |= best[["lr", *MEASURED]].to_dict()
            row |= {"edge": bool(best["lr"] in (of["lr"].min(), of["lr"].max())), "differs": bool(best["lr"] != used)}
        found.append(row)
    return pd.DataFrame(found, columns=list(CHOSEN))


def study(root: Path, images: ImageSet | None) -> bool:
    """Write reports/study/rates/ from the trials of the recipe in use and say what they found: False where are none."""
    params = load(root / "params.yaml")
    trials, missing = of_now(root, images)
    if not trials:
        print(f"study {NAME}: it has no trials: `python -m ablation.rates` makes them", file=sys.stderr)
        return False
    for each in trials:
        if each.stale:
            print(f"study {NAME}: {each.point} was made with other {each.stale}", file=sys.stderr)
    best = chosen(trials, params)
    what = f"recipe {params.recipe}, {params.chosen.pretrain.epochs} epochs, on held-out training images, one seed"
    tables = {
        "chosen": Table(best, CHOSEN, f"The learning rate with which kNN was best, for each method: {what}."),
        "trials": Table(
            every_trial(trials),
            TRIALS,
            f"Every trial of the rates in params.yaml; others are in {RESULTS}/{params.recipe}.csv.",
        ),
    }
    used = dict(zip(best["method"], best["used"], strict=True))
    drawn = Picture(rates_figure, (every_trial(trials), used), "Every trial; circles: the rates that params.yaml has.")
    write(root, NAME, trials, tables, {"trials": drawn}, commands=COMMANDS, missing=missing, about=ABOUT)
    for row in best.to_dict("records"):
        print(f"study {NAME}: {said(row, params.recipe)}", file=sys.stderr)
    return True


def said(row: dict[str, Any], recipe: str) -> str:
    """One line of what was chosen for a method."""
    method = row["method"]
    if pd.isna(row["lr"]):
        return f"{method}: every trial failed: try smaller rates"
    words = f"{method}: lr {row['lr']:g} has the best kNN ({row['knn']:.1%}) of {row['trials']} rates"
    words += ", at the edge of what was tried: the best may lie beyond" * row["edge"]
    differs = f"; params.yaml has {row['used']:g}: set recipes.{recipe}.methods.{method}.lr to use it"
    return words + (differs if row["differs"] else ", which params.yaml has")


def main() -> None:
    """Run the trials, then write and print what they found."""
    parser = ArgumentParser(prog="python -m ablation.rates", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.parse_args()
    with plainly(NAME):
        alone(NAME)
        root = Path()
        images = load_images(root)
        search(root, images, list(lines(load(root / "params.yaml"))))
        study(root, images)
        print(markdown(Table(every_trial(of_now(root, images)[0]), TRIALS, "")), end="")


if __name__ == "__main__":
    main()

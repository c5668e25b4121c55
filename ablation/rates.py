"""Each method's learning rate, chosen on held-out training images: python -m ablation.rates

`ablation.rates` in params.yaml says which methods and rates. Each method gets the same number of trials, at the settings of
the recipe in use, and none sees the held-out images before they are scored (`ablation.trial`). What they found is in
ablation/results/rates/RECIPE.json, which git tracks; trials that are there, made with the same params, code and images, are
not run again, and several processes share the work. At the end the rate with the best kNN is named for each method: whether
it goes into `recipes.RECIPE.methods.METHOD.lr` is yours to say.
"""

import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from ablation.figures import rates_figure
from ablation.results import Found, flat, otherwise
from ablation.tables import Column, Picture, Table, markdown, write
from ablation.trial import trial
from simsiam import code, fitting
from simsiam.checkpoint import store_folder
from simsiam.errors import UserError
from simsiam.files import Busy, locked, read_json, scratch_folder, write_json
from simsiam.images import ImageSet
from simsiam.machine import machine
from simsiam.methods import options
from simsiam.settings import Params, load
from stages.common import load_images, plainly

NAME = "rates"
RESULTS = Path("ablation/results/rates")
HOW = "delete it, and `python -m ablation.rates` makes it anew"
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


def params_of(root: Path, method: str, lr: float) -> Params:
    """params.yaml as a trial of this method and rate changes it. Raises UserError for an unknown method."""
    params = load(root / "params.yaml")
    recipe, rates = params.recipe, params.ablation.rates
    changes = [f"method={method}", f"seed={rates.seed}", f"recipes.{recipe}.methods.{method}.lr={lr!r}"]
    changed = load(root / "params.yaml", [*changes, f"recipes.{recipe}.pretrain.epochs={rates.epochs}"])
    options(changed)
    return changed


@cache
def code_of_a_trial(method: str) -> str:
    return code.digest("ablation.trial", code.NO_NUMBERS, method=method)


def made_with(params: Params, held_out: int, digest: str) -> dict[str, Any]:
    """What a trial depends on: params as the trial changes them, code, images."""
    content = params.in_use()
    recipe = content["recipes"][params.recipe]
    kept = {key: content[key] for key in ("recipe", "method", "latent_dim", "stop_gradient", "seed")}
    kept |= {key: content["embed"][key] for key in ("knn_k", "knn_temperature")} | {"held_out": held_out}
    kept |= {"recipes": {params.recipe: {key: value for key, value in recipe.items() if key != "finetune"}}}
    return {"params": kept, "code": code_of_a_trial(params.method), "images": digest}


def run_trial(root: Path, images: ImageSet, method: str, lr: float, *, wait: bool) -> None:
    """Run a trial and add it to the recipe's file, where it is not there yet.

    Raises Busy where another process is at it and `wait` is false.
    """
    params = params_of(root, method, lr)
    held_out = fitting.held_out(params.ablation.rates.held_out, len(images.x_train))
    given, words = made_with(params, held_out, images.digest), name_of(method, lr)
    path, locks = root / RESULTS / f"{params.recipe}.json", store_folder(root) / "locks"
    place = f"{NAME}-{params.recipe}-{method}-{lr!r}"
    with locked(locks / f"{place}.lock", wait=wait, waiting=f"{words}: another program is at it: waiting for it"):
        made = found(path).get(words, {}).get("made_with", {})
        if {key: made.get(key) for key in given} == given:
            return
        print(words, file=sys.stderr)
        with scratch_folder(store_folder(root) / "scratch" / place) as scratch:
            result = trial(params, images, held_out, scratch)
        if result.get("failed"):
            print(f"{words}: failed: {result['failed']}", file=sys.stderr)
        # Others may have added theirs in the meantime.
        with locked(locks / f"{NAME}-{params.recipe}.lock", wait=True, waiting=f"{words}: waiting to write {path}"):
            result |= {"method": method, "lr": lr, "made_with": given | {"machine": machine()}}
            write_json(path, {"trials": dict(sorted((found(path) | {words: result}).items()))})


def run_all(root: Path, images: ImageSet) -> None:
    """Run every trial that is not there yet: first those that no other process is at, then those that it left undone."""
    rates = load(root / "params.yaml").ablation.rates
    grid = [(method, lr) for method in rates.methods for lr in rates.rates]
    for method, lr in grid:  # what is wrong is said before hours go by
        params_of(root, method, lr)
    for wait in (False, True):
        for method, lr in grid:
            with suppress(Busy):
                run_trial(root, images, method, lr, wait=wait)


def name_of(method: str, lr: float) -> str:
    return f"{method}, lr {lr!r}"


def found(path: Path) -> dict[str, Any]:
    """The trials in a file, by name. Raises UserError for a file of something else."""
    if not path.exists():
        return {}
    content = read_json(path, how=HOW)
    trials = content.get("trials") if isinstance(content, dict) else None
    if not isinstance(trials, dict) or not all(map(good, trials.values())):
        raise UserError(f"{path} does not hold trials of rates: {HOW}")
    return trials


def good(trial: Any) -> bool:
    """Whether it has what a trial has."""
    content = flat(trial) if isinstance(trial, dict) else {}
    keys = ["lr"] if content.get("failed") else ["lr", "linear", "knn", "rankme", "z_std", "seconds"]
    numbers = {key: content[key] for key in keys if type(content.get(key)) in (int, float)}
    shares = [numbers[key] for key in ("linear", "knn") if key in numbers]
    made = isinstance(content.get("method"), str) and "made_with.params.held_out" in content
    return made and len(numbers) == len(keys) and all(0 <= share <= 1 for share in shares)


def of_now(root: Path, images: ImageSet | None) -> tuple[list[Found], list[str]]:
    """Every trial that params.yaml asks for and that is there, and the names of the others. images: None if not there."""
    params = load(root / "params.yaml")
    rates, trials = params.ablation.rates, found(root / RESULTS / f"{params.recipe}.json")
    there, missing = [], []
    for method in rates.methods:
        for lr in rates.rates:
            result = trials.get(name_of(method, lr))
            if result is None:
                missing.append(name_of(method, lr))
                continue
            held_out = result["made_with"]["params"].get("held_out")
            if images:
                held_out = fitting.held_out(rates.held_out, len(images.x_train))
            now = made_with(params_of(root, method, lr), held_out, images.digest if images else "")
            numbers = {key: value for key, value in flat(result).items() if type(value) in (int, float)}
            stale = otherwise(result["made_with"], {key: value for key, value in now.items() if value})
            there.append(Found(name_of(method, lr), rates.seed, result, numbers, {}, stale))
    return there, missing


def every_trial(trials: list[Found]) -> pd.DataFrame:
    """A row a trial."""
    columns = list(TRIALS)
    return pd.DataFrame([{key: each.result.get(key) for key in columns} for each in trials], columns=columns)


def chosen(trials: list[Found], params: Params) -> pd.DataFrame:
    """A row a method: the rate with the best kNN, of equals the smallest, and the rate that params.yaml has.

    It is at the edge where no smaller, or no larger, rate was tried. A trial that failed was tried.
    """
    table, rows = every_trial(trials), []
    for method, of in table.groupby("method", sort=False):
        used = params.chosen.methods.get(str(method), {}).get("lr") or params.chosen.pretrain.lr
        row: dict[str, Any] = {"method": method, "trials": len(of), "used": used}
        if of["knn"].notna().any():
            best = of.sort_values(["knn", "lr"], ascending=[False, True]).iloc[0]
            row |= best[["lr", *MEASURED]].to_dict()
            row |= {"edge": bool(best["lr"] in (of["lr"].min(), of["lr"].max())), "differs": bool(best["lr"] != used)}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(CHOSEN))


def study(root: Path, images: ImageSet | None) -> None:
    """Write reports/study/rates/ from the trials of the recipe in use, where there are any, and say what they found."""
    params = load(root / "params.yaml")
    trials, missing = of_now(root, images)
    if not trials:
        print(f"study {NAME}: it has no trials: `python -m ablation.rates` makes them", file=sys.stderr)
        return
    for each in trials:
        if each.stale:
            print(f"study {NAME}: {each.point} was made with other {each.stale}", file=sys.stderr)
    best, rates = chosen(trials, params), params.ablation.rates
    what = f"recipe {params.recipe}, {rates.epochs} epochs, on held-out training images, one seed"
    tables = {
        "chosen": Table(best, CHOSEN, f"The learning rate with which kNN was best, for each method: {what}."),
        "trials": Table(every_trial(trials), TRIALS, "Every trial."),
    }
    used = dict(zip(best["method"], best["used"], strict=True))
    drawn = Picture(rates_figure, (every_trial(trials), used), "Every trial; circles: the rates that params.yaml has.")
    write(root, NAME, trials, tables, {"trials": drawn}, commands=COMMANDS, missing=missing)
    for row in best.to_dict("records"):
        print(f"study {NAME}: {said(row, params.recipe)}", file=sys.stderr)


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
        root = Path()
        images = load_images(root)
        if not images.labelled:
            raise UserError("the images have no labels, and rates are compared by what can be read out")
        run_all(root, images)
        study(root, images)
        print(markdown(Table(every_trial(of_now(root, images)[0]), TRIALS, "")), end="")


if __name__ == "__main__":
    main()

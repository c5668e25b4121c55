"""Try settings of a recipe on held-out training images:  python -m ablation.search < changes.txt

Each line of the input is one trial: what it changes of params.yaml, as in `recipes.laptop.pretrain.lr=0.2 latent_dim=32`. It
is trained without 5,000 training images, and scored on them (`ablation.trial`); the test images have no part in it. What was
found is added to ablation/results/search/RECIPE.csv, which git tracks, good or bad. A line that was tried with the same
params, code and images is not tried again, and several processes share an input.
"""

import json
import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from ablation.results import flat
from ablation.trial import trial
from simsiam import code, fitting
from simsiam.checkpoint import store_folder
from simsiam.errors import UserError
from simsiam.files import Busy, locked, scratch_folder, sha256, write_csv
from simsiam.images import ImageSet
from simsiam.machine import machine
from simsiam.methods import options
from simsiam.settings import Params, load
from stages.common import alone, load_images, plainly

RESULTS = Path("ablation/results/search")
HELD_OUT = 5000
MADE_WITH = ("params", "code", "images")  # digests of them; trials from before they were kept have none
COLUMNS = ("linear", "knn", "rankme", "z_std", "verdict", "seconds", "failed", "changes", "device", "threads", *MADE_WITH)
NUMBERS = ("linear", "knn", "rankme", "z_std", "seconds")
TEXTS = tuple(name for name in COLUMNS if name not in (*NUMBERS, "threads"))


def search(root: Path, images: ImageSet, lines: list[str]) -> None:
    """Run a trial for each line that has none yet: first those that no other process is at, then those that it left undone.

    Raises UserError for what is wrong with any line, before the first.
    """
    if not images.labelled:
        raise UserError("the images have no labels, and settings are compared by what can be read out")
    trials = {" ".join(words): checked(root, words) for line in lines if (words := line.split())}
    for wait in (False, True):
        for changes, params in trials.items():
            with suppress(Busy):
                run(root, images, changes, params, wait=wait)


def checked(root: Path, changes: list[str]) -> Params:
    """params.yaml with these changes. Raises UserError for a wrong one, and for one that would change nothing here."""
    params = load(root / "params.yaml", changes)
    options(params)
    for change in changes:
        key = change.partition("=")[0]
        if not any(known == key or known.startswith(f"{key}.") for known in flat(relevant(params))):
            raise UserError(f"{key} has no part in a trial with recipe {params.recipe} and method {params.method}")
    return params


def relevant(params: Params) -> dict[str, Any]:
    """The params that a trial depends on."""
    content = params.in_use()
    recipe = content["recipes"][params.recipe]
    kept = {key: content[key] for key in ("recipe", "method", "latent_dim", "stop_gradient", "seed")}
    kept |= {key: content["embed"][key] for key in ("knn_k", "knn_temperature")}
    return kept | {"recipes": {params.recipe: {key: value for key, value in recipe.items() if key != "finetune"}}}


@cache
def code_of(method: str) -> str:
    return code.digest("ablation.trial", code.NO_NUMBERS, method=method)


def made_with(params: Params, images: ImageSet | None) -> dict[str, str]:
    """What a trial depends on, as digests of 16 hexadecimal digits; without the images where they are not there."""
    held_out = fitting.held_out(HELD_OUT, len(images.x_train)) if images else HELD_OUT
    given = sha256(json.dumps(relevant(params) | {"held_out": held_out}, sort_keys=True).encode())
    found = {"params": given[:16], "code": code_of(params.method)}
    return found | ({"images": images.digest[:16]} if images else {})


def run(root: Path, images: ImageSet, changes: str, params: Params, *, wait: bool) -> None:
    """Run a trial and add it to the recipe's file, where it is not there.

    Raises Busy where another process is at it and `wait` is false.
    """
    path, given = root / RESULTS / f"{params.recipe}.csv", made_with(params, images)
    name = "-".join(("search", *given.values()))
    locks, waiting = store_folder(root) / "locks", f"search: {changes}: another program is at it: waiting for it"
    with locked(locks / f"{name}.lock", wait=wait, waiting=waiting):
        if given in [{key: row.get(key) for key in MADE_WITH} for row in rows(path)]:
            print(f"search: {changes}: there already", file=sys.stderr)
            return
        print(f"search: {changes}", file=sys.stderr)
        held_out = fitting.held_out(HELD_OUT, len(images.x_train))
        with scratch_folder(store_folder(root) / "scratch" / name) as scratch:
            found = trial(params, images, held_out, scratch)
        if found.get("failed"):
            print(f"search: {changes}: failed: {found['failed']}", file=sys.stderr)
        on = machine()
        found |= {"changes": changes, "device": on["device"], "threads": on["threads"], **given}
        with locked(locks / "search.lock", wait=True, waiting="search: waiting to write"):
            write_csv(path, [*rows(path), {key: found.get(key, float("nan")) for key in COLUMNS}])


def rows(path: Path) -> list[dict[Any, Any]]:
    """What a file has, a row a trial; nothing where there is none. Raises UserError for a file of something else."""
    if not path.exists():
        return []
    with suppress(ValueError, KeyError):  # pandas' own errors are of the first kind
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXTS, str) | dict.fromkeys(NUMBERS, float))
        told = table["failed"].notna() | table[["linear", "knn"]].ge(0).all(axis=1) & table[["linear", "knn"]].le(1).all(
            axis=1
        )
        if tuple(table.columns) == COLUMNS and told.all() and table["changes"].notna().all():
            return table.to_dict("records")
    raise UserError(f"{path} does not hold trials: `git checkout {path}` brings back those that were committed")


def main() -> None:
    """Run the trials that the input asks for."""
    ArgumentParser(prog="python -m ablation.search", description=__doc__, formatter_class=RawTextHelpFormatter).parse_args()
    with plainly("search"):
        alone("search")
        search(Path(), load_images(Path()), sys.stdin.read().splitlines())


if __name__ == "__main__":
    main()

"""Try settings of a recipe on held-out training images:  python -m ablation.search < changes.txt

Each line of the input is one trial: what it changes of params.yaml, as in `recipes.laptop.pretrain.lr=0.2 latent_dim=32`. It
is trained without 5,000 training images, and scored on them (`ablation.trial`); the test images have no part in it. What was
found is added to ablation/results/search/RECIPE.csv, which git tracks, good or bad. A line that was tried with the same
params, code and images is not tried again, and several processes can share an input.
"""

import json
import os
import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from ablation.rates import made_with
from ablation.results import flat
from ablation.trial import trial
from simsiam import fitting
from simsiam.checkpoint import store_folder
from simsiam.errors import UserError
from simsiam.files import Busy, locked, scratch_folder, sha256, write_csv
from simsiam.images import ImageSet
from simsiam.machine import machine
from simsiam.methods import options
from simsiam.settings import Params, load
from stages.common import load_images, plainly

RESULTS = Path("ablation/results/search")
HELD_OUT = 5000
COLUMNS = ("linear", "knn", "rankme", "z_std", "verdict", "seconds", "failed", "changes", "device", "threads", "made_with")


def search(root: Path, images: ImageSet, lines: list[str]) -> None:
    """Run a trial for each line that has none yet. Raises UserError for what is wrong with any line, before the first."""
    if not images.labelled:
        raise UserError("the images have no labels, and settings are compared by what can be read out")
    trials: dict[str, Params] = {}
    for line in lines:
        if words := line.split():
            trials[" ".join(words)] = checked(root, words)
    for changes, params in trials.items():
        with suppress(Busy):  # another process is at it
            run(root, images, changes, params)


def checked(root: Path, changes: list[str]) -> Params:
    """params.yaml with these changes. Raises UserError for a wrong one, and for one that would change nothing here."""
    params = load(root / "params.yaml", changes)
    options(params)
    for change in changes:
        key = change.partition("=")[0]
        if not any(known == key or known.startswith(f"{key}.") for known in flat(made_with(params, 0, "")["params"])):
            raise UserError(f"{key} has no part in a trial with recipe {params.recipe} and method {params.method}")
    return params


def run(root: Path, images: ImageSet, changes: str, params: Params) -> None:
    """Run a trial and add it to the recipe's file, where it is not there. Raises Busy where another process is at it."""
    path, held_out = root / RESULTS / f"{params.recipe}.csv", fitting.held_out(HELD_OUT, len(images.x_train))
    given = sha256(json.dumps(made_with(params, held_out, images.digest), sort_keys=True).encode())[:16]
    locks = store_folder(root) / "locks"
    with locked(locks / f"search-{given}.lock", wait=False, waiting=""):
        if given in [row["made_with"] for row in rows(path)]:
            print(f"search: {changes}: there already", file=sys.stderr)
            return
        print(f"search: {changes}", file=sys.stderr)
        with scratch_folder(store_folder(root) / "scratch" / f"search-{os.getpid()}") as scratch:
            found = trial(params, images, held_out, scratch)
        on = machine()
        found |= {"changes": changes, "device": on["device"], "threads": on["threads"], "made_with": given}
        with locked(locks / "search.lock", wait=True, waiting="search: waiting to write"):
            write_csv(path, [*rows(path), {key: found.get(key, float("nan")) for key in COLUMNS}])


def rows(path: Path) -> list[dict[Any, Any]]:
    """What a file has, a row a trial; nothing where there is none."""
    return pd.read_csv(path, dtype={"made_with": str}).to_dict("records") if path.exists() else []


def main() -> None:
    """Run the trials that the input asks for."""
    ArgumentParser(prog="python -m ablation.search", description=__doc__, formatter_class=RawTextHelpFormatter).parse_args()
    with plainly("search"):
        search(Path(), load_images(Path()), sys.stdin.read().splitlines())


if __name__ == "__main__":
    main()

"""Try settings of a recipe on held-out training images:  python -m ablation.search < changes.txt

Each line of the input is one trial: what it changes of params.yaml, as in `recipes.laptop.pretrain.lr=0.2 latent_dim=32`. It
is trained without 5,000 training images, and scored on them (`ablation.trial`); the test images have no part in it. What was
found is added to ablation/results/search/RECIPE.csv, which git tracks, good or bad; a line that is there is not tried again.
"""

import os
import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from pathlib import Path
from typing import Any

import pandas as pd

from ablation.trial import trial
from simsiam import fitting
from simsiam.checkpoint import store_folder
from simsiam.files import locked, scratch_folder, write_csv
from simsiam.images import ImageSet
from simsiam.machine import machine
from simsiam.methods import options
from simsiam.settings import Params, load
from stages.common import load_images, plainly

RESULTS = Path("ablation/results/search")
HELD_OUT = 5000
COLUMNS = ("linear", "knn", "rankme", "z_std", "verdict", "seconds", "failed", "changes", "device", "threads")


def search(root: Path, images: ImageSet, lines: list[str]) -> None:
    """Run a trial for each line that is not in the recipe's file yet. Raises UserError for what is wrong with any line."""
    trials: dict[str, Params] = {}
    for line in lines:
        if words := line.split():
            trials[" ".join(words)] = load(root / "params.yaml", words)
            options(trials[" ".join(words)])
    for changes, params in trials.items():
        path = root / RESULTS / f"{params.recipe}.csv"
        if changes in [row["changes"] for row in rows(path)]:
            print(f"search: {changes}: there already", file=sys.stderr)
            continue
        print(f"search: {changes}", file=sys.stderr)
        with scratch_folder(store_folder(root) / "scratch" / f"search-{os.getpid()}") as scratch:
            found = trial(params, images, fitting.held_out(HELD_OUT, len(images.x_train)), scratch)
        on = machine()
        found |= {"changes": changes, "device": on["device"], "threads": on["threads"]}
        with locked(store_folder(root) / "locks/search.lock", wait=True, waiting="search: waiting to write"):
            write_csv(path, [*rows(path), {key: found.get(key, float("nan")) for key in COLUMNS}])


def rows(path: Path) -> list[dict[Any, Any]]:
    """What a file has, a row a trial; nothing where there is none."""
    return pd.read_csv(path).to_dict("records") if path.exists() else []


def main() -> None:
    """Run the trials that the input asks for."""
    ArgumentParser(prog="python -m ablation.search", description=__doc__, formatter_class=RawTextHelpFormatter).parse_args()
    with plainly("search"):
        search(Path(), load_images(Path()), sys.stdin.read().splitlines())


if __name__ == "__main__":
    main()

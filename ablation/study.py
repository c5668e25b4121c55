"""Tables and figures of every study in params.yaml from what its points have left: python -m ablation.study

Nothing is computed anew: `python -m ablation.point` (or `dvc repro ablation/dvc.yaml`) fills ablation/results/, this reads
it and writes reports/study/<study>/. Results that are missing, or that were made with other params, code or images than
there are now, are named on stderr and on the page.
"""

import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ablation.figures import Axis, Points, accuracy_figure, learning_figure, spectra_figure
from ablation.lind_bosch_hu.study import study as lind_bosch_hu
from ablation.point import Failed, run_all
from ablation.rates import NAME as RATES
from ablation.rates import study as rates
from ablation.results import MAPPED, SPACES, Found, flat, read
from ablation.tables import COMMANDS, Column, Picture, Table, means, note_of_machines, remove_others, write
from ablation.why_no_collapse.study import study as why_no_collapse
from simsiam.settings import Params, load
from stages.common import load_images, plainly

MEASURED = ("embed", "linear_eval", "project", "explain")  # sections that say what is measured, not what is trained
COLUMNS = {  # as the metrics have it -> how it is shown
    "point": Column("", "point"),
    "changes": Column("", "what it changes"),
    "seeds": Column("", "seeds"),
    **{f"linear_eval.{space}.top1": Column("linear top-1 (%)", space.replace("_", " "), 100, ".1f") for space in SPACES},
    **{f"embed.knn.{space}": Column("kNN top-1 (%)", space.replace("_", " "), 100, ".1f") for space in SPACES},
    "finetune.top1": Column("fine-tuned top-1 (%)", "from the encoder", 100, ".1f"),
    "finetune.scratch.top1": Column("fine-tuned top-1 (%)", "from scratch", 100, ".1f"),
    "finetune.images": Column("fine-tuned on", "labels", 1, ".0f"),
    "finetune.epochs": Column("fine-tuned on", "epochs", 1, ".0f"),
    "pretrain.loss": Column("pretraining, last batches", "loss"),
    "pretrain.z_std": Column("pretraining, last batches", "z_std"),
    "pretrain.rankme": Column("pretraining, last batches", "RankMe", 1, ".1f"),
    "verdict": Column("pretraining, last batches", "latents"),
    **{f"embed.rankme.{space}": Column("RankMe of the test images", space.replace("_", " "), 1, ".1f") for space in SPACES},
    **{f"project.{space}.silhouette": Column("silhouette of the classes", space.replace("_", " ")) for space in MAPPED},
    "pretrain.seconds": Column("seconds", "pretraining", 1, ".0f"),
    "finetune.seconds": Column("seconds", "fine-tuning", 1, ".0f"),
    "stale": Column("", "made with other"),
}


PICTURES = {  # figure, caption, and the stages of which it takes one
    "accuracy": (accuracy_figure, "Accuracy of every point, with its controls.", ("embed", "linear_eval", "finetune")),
    "learning": (learning_figure, "Pretraining: means over 50 steps or so, and RankMe of the last batch.", ("pretrain",)),
    "spectra": (spectra_figure, "The fewer directions carry the variance, the earlier a spectrum falls.", ("embed",)),
}


def study(root: Path) -> None:
    """Write reports/study/<study>/ for every study that has results, then those that judge claims, and the rates."""
    params = load(root / "params.yaml")
    found = read(root, params)
    for name, of in params.ablation.studies.items():
        points = {p: [only(found[p, seed], of.stages) for seed in of.seeds if (p, seed) in found] for p in of.points}
        points = {point: results for point, results in points.items() if results}
        every = [each for results in points.values() for each in results]
        missing = [f"{p}, seed {seed}" for p in of.points for seed in of.seeds if (p, seed) not in found]
        command = f"for point in {' '.join(of.points)}; do python -m ablation.point $point; done"
        if not every:
            print(f"study {name}: it has no results: `{command}` makes them", file=sys.stderr)
            continue
        if missing:
            print(f"study {name}: without {'; '.join(missing)}, of which there are no results", file=sys.stderr)
        table = Table(
            numbers(points, params), COLUMNS, "Means and deviations over seeds; random: of the encoder before training."
        )
        drawn: tuple[Points, Axis | None] = (points, axis_of(points))
        pictures = {
            name: Picture(figure, drawn, caption)
            for name, (figure, caption, stages) in PICTURES.items()
            if any(each.has(stage) for each in every for stage in stages)
        }
        if note := note_of_machines(every):
            print(f"study {name}: {note}", file=sys.stderr)
        commands = {"the points of this study": command} | COMMANDS
        write(root, name, every, {"table": table}, pictures, commands=commands, missing=missing)
        print(f"study {name}: in reports/study/{name}/", file=sys.stderr)
    lind_bosch_hu(root, list(found.values()))
    why_no_collapse(root, list(found.values()))
    rates(root, load_images(root) if (root / "data/images.npz").exists() else None)
    remove_others(root, [*params.ablation.studies, "lind_bosch_hu", "why_no_collapse", RATES])
    if found:
        print("study: `dvc repro` puts it on the page", file=sys.stderr)


def only(found: Found, stages: Sequence[str]) -> Found:
    """A result as if it had gone through these stages alone: what another study wants of the point is not this one's."""
    made = found.result["made_with"]
    made = made | {"stages": [stage for stage in made["stages"] if stage in stages]}
    kept = {key: value for key, value in found.numbers.items() if key.split(".")[0] in stages}
    return replace(found, result=found.result | {"made_with": made}, numbers=kept)


def numbers(points: Points, params: Params) -> pd.DataFrame:
    """A row a point: what it changes, and mean and deviation over its seeds of every number that its stages give."""
    rows = []
    for point, results in points.items():
        changes = " ".join(f"{key}={value}" for key, value in params.ablation.points[point].items())
        verdicts = [found.verdict for found in results]
        row: dict[str, Any] = {"point": point, "changes": changes, "seeds": len(results)}
        for key in COLUMNS:
            row |= means(results, key)
        row["verdict"] = ", ".join(v + f" ({verdicts.count(v)})" * (len(set(verdicts)) > 1) for v in dict.fromkeys(verdicts))
        row["stale"] = "; ".join(dict.fromkeys(found.stale for found in results if found.stale)) or None
        rows.append(row)
    return pd.DataFrame(rows)


def axis_of(points: Points) -> Axis | None:
    """The one key that the points' trainings differ in, with its value at each, where that is a number."""
    every = {point: flat(results[0].params | {"seed": None}) for point, results in points.items()}
    keys = {key: None for values in every.values() for key in values}
    differ = [key for key in keys if len({repr(values.get(key)) for values in every.values()}) > 1]
    trained = [key for key in differ if key.split(".")[0] not in MEASURED] or differ
    if len(trained) != 1:
        return None
    values = {point: values.get(trained[0]) for point, values in every.items()}
    axis = {p: float(v) for p, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return (trained[0], axis) if len(axis) == len(every) else None


def main() -> None:
    """Make every study, with `--points` once every point has run or failed."""
    parser = ArgumentParser(prog="python -m ablation.study", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--points", action="store_true", help="first run every point that is not there yet")
    with plainly("study"):
        failed = None
        if parser.parse_args().points:
            try:
                run_all()
            except Failed as error:  # costs no other point its place in the tables
                failed = error
        study(Path())
        if failed:
            raise failed


if __name__ == "__main__":
    main()

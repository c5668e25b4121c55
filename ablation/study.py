"""Tables and figures of every study in params.yaml from what its points have left: python -m ablation.study

Nothing is computed anew: `python -m ablation.point` (or `dvc repro ablation/dvc.yaml`) fills ablation/results/, this reads
it and writes reports/study/<study>/. Results that are missing, or that were made with other params, code or images than
there are now, are named on stderr and on the page.
"""

import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from pathlib import Path
from typing import Any

import pandas as pd

from ablation.figures import Axis, Points, accuracy_figure, learning_figure, spectra_figure
from ablation.lind_bosch_hu.study import study as lind_bosch_hu
from ablation.results import flat, read
from ablation.tables import Column, Drawing, means, write
from simsiam.settings import Params, load
from stages.common import plainly

SPACES = {"backbone": "backbone", "latent": "latent", "random_backbone": "random backbone", "random_latent": "random latent"}
COLUMNS = {  # as the metrics have it -> how it is shown
    "point": Column("", "point"),
    "changes": Column("", "what it changes"),
    "seeds": Column("", "seeds"),
    **{f"linear_eval.{space}.top1": Column("linear top-1 (%)", name, 100, 1) for space, name in SPACES.items()},
    **{f"embed.knn.{space}": Column("kNN top-1 (%)", name, 100, 1) for space, name in SPACES.items()},
    "finetune.top1": Column("fine-tuned top-1 (%)", "from the encoder", 100, 1),
    "finetune.scratch.top1": Column("fine-tuned top-1 (%)", "from scratch", 100, 1),
    "pretrain.loss": Column("pretraining", "loss"),
    "pretrain.z_std": Column("pretraining", "z_std"),
    "pretrain.rankme": Column("pretraining", "RankMe of a batch's latents", 1, 1),
    "verdict": Column("pretraining", "collapse"),
    **{f"embed.rankme.{space}": Column("RankMe of the test images", name, 1, 1) for space, name in SPACES.items()},
    **{
        f"project.{space}.silhouette": Column("silhouette of the classes", name)
        for space, name in {**SPACES, "finetuned": "fine-tuned"}.items()
        if space != "random_latent"
    },
    "pretrain.seconds": Column("seconds", "pretraining", 1, 0),
    "finetune.seconds": Column("seconds", "fine-tuning", 1, 0),
    "stale": Column("", "made with other"),
}
COMMANDS = {"all": "dvc repro ablation/dvc.yaml", "study": "python -m ablation.study"}
MEASURED = ("embed", "linear_eval", "project", "explain")  # sections that say what is measured, not what is trained
TABLE = "Means and deviations over seeds; random: of the encoder before training."
FIGURES = {
    "accuracy": "Accuracy of every point, with its controls.",
    "learning": "Pretraining: each record is a mean over 50 steps or so; RankMe is of the last batch.",
    "spectra": "The fewer directions carry the variance, the earlier a spectrum falls.",
}


def study(root: Path) -> None:
    """Write reports/study/<study>/ for every study that has results, then the report of Lind, Bosch & Hu put to the test."""
    params = load(root / "params.yaml")
    found = read(root, params)
    for name, of in params.ablation.studies.items():
        points = {p: [found[p, seed] for seed in of.seeds if (p, seed) in found] for p in of.points}
        points = {point: results for point, results in points.items() if results}
        missing = [f"{p}, seed {seed}" for p in of.points for seed in of.seeds if (p, seed) not in found]
        commands = {"points": f"for point in {' '.join(of.points)}; do python -m ablation.point $point; done"} | COMMANDS
        if not points:
            print(f"study {name}: it has no results: `{commands['points']}` makes them", file=sys.stderr)
            continue
        if missing:
            print(f"study {name}: without {'; '.join(missing)}, of which there are no results", file=sys.stderr)
        every = [each for results in points.values() for each in results]
        figures: dict[str, Drawing] = {"learning": (learning_figure, (points, axis := axis_of(points)))}
        if any(each.result.embed or each.result.finetune for each in every):
            figures = {"accuracy": (accuracy_figure, (points, axis))} | figures
        if any(each.result.embed for each in every):
            figures["spectra"] = spectra_figure, (points, axis)
        page = {
            "name": name,
            "points": list(points),
            "seeds": of.seeds,
            "missing": missing,
            "stale": [f"{each.point}, seed {each.seed}: {each.stale}" for each in every if each.stale],
            "commands": commands,
            "tables": {"table": TABLE},
            "figures": {figure: FIGURES[figure] for figure in figures},
            "claims": [],
        }
        write(root / "reports/study" / name, page, {"table": (table(points, params), COLUMNS)}, figures)
        print(f"study {name}: in reports/study/{name}/", file=sys.stderr)
    lind_bosch_hu(root, list(found.values()), COMMANDS)


def table(points: Points, params: Params) -> pd.DataFrame:
    """A row a point: what it changes, and mean and deviation over its seeds of every number that its stages give."""
    rows = []
    for point, results in points.items():
        changes = " ".join(f"{key}={value}" for key, value in params.ablation.points[point].items())
        row: dict[str, Any] = {"point": point, "changes": changes, "seeds": len(results)}
        for name in COLUMNS:
            if values := [found.numbers[name] for found in results if name in found.numbers]:
                row |= means(values, name)
        verdicts = [found.result.pretrain.verdict for found in results]
        row["verdict"] = ", ".join(
            v if len(set(verdicts)) == 1 else f"{v} ({verdicts.count(v)})" for v in dict.fromkeys(verdicts)
        )
        row["stale"] = "; ".join(dict.fromkeys(found.stale for found in results if found.stale)) or None
        rows.append(row)
    return pd.DataFrame(rows)


def axis_of(points: Points) -> Axis | None:
    """The one key that the points' trainings differ in, with its value at each, where that is a number."""
    every = {
        point: flat(results[0].result.made_with.params.model_dump() | {"seed": None}) for point, results in points.items()
    }
    keys = {key for values in every.values() for key in values}
    differ = [key for key in keys if len({repr(values.get(key)) for values in every.values()}) > 1]
    trained = [key for key in differ if key.split(".")[0] not in MEASURED] or differ
    if len(trained) != 1:
        return None
    values = {point: values.get(trained[0]) for point, values in every.items()}
    numbers = {point: float(v) for point, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return (trained[0], numbers) if len(numbers) == len(values) else None


def main() -> None:
    """Make every study."""
    ArgumentParser(prog="python -m ablation.study", description=__doc__, formatter_class=RawTextHelpFormatter).parse_args()
    with plainly("study"):
        study(Path())


if __name__ == "__main__":
    main()

"""Tables and figures of every study in params.yaml from what its points have left: python -m ablation.study

Nothing is computed anew: `python -m ablation.point` (or `dvc repro ablation/dvc.yaml`) fills ablation/results/, this reads
it and writes reports/study/<study>/. Results that are missing, or that were made with other params, code or images than
there are now, are named on stderr and on the page.
"""

import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablation.controls import CONTROLS
from ablation.figures import (
    PANELS,
    Axis,
    Points,
    accuracy_figure,
    learning_figure,
    looks_figure,
    maps_figure,
    spectra_figure,
)
from ablation.lind_bosch_hu.study import NAME as LIND_BOSCH_HU
from ablation.lind_bosch_hu.study import study as lind_bosch_hu
from ablation.point import Failed, run_all
from ablation.rates import NAME as RATES
from ablation.rates import study as rates
from ablation.results import MAPPED, MEASURED, SPACES, Found, flat, read, read_controls
from ablation.tables import COMMANDS, Column, Picture, Table, means, remove_others, write
from ablation.why_no_collapse.study import NAME as WHY_NO_COLLAPSE
from ablation.why_no_collapse.study import study as why_no_collapse
from simsiam.errors import UserError
from simsiam.images.cifar10 import CLASSES
from simsiam.methods.every import METHODS
from simsiam.metrics import linear_cka
from simsiam.settings import Params, load
from stages.common import load_images, plainly

PUBLISHED = Path(__file__).with_name("published.csv")
TRAINED = ("backbone", "latent")
POINT = {"point": Column("", "point")}
PARTS: dict[str, dict[str, Column]] = {  # table -> a number as the metrics have it -> how it is shown
    "table": {
        "role": Column("", "stands for"),
        "seeds": Column("", "seeds"),
        **{f"linear_eval.{space}.top1": Column("linear top-1 (%)", space.replace("_", " "), 100, ".1f") for space in SPACES},
        "linear_eval.few_labels.1%.backbone.top1": Column("1 % of the labels", "linear (%)", 100, ".1f"),
        **{f"embed.knn.{space}": Column("kNN top-1 (%)", space.replace("_", " "), 100, ".1f") for space in SPACES},
        "embed.knn_standardised.backbone": Column("kNN top-1 (%)", "backbone, standardised", 100, ".1f"),  # of the controls
        "finetune.top1": Column("fine-tuned top-1 (%)", "from the encoder", 100, ".1f"),
        "finetune.scratch.top1": Column("fine-tuned top-1 (%)", "from scratch", 100, ".1f"),
        "changes": Column("", "what it changes"),
        "stale": Column("", "made with other"),
    },
    "features": {
        **{f"embed.rankme.{space}": Column("RankMe", space.replace("_", " "), 1, ".1f") for space in SPACES},
        **{f"embed.explained_auc.{space}": Column("area under the explained variance", space) for space in TRAINED},
        **{f"embed.alignment.{space}": Column("alignment", space) for space in TRAINED},
        **{f"embed.uniformity.{space}": Column("uniformity", space, 1, ".2f") for space in TRAINED},
        **{f"project.{space}.silhouette": Column("silhouette of the classes", space.replace("_", " ")) for space in MAPPED},
    },
    "training": {
        "pretrain.loss": Column("pretraining, last batches", "loss"),
        "pretrain.z_std": Column("pretraining, last batches", "z_std"),
        "pretrain.rankme": Column("pretraining, last batches", "RankMe", 1, ".1f"),
        "verdict": Column("pretraining, last batches", "latents"),
        "pretrain.seconds": Column("pretraining", "seconds, kNN while it trains too", 1, ".0f"),
        "pretrain.images_per_second": Column("pretraining", "images/s", 1, ".0f"),
        "pretrain.peak_memory": Column("pretraining", "peak memory (MiB)", 1, ".0f"),
        "finetune.images": Column("fine-tuning", "labels", 1, ".0f"),
        "finetune.epochs": Column("fine-tuning", "epochs", 1, ".0f"),
        "finetune.seconds": Column("fine-tuning", "seconds", 1, ".0f"),
        "rate": Column("fine-tuning", "best lr, from the encoder"),
        "scratch_rate": Column("fine-tuning", "best lr, from scratch"),
    },
}
CHOSEN = (".finetune.lr", ".finetune.scratch_lr")  # each point may have those that it needs to be fine-tuned best
COLUMNS = {name: column for part in PARTS.values() for name, column in part.items()}
CAPTIONS = {
    "features": "The test images' features: how many directions they use, how near two views of an image and how "
    "evenly spread all images are, how well the classes are apart.",
    "training": "The trainings: z_std and RankMe of a batch's latents, and what each took, beside all else that ran.",
}


Drawn = tuple[Callable[..., Any], str, Callable[[Found], Any]]
PICTURES: dict[str, Drawn] = {  # figure, caption, and whether it can be drawn of a result
    "accuracy": (
        accuracy_figure,
        "Accuracy of every point, with its controls.",
        lambda found: any(key in found.numbers for lines in PANELS.values() for key in lines),
    ),
    "learning": (
        learning_figure,
        "Pretraining: means over 50 steps or so, and RankMe of the last batch.",
        lambda found: found.has("pretrain"),
    ),
    "looks": (
        looks_figure,
        "While it trained: kNN on the backbone of training images that were held out, after each epoch; mean and deviation "
        "over seeds. An epoch is not equally long in all methods.",
        lambda found: found.has("pretrain") and len(found.looks()),
    ),
    "spectra": (
        spectra_figure,
        "The fewer directions carry the variance, the earlier a spectrum falls.",
        lambda found: found.has("embed"),
    ),
    "maps": (
        maps_figure,
        "t-SNE of the backbone, of the same test images. Distances between far clusters mean nothing.",
        lambda found: found.has("project"),
    ),
}
CAPTION = "Means and deviations over seeds; random: of the encoder before training."
ROLES = {  # of a row -> what it means
    "ceiling": "The ceiling learned from all labels, with the same views, network and budget: how far others stay below "
    "it is what labels are worth.",
    "control": "The controls have no trained network: a dictionary tells how near an image's whitened patches are to its "
    "own, summed over quadrants (Coates, Lee & Ng 2011); the random encoders that points begin with have zero-initialised "
    "blocks, and this one has not. Their kNN is also told with every number standardised.",
}
BESIDE = {  # published.csv, and this study's numbers
    "method": Column("", "method"),
    "here": Column("here", "point"),
    "here_top1": Column("here", "linear top-1 (%)", 100, ".1f"),
    "here_knn": Column("here", "kNN top-1 (%)", 100, ".1f"),
    "here_epochs": Column("here", "epochs", 1, ".0f"),
    "top1": Column("published", "linear top-1 (%)", 100, ".1f"),
    "knn": Column("published", "kNN top-1 (%)", 100, ".1f"),
    "epochs": Column("published", "epochs", 1, ".0f"),
    "network": Column("published", "network"),
    "protocol": Column("published", "protocol"),
    "source": Column("", "source"),
}


def study(root: Path) -> None:
    """Write reports/study/<study>/ for every study that has results, then those that judge claims, and the rates."""
    params = load(root / "params.yaml")
    if taken := sorted({LIND_BOSCH_HU, WHY_NO_COLLAPSE, RATES} & params.ablation.studies.keys()):
        raise UserError(
            f"params.yaml: a study has the name {taken[0]}, which one of this project's own has: give it another"
        )
    images = load_images(root) if (root / "data/images.npz").exists() else None
    digest = images.digest if images else ""
    found = read(root, params, digest)
    seeds = sorted({seed for of in params.ablation.studies.values() for seed in of.seeds})
    measured = read_controls(root, params, seeds, digest)
    for name, of in params.ablation.studies.items():
        points = {p: [only(found[p, seed], of.stages) for seed in of.seeds if (p, seed) in found] for p in of.points}
        points = {point: results for point, results in points.items() if results}
        every = [each for results in points.values() for each in results]
        absent = {point: [seed for seed in of.seeds if (point, seed) not in found] for point in of.points}
        missing = [f"{p}, seed{'s' * (len(of) > 1)} {', '.join(map(str, of))}" for p, of in absent.items() if of]
        command = f"for point in {' '.join(of.points)}; do python -m ablation.point $point; done"
        if not every:
            print(f"study {name}: it has no results: `{command}` makes them", file=sys.stderr)
            continue
        if missing:
            print(f"study {name}: without {'; '.join(missing)}, of which there are no results", file=sys.stderr)
        controls = controls_of(points, [only(each, of.stages) for each in measured if each.seed in of.seeds])
        pictures, axis = {}, axis_of(points)
        for stem, (figure, caption, possible) in PICTURES.items():
            drawn = {point: [e for e in results if possible(e)] for point, results in (points | controls).items()}
            if drawn := {point: results for point, results in drawn.items() if results}:
                pictures[stem] = Picture(figure, (drawn, axis), caption)
        commands = {"the points of this study": command} | COMMANDS
        used = every + [each for results in controls.values() for each in results]
        words: dict[str, Any] = {"commands": commands, "missing": missing, "about": of.about}
        write(root, name, used, tables(points | controls, params), pictures, **words)
        print(f"study {name}: in reports/study/{name}/", file=sys.stderr)
    kept = [name for name in params.ablation.studies if those_of(found, params, name)]
    kept += [LIND_BOSCH_HU] * lind_bosch_hu(root, those_of(found, params, "dimension", "stop_gradient", "head"))
    kept += [WHY_NO_COLLAPSE] * why_no_collapse(root, those_of(found, params, "collapse"), those_of(found, params, "rank"))
    try:
        kept += [RATES] * rates(root, images)
    except UserError as error:  # costs no other study its place
        print(f"study {RATES}: {error}", file=sys.stderr)
        kept.append(RATES)
    remove_others(root, kept)
    if found:
        print("study: `dvc repro` puts it on the page", file=sys.stderr)


def those_of(found: dict[tuple[str, int], Found], params: Params, *studies: str) -> list[Found]:
    """The results of the points of some studies, each once."""
    of = [params.ablation.studies[name] for name in studies if name in params.ablation.studies]
    wanted = {(point, seed) for study in of for point in study.points for seed in study.seeds}
    return [each for key, each in found.items() if key in wanted]


def only(found: Found, stages: Sequence[str]) -> Found:
    """A result as if it had gone through these stages alone: what another study wants of the point is not this one's."""
    made = found.result["made_with"]
    made = made | {"stages": [stage for stage in made.get("stages", ()) if stage in stages]}
    kept = {key: value for key, value in found.numbers.items() if key.split(".")[0] in stages}
    return replace(found, result=found.result | {"made_with": made}, numbers=kept)


def controls_of(points: Points, measured: list[Found]) -> Points:
    """What a study of several methods has besides its points: the controls, where they were measured."""
    if len({results[0].params["method"] for results in points.values()}) == 1:
        return {}
    with_numbers = [each for each in measured if each.numbers]  # of the study's stages
    found = {control.words: [each for each in with_numbers if each.point == control.words] for control in CONTROLS.values()}
    return {words: results for words, results in found.items() if results}


def tables(points: Points, params: Params) -> dict[str, Table]:
    """Every table that the points allow, in the order of the page."""
    changes, common = changes_of(list(points), params)
    main = numbers(points, changes)
    words = [CAPTION, *(meaning for role, meaning in ROLES.items() if role in main["role"].tolist())]
    words += [f"All points have {common}."] * bool(common)
    found = {}
    for part, columns in PARTS.items():
        kept = main[[name for name in main if name.removesuffix("_sd") in POINT | columns]]
        kept = kept.dropna(how="all", subset=kept.columns.drop("point"))
        if len(kept):
            found[part] = Table(kept, POINT | columns, CAPTIONS.get(part) or " ".join(words))
    if len(alike := cka(points)) > 1:
        found["cka"] = Table(
            alike,
            {name: Column("CKA with" * (name != "point"), name, 1, ".2f") for name in alike},
            "Linear CKA of the backbones on the same test images, without bias (Kornblith et al. 2019; Song et al. 2007), "
            "the mean over pairs of different seeds. A point with itself, of other seeds, is the ceiling.",
        )
    if len(beside := published(points)):
        found["published"] = Table(
            beside,
            BESIDE,
            "What others report of CIFAR-10, each by its own recipe. An online probe learns along with the encoder; where "
            "the best epoch was chosen on the test images, the number is too high. Here: offline, after the last epoch.",
        )
    return found


def role(found: Found) -> str | None:
    """What a result is to the others, where it is of no encoder that learned without labels."""
    if found.point in {control.words for control in CONTROLS.values()}:
        return "control"
    method = METHODS.get(found.params["method"])
    return "ceiling" if method and method.labelled else None


def cka(points: Points) -> pd.DataFrame:
    """A row and a column for each point: linear CKA of their backbones, the mean over pairs of different seeds.

    The same seed gives two encoders the same initial weights, so such pairs count only where there are no others.
    """
    seen = {
        p: [each for each in results if each.has("embed") and "cka_backbone" in each.arrays] for p, results in points.items()
    }
    seen = {point: results for point, results in seen.items() if results}
    found: dict[tuple[str, str], float] = {}
    for one, other in combinations_with_replacement(seen, 2):
        pairs = [(a, b) for a in seen[one] for b in seen[other] if a is not b]
        pairs = [(a, b) for a, b in pairs if a.result["made_with"]["images"] == b.result["made_with"]["images"]]
        pairs = [(a, b) for a, b in pairs if a.seed != b.seed] or pairs
        values = [linear_cka(a.arrays["cka_backbone"], b.arrays["cka_backbone"]) for a, b in pairs]
        values = [value for value in values if np.isfinite(value)]  # a backbone without variance is like nothing
        found[one, other] = found[other, one] = float(np.mean(values)) if values else np.nan
    return pd.DataFrame([{"point": one} | {other: found[one, other] for other in seen} for one in seen])


def published(points: Points) -> pd.DataFrame:
    """What others report of these methods (published.csv), and beside it what the first point of the method has here.

    Nothing where few points are of a method of their own, so that it is not methods that are compared, or where the images'
    classes are not CIFAR-10's.
    """
    first: dict[str, str] = {}
    of_controls = {control.words: name for name, control in CONTROLS.items()}
    for point, results in points.items():
        first.setdefault(of_controls[point] if point in of_controls else results[0].params["method"], point)
    few = len(first) < max(2, len(points) / 2)
    if few or any(each.result["classes"] != list(CLASSES) for results in points.values() for each in results):
        return pd.DataFrame()
    keys = {"here_top1": "linear_eval.backbone.top1", "here_knn": "embed.knn.backbone", "here_epochs": "pretrain.epochs"}
    rows = []
    try:
        table = pd.read_csv(PUBLISHED).astype({"top1": float, "knn": float, "epochs": float})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{PUBLISHED} cannot be read: {error}: `git checkout {PUBLISHED}` brings it back") from None
    for theirs in table.to_dict("records"):
        if theirs["method"] in first:
            point, method = first[theirs["method"]], METHODS.get(theirs["method"])
            ours: dict[str, Any] = {"method": method.title if method else CONTROLS[theirs["method"]].words, "here": point}
            for name, key in keys.items():
                ours |= means(points[point], key, name)
            rows.append(theirs | ours)
    return pd.DataFrame(rows)


def changes_of(points: Sequence[str], params: Params) -> tuple[dict[str, str], str]:
    """What each point changes of the trainings' params that not all of these change alike, and what all of them do."""
    every = {
        point: {key: value for key, value in params.ablation.points[point].items() if key.split(".")[0] not in MEASURED}
        for point in points
        if point in params.ablation.points
    }

    def said(changes: Iterable[tuple[str, Any]]) -> str:
        return " ".join(f"{key.removeprefix(f'recipes.{params.recipe}.')}={value}" for key, value in changes)

    alike = [item for item in next(iter(every.values()), {}).items() if all(item in of.items() for of in every.values())]
    alike *= len(every) > 1
    own = {point: said(item for item in of.items() if item not in alike) for point, of in every.items()}
    return own, said(alike)


def numbers(points: Points, changes: Mapping[str, str]) -> pd.DataFrame:
    """A row a point: what it changes, and mean and deviation over its seeds of every number that its stages give."""
    rows = []
    for point, results in points.items():
        verdicts = [found.verdict for found in results if "pretrain" in found.result]
        row: dict[str, Any] = {
            "point": point,
            "changes": changes.get(point) or None,
            "role": role(results[0]),
            "seeds": len(results),
        }
        for key in COLUMNS:
            row |= means(results, key)
        told = [v + f" ({verdicts.count(v)})" * (len(set(verdicts)) > 1) for v in dict.fromkeys(verdicts)]
        row["verdict"] = ", ".join(told) or None
        row |= {"rate": rate(results, "lr", "trials"), "scratch_rate": rate(results, "scratch.lr", "scratch_trials")}
        row["stale"] = "; ".join(dict.fromkeys(found.stale for found in results if found.stale)) or None
        rows.append(row)
    return pd.DataFrame(rows)


def rate(results: Sequence[Found], key: str, trials: str) -> str | None:
    """With which learning rates fine-tuning was best, and which of these are at an edge of what was tried."""
    words: dict[str, None] = {}
    for found in results:
        if (lr := found.numbers.get(f"finetune.{key}")) is not None:
            of_trial = [k for k in found.numbers if k.startswith(f"finetune.{trials}.") and k.endswith(".lr")]
            tried = [found.numbers[k] for k in of_trial] or [-np.inf, np.inf]
            edge = "highest" if lr >= max(tried) else "lowest" if lr <= min(tried) else ""
            words[f"{lr:g}" + f" (the {edge} of {len(tried)})" * bool(edge)] = None
    return " or ".join(words) or None


def axis_of(points: Points) -> Axis | None:
    """The one key that the points' trainings differ in, but for rates to choose from, with its value at each if a number."""
    every = {point: flat(results[0].params | {"seed": None}) for point, results in points.items()}
    keys = {key: None for values in every.values() for key in values}
    differ = [key for key in keys if len({repr(values.get(key)) for values in every.values()}) > 1]
    trained = [key for key in differ if key.split(".")[0] not in MEASURED and not key.endswith(CHOSEN)] or differ
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

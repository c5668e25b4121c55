"""One point of the ablation, through the pipeline's own stages: python -m ablation.point NAME [--seed SEED]

`ablation` in params.yaml names the points. Each writes two small files per seed to ablation/results/NAME/, which git
tracks; where they are there already, made with the same params, code and images, nothing is done. So points may run side by
side, in any order and on several machines that share this folder: `python -m ablation.point --list` has a line for each, for
GNU parallel or an array job. Trainings that two points share are done once (`.checkpoints/`).
"""

import sys
from argparse import ArgumentParser, RawTextHelpFormatter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simsiam import code
from simsiam.checkpoint import store_folder
from simsiam.engine import Interrupted
from simsiam.errors import UserError
from simsiam.files import locked, read_json, read_npz, scratch_folder, write_json, write_npz
from simsiam.images.sources import fingerprint
from simsiam.machine import machine
from simsiam.methods import options
from simsiam.settings import Params, load, load_point
from stages.common import Stage, alone, load_images, plainly, run
from stages.download import download
from stages.embed import embed
from stages.explain import explain
from stages.finetune import finetune
from stages.linear_eval import linear_eval
from stages.look import look
from stages.pretrain import pretrain
from stages.project import project

EVERY = (download, look, pretrain, embed, linear_eval, finetune, project, explain)
STAGES: dict[str, Stage] = {stage.__name__: stage for stage in EVERY}
RESULTS = Path("ablation/results")
COMPARED = 500  # test images whose features are kept


class Failed(UserError):
    """Some points have no results."""


def work(params: Params) -> dict[str, tuple[list[int], list[str]]]:
    """The seeds and stages of every point: all that the studies which it belongs to want of it."""
    found: dict[str, tuple[list[int], list[str]]] = {}
    for name in params.ablation.points:
        studies = [study for study in params.ablation.studies.values() if name in study.points]
        seeds = sorted({seed for study in studies for seed in study.seeds})
        found[name] = seeds, [stage for stage in STAGES if any(stage in study.stages for study in studies)]
    return found


def relevant(params: Params, stages: list[str]) -> dict[str, Any]:
    """The params that these stages' results depend on. Images that are shared are told by a digest, not by their source."""
    others = {stage for stage in STAGES if stage not in stages} | ({"data"} if "download" not in stages else set())
    found = {key: value for key, value in params.in_use().items() if key not in others}
    if "finetune" not in stages:
        found["recipes"][params.recipe].pop("finetune")
    return found


@cache
def code_of(stage: str, method: str) -> str:
    """The digest of a stage's code with one of the methods, but for how figures are drawn."""
    return code.digest(f"stages.{stage}", code.NO_NUMBERS, method=method)


def made_with(params: Params, stages: list[str], shared: str) -> dict[str, Any]:
    """What a result depends on: the params in use, the stages, their code and the images.

    shared: the digest of the images that points share; of a point's own it is what is known before they are read.
    """
    return {
        "params": relevant(params, stages),
        "stages": stages,
        "code": {stage: code_of(stage, params.method) for stage in stages},
        "images": fingerprint(params.data, params.seed) if "download" in stages else shared,
    }


def run_point(name: str, seed: int, stages: list[str], root: Path = Path()) -> None:
    """Write ablation/results/<name>/<seed>.json with every metric, and .npz with curve, maps, SHAP values and predictions.

    The stages run in a scratch folder, which is deleted at the end. Does nothing where the results are there and match.
    """
    params = load_point(root / "params.yaml", name, seed)
    options(params)
    for key in params.ablation.points[name]:
        recipe, section, of = [*key.split(".")[1:], "", ""][:3] if key.startswith("recipes.") else ("base", "", "")
        if recipe not in ("base", params.recipe):
            raise UserError(f"it changes {key}, but recipe is {params.recipe}: it would change nothing")
        if section == "methods" and of not in ("", params.method):
            raise UserError(f"it changes {key}, but method is {params.method}: it would change nothing")
    given = made_with(params, stages, "" if "download" in stages else load_images(root).digest)
    place = root / RESULTS / name / str(seed)
    words = f"{name}, seed {seed}"
    with locked(
        store_folder(root) / f"locks/point-{name}-{seed}.lock",
        wait=True,
        waiting=f"{words}: another program is at it: waiting for it",
    ):
        if matches(place, given):
            print(f"{words}: there already, made with the same params, code and images", file=sys.stderr)
            return
        with scratch_folder(store_folder(root) / "scratch" / f"{name}-{seed}") as scratch:
            for stage in stages:
                print(f"{words}: {stage}", file=sys.stderr)
                run(STAGES[stage], params, scratch)
                if stage == "download" and not load_images(scratch).labelled:
                    raise UserError("the images have no labels, and points are compared by what can be read out")
            images = load_images(scratch)
            result: dict[str, Any] = {"point": name, "seed": seed, "made_with": given | {"machine": machine()}}
            result |= {"classes": images.classes, "test_images": len(images.y_test)}
            for stage in stages:
                result |= read_json(scratch / f"reports/metrics/{stage}.json")
            write_npz(place.with_suffix(".npz"), **arrays_of(scratch))
            write_json(place.with_suffix(".json"), result)


def matches(place: Path, given: dict[str, Any]) -> bool:
    """Whether both files of a result are there, and were made with what is given."""
    if not all(place.with_suffix(ending).exists() for ending in (".json", ".npz")):
        return False
    try:
        made = read_json(place.with_suffix(".json"))["made_with"]
        return {key: made.get(key) for key in given} == given
    except (UserError, KeyError, TypeError, AttributeError):
        return False


def arrays_of(scratch: Path) -> dict[str, np.ndarray]:
    """What figures and comparisons need of a point, where its stages left it.

    curve_*: the training's records. maps_*: coordinates. shap_*: values summed over the channels, in half precision.
    right_*: for each test image whether it was classified right, eight to a byte, in the images' order.
    cka_backbone: of the first test images the backbone's features, (500, 8 * width) in half precision.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, path in (("curve", "reports/curves/pretrain.csv"), ("maps", "reports/projection.csv")):
        if (scratch / path).exists():
            table = pd.read_csv(scratch / path)
            arrays |= {f"{name}_{column}": table[column].to_numpy(np.float32) for column in table if column != "class"}
    if (scratch / "data/features.npz").exists():
        with np.load(scratch / "data/features.npz") as features:  # it may hold a gigabyte: only one array is read
            arrays["cka_backbone"] = features["backbone_test"][:COMPARED].astype(np.float16)
    if (scratch / "data/predictions.npz").exists():
        for space, right in read_npz(scratch / "data/predictions.npz").items():
            arrays[f"right_{space}"] = np.packbits(right)
    if (scratch / "data/finetuned.npz").exists():
        arrays["right_finetuned"] = np.packbits(read_npz(scratch / "data/finetuned.npz")["right"])
    if (scratch / "data/shap.npz").exists():
        for name, values in read_npz(scratch / "data/shap.npz").items():
            arrays[f"shap_{name}"] = values.sum(1).astype(np.float16) if name.endswith("_values") else values
    return arrays


def run_all(name: str | None = None, seed: int | None = None, *, only_list: bool = False) -> None:
    """Run every point of the studies, or the one of this name, with each of its seeds, or with this one; or list them.

    What is wrong with one stops no other. Raises UserError, at the end, that names those that failed.
    """
    alone("a point")
    points, failed = work(load(Path("params.yaml"))), []
    if name not in (None, *points):
        raise UserError(f"params.yaml: ablation.points has no {name}: it has {', '.join(points)}")
    for point, (seeds, stages) in points.items():
        if name not in (None, point):
            continue
        if not seeds:
            print(f"{point}: no study has this point", file=sys.stderr)
        if seed not in (None, *seeds):
            raise UserError(f"{point} has the seeds {seeds}, by the studies in params.yaml: {seed} is none of them")
        for each in seeds if seed is None else [seed]:
            if only_list:
                print(point, each)
                continue
            try:
                run_point(point, each, stages)
            except Interrupted:
                raise
            except UserError as error:
                print(f"error: {point}, seed {each}: {error}", file=sys.stderr)
                failed.append(f"{point}, seed {each}")
    if failed:
        others = "`python -m ablation.study` makes tables of the others"
        raise Failed(f"without results: {'; '.join(failed)} (their reasons are above); {others}")


def main() -> None:
    """Run one point, or all of them, or list them."""
    parser = ArgumentParser(prog="python -m ablation.point", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("name", nargs="?", help="of the point; without, every point runs, one after the other")
    parser.add_argument("--seed", type=int, help="one of the point's seeds; without, all of them")
    parser.add_argument("--list", action="store_true", help="only print a line NAME SEED for each")
    chosen = parser.parse_args()
    with plainly("point"):
        run_all(chosen.name, chosen.seed, only_list=chosen.list)


if __name__ == "__main__":
    main()

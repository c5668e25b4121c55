"""What the points have left in ablation/results/, checked as it is read, and beside what is there now."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator

from ablation.point import RESULTS, made_with, work
from simsiam import code
from simsiam.collapse import Verdict
from simsiam.errors import UserError
from simsiam.files import read_json, read_npz
from simsiam.settings import Count, Index, Params, Section, Share, checked, load_point

Arrays = dict[str, NDArray[Any]]
Positive = Annotated[float, Field(ge=0)]
ARRAYS = {  # stage -> what it must have left in the npz
    "pretrain": ("curve_step", "curve_loss", "curve_z_std", "curve_rankme"),
    "linear_eval": ("right_backbone", "right_latent", "right_random_backbone", "right_random_latent"),
    "finetune": ("right_finetuned",),
    "project": (
        "maps_label",
        *(f"maps_{s}_{m}_{n}" for s in ("latent", "finetuned") for m in ("pca", "tsne") for n in (1, 2)),
    ),
    "explain": (
        *("shap_images", "shap_labels", "shap_shown"),
        *(f"shap_{network}_{part}" for network in ("frozen", "finetuned", "random") for part in ("values", "logits")),
    ),
}


class Part(Section):
    """Of a result, what studies use; it has more."""

    model_config = ConfigDict(extra="ignore")


class Whole(Section):
    """Kept with all that it has."""

    model_config = ConfigDict(extra="allow")


class Head(Whole):
    space: str


class RecipeUsed(Whole):
    finetune: Head


class ParamsUsed(Whole):
    recipe: str
    method: str
    latent_dim: Count
    stop_gradient: bool
    recipes: dict[str, RecipeUsed]


class MadeWith(Part):
    params: ParamsUsed
    stages: list[str]
    code: str
    images: str


class Pretraining(Part):
    loss: float
    z_std: Positive
    rankme: Positive
    verdict: Verdict
    epochs: Count
    seconds: Positive


class Embedding(Part):
    knn: dict[str, Share]
    rankme: dict[str, Positive]
    spectrum: dict[str, Annotated[list[Share], Field(min_length=1)]]


class Scores(Part):
    top1: Share
    top5: Share


class Linear(Scores):
    confusion: list[list[Index]]


class LinearEvaluation(Part):
    backbone: Linear
    latent: Linear
    random_backbone: Linear
    random_latent: Linear


class Finetuning(Scores):
    scratch: Scores
    images: Count
    epochs: Count
    seconds: Positive


class Plane(Part):
    silhouette: Annotated[float, Field(ge=-1, le=1)]
    pca_variance_2: Share


class Projection(Part):
    backbone: Plane
    latent: Plane
    random_backbone: Plane
    finetuned: Plane
    centroid_distances: dict[str, list[list[Positive]]]


class Measured(Part):
    mean: Positive
    half_width: Positive


class Mass(Part):
    quadrants: Annotated[list[Measured], Field(min_length=4, max_length=4)]
    radius: Measured
    residual: Positive


class Masses(Part):
    images: Count
    background: Count
    frozen: Mass
    finetuned: Mass
    random: Mass
    stock: Mass


class Explanation(Part):
    residual: dict[str, Positive]
    mass: Masses | None = None


class Result(Part):
    """ablation/results/<point>/<seed>.json: what a point was made with, and the metrics of its stages."""

    point: str
    seed: Index
    classes: Annotated[list[str], Field(min_length=2)]
    test_images: Count
    made_with: MadeWith
    pretrain: Pretraining
    embed: Embedding | None = None
    linear_eval: LinearEvaluation | None = None
    finetune: Finetuning | None = None
    project: Projection | None = None
    explain: Explanation | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for stage in self.made_with.stages:
            if getattr(self, stage, None) is None:
                raise ValueError(f"{stage} is missing, though made_with names it")
        n = len(self.classes)
        for place, matrix in self._matrices():
            if [len(row) for row in matrix] != n * [n]:
                raise ValueError(f"{place} should have {n} rows of {n} numbers")
        if self.made_with.params.recipe not in self.made_with.params.recipes:
            raise ValueError("made_with.params.recipes should have the recipe that made_with.params names")
        return self

    def _matrices(self) -> Iterator[tuple[str, list[list[int]] | list[list[float]]]]:
        for space, linear in self.linear_eval or ():
            yield f"linear_eval.{space}.confusion", linear.confusion
        if self.project:
            yield from ((f"project.centroid_distances.{space}", m) for space, m in self.project.centroid_distances.items())


@dataclass(frozen=True)
class Found:
    """A point's result with one seed."""

    point: str
    seed: int
    result: Result
    arrays: Arrays
    stale: str = ""  # in what it was made otherwise than it would be now

    @property
    def collapsed(self) -> bool:
        """Whether pretraining ended with all latents at a point or on a line, by its own batches (`simsiam.collapse`)."""
        return self.result.pretrain.verdict.startswith("collapsed")

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Every number of the result by its key with dots, as "linear_eval.latent.top1"."""
        every = flat(self.result.model_dump(exclude={"made_with"}))
        return {key: value for key, value in every.items() if isinstance(value, float | int)}

    def right(self, space: str) -> NDArray[np.bool_]:
        """(N,): which test images were classified right from a space."""
        return np.unpackbits(self.arrays[f"right_{space}"], count=self.result.test_images).astype(bool)


def read(root: Path, params: Params) -> dict[tuple[str, int], Found]:
    """Every result that params.yaml's points have, by point and seed; on stderr, which of them would be made otherwise now.

    Raises UserError, naming file and key, for what is no result of that point and seed.
    """
    found: dict[tuple[str, int], Found] = {}
    if (root / "data/images.npz").exists():
        now = made_with(params, [], root)
    else:
        now = {"code": code.digest("ablation.point", code.FIGURES)}
        print("study: without data/images.npz it cannot be told whether the results are of the same images", file=sys.stderr)
    for point, (seeds, stages) in work(params).items():
        used = load_point(root / "params.yaml", point).in_use()
        for seed in seeds:
            place = root / RESULTS / point / str(seed)
            if place.with_suffix(".json").exists() or place.with_suffix(".npz").exists():
                result, arrays = read_one(place)
                stale = otherwise(result.made_with, now | {"params": used | {"seed": seed}, "stages": stages})
                found[point, seed] = Found(point, seed, result, arrays, stale)
                if stale:
                    print(f"study: {point}, seed {seed} was made with other {stale}", file=sys.stderr)
    return found


def read_one(place: Path) -> tuple[Result, Arrays]:
    """<place>.json and .npz. Raises UserError, naming file and key, where they are damaged or not of that point and seed."""
    point, seed = place.parent.name, place.name
    how = f"delete it and run `python -m ablation.point {point} --seed {seed}`"
    path = place.with_suffix(".json")
    try:
        result = checked(Result, read_json(path, how=how), str(path))
        if (result.point, str(result.seed)) != (point, seed):
            raise UserError(f"{path}: it is of {result.point}, seed {result.seed}")
        path = place.with_suffix(".npz")
        arrays = read_npz(path, how=how)
        if wrong := next(_wrong(result, arrays), None):
            raise UserError(f"{path}: {wrong}")
    except UserError as error:
        raise UserError(str(error) if how in str(error) else f"{error}: {how}") from None
    return result, arrays


def _wrong(result: Result, arrays: Arrays) -> Iterator[str]:
    """What is wrong with the arrays of a result."""
    wanted = [name for stage in result.made_with.stages for name in ARRAYS.get(stage, ())]
    yield from (f"{name} is missing" for name in wanted if name not in arrays)
    for name, array in arrays.items():
        prefix = name.split("_")[0]
        if array.size == 0 or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            yield f"{name} should be finite numbers, and some"
        elif prefix in ("curve", "maps") and array.shape != arrays.get(f"{prefix}_{_FIRST[prefix]}", array).shape[:1]:
            yield f"{name} should have one number for each of {prefix}_{_FIRST[prefix]}"
        elif prefix == "right":
            space = name.removeprefix("right_")
            scores = result.finetune if space == "finetuned" else getattr(result.linear_eval, space, None)
            if array.dtype != np.uint8 or array.shape != (-(-result.test_images // 8),) or scores is None:
                yield f"{name} should have a bit for each of {result.test_images} test images"
            elif abs(np.unpackbits(array, count=result.test_images).mean() - scores.top1) > 1e-6:
                yield f"{name} is not what the top1 in the .json is of: the two files are of two runs"
    n, classes = len(arrays.get("shap_images", ())), len(result.classes)
    for name in ARRAYS["explain"] if n else ():
        shape, tail = arrays[name].shape, name.split("_")[-1]
        good = {
            "images": len(shape) == 4 and shape[-1] == 3 and arrays[name].dtype == np.uint8,
            "labels": shape == (n,),
            "shown": len(shape) == 2,
            "values": shape == (*arrays["shap_images"].shape[:3], classes),
            "logits": shape == (n, classes),
        }
        if (
            shape[0] != n
            or not good[tail]
            or (tail in ("labels", "shown") and not 0 <= arrays[name].min() <= arrays[name].max() < classes)
        ):
            yield f"{name} does not go with shap_images and {classes} classes"
    if "maps_label" in arrays and not 0 <= arrays["maps_label"].min() <= arrays["maps_label"].max() < classes:
        yield f"maps_label should be numbers of {classes} classes"


_FIRST = {"curve": "step", "maps": "label"}


def otherwise(made: MadeWith, now: dict[str, Any]) -> str:
    """In what a result was made otherwise than `now` says, in words, or "": params (which and how), stages, code, images."""
    before, words = made.model_dump(), []
    for key, value in now.items():
        if key == "params" and before[key] != value:
            was, is_ = flat(before[key]), flat(value)
            keys = [name for name in was | is_ if was.get(name) != is_.get(name)]
            more = f" and {len(keys) - 2} more" if len(keys) > 2 else ""
            words.append(f"params ({', '.join(f'{k}: {was.get(k)}, now {is_.get(k)}' for k in keys[:2])}{more})")
        elif before[key] != value:
            words.append(key)
    return ", ".join(words)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary by its keys with dots."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found

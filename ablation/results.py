"""What the points have left in ablation/results/, checked as it is read, and compared with what there is now."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ablation import controls
from ablation.point import RESULTS, made_with, work
from simsiam.errors import UserError
from simsiam.files import read_json, read_npz
from simsiam.settings import Params, load_point

Arrays = dict[str, NDArray[Any]]
MEASURED = (
    "embed",
    "linear_eval",
    "project",
    "explain",
)  # sections of params that say what is measured, not what is trained
SPACES = ("backbone", "latent", "random_backbone", "random_latent")
MAPPED = ("backbone", "latent", "random_backbone", "finetuned")
NETWORKS = ("frozen", "finetuned", "random")
CONTROL_KEYS = {"point", "seed", "classes", "test_images", "linear_eval", "embed", "control", "made_with"}
NUMBERS = {  # stage -> the numbers that it must have found
    "pretrain": ("loss", "z_std", "rankme", "epochs", "seconds"),
    "embed": tuple(f"{name}.{space}" for name in ("knn", "rankme") for space in SPACES),
    "linear_eval": tuple(f"{space}.top1" for space in SPACES),
    "finetune": ("top1", "scratch.top1", "epochs", "images", "seconds"),
    "project": tuple(f"{space}.{name}" for space in MAPPED for name in ("silhouette", "pca_variance_2")),
    "explain": tuple(f"residual.{network}" for network in NETWORKS),
}
LISTS = {  # stage -> lists of numbers, and how long: as many as there are "c"lasses, or any
    "embed": {"spectrum.latent": "d", "spectrum.backbone": "h"},
    "linear_eval": {f"{space}.confusion": "cc" for space in SPACES},
    "project": {f"centroid_distances.{space}": "cc" for space in MAPPED},
}
ARRAYS = {  # stage -> arrays, and their shapes: "b"ytes that the test images fill, or as one letter has been before
    "pretrain": {f"curve_{name}": "r" for name in ("step", "loss", "z_std", "rankme")},
    "linear_eval": {f"right_{space}": "b" for space in SPACES},
    "finetune": {"right_finetuned": "b"},
    "project": {"maps_label": "m"}
    | {f"maps_{s}_{m}_{n}": "m" for s in ("backbone", "latent", "finetuned") for m in ("pca", "tsne") for n in (1, 2)},
    "explain": {"shap_images": "nss3", "shap_labels": "n", "shap_shown": "nk"}
    | {f"shap_{network}_{part}": axes for network in NETWORKS for part, axes in (("values", "nssc"), ("logits", "nc"))},
}
SOME = {"curve_knn": "r", "cka_backbone": "fh"}  # the same of arrays that not every result has
MASS: tuple[str, ...] = tuple(  # where the SHAP mass was measured
    f"mass.{network}.{of}.{part}"
    for network in (*NETWORKS, "stock")
    for of in ("radius", "quadrants.0", "quadrants.1", "quadrants.2", "quadrants.3")
    for part in ("mean", "half_width")
)
MASS += ("mass.images", *(f"mass.{network}.residual" for network in (*NETWORKS, "stock")))
LIMITS = [  # of numbers that have such a word in their key
    ({"top1", "top5", "knn", "pca_variance_2", "quadrants"}, (0, 1)),
    ({"silhouette"}, (-1, 1)),
    ({"z_std", "rankme", "seconds", "epochs", "radius", "residual"}, (0, np.inf)),
]


@dataclass(frozen=True)
class Found:
    """What a point has left with one seed."""

    point: str
    seed: int
    result: dict[str, Any]  # the json as it is
    numbers: dict[str, float]  # every number of it by its key with dots, as "linear_eval.latent.top1"
    arrays: Arrays
    stale: str = ""  # in what it was made otherwise than it would be now

    @property
    def params(self) -> dict[str, Any]:
        """What it was made with: params.yaml's content, but with the one recipe in use."""
        params: dict[str, Any] = self.result["made_with"]["params"]
        return params

    @property
    def verdict(self) -> str:
        """What the latents of the last training batches say (`simsiam.collapse`)."""
        return str(self.result["pretrain"]["verdict"])

    @property
    def machine(self) -> str:
        """What it was made on, as far as results depend on it, and its encoder where that was trained elsewhere."""
        here = _machine(self.result["made_with"].get("machine"))
        trained = self.result.get("pretrain", {}).get("trained")
        elsewhere = dict.fromkeys(map(_machine, trained if isinstance(trained, list) else ()))
        elsewhere.pop(here, None)
        return f"{here} (encoder: {' and '.join(elsewhere)})" if elsewhere else here

    def has(self, *stages: str) -> bool:
        return set(stages) <= set(self.result["made_with"]["stages"])

    def looks(self) -> NDArray[np.float64]:
        """(epochs,): kNN top-1 of the images that were held out, after each epoch; none where none were."""
        knn = self.arrays.get("curve_knn", np.zeros(0)).astype(float)
        return knn[np.isfinite(knn)]

    def right(self, space: str) -> NDArray[np.bool_]:
        """(N,): which test images were classified right from a space."""
        return np.unpackbits(self.arrays[f"right_{space}"], count=self.result["test_images"]).astype(bool)


def read(root: Path, params: Params, images: str) -> dict[tuple[str, int], Found]:
    """Every result of params.yaml's points, by point and seed; on stderr, which of them would be made otherwise now.

    images: the digest of those that the points share, "" where they are not there. Raises UserError, naming file and key,
    for what is no result of that point and seed.
    """
    if not images:
        print("study: without data/images.npz it cannot be told whether the results are of the same images", file=sys.stderr)
    results = {}
    for point, (seeds, stages) in work(params).items():
        for seed in seeds:
            place = root / RESULTS / point / str(seed)
            if any(place.with_suffix(ending).exists() for ending in (".json", ".npz")):
                now = made_with(load_point(root / "params.yaml", point, seed), stages, images)
                found = read_one(place, {key: value for key, value in now.items() if value})
                results[point, seed] = found
                if found.stale:
                    print(f"study: {point}, seed {seed} was made with other {found.stale}", file=sys.stderr)
    return results


def read_controls(root: Path, params: Params, seeds: Sequence[int], images: str) -> list[Found]:
    """What the controls have left with these seeds, as points whose names are the controls' words."""
    results = []
    for (name, control), seed in product(controls.CONTROLS.items(), seeds):
        path = root / controls.RESULTS / name / f"{seed}.json"
        if path.exists():
            how = f"delete it, and `python -m ablation.controls {name} --seed {seed}` makes it anew"
            result = read_json(path, how=how)
            content = flat(result)
            numbers = {key: value for key, value in content.items() if type(value) in (int, float)}
            wanted = ("linear_eval.backbone.top1", "embed.knn.backbone", "embed.knn_standardised.backbone")
            shares = [numbers.get(key, -1) for key in wanted]
            shares += [value for key, value in numbers.items() if key.endswith(".top1") or key.startswith("embed.knn.")]
            good = (content.get("point"), content.get("seed")) == (name, seed) and all(0 <= share <= 1 for share in shares)
            kinds = {"classes": list, "made_with.params.seed": int}
            good = good and set(result) <= CONTROL_KEYS and "stages" not in result.get("made_with", {})
            if not good or any(type(content.get(key)) is not kind for key, kind in kinds.items()):
                raise UserError(f"{path} is no result of the control {name}: {how}")
            now = controls.made_with(name, params.model_copy(update={"seed": seed}), images)
            stale = otherwise(result["made_with"], {key: value for key, value in now.items() if value})
            if stale:
                print(f"study: {name}, seed {seed} was made with other {stale}", file=sys.stderr)
            results.append(Found(control.words, seed, result, numbers, {}, stale))
    return results


def read_one(place: Path, now: dict[str, Any]) -> Found:
    """<place>.json and .npz, and in what they differ from `now`. Raises UserError where they are no such point's."""
    point, seed = place.parent.name, int(place.name)
    how = f"delete it, and `python -m ablation.point {point} --seed {seed}` makes it anew"
    path = place.with_suffix(".json")
    result = read_json(path, how=how)
    every = flat(result).items()
    numbers = {key: value for key, value in every if type(value) in (int, float) and not key.startswith("made_with.")}
    wrong = next(_wrong(result, numbers, point, seed), None)
    arrays = {}
    if not wrong:
        path = place.with_suffix(".npz")
        arrays = read_npz(path, how=how)
        wrong = next(_wrong_arrays(result, numbers, arrays), None)
    if wrong:
        raise UserError(f"{path}: {wrong}: {how}")
    return Found(point, seed, result, numbers, arrays, otherwise(result["made_with"], now))


def _wrong(result: Any, numbers: dict[str, float], point: str, seed: int) -> Iterator[str]:
    """What is wrong with the json of a result."""
    content = flat(result)
    kinds = {
        "point": str,
        "seed": int,
        "classes": list,
        "test_images": int,
        "made_with.stages": list,
    }
    kinds |= {"made_with.images": str, "made_with.params.recipe": str, "made_with.params.method": str}
    kinds |= {"made_with.params.latent_dim": int, "made_with.params.stop_gradient": bool, "pretrain.verdict": str}
    yield from (f"{key} is {content.get(key)!r}" for key, kind in kinds.items() if type(content.get(key)) is not kind)
    made, classes, stages = result["made_with"], result["classes"], result["made_with"]["stages"]
    if (result["point"], result["seed"]) != (point, seed):
        yield f"it is of point {result['point']}, seed {result['seed']}"
    recipe = f"made_with.params.recipes.{made['params']['recipe']}"
    wanted = ["pretrain.epochs"] + ["finetune.space"] * ("finetune" in stages)
    if any(f"{recipe}.{key}" not in content for key in wanted):
        yield "made_with.params has no such recipe"
    for key, names in (("classes", classes), ("made_with.stages", stages)):
        if not names or not all(isinstance(name, str) for name in names):
            yield f"{key} is {names}: it should be names"
    if result["test_images"] < 1:
        yield f"test_images is {result['test_images']}"
    sizes = {"c": len(classes)}
    for stage in stages:
        if not isinstance(result.get(stage), dict):
            yield f"{stage} is {result.get(stage, 'missing')!r}, though made_with.stages has it"
        mass = MASS if stage == "explain" and "mass" in result[stage] else ()
        wanted = [f"{stage}.{key}" for key in (*NUMBERS.get(stage, ()), *mass)]
        yield from (f"{key} is {content.get(key, 'missing')!r}" for key in wanted if key not in numbers)
        for key, axes in LISTS.get(stage, {}).items():
            if _shape(content.get(f"{stage}.{key}"), axes, sizes) is None:
                yield f"{stage}.{key} is not {' x '.join(str(sizes.get(axis, 'some')) for axis in axes)} numbers"
    for key, value in numbers.items():
        parts = set(key.split("."))
        for words, (low, high) in LIMITS:
            if words & parts and "settings" not in parts and not low <= value <= high:
                yield f"{key} is {value}: it should be from {low} to {high}"


def _wrong_arrays(result: dict[str, Any], numbers: dict[str, float], arrays: Arrays) -> Iterator[str]:
    """What is wrong with the npz of a result."""
    count, sizes = result["test_images"], {"c": len(result["classes"]), "b": -(-result["test_images"] // 8), "3": 3}
    for stage in result["made_with"]["stages"]:
        for name, axes in ARRAYS.get(stage, {}).items():
            if (array := _shape(arrays.get(name), axes, sizes)) is None:
                yield f"{name} is not finite numbers in the shape that goes with the others"
            elif name.startswith("right_"):
                key = f"{stage}.top1" if stage == "finetune" else f"{stage}.{name.removeprefix('right_')}.top1"
                if array.dtype != np.uint8 or abs(np.unpackbits(array, count=count).mean() - numbers[key]) > 1e-6:
                    yield f"{name} is not what {key} is the mean of: the two files are of two runs"
            elif name in ("maps_label", "shap_labels", "shap_shown") and not 0 <= array.min() <= array.max() < sizes["c"]:
                yield f"{name} is not numbers of {sizes['c']} classes"
    for name, axes in SOME.items():
        if name in arrays and _shape(_blank(arrays[name]) if name == "curve_knn" else arrays[name], axes, sizes) is None:
            yield f"{name} is not finite numbers in the shape that goes with the others"


def _machine(made: Any) -> str:
    """A machine in words."""
    known, words = flat(made), {"device": "{}", "threads": "{:.0f} threads", "versions.torch": "torch {}"}
    return ", ".join(text.format(known[key]) for key, text in words.items() if key in known)


def _blank(array: NDArray[Any]) -> NDArray[Any]:
    """Floats with 0 where there is none."""
    return np.where(np.isnan(array), 0, array) if array.dtype.kind == "f" else array


def _shape(values: Any, axes: str, sizes: dict[str, int]) -> NDArray[Any] | None:
    """Values as an array, if it has these axes, of which each letter has one size; else None."""
    try:
        array = np.asarray(values)
    except ValueError:  # ragged
        return None
    good = array.dtype.kind in "iuf" and array.size > 0 and np.isfinite(array).all() and array.ndim == len(axes)
    return array if good and all(sizes.setdefault(axis, n) == n for axis, n in zip(axes, array.shape, strict=True)) else None


def otherwise(made: dict[str, Any], now: dict[str, Any]) -> str:
    """In what a result was made otherwise than `now` says, in words, or "": params (which and how), stages, code, images."""
    words = [key for key in now if made.get(key) != now[key]]
    if "params" in words:
        was, is_ = flat(made["params"]), flat(now["params"])
        keys = [key for key in was | is_ if was.get(key) != is_.get(key)]
        said = [f"{key}: {was.get(key)}, now {is_.get(key)}" for key in keys[:2]] + ["..."] * (len(keys) > 2)
        words[words.index("params")] = f"params ({', '.join(said)})"
    return ", ".join(words)


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested dictionary, and lists of dictionaries, by keys with dots."""
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found

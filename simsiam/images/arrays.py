"""Arrays of images and labels -> an image set; and anyone's arrays or pictures -> the npz that `data.source` takes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from simsiam.errors import Unusable
from simsiam.files import write_npz
from simsiam.images import ORDER, TEST, TRAIN, UNLABELLED, ImageSet, Labels, Pixels, distinct_texts, numbered
from simsiam.images.pictures import as_seen, squared, usual_size

Part = tuple[Any, Any]  # images and labels


def save_arrays(
    path: str | Path,
    train: Part,
    test: Part | None = None,
    unlabelled: Any = None,
    classes: Sequence[str] | None = None,
    mirrors: bool = True,
) -> None:
    """Write images that lie in no folder, such as another library's data set, as an npz for `data.source`.

    train, test: images and labels. Images are uint8 (N, H, W), (N, H, W, 1) or (N, H, W, 3), or N PIL images of any sizes,
    which become squares (at most 64 pixels; resize them yourself for more). Labels are N numbers or names, -1 for none, or
    None for no labels at all. Without test images, `data.test_share` of the training images are.
    unlabelled: images for pretraining only. mirrors: False where a mirrored image is another thing, as a digit's is.

    Raises ValueError, which says what is wrong, before anything is written.
    """
    arrays = {"x_train": train[0], "y_train": train[1], "x_unlabelled": unlabelled}
    if test is not None:
        arrays |= {"x_test": test[0], "y_test": test[1]}
    size = usual_size(min(each.size) for each in train[0]) if _are_pictures(train[0]) else 0
    for name, array in arrays.items():
        if name.startswith("x") and array is not None and _are_pictures(array):
            arrays[name] = np.stack([np.asarray(squared(as_seen(each), size, "crop")) for each in array])
    arrays |= {"classes": None if classes is None else np.array(classes, str), "mirrors": mirrors}
    given = {name: np.asarray(array) for name, array in arrays.items() if array is not None}
    from_npz(given, 0.2, 0)
    write_npz(Path(path), **given)


def _are_pictures(images: Any) -> bool:
    return len(images) > 0 and isinstance(images[0], Image.Image)


def from_npz(arrays: Mapping[str, NDArray[Any]], test_share: float, seed: int) -> ImageSet:
    """The set of the arrays that `save_arrays` writes, still of any height and width. Raises Unusable."""
    classes, mirrors = arrays.get("classes"), arrays.get("mirrors", np.array(True))
    if classes is not None and not distinct_texts(classes):
        raise Unusable(
            f"has classes of shape {classes.shape} and type {classes.dtype}: they should be texts, each another one"
        )
    if mirrors.shape or mirrors.dtype != bool:
        raise Unusable(f"has mirrors of shape {mirrors.shape} and type {mirrors.dtype}: it should be one bool")
    return gathered(
        (arrays["x_train"], arrays.get("y_train")),
        (arrays["x_test"], arrays.get("y_test")) if "x_test" in arrays else None,
        arrays.get("x_unlabelled"),
        None if classes is None else classes.tolist(),
        test_share,
        seed,
        bool(mirrors),
    )


def gathered(
    train: Part,
    test: Part | None,
    unlabelled: Any,
    classes: Sequence[str] | None,
    test_share: float,
    seed: int,
    mirrors: bool = True,
) -> ImageSet:
    """The set of these images, still (N, H, W, 1 or 3) and of any height and width. Raises Unusable.

    Of a set with labels, training images without one are for pretraining only. Without `classes` they are the labels.
    """
    parts = {"train": train, "unlabelled": (unlabelled, None), "test": test or (None, None)}
    images = {name: _pixels(name, part[0]) for name, part in parts.items() if part[0] is not None}
    if len(shapes := {array.shape[1:] for array in images.values()}) > 1:
        raise Unusable(f"has images of several shapes, {' and '.join(map(str, sorted(shapes)))}: make them one")
    counts = {name: len(array) for name, array in images.items()}
    labels, names = _codes({name: parts[name][1] for name in images}, counts, classes)
    split = np.repeat(
        np.array([{"train": TRAIN, "test": TEST}.get(name, UNLABELLED) for name in counts], np.uint8), [*counts.values()]
    )
    if names:
        split[(split == TRAIN) & (labels < 0)] = UNLABELLED
    if test is None:
        hold_out(labels, split, test_share, seed)
    check_counts(labels, split, names)
    order = np.argsort(ORDER[split], kind="stable")
    where = numbered(**counts)
    every = np.concatenate([*images.values()])
    return ImageSet(
        every if (np.diff(order) > 0).all() else every[order],  # without a copy where they lie in order
        labels[order],
        split[order],
        names,
        tuple(where[n] for n in order),
        mirrors,
    )


def _pixels(name: str, images: Any) -> Pixels:
    array = np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or not array.size:
        raise Unusable(
            f"has {name} images of shape {np.shape(images)} and type {array.dtype}: they should be (images, height, width), "
            "or that with 1 or 3 colours at the end, of type uint8"
        )
    return array


def _codes(
    given: Mapping[str, Any], counts: Mapping[str, int], classes: Sequence[str] | None
) -> tuple[Labels, tuple[str, ...]]:
    """All labels as numbers of the classes, and those; -1 where there is none."""
    found = {name: np.asarray(labels) for name, labels in given.items() if labels is not None}
    if not found:
        return np.full(sum(counts.values()), -1), ()
    if missing := [name for name in given if name not in found and name != "unlabelled"]:
        raise Unusable(f"has no labels for its {missing[0]} images, but for the others")
    for name, labels in found.items():
        if labels.shape not in ((counts[name],), (counts[name], 1)) or labels.dtype.kind not in "iubU":
            raise Unusable(
                f"has {name} labels of shape {labels.shape} and type {labels.dtype} for {counts[name]} images: there should "
                "be one number or name for each"
            )
    every = np.concatenate([labels.ravel() for labels in found.values()])
    values = np.unique(every[every != "-1"] if every.dtype.kind == "U" else every[every >= 0])
    if classes is not None:
        if values.dtype.kind == "U" or (len(values) and values[-1] >= len(classes)):
            raise Unusable(f"has the label {values[-1]}, and {len(classes)} classes, which are numbered from 0")
        values = np.arange(len(classes))
    places = {value: n for n, value in enumerate(values.tolist())}
    codes = np.full(sum(counts.values()), -1)
    has = np.repeat([name in found for name in counts], [*counts.values()])
    codes[has] = [places.get(value, -1) for value in every.tolist()]
    return codes, tuple(map(str, places if classes is None else classes))


def hold_out(labels: Labels, split: Pixels, share: float, seed: int) -> None:
    """Make a share of the training images, of every class, test images: at least one, of images without classes two, but
    two are left for training."""
    generator = np.random.default_rng(seed)
    for label in np.unique(labels[split == TRAIN]):
        members = np.flatnonzero((labels == label) & (split == TRAIN))
        count = max(1 if label >= 0 else 2, min(round(share * len(members)), len(members) - 2))
        split[generator.permutation(members)[:count]] = TEST


def check_counts(labels: Labels, split: Pixels, classes: Sequence[str]) -> None:
    """Raises Unusable where there is too little of a class to train and to test on."""
    if len(classes) == 1:
        raise Unusable(f"has one class only, {classes[0]}: two or more are needed, or images without any classes")
    if classes and (labels[split == TEST] < 0).any():
        raise Unusable("has test images without a label")
    if classes and (labels[split == TRAIN] < 0).any():
        raise Unusable("has training images without a label: mark them as unlabelled")
    for label, of in [(n, f" of class {name}") for n, name in enumerate(classes)] or [(-1, "")]:
        train, test = (int(((labels == label) & (split == part)).sum()) for part in (TRAIN, TEST))
        least = 1 if classes else 2  # two in all
        if train < 2 or test < least:
            has = f"{train} for training and {test} for testing" if train + test > 2 else f"{train + test} in all"
            raise Unusable(
                f"has too few images{of}, {has}: training needs two at least, and testing {('one', 'two')[least - 1]}"
            )

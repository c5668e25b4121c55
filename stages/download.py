"""Fetch CIFAR-10, verify it and keep it as arrays: python -m stages.download"""

import shutil
import sys
from pathlib import Path

from simsiam.data import wrong_arrays
from simsiam.errors import UserError
from simsiam.fetch import fetch
from simsiam.files import write_npz
from simsiam.params import Params
from stages.common import Metrics, main


def download(params: Params, root: Path) -> Metrics:
    """Write data/cifar10.npz. Nothing is written unless all four arrays are CIFAR-10's, bit for bit."""
    scratch = root / "data/.download"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        arrays, used = fetch(params.data.source, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if wrong := wrong_arrays(arrays):
        raise UserError(
            f"download: {', '.join(wrong)} from {used} is not CIFAR-10's (SHA-256 differs); nothing was written: "
            "try another data.source"
        )
    write_npz(root / "data/cifar10.npz", **arrays)
    print(f"download: 60,000 images from {used}, verified", file=sys.stderr)
    return {"source": used}


if __name__ == "__main__":
    main(download)

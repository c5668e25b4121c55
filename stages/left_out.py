"""What stages that need labels leave where the images have none."""

import sys
from pathlib import Path

from simsiam.checkpoint import save_weights
from simsiam.files import write_csv, write_npz
from stages.common import Metrics

REASON = "the images have no labels"


def left_out(stage: str, root: Path, *outs: str) -> Metrics:
    """Write empty outs, as DVC wants every one of them, and say so; the stage's metrics."""
    for path in (root / out for out in outs):
        if path.suffix == ".npz":
            write_npz(path)
        elif path.suffix == ".pt":
            save_weights(path, {})
        else:
            write_csv(path, [{"epoch": 0}])
    print(f"{stage}: left out, as {REASON}", file=sys.stderr)
    return {"left_out": REASON}

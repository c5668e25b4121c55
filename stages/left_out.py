"""What stages that need labels leave where the images have none."""

import io
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from simsiam.checkpoint import save_weights
from simsiam.files import write_bytes, write_csv, write_npz
from stages.common import Metrics

REASON = "the images have no labels"


def left_out(stage: str, root: Path, *outs: str) -> Metrics:
    """Write empty outs, as DVC wants every one of them, and say so; the stage's metrics."""
    for path in (root / out for out in outs):
        if path.suffix == ".npz":
            write_npz(path)
        elif path.suffix == ".pt":
            save_weights(path, {})
        elif path.suffix == ".csv":
            write_csv(path, [{"epoch": 0}])
        else:
            picture, buffer = Image.new("RGB", (600, 60), "white"), io.BytesIO()
            ImageDraw.Draw(picture).text((20, 24), f"{path.stem} is left out: {REASON}", fill="black")
            picture.save(buffer, "PNG")
            write_bytes(path, buffer.getvalue())
    print(f"{stage}: left out, as {REASON}", file=sys.stderr)
    return {"left_out": REASON}

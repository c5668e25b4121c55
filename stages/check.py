"""Refuse a bad params.yaml before anything is computed, and say what each stage's code is: python -m stages.check

DVC sees neither an unknown key, nor what Python imports, nor the user's images. This stage always runs; every other stage
depends on the digest that it writes, which changes with the code that the stage imports but not with a comment, and download
on data/source.txt, which changes with the names, sizes and times of the files that the images are in.
"""

from pathlib import Path

from simsiam import code
from simsiam.errors import UserError
from simsiam.files import write_text
from simsiam.images.sources import fingerprint
from simsiam.methods import check_all
from simsiam.methods.every import METHODS
from simsiam.settings import Params, load_point
from stages.common import main

STAGES = ("download", "look", "pretrain", "embed", "linear_eval", "finetune", "project", "explain", "report")


def check(params: Params, root: Path) -> None:
    """Write data/code/<stage>.txt, once params.yaml, and every point of its `ablation`, is found good."""
    check_all(params)
    for name in params.ablation.rates:
        if name not in METHODS:
            raise UserError(f"params.yaml: unknown key ablation.rates.{name}: there are {', '.join(METHODS)}")
    for name in params.ablation.points:
        point = load_point(Path("params.yaml"), name)
        try:
            check_all(point)
        except UserError as error:
            raise UserError(f"{error} (at ablation.points.{name})") from None
    write_text(root / "data/source.txt", fingerprint(params.data, params.seed) + "\n")
    for stage in STAGES:
        write_text(root / f"data/code/{stage}.txt", code.digest(f"stages.{stage}", method=params.method) + "\n")


if __name__ == "__main__":
    main(check)

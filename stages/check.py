"""Refuse a bad params.yaml before anything is computed: python -m stages.check

Every stage checks all of params.yaml. This one is there for an unknown recipe, which would otherwise meet DVC first: the
parameters of pretrain are those of the chosen recipe, and DVC does not say which recipes there are.
"""

from pathlib import Path

from simsiam.files import write_text
from simsiam.params import Params
from stages.common import main


def check(params: Params, root: Path) -> None:
    """Write the recipe's name to data/recipe; by then params.yaml has been read and found good."""
    write_text(root / "data/recipe", params.recipe + "\n")


if __name__ == "__main__":
    main(check)

"""Put every point of the grid on DVC's queue, to run several at a time: python -m ablation.enqueue"""

import subprocess
from pathlib import Path

from ablation.study import grid_points, target
from simsiam.params import Params
from stages.common import main


def enqueue(params: Params, root: Path) -> None:
    """Queue a DVC experiment for each point that `ablation` in params.yaml names.

    `dvc queue start` then runs them. What they compute is in DVC's cache, from where `dvc repro ablation/dvc.yaml` takes it.
    """
    for recipe in params.ablation.recipe:
        for point in grid_points(params.ablation):
            subprocess.run(["dvc", "exp", "run", "--queue", target(recipe, *point)], cwd=root, check=True)


if __name__ == "__main__":
    main(enqueue)

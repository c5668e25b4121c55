"""Put every point of the grid on DVC's queue, to run several at a time: python -m ablation.enqueue"""

import subprocess
from pathlib import Path

from ablation.study import grid_points, target
from simsiam.errors import UserError
from simsiam.params import Params
from stages.common import main


def enqueue(params: Params, root: Path) -> None:
    """Queue a DVC experiment for each point that `ablation` in params.yaml names.

    `dvc queue start` then runs them. What they compute is in DVC's cache, from where `dvc repro ablation/dvc.yaml` takes it.
    """
    for recipe in params.ablation.recipe:
        for point in grid_points(params.ablation):
            name = target(recipe, *point)
            if subprocess.run(["dvc", "exp", "run", "--queue", name], cwd=root).returncode != 0:
                raise UserError(f"dvc could not queue {name}: see above; `dvc queue status` shows what is queued")


if __name__ == "__main__":
    main(enqueue)

"""What the checkpoint store holds, and a way to free it: python -m stages.checkpoints [--free]"""

import re
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from simsiam.checkpoint import free as free_training
from simsiam.checkpoint import store_folder, trainings
from simsiam.errors import UserError
from simsiam.files import Busy, read_json
from stages.common import plainly


def checkpoints(root: Path, *, free: bool) -> None:
    """Print a line for each training in the store; `free` deletes those not running now, so that they start anew."""
    folder, total, freed = store_folder(root), 0, 0
    for training in trainings(root):
        files = [file for file in training.iterdir() if file.is_file()]
        newest = max((file.stat().st_mtime for file in files), default=0)
        steps = [int(found[1]) for file in files if (found := re.match(r"(\d+)-\w+\.pt$", file.name))]
        size = sum(file.stat().st_size for file in files)
        total += size
        try:
            words = describe(read_json(training / "settings.json"))
        except (UserError, KeyError, TypeError, AttributeError):
            words = "of unknown settings"
        print(
            f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(newest))}  {size / 1e6:8.1f} MB  "
            f"{training.relative_to(folder)}  step {max(steps, default=0)}  {words}"
        )
        if free:
            try:
                free_training(training)
                freed += size
            except Busy:
                print(f"{training.name} is left as it is: it is being trained")
            except OSError as error:
                print(f"{training.name} cannot be deleted: {error}")
    print(f"{folder}: {total / 1e6:.1f} MB" + (f", of which {freed / 1e6:.1f} MB are now freed" if free else ""))


def describe(identity: dict[str, Any]) -> str:
    """What distinguishes one training from another at a glance."""
    options, training = identity.get("options", {}), identity["training"]
    shown = {"method": identity.get("method"), "d": identity["encoder"]["latent_dim"]}
    shown |= {"stop_gradient": options.get("stop_gradient")}
    shown |= {"images": identity.get("of"), "from": identity.get("start", "")[:8] or None}  # of a fine-tuning
    shown |= {name: identity[name] for name in ("lr", "seed")} | {name: training[name] for name in ("epochs", "batch_size")}
    return "  ".join(f"{name} {value}" for name, value in shown.items() if value is not None)


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m stages.checkpoints", description=checkpoints.__doc__)
    parser.add_argument("--free", action="store_true", help="delete them all")
    options = parser.parse_args()
    with plainly("checkpoints"):
        checkpoints(Path(), free=options.free)

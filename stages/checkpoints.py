"""What the checkpoint store holds, and a way to free it: python -m stages.checkpoints [--free]"""

import fcntl
import re
import shutil
import time
from argparse import ArgumentParser
from pathlib import Path

from simsiam.checkpoint import store_folder
from simsiam.errors import UserError
from simsiam.files import read_json


def checkpoints(root: Path, *, free: bool) -> None:
    """Print a line for each training in the store; `free` deletes those not running now, so that they start anew."""
    folder, total, freed = store_folder(root), 0, 0
    for training in sorted((path for path in folder.glob("*/*") if path.is_dir()), key=lambda path: path.stat().st_mtime):
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
                with (training / "lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(training)
                freed += size
            except BlockingIOError:
                print(f"{training.name} is left as it is: it is being trained")
            except OSError as error:
                print(f"{training.name} cannot be deleted: {error}")
    print(f"{folder}: {total / 1e6:.1f} MB" + (f", of which {freed / 1e6:.1f} MB are now freed" if free else ""))


def describe(settings: dict[str, dict[str, float]]) -> str:
    """What distinguishes one training from another at a glance."""
    training = settings["training"]
    shown = {"d": settings.get("encoder", {}).get("latent_dim"), "stop_gradient": settings.get("stop_gradient")}
    shown |= {name: settings.get(name) for name in ("share", "start")}  # of few labels
    shown |= {"lr": settings.get("lr", training["lr"])} | {name: training[name] for name in ("epochs", "batch_size", "seed")}
    return "  ".join(f"{name} {value}" for name, value in shown.items() if value is not None)


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m stages.checkpoints", description=checkpoints.__doc__)
    parser.add_argument("--free", action="store_true", help="delete them all")
    checkpoints(Path(), **vars(parser.parse_args()))

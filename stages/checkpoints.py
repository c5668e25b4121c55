"""What the checkpoint store holds, and a way to free it: python -m stages.checkpoints [--free]"""

import fcntl
import shutil
import time
from argparse import ArgumentParser
from pathlib import Path

from simsiam.checkpoint import store_folder
from simsiam.files import read_json


def checkpoints(root: Path, *, free: bool) -> None:
    """Print a line for each training in the store; `free` deletes those not running now, so that they start anew."""
    folder, total = store_folder(root), 0
    busy = []
    for settings in sorted(folder.glob("*/*/settings.json"), key=lambda path: path.stat().st_mtime):
        files = [file for file in settings.parent.iterdir() if file.is_file()]
        newest = max(file.stat().st_mtime for file in files)
        step = max((int(file.name.split("-")[0]) for file in files if file.suffix == ".pt"), default=0)
        size = sum(file.stat().st_size for file in files)
        total += size
        print(
            f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(newest))}  {size / 1e6:8.1f} MB  "
            f"{settings.parent.relative_to(folder)}  step {step}  {describe(read_json(settings))}"
        )
        if free:
            with (settings.parent / "lock").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(settings.parent)
                except BlockingIOError:
                    busy.append(settings.parent.name)
    print(f"{folder}: {total / 1e6:.1f} MB{', now freed' if free else ''}")
    if busy:
        print(f"{', '.join(busy)} left as it is: it is being trained")


def describe(settings: dict[str, dict[str, float]]) -> str:
    """What distinguishes one training from another at a glance."""
    training = settings["training"]
    shown = {"d": settings.get("encoder", {}).get("latent_dim"), "stop_gradient": settings.get("stop_gradient")}
    shown |= {"lr": settings.get("lr", training["lr"])} | {name: training[name] for name in ("epochs", "batch_size", "seed")}
    return "  ".join(f"{name} {value}" for name, value in shown.items() if value is not None)


if __name__ == "__main__":
    parser = ArgumentParser(prog="python -m stages.checkpoints", description=checkpoints.__doc__)
    parser.add_argument("--free", action="store_true", help="delete them all")
    checkpoints(Path(), **vars(parser.parse_args()))

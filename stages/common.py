"""What every stage does: read params.yaml, run one function, write its metrics, and speak plainly when it cannot."""

import os
import signal
import sys
import threading
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from simsiam import images
from simsiam.errors import UserError
from simsiam.files import write_json
from simsiam.images import ImageSet
from simsiam.machine import machine
from simsiam.settings import Params, load

Metrics = dict[str, Any]
Stage = Callable[..., Metrics | None]  # takes the params and the folder to read from and write to


def main(stage: Stage, *, resumes: bool = False, joins: bool = False) -> None:
    """Run a stage for the folder `--root`, with the params.yaml of the current folder and what is changed of it.

    resumes: the stage goes on from checkpoints, and takes `fresh` to forget them. joins: `torchrun` may start several of it.
    """
    name = stage.__name__
    parser = ArgumentParser(prog=f"python -m stages.{name}", description=stage.__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="folder to read from and write to (default: this one)")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="instead of what params.yaml says: latent_dim=32")
    if resumes:
        parser.add_argument("--fresh", action="store_true", help="train anew, forgetting this training's checkpoints")
    options = vars(parser.parse_args())
    root, changes = options.pop("root"), options.pop("changes")
    with plainly(name):
        if not joins:
            alone(name)
        run(stage, load(Path("params.yaml"), changes), root, **options)


def alone(name: str) -> None:
    """Raises UserError where `torchrun` started several of this program: they would wait for each other for ever."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{name} is for one process: run it without torchrun")


def run(stage: Stage, params: Params, root: Path, **options: Any) -> None:
    """Run a stage, and write its metrics, with what they were computed on, to reports/metrics/<stage>.json."""
    started = time.monotonic()
    metrics = stage(params, root, **options)
    if metrics is not None:
        # DVC's tables show numbers and texts but no lists: so the record of the run is a list of one.
        metrics["run"] = [{"seconds": round(time.monotonic() - started, 1)} | machine()]
        write_json(root / f"reports/metrics/{stage.__name__}.json", {stage.__name__: metrics})


class plainly:
    """A program in which a fault of the user's, or of the disk, is one line on stderr and a non-zero exit status.

    Checkpoints go to the current folder's store whatever the root, unless DVC says where the repository is. A program that
    DVC started stops when DVC has gone (`dvc queue stop --kill` does not tell it).
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        os.environ.setdefault("DVC_ROOT", str(Path.cwd()))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._stop)  # a training has a handler of its own, which saves first
        if "DVC_STAGE" in os.environ:
            threading.Thread(target=_stop_without, args=[_starter()], daemon=True).start()

    def _stop(self, number: int, frame: object) -> None:
        print(f"error: {self.name}: stopped", file=sys.stderr)
        sys.exit(128 + number)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError):
            line, status = str(error), getattr(error, "exit_code", 1)
        elif isinstance(error, KeyboardInterrupt):
            line, status = f"{self.name}: stopped", 130
        elif isinstance(error, OSError):  # no permission, a folder where a file should be
            line, status = f"{self.name}: {error}", 1
        elif isinstance(error, MemoryError):
            line, status = f"{self.name}: not enough memory: {error or 'try a smaller model, or fewer images'}", 1
        else:
            return
        print(f"error: {' '.join(line.splitlines())}", file=sys.stderr)
        sys.exit(status)


def load_images(root: Path) -> ImageSet:
    """The images of a folder, or of the current one where that has none of its own."""
    own = root / "data/images.npz"
    return images.load(own if own.exists() else Path("data/images.npz"))


def _starter() -> psutil.Process | None:
    """The process that started this one, seen through the shell that some systems keep between the two."""
    parent = psutil.Process().parent()
    if parent and parent.cmdline()[-2:-1] == ["-c"] and "python" in parent.cmdline()[-1]:
        return parent.parent()
    return parent


def _stop_without(starter: psutil.Process | None) -> None:
    """Stop this process, as Ctrl-C would, when the process that started it has gone."""
    while starter and starter.is_running() and starter.status() != psutil.STATUS_ZOMBIE:
        time.sleep(1)
    print("DVC has gone: stopping", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGTERM)

"""What every stage does: read params.yaml, run one function, write its metrics, and speak plainly when it cannot."""

import os
import sys
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from simsiam.errors import UserError
from simsiam.files import write_json
from simsiam.machine import machine
from simsiam.params import load

Metrics = dict[str, Any]
Stage = Callable[..., Metrics | None]  # takes the params and the repository's root


def main(stage: Stage, *, resumes: bool = False, joins: bool = False) -> None:
    """Run a stage for the folder `--root`, with the params.yaml of the current folder and what is changed of it.

    A UserError ends it in one line on stderr and a non-zero exit status.

    resumes: the stage goes on from checkpoints, and takes `fresh` to forget them. joins: `torchrun` may start several of it.
    """
    name = stage.__name__
    module = f"{Path(sys.argv[0]).parent.name}.{name}"
    parser = ArgumentParser(prog=f"python -m {module}", description=stage.__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="folder to read from and write to (default: this one)")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="instead of what params.yaml says: latent_dim=32")
    if resumes:
        parser.add_argument(
            "--fresh", action="store_true", help="train anew, forgetting the checkpoints of this very training"
        )
    options = vars(parser.parse_args())
    root, changes = options.pop("root"), options.pop("changes")
    os.environ.setdefault("DVC_ROOT", str(Path.cwd()))  # every root of this repository shares its checkpoints
    try:
        if not joins and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(f"{name} is for one process: run it without torchrun")
        params = load(Path("params.yaml"), changes)
        share_data(root)
        started = time.monotonic()
        metrics = stage(params, root, **options)
        if metrics is not None:
            # DVC's tables show numbers and texts but no lists: so the record of the run is a list of one.
            metrics["run"] = [{"seconds": round(time.monotonic() - started, 1)} | machine()]
            write_json(root / f"reports/metrics/{name}.json", {name: metrics})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except OSError as error:  # no permission, no space, a folder where a file should be
        print(f"error: {name}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        sys.exit(130)


def share_data(root: Path) -> None:
    """Link another root's data/cifar10.npz to the one of the current folder, unless it has its own."""
    link, target = root / "data/cifar10.npz", Path("data/cifar10.npz").absolute()
    if link.exists() or link.parent.resolve() == target.parent.resolve():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():  # to nothing
        link.unlink(missing_ok=True)
    with suppress(FileExistsError):  # another process of the same training was first
        link.symlink_to(os.path.relpath(target, link.parent.resolve()))

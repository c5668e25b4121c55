"""A repository of its own with this code, in which 500 images are CIFAR-10 and everything is small."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from simsiam.files import read_npz, sha256
from simsiam.images.cifar10 import SHA256
from tests.some import SMALL

ROOT = Path(__file__).parent.parent


def environment() -> dict[str, str]:
    """Of a process that finds this Python's programs, and whom git lets commit."""
    changes = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    changes |= {name: "test" for name in ("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME")}
    changes |= {name: "test@localhost" for name in ("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL")}
    # These would let a clone's programs import this repository's code instead of their own.
    others = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONHOME", "DVC_ROOT", "DVC_STAGE")
    return {name: value for name, value in os.environ.items() if name not in others} | changes


def run(*command: str, at: Path, check: bool = True, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder, and fail with what it printed when it fails, or when it is not done in `timeout` seconds.

    Its output goes to files, not pipes: a daemon that it leaves behind (`dvc queue start`) would hold those open for ever.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        ended = subprocess.run(command, cwd=at, env=environment(), stdout=out, stderr=errors, timeout=timeout)
        out.seek(0), errors.seek(0)
        result = subprocess.CompletedProcess(command, ended.returncode, out.read(), errors.read())
    assert not check or result.returncode == 0, result.stdout + result.stderr
    return result


def processes_in(folder: Path) -> list[int]:
    """Processes whose current folder is inside this one (on Linux)."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if place.readlink().is_relative_to(folder.resolve()):
                found.append(int(place.parent.name))
    return found


def end_processes_in(folder: Path) -> None:
    """Kill what still runs there."""
    for pid in processes_in(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def set_params(clone: Path, **changes: Any) -> None:
    """Change keys of params.yaml; `__` stands for a dot."""
    yaml = YAML()
    content = yaml.load(clone / "params.yaml")
    for key, value in changes.items():
        section = content
        *path, last = key.split("__")
        for part in path:
            section = section[part]
        section[last] = value
    yaml.dump(content, clone / "params.yaml")


def make_clone(clone: Path, *, save_every: float = 60.0) -> None:
    """Make the repository in an empty folder, with one commit."""
    for name in run("git", "ls-files", "-co", "--exclude-standard", at=ROOT).stdout.splitlines():
        result = name.startswith(("reports/", "ablation/results/")) or name.endswith("dvc.lock")
        result = result and name != "reports/study/README.md"
        if (ROOT / name).is_file() and not result:
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, clone / name)
    source = (clone / "simsiam/images/cifar10.py").read_text()
    for name, array in read_npz(SMALL).items():
        source = source.replace(SHA256[name], sha256(array.tobytes()))
    (clone / "simsiam/images/cifar10.py").write_text(source)
    source = (clone / "simsiam/engine.py").read_text()
    assert "SAVE_EVERY = 60.0" in source
    (clone / "simsiam/engine.py").write_text(source.replace("SAVE_EVERY = 60.0", f"SAVE_EVERY = {save_every}"))
    set_params(
        clone,
        data__source=str(SMALL),
        embed__queries=[0, 5],
        linear_eval__held_out=50,
        linear_eval__few_labels=[0.25],
        linear_eval__draws=2,
        project__points=100,
        explain__images=[0, 1, 2, 3, 4],
        explain__background=10,
        recipes__laptop__model__width=8,
        recipes__laptop__pretrain__epochs=2,
        recipes__laptop__pretrain__min_steps=0,
        recipes__laptop__finetune__min_steps=0,
        recipes__laptop__pretrain__batch_size=64,
        recipes__laptop__finetune__epochs=2,
        recipes__laptop__finetune__batch_size=64,
        recipes__laptop__finetune__lr=[0.05, 0.2],
        recipes__base__finetune__held_out=50,
        ablation__points={"d8": {"latent_dim": 8}},  # of which stage check reads each anew
        ablation__studies={"dimension": {"points": ["d8"], "seeds": [0], "stages": ["pretrain"]}},
    )
    run("git", "init", "-q", "-b", "main", at=clone)
    run("git", "add", "--all", at=clone)
    run("git", "commit", "-qm", "start", at=clone)

"""Kill pretraining with SIGKILL at random moments, again and again, and see that nothing was lost: python -m tests.soak

For `dvc repro` and for `dvc exp run`, in a small repository of its own: the command is started, killed with all its
children at a random moment of its training, and started again. In the end the encoder has to be bit-identical to one
whose training was never disturbed. Checkpoints are written ten times a second, so that some kills meet one half written.
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from pathlib import Path

from simsiam.files import sha256_file
from tests.clones import environment, make_clone, run, set_params

COMMANDS = {
    "dvc repro": ["dvc", "repro", "pretrain"],
    "dvc exp run": ["dvc", "exp", "run", "-S", "latent_dim=4", "pretrain"],
}


def soak(name: str, command: list[str], kills: int, chance: random.Random, folder: Path) -> bool:
    """Kill a command `kills` times and let it finish; whether its encoder is that of an undisturbed training."""
    make_clone(folder, save_every=0.1)
    set_params(folder, latent_dim=4, recipes__laptop__pretrain__epochs=100)
    run("git", "commit", "-qam", "longer", at=folder)
    run("dvc", "repro", "download", at=folder)
    run("git", "commit", "-qam", "data", at=folder)
    run("python", "-m", "stages.pretrain", "--fresh", at=folder)
    expected = sha256_file(folder / "models/encoder.pt")
    run("python", "-m", "stages.checkpoints", "--free", at=folder)
    run("git", "checkout", "--force", ".", at=folder)
    (folder / "models/encoder.pt").unlink()

    steps: list[int] = []  # that each kill left
    number = 0
    while True:
        before, number = newest(folder), number + 1
        with tempfile.TemporaryFile("w+") as output:
            with subprocess.Popen(
                command, cwd=folder, env=environment(), start_new_session=True, stdout=output, stderr=subprocess.STDOUT
            ) as process:
                while len(steps) < kills and process.poll() is None and newest(folder) == before:
                    time.sleep(0.01)
                if len(steps) < kills and process.poll() is None:
                    time.sleep(chance.uniform(0, 1.0))  # anywhere in a step, a save, or the end
                    os.killpg(process.pid, signal.SIGKILL)
            output.seek(0)
            text = output.read()
        killed = process.returncode == -signal.SIGKILL
        found = re.search(r"going on from step (\d+)", text)
        print(f"{name}: start {number}: {found[0] if found else 'from the beginning'}; ", end="")
        print(f"killed after step {newest(folder)}" if killed else f"ended with {process.returncode}", flush=True)
        if "exp" in command:  # a killed experiment leaves git on no branch
            run("git", "checkout", "--force", "main", at=folder)
        if number > 1:
            assert found and int(found[1]) == before, f"it did not go on from step {before}:\n{text}"
        if not killed:
            break
        steps.append(newest(folder))
    assert process.returncode == 0, text
    same = sha256_file(folder / "models/encoder.pt") == expected
    leftovers = len(list((folder / ".checkpoints").rglob("*.tmp")))
    print(f"{name}: killed {len(steps)} times; {leftovers} half-written files left; ", end="")
    print("the encoder is bit-identical" if same else "THE ENCODER DIFFERS", flush=True)
    return same and len(steps) == kills and leftovers == 0


def newest(folder: Path) -> int:
    """The step of the newest checkpoint, 0 when there is none."""
    return max((int(path.name.split("-")[0]) for path in (folder / ".checkpoints").glob("*/*/*.pt")), default=0)


def main() -> None:
    """Soak both commands."""
    parser = ArgumentParser(prog="python -m tests.soak", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of each command (default: 10)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the moments (default: the clock's)")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        good = [
            soak(name, command, options.kills, chance, Path(folder) / name.replace(" ", "_"))
            for name, command in COMMANDS.items()
        ]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()

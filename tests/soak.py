"""Kill pretraining with SIGKILL at random moments, again and again, and see that nothing was lost: python -m tests.soak

For `dvc repro` and for `dvc exp run`, in a small repository of its own: the command is started, killed with all its
children after a random time, and started again. In the end the encoder has to be bit-identical to one whose training was
never disturbed. Checkpoints are written ten times a second, so that many kills meet one that is half written.
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
STARTING = 6.0  # seconds at least before a kill: DVC and torch have started by then, or nearly


def soak(name: str, command: list[str], kills: int, chance: random.Random, folder: Path) -> bool:
    """Kill a command `kills` times and let it finish; whether its encoder is that of an undisturbed training."""
    make_clone(folder, save_every=0.1)
    set_params(folder, latent_dim=4, recipes__laptop__pretrain__epochs=600)
    run("git", "commit", "-qam", "longer", at=folder)
    run("dvc", "repro", "download", at=folder)
    run("git", "commit", "-qam", "data", at=folder)
    undisturbed = run("python", "-m", "stages.pretrain", "--fresh", at=folder)
    assert "going on" not in undisturbed.stderr
    expected = sha256_file(folder / "models/encoder.pt")
    run("python", "-m", "stages.checkpoints", "--free", at=folder)
    run("git", "checkout", "--force", ".", at=folder)
    (folder / "models/encoder.pt").unlink()

    resumed: list[int] = []
    for number in range(kills + 1):
        wait = chance.uniform(STARTING, STARTING + 4) if number < kills else None
        with tempfile.TemporaryFile("w+") as output:
            with subprocess.Popen(
                command, cwd=folder, env=environment(), start_new_session=True, stdout=output, stderr=subprocess.STDOUT
            ) as process:
                try:
                    process.wait(wait)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
            output.seek(0)
            text = output.read()
        found = re.search(r"going on from step (\d+)", text)
        resumed += [int(found[1])] if found else []
        print(f"{name}: start {number + 1}: {found[0] if found else 'from the beginning'}, ", end="")
        print(f"killed after {wait:.1f} s" if process.returncode == -signal.SIGKILL else f"ended with {process.returncode}")
        if process.returncode not in (0, -signal.SIGKILL):
            print(text)
            return False
        if "exp" in command:  # a killed experiment leaves git on no branch
            run("git", "checkout", "--force", "main", at=folder)
    leftovers = [str(path) for path in (folder / ".checkpoints").rglob("*.tmp")]
    same = sha256_file(next((folder / "models").glob("encoder.pt"))) == expected
    print(f"{name}: resumed {len(resumed)} times of {kills}; {len(leftovers)} half-written files left; ", end="")
    print("the encoder is bit-identical" if same else "THE ENCODER DIFFERS")
    return same and resumed == sorted(resumed) and len(resumed) > 0


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

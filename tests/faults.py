"""Let every write, fsync and rename of every stage fail once, and see that nothing is lost: python -m tests.faults

In a small repository of its own, a stage runs under strace, which says what it asks of the disk. Then it is run once for
each of these calls (the first, the middle and the last of many alike) with that one failing. Each time it has to end with
a status other than 0 and one line of error; every output has to be the old one or the new one, whole; no scratch file may
be left; and the same command has to work afterwards. The last is tried once for each state that a failure left behind.
"""

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from argparse import ArgumentParser, RawTextHelpFormatter
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from simsiam.files import sha256, sha256_file
from tests.clones import ROOT, environment, make_clone

LIMIT = 300  # seconds that a stage may take
# What fails, and how. Of openat only what may create a file.
CALLS = {
    "openat": "ENOSPC",
    "mkdir": "ENOSPC",
    "symlink": "ENOSPC",
    "write": "ENOSPC",
    "pwrite64": "ENOSPC",
    "writev": "ENOSPC",
    "ftruncate": "EIO",
    "fsync": "EIO",
    "fdatasync": "EIO",
    "rename": "EIO",
    "renameat": "EIO",
    "renameat2": "EIO",
    "link": "EIO",
}
OLD = b'{"old": true}\n'
TEXTS = {".csv", ".html", ".json", ".md", ".txt", ".yaml"}  # may hold times
# A stage as `python -m` starts it, in which scratch files have the same names and everything takes the same time in every
# run; the libraries imported first keep the true time. What it puts in place is kept in a folder, if one is named.
STAGE = """
import itertools, os, queue, runpy, secrets, shutil, subprocess, sys, threading, time
ticks = itertools.count()
time.monotonic = lambda: float(next(ticks))
stage, versions = sys.argv[1:]
del sys.argv[1:]
if versions:
    replace, number = os.replace, itertools.count()
    os.replace = lambda source, target: (
        shutil.copy(source, f"{versions}/{next(number)}{os.path.splitext(target)[1]}"), replace(source, target)
    )
count = itertools.count()
secrets.token_hex = lambda size=8: f"{next(count):0{2 * size}x}"
runpy.run_module(stage, run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Call:
    """A system call on a file of the repository, the `nth` of its kind on that file."""

    name: str
    path: str  # of the file that it makes or changes, relative to the repository
    given: str  # the path that strace sees first, with CLONE for the repository's
    nth: int

    def __str__(self) -> str:
        return f"{self.name} {self.path}" + (f" ({self.nth})" if self.nth > 1 else "")


def stages() -> list[str]:
    """The modules of dvc.yaml's stages, in its order, which is one that they can run in."""
    commands = [stage["cmd"] for stage in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"].values() if "cmd" in stage]
    return [found[1] for command in commands if (found := re.fullmatch(r"python -m (\S+)", command))]


def run(stage: str, clone: Path, *strace: str, versions: Path | str = "") -> subprocess.CompletedProcess[str]:
    """Run a stage, under strace with these options if there are any. `versions` gets all that it puts in place."""
    command = [sys.executable, "-c", STAGE, stage, str(versions)]
    if strace:
        command = [
            "strace",
            "--seccomp-bpf",
            "-f",
            "-qq",
            "-y",
            "-s",
            "0",
            "-e",
            "signal=none",
            "-o",
            f"{clone}.trace",
            *strace,
            *command,
        ]
    quiet = environment() | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    quiet.pop("DVC_ROOT", None)
    with subprocess.Popen(
        command, cwd=clone, env=quiet, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, errors = process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, errors = process.communicate()
            errors += f"\nit was killed after {LIMIT} seconds"
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def calls(stage: str, clone: Path) -> list[Call]:
    """What a run of the stage asks of the disk for the repository's files."""
    result = run(stage, clone, "-e", f"trace={','.join(CALLS)}")
    assert result.returncode == 0, result.stderr
    found: list[Call] = []
    seen: Counter[tuple[str, str]] = Counter()
    for line in Path(f"{clone}.trace").read_text().splitlines():
        if not (match := re.match(r"\d+ +(\w+)\((.*)", line)) or match[1] not in CALLS:
            continue
        name, rest = match[1], match[2]
        opened = re.match(r"\d+<([^>]*)>", rest)
        paths = [opened[1]] if opened else re.findall(r'"([^"]*)"', rest)
        place = Path(os.path.normpath(clone / paths[-1]))
        if not place.is_relative_to(clone) or (opened and not paths[0].startswith("/")):  # not the repository's, or a pipe
            continue
        if (name == "openat" and "O_CREAT" not in rest) or "EEXIST" in rest:  # it makes nothing
            continue
        given = paths[0].replace(str(clone), "CLONE")
        seen[name, given] += 1
        found.append(Call(name, str(place.relative_to(clone)), given, seen[name, given]))
    return found


def sample(found: list[Call]) -> list[Call]:
    """The first, the middle and the last of the calls that differ in a number or a digest only."""
    groups: dict[tuple[str, str], list[Call]] = {}
    for call in found:
        groups.setdefault((call.name, re.sub(r"[0-9a-f]{8,}", "*", call.path)), []).append(call)
    chosen = {alike[place] for alike in groups.values() for place in (0, len(alike) // 2, -1)}
    return [call for call in found if call in chosen]


def copy(source: Path, target: Path) -> None:
    """Make `target` what `source` is."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def content(clone: Path) -> dict[str, str]:
    """A digest of each file that git does not have."""
    files = [path for path in sorted(clone.rglob("*")) if path.is_file() and not {".git", "__pycache__"} & set(path.parts)]
    return {str(path.relative_to(clone)): digest(path) for path in files}


def digest(path: Path) -> str:
    """SHA-256; of texts without the numbers, some of which are times."""
    return sha256(re.sub(rb"[0-9.e+-]+", b"0", path.read_bytes())) if path.suffix in TEXTS else sha256_file(path)


def outputs(found: dict[str, str]) -> dict[str, str]:
    """Of a content what is not in the checkpoint store, where a resumed training does not leave the same."""
    return {name: value for name, value in found.items() if not name.startswith(".checkpoints/")}


def wrong(result: subprocess.CompletedProcess[str], clone: Path, before: dict[str, str], good: set[str]) -> Iterator[str]:
    """What is wrong after a call failed. before: the content of then. good: digests of all that a good run puts in place."""
    if "(INJECTED)" not in Path(f"{clone}.trace").read_text():
        yield "the call was not reached"
        return
    lines = [line for line in re.split(r"[\r\n]+", result.stderr) if line.startswith("error: ")]
    if result.returncode <= 0 or len(lines) != 1 or "Traceback" in result.stderr:
        yield f"it ended with {result.returncode} and said: {result.stderr.strip()[-2000:]}"
    found = content(clone)
    for name, value in found.items():
        if name.endswith((".tmp", ".damaged")):
            yield f"{name} is left"
        elif value != before.get(name) and value not in good:
            yield f"{name} is torn"
    yield from (f"{name} is gone" for name in before if name not in found)


def attack(stage: str, start: Path, folder: Path, jobs: int) -> int:
    """Let each call of a stage fail, from the repository `start`, which then becomes that after it. Count what is wrong."""
    first = folder / "first"
    copy(start, first)
    result = run(stage, first)
    assert result.returncode == 0, f"{stage} does not work:\n{result.stderr}"
    empty, full = content(start), content(first)
    for name in full:  # the outputs are there already, and old
        if full[name] != empty.get(name) and not name.startswith(".checkpoints/"):
            (start / name).parent.mkdir(parents=True, exist_ok=True)
            (start / name).write_bytes(OLD)
    before = content(start)
    traced, versions = folder / "traced", folder / stage
    versions.mkdir()
    copy(start, traced)
    run(stage, traced, versions=versions)
    good = {*content(versions).values(), *content(traced).values()}
    copy(start, traced)
    found = calls(stage, traced)
    chosen = sample(found)
    after = outputs(content(traced))
    print(f"{stage}: {len(chosen)} of {len(found)} calls are to fail", flush=True)

    clones: queue.Queue[Path] = queue.Queue()
    for number in range(jobs):
        clones.put(folder / f"clone{number}")
    recovered: set[str] = set()  # states that the stage was seen to work from
    printing = threading.Lock()
    errors = Counter[str]()

    def fail(call: Call) -> int:
        clone = clones.get()
        try:
            copy(start, clone)
            result = run(
                stage, clone, "-P", call.given.replace("CLONE", str(clone)), "-e", f"trace={call.name}",
                "-e", f"inject={call.name}:error={CALLS[call.name]}:when={call.nth}",
            )  # fmt: skip
            problems = list(wrong(result, clone, before, good))
            state = json.dumps(content(clone))
            if state not in recovered:
                recovered.add(state)
                again, made = run(stage, clone), outputs(content(clone))
                different = [name for name in after.keys() | made.keys() if made.get(name) != after.get(name)]
                if again.returncode or different:
                    problems.append(f"then it ended with {again.returncode}, {different} differ: {again.stderr[-2000:]}")
        finally:
            clones.put(clone)
        with printing:
            lines = [line for line in re.split(r"[\r\n]+", result.stderr) if line.startswith("error: ")]
            errors.update(re.sub(r"(?<=[ '])[^ '(][^ ':]*/[^ ':]*", "PATH", line) for line in lines)
            for problem in problems:
                print(f"WRONG: {stage}: {call} failed: {problem}", flush=True)
        return len(problems)

    with ThreadPoolExecutor(jobs) as pool:
        bad = sum(pool.map(fail, chosen))
    print(f"{stage}: it was seen to work from {len(recovered)} states; {bad} times wrong", flush=True)
    for text, number in errors.items():
        print(f"    {number} x {text}", flush=True)
    copy(first, start)
    return bad


def main() -> None:
    """Attack every stage, or those named."""
    parser = ArgumentParser(prog="python -m tests.faults", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("stages", nargs="*", metavar="stage", help="stages.pretrain (default: all of dvc.yaml)")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        sys.exit("strace is needed; on Debian: apt install strace")
    bad = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        start = folder / "start"
        start.mkdir()
        make_clone(start, save_every=0.0)
        for stage in stages():
            if not options.stages or stage in options.stages:
                bad += attack(stage, start, folder, options.jobs)
            else:
                result = run(stage, start)
                assert result.returncode == 0, f"{stage} does not work:\n{result.stderr}"
    print("every failure was survived" if not bad else f"{bad} TIMES WRONG")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()

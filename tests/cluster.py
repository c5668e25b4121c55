"""Run what docs/cluster.md says, disturb it, and compare: python -m tests.cluster

The blocks of that page are run as they stand there, in small repositories, on a Slurm of two nodes that is started for it
on this machine, for this user alone, and stopped at the end with all that it has started.
"""

import ctypes
import getpass
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawTextHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from simsiam.checkpoint import load_weights
from simsiam.files import read_json, read_npz, sha256_file
from tests.clones import ROOT, make_clone, run, set_params
from tests.soak import newest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "flock", "setpriv")
NEEDS = "apt-get install -y --no-install-recommends slurm-wlm munge"
LOCKS, STUDY, TABLES, TRAIN, REST = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.S)
LIMIT = 900  # seconds that anything may take, on a machine that others use too
EPOCH = 100  # steps, of 4 images
RUNNING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED"}
T = TypeVar("T")

# Names that are addresses resolve everywhere. All listen on the loopback alone, and nobody else can read munge's key.
CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdParameters=config_overrides
SlurmdTimeout=10
MinJobAge=86400
ReturnToService=2
RequeueExit=137
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
MailProg=/bin/true
NodeName=127.0.0.2 NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=127.0.0.3 NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def wait_for(what: str, found: Callable[[], T], seconds: float = LIMIT) -> T:
    """The first value of `found` that is true. Raises TimeoutError, which names `what`."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not in {seconds:.0f} seconds")
        time.sleep(0.1)
    return value


def ask(*command: str) -> list[str]:
    """The lines that a command of Slurm's prints, none where it fails."""
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.splitlines()
    return []


def start(folder: Path, *command: str) -> None:
    """Start one of Slurm's programs, which ends with this one, however that ends."""
    with (folder / "log.txt").open("a") as log:
        command = ("setpriv", "--pdeathsig", "KILL", *command)
        subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)


def ours() -> list[psutil.Process]:
    """All that has been started from here and still runs, with what lost its parent."""
    return [process for process in psutil.Process().children(recursive=True) if process.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A Slurm of the nodes 127.0.0.2 and 127.0.0.3, for the length of the block, with the variables by which it is found."""
    (folder / "state").mkdir(parents=True)
    (folder / "key").touch(0o600)
    (folder / "key").write_bytes(secrets.token_bytes(1024))
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [each.getsockname()[1] for each in sockets]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, user=getpass.getuser(), ports=ports))
    for each in sockets:
        each.close()
    for name in [name for name in os.environ if name.startswith(("SLURM", "SBATCH", "SRUN"))]:
        del os.environ[name]
    os.environ |= {"SLURM_CONF": str(folder / "slurm.conf"), "GLOO_SOCKET_IFNAME": "lo"}
    files = [f"--{name}={folder / name}" for name in ("pid-file", "log-file", "seed-file")]
    try:
        start(folder, "munged", "--foreground", "--force", f"--key-file={folder}/key", *files, f"--socket={folder}/munge")
        wait_for("munged", (folder / "munge").exists, 30)
        start(folder, "slurmctld", "-D")
        for node in ("127.0.0.2", "127.0.0.3"):
            start(folder, "slurmd", "-D", "-N", node)
        wait_for("two idle nodes", lambda: ask("sinfo", "-h", "-N", "-o", "%t") == ["idle", "idle"], 60)
        yield
    except TimeoutError:
        print((folder / "log.txt").read_text()[-5000:], file=sys.stderr)
        raise
    finally:
        ask("scancel", "--user", getpass.getuser())
        with suppress(TimeoutError):
            wait_for("the jobs' end", lambda: not [p for p in ours() if p.name() == "slurmstepd"], 20)
        for process in ours():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        wait_for("the end of all that was started", lambda: not ours(), 30)


def submit(block: str, at: Path) -> str:
    """Run a block that submits a job, and give its number."""
    found = re.search(r"Submitted batch job (\d+)", run("bash", "-euc", block, at=at).stdout)
    assert found
    return found[1]


def states(job: str) -> set[str]:
    """In what states a job is, or the tasks of its array."""
    return set(ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={job}", "--format=%T"))


def end_of(job: str) -> set[str]:
    """Wait until a job has ended, and say how its tasks did."""
    wait_for(f"the end of job {job}", lambda: states(job) and not states(job) & RUNNING)
    return states(job)


def results(clone: Path) -> dict[str, Any]:
    """What the points of a clone have left, but for how long it took and how much memory."""
    taken = {"seconds", "images_per_second", "run", "peak_memory", "curve_seconds"}

    def timeless(content: Any) -> Any:
        if isinstance(content, dict):
            return {key: timeless(value) for key, value in content.items() if key not in taken}
        return [timeless(value) for value in content] if isinstance(content, list) else content

    found = {}
    for path in sorted((clone / "ablation/results").glob("*/*.json")):
        arrays = read_npz(path.with_suffix(".npz"))
        found[path.parent.name] = timeless(read_json(path) | {name: array.tolist() for name, array in arrays.items()})
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Raises AssertionError, which says in what the points differ."""
    differ = [f"{p}: {key}" for p in one.keys() | other.keys() for key in one[p] if one[p].get(key) != other[p].get(key)]
    assert one == other, differ


def weights(clone: Path) -> dict[str, torch.Tensor]:
    """Those that the clone's one pretraining ended with."""
    (training,) = (clone / ".checkpoints/pretrain").iterdir()
    return load_weights(max(training.glob("*.pt")))["module"]


def resumed(output: Path) -> list[int]:
    """The steps that a job went on from, one for each time."""
    return [int(step) for step in re.findall(r"going on from step (\d+) of", output.read_text())] if output.exists() else []


def in_an_epoch(clone: Path) -> bool:
    """Whether the newest checkpoint is from somewhere in the middle of an epoch."""
    return 10 <= newest(clone) % EPOCH <= EPOCH - 40


def disturb(clone: Path, output: Path, interrupt: Callable[[], object]) -> None:
    """Interrupt a training in the middle of an epoch, and wait until it has gone on from there."""

    def once() -> int:
        before, step = len(resumed(output)), newest(clone)
        wait_for("a checkpoint in the middle of an epoch", lambda: newest(clone) > step and in_an_epoch(clone))
        interrupt()
        wait_for("a job that goes on", lambda: len(resumed(output)) > before)
        return resumed(output)[-1]

    while once() % EPOCH == 0:
        print("it was stopped at the end of an epoch: once more", flush=True)


def programs(clone: Path, module: str, **variables: str) -> list[psutil.Process]:
    """The processes that run a module there, those with these variables in their environment."""
    found = []
    for process in ours():
        with suppress(psutil.Error):
            if module in process.cmdline() and Path(process.cwd()) == clone and "python" in process.name():
                if variables.items() <= process.environ().items():
                    found.append(process)
    return found


def kill(processes: list[psutil.Process]) -> None:
    """kill -9."""
    assert processes
    for process in processes:
        process.kill()


def copies(folder: Path, first: Path, *names: str) -> list[Path]:
    """Copies of a clone, with stores of their own."""
    return [Path(shutil.copytree(first, folder / name, symlinks=True)) for name in names]


def study(folder: Path, first: Path) -> None:
    """An array gives what its points give one after the other, and trains once what two of them need."""
    points = {"d8": {"latent_dim": 8}, "d8_head_on_latent": {"latent_dim": 8, "recipes.laptop.finetune.space": "latent"}}
    points["no_stop_gradient"] = {"stop_gradient": False}
    studies = {"some": {"points": list(points), "seeds": [0], "stages": ["pretrain", "embed", "linear_eval", "finetune"]}}
    set_params(first, ablation__points=points, ablation__studies=studies, recipes__laptop__pretrain__epochs=5)
    (alone,) = copies(folder, first, "alone")
    run("python", "-m", "ablation.point", at=alone)
    locks = run("bash", "-euc", LOCKS, at=first, check=False).stderr
    assert locks.count("failed to get lock") == 1, locks
    assert end_of(submit(STUDY, first)) == {"COMPLETED"}
    assert len(results(alone)) == 3
    same(results(first), results(alone))
    told = [(first / f"study-{task}.txt").read_text() for task in (1, 2, 3)]
    waited = ["pretrain: another program is at the same training: waiting for it" in text for text in told]
    assert sorted(waited[:2]) == [False, True] and not waited[2], waited
    assert f"going on from step {5 * EPOCH} of {5 * EPOCH}" in told[waited.index(True)]
    assert len(list((first / ".checkpoints/pretrain").iterdir())) == 2
    print(
        "study: an array of 3 points gave what they give one after the other; 2 that need one training did it once",
        flush=True,
    )

    files = {path: path.stat().st_mtime_ns for path in (first / "ablation/results").rglob("*.*")}
    assert end_of(submit(STUDY, first)) == {"COMPLETED"}
    assert all((first / f"study-{task}.txt").read_text().endswith("code and images\n") for task in (1, 2, 3))
    assert files == {path: path.stat().st_mtime_ns for path in (first / "ablation/results").rglob("*.*")}
    tables = run("bash", "-euc", TABLES, at=first).stderr
    told = [line for line in tables.splitlines() if line.startswith("study some")]
    assert told == ["study some: in reports/study/some/"], tables  # and nothing of missing points or other machines
    print("study: the same array again made nothing anew, and the tables are of all points", flush=True)


def training(folder: Path, first: Path) -> None:
    """Two nodes train what two processes on one node train, also when one is killed and when the job is requeued."""
    set_params(first, recipes__laptop__pretrain__epochs=6)
    (alone,) = copies(folder, first, "one_node")
    run("torchrun", "--standalone", "--nproc-per-node=2", "-m", "stages.pretrain", at=alone)
    output, job = first / "train.txt", submit(TRAIN, first)

    def kill_second() -> None:
        nonlocal job
        kill(programs(first, "stages.pretrain", RANK="1"))
        assert end_of(job) == {"FAILED"}
        job = submit(TRAIN, first)

    disturb(first, output, kill_second)
    refused = run("torchrun", "--standalone", "--nproc-per-node=2", "-m", "stages.pretrain", at=first, check=False).stderr
    assert "error: pretrain: another program is at the same training: wait for its end, or stop it" in refused, refused
    disturb(first, output, lambda: run("scontrol", "requeue", job, at=first))
    assert end_of(job) == {"COMPLETED"}
    assert read_json(first / "reports/metrics/pretrain.json")["pretrain"]["trained"][0]["processes"] == 2
    assert sha256_file(first / "models/encoder.pt") == sha256_file(alone / "models/encoder.pt")
    went_on = ", ".join(map(str, resumed(output)))
    print(
        f"training: two nodes ended with the weights of one; killed and requeued, they went on from steps {went_on}",
        flush=True,
    )

    rest = run("bash", "-euc", REST, at=first).stderr
    assert f"going on from step {6 * EPOCH} of {6 * EPOCH}" in rest, rest
    assert sha256_file(first / "models/encoder.pt") == sha256_file(alone / "models/encoder.pt")
    assert (first / "reports/index.html").exists()
    print("training: dvc repro found it done, and did the rest", flush=True)


def point(folder: Path, first: Path) -> None:
    """A point that is requeued, killed, and whose node dies goes on each time, and ends as an undisturbed one.

    The last: it leaves one node.
    """
    set_params(first, ablation__points={"d8": {"latent_dim": 8}}, recipes__laptop__pretrain__epochs=20)
    set_params(first, ablation__studies={"one": {"points": ["d8"], "seeds": [0], "stages": ["pretrain", "embed"]}})
    alone, limited = copies(folder, first, "undisturbed", "limited")

    set_params(limited, recipes__base__pretrain__compile="never", recipes__laptop__pretrain__epochs=10_000)
    os.environ["SBATCH_TIMELIMIT"] = "1"
    job, output = submit(STUDY, limited), limited / "study-1.txt"
    del os.environ["SBATCH_TIMELIMIT"]
    run("python", "-m", "ablation.point", at=alone)
    assert end_of(job) == {"TIMEOUT"}
    stopped = re.findall(r"stopped at step (\d+) of 1000000, saved", output.read_text())
    assert len(stopped) == 1, output.read_text()
    job = submit(STUDY, limited)
    wait_for(f"job {job} goes on", lambda: resumed(output) == [int(stopped[0])])
    run("scancel", job, at=limited)
    assert end_of(job) == {"CANCELLED"}
    assert len(re.findall(r"stopped at step (\d+) of 1000000, saved", output.read_text())) == 2
    print("point: at its time limit and when cancelled it saved; the same command went on", flush=True)

    job, output = submit(STUDY, first), first / "study-1.txt"

    def node_dies() -> None:
        (node,) = ask("squeue", "--noheader", f"--jobs={job}", "--format=%N")
        slurmds = [process for process in ours() if process.name() == "slurmd" and node in process.cmdline()]
        kill(
            [
                *slurmds,
                *(process for process in ours() if process.name() == "slurmstepd"),
                *programs(first, "ablation.point"),
            ]
        )

    disturb(first, output, lambda: run("scontrol", "requeue", f"{job}_1", at=first))
    disturb(first, output, lambda: kill(programs(first, "ablation.point")))
    disturb(first, output, node_dies)
    assert end_of(job) == {"COMPLETED"}
    mine, expected = weights(first), weights(alone)
    assert mine.keys() == expected.keys() and all(torch.equal(mine[name], expected[name]) for name in expected)
    assert results(alone)
    same(results(first), results(alone))
    went_on = ", ".join(map(str, resumed(output)))
    print(
        f"point: requeued, killed and with its node dead it went on from steps {went_on}; weights and results are those of",
        end="",
    )
    print(" an undisturbed one, bit for bit", flush=True)


def main() -> None:
    """Start Slurm, and prove every promise."""
    parser = ArgumentParser(prog="python -m tests.cluster", description=__doc__, formatter_class=RawTextHelpFormatter)
    parser.parse_args()
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=path)]:
        sys.exit(f"make test-cluster needs Slurm, and there is no {', '.join(missing)}; on Debian: {NEEDS}")
    os.environ |= {"OMP_NUM_THREADS": "1", "PATH": path}
    ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: what Slurm's daemons leave behind is ours, and so is ended
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        first = folder / "first"
        first.mkdir()
        make_clone(first, save_every=0.2)
        set_params(first, recipes__laptop__pretrain__batch_size=4, recipes__laptop__pretrain__lr=0.05)
        set_params(first, recipes__laptop__finetune__lr=[0.1])
        run("dvc", "repro", "download", at=first)
        with slurm(folder / "slurm"):
            for part in (study, training, point):
                (folder / part.__name__).mkdir()
                part(folder / part.__name__, *copies(folder / part.__name__, first, "first"))
    print("all of docs/cluster.md holds here")


if __name__ == "__main__":
    main()

"""The Makefile, with programs that only write down how they were called, and what pyproject.toml says."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = "--constraint requirements.txt --editable .[test]"

# A Python that knows its version and prefix, makes environments with a copy of itself, and installs uv.
PYTHON = """#!/bin/sh
echo "python $*" >> "$LOG"
case "$*" in
    *"assert (3, 11) <= "*) [ "{version}" = "3 10" ] || echo "{home}/python3";;
    *_base_executable*) echo "{home}/python3";;
    *base_prefix*) echo "{version} {home}";;
    -V) echo "Python {version}";;
    "-m venv .venv") [ -z "$NO_VENV" ] && mkdir -p .venv/bin && cp "$0" .venv/bin/python && cp "$TOOLS"/* .venv/bin/;;
    *"uv=="*) [ -z "$NO_UV" ] && cp "$UV" .venv/bin/uv;;
    "-m pip install --constraint"*) [ -z "$NO_PIP" ];;
esac
"""
TOOL = """#!/bin/sh
echo "${0##*/} $* PIP_USER=$PIP_USER PIP_TARGET=$PIP_TARGET" \\
    "PYTHONHOME=$PYTHONHOME PYTHONPATH=$PYTHONPATH PYTHONSAFEPATH=$PYTHONSAFEPATH" >> "$LOG"
"""
# Fails where the index of torch's CPU build cannot be reached, or nothing can be installed.
UV = """#!/bin/sh
echo "uv $* backend=$UV_TORCH_BACKEND" >> "$LOG"
case "$*" in
    *--dry-run*) [ -n "$CPU_INDEX" ];;
    *) [ -z "$UV_FAILS" ];;
esac
"""


def write_program(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    path.chmod(0o755)


class Clone:
    """A folder with the Makefile, and what its programs were called with."""

    def __init__(self, folder: Path) -> None:
        self.at = folder / "a clone"
        self.bin = folder / "bin"
        self.log = folder / "log"
        for name, version in {"python3": "3 11", "python3.12": "3 12", "python3.10": "3 10"}.items():
            home = folder / f"homes/{name}"
            write_program(home / "python3", PYTHON.format(version=version, home=home))
            self.bin.mkdir(exist_ok=True)
            (self.bin / name).symlink_to(home / "python3")
        write_program(folder / "tools/dvc", TOOL)
        write_program(folder / "uv", UV)
        self.environment = {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(folder),
            "LOG": str(self.log),
            "TOOLS": str(folder / "tools"),
            "UV": str(folder / "uv"),
        }
        self.at.mkdir()
        for name in ("Makefile", "requirements.txt"):
            shutil.copy(ROOT / name, self.at / name)
        self.run("git", "init", "-q", at=self.at)

    def run(self, *command: str, at: Path, **changes: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | changes
        return subprocess.run(command, cwd=at, env=environment, capture_output=True, text=True, timeout=60)

    def make(self, *words: str, **changes: str) -> str:
        """What make says; afterwards `calls` are those of this run alone."""
        self.log.write_text("")
        result = self.run("make", *words, at=self.at, **changes)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def make_fails(self, *words: str, **changes: str) -> str:
        self.log.write_text("")
        result = self.run("make", *words, at=self.at, **changes)
        assert result.returncode != 0, result.stdout
        return result.stdout + result.stderr

    @property
    def calls(self) -> str:
        return self.log.read_text()

    def made(self) -> bool:
        """Did the last run make the environment?"""
        return "python -m venv .venv" in self.calls


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def tree(folder: Path) -> Mapping[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder that somebody else made."""
    folder = tmp_path / "shared/env"
    write_program(folder / "bin/python", "#!/bin/sh\n")
    (folder / "thesis.txt").write_text("years of work")
    return folder


def test_make_alone_prints_the_targets(clone: Clone) -> None:
    targets = ["repro", "test", "bench", "soak", "test-cluster", "clean-checkpoints"]
    assert [line.split()[1] for line in clone.make().splitlines()] == targets
    assert not (clone.at / ".venv").exists()


def test_repro_sets_up_once_and_runs_the_pipeline(clone: Clone) -> None:
    said = clone.make("repro")
    assert "reports/index.html" in said
    assert clone.made()
    assert f"uv pip install --python .venv/bin/python {PACKAGES}" in clone.calls
    assert "dvc repro" in clone.calls
    os.utime(clone.at / "requirements.txt")  # a checkout touches files; what is in them counts
    clone.make("repro")
    assert not clone.made() and "pip install" not in clone.calls and "dvc repro" in clone.calls


def test_a_venv_of_the_users_own_is_left_alone(clone: Clone, precious: Path) -> None:
    precious.rename(clone.at / ".venv")
    before = tree(clone.at / ".venv")
    said = clone.make_fails("repro")
    assert "mv .venv other" in said and "pip install" in said
    assert tree(clone.at / ".venv") == before and not clone.made()


def test_a_link_is_never_emptied(clone: Clone, precious: Path) -> None:
    (clone.at / ".venv").symlink_to(precious)
    before = tree(precious)
    assert "left alone" in clone.make_fails("repro")
    (precious / "installed").write_text("another clone made it\n")
    before = tree(precious)
    assert "left alone" in clone.make_fails("PYTHON=python3.12", "repro")
    assert tree(precious) == before and not clone.made()


def test_an_empty_folder_is_filled_through_a_link(clone: Clone, tmp_path: Path) -> None:
    """Who has a small home keeps the environment elsewhere."""
    (tmp_path / "big disk").mkdir()
    (clone.at / ".venv").symlink_to(tmp_path / "big disk")
    clone.make("repro")
    assert (tmp_path / "big disk/bin/uv").exists()
    clone.make("repro")
    assert not clone.made()


def test_a_moved_clone_is_set_up_anew(clone: Clone, tmp_path: Path) -> None:
    """The programs in .venv/bin name their Python by its absolute path."""
    clone.make("repro")
    (clone.at / ".venv/bin/old").touch()
    clone.at = clone.at.rename(tmp_path / "moved")
    clone.make("repro")
    assert clone.made() and not (clone.at / ".venv/bin/old").exists()
    clone.make("repro")
    assert not clone.made()


def test_another_lock_is_set_up_anew(clone: Clone) -> None:
    clone.make("repro")
    (clone.at / "requirements.txt").write_text("six==1.17.0\n")
    clone.make("repro")
    assert clone.made()


def test_python_says_which(clone: Clone) -> None:
    clone.make("repro")
    clone.make("PYTHON=python3.12", "repro")
    assert clone.made()
    for words in (["repro"], ["repro", "PYTHON=python3.12"]):
        clone.make(*words)
        assert not clone.made()
    clone.make("repro", PYTHON="python3")
    assert clone.made()


@pytest.mark.parametrize(("python", "reason"), [("python3.10", "python3.10 is Python 3 10"), ("python9", "not found")])
def test_a_wrong_python_is_named_and_costs_nothing(clone: Clone, python: str, reason: str) -> None:
    clone.make("repro")
    before = tree(clone.at / ".venv")
    said = clone.make_fails(f"PYTHON={python}", "repro")
    assert "Python 3.11, 3.12 or 3.13 is needed" in said and reason in said
    assert tree(clone.at / ".venv") == before


def test_a_venv_whose_python_is_gone_is_set_up_anew(clone: Clone) -> None:
    clone.make("repro")
    (clone.at / ".venv/bin/python").unlink()
    clone.make("repro")
    assert clone.made()


def test_an_installation_that_failed_is_done_again(clone: Clone) -> None:
    said = clone.make_fails("repro", UV_FAILS="1", NO_PIP="1")
    hint = [line for line in said.splitlines() if "could not be installed" in line]
    assert len(hint) == 1 and "PIP_INDEX_URL" in hint[0] and "dvc repro" not in clone.calls
    clone.make("repro")
    assert clone.made()


def test_without_venv_make_says_what_to_install(clone: Clone) -> None:
    said = clone.make_fails("repro", NO_VENV="1")
    assert "apt install python3-venv" in said and "could not be installed" not in said
    clone.make("repro")


@pytest.mark.parametrize("fault", ["NO_UV", "UV_FAILS"])
def test_pip_does_what_uv_cannot(clone: Clone, fault: str) -> None:
    clone.make("repro", **{fault: "1"})
    assert f"python -m pip install {PACKAGES}" in clone.calls and "dvc repro" in clone.calls


def test_settings_of_the_user_do_not_reach_the_environment(clone: Clone) -> None:
    clone.make("repro", PIP_USER="1", PIP_TARGET="1", PYTHONHOME="1", PYTHONPATH="1", PYTHONSAFEPATH="1")
    assert "dvc repro PIP_USER=0 PIP_TARGET= PYTHONHOME= PYTHONPATH= PYTHONSAFEPATH=\n" in clone.calls


no_gpu = pytest.mark.skipif(
    Path("/proc/driver/nvidia").exists() or sys.platform != "linux", reason="a machine without NVIDIA"
)


@no_gpu
@pytest.mark.parametrize(
    ("index", "backend"), [("reached", "cpu"), ("", "")], ids=["its index is reached", "its index is not reached"]
)
def test_without_a_gpu_torch_is_the_small_build(clone: Clone, index: str, backend: str) -> None:
    clone.make("repro", CPU_INDEX=index)
    assert f"{PACKAGES} backend={backend}\n" in clone.calls
    assert "dvc repro" in clone.calls


@pytest.mark.parametrize("chosen", [None, "cu126"])
def test_a_gpu_or_a_choice_of_the_user_decides_the_build_of_torch(clone: Clone, chosen: str | None) -> None:
    if chosen is None:
        write_program(clone.bin / "nvidia-smi", TOOL)
    clone.make("repro", CPU_INDEX="reached", **({"UV_TORCH_BACKEND": chosen} if chosen else {}))
    assert f"{PACKAGES} backend={chosen or ''}\n" in clone.calls and "--dry-run" not in clone.calls


@no_gpu
def test_a_gpu_replaces_the_small_build(clone: Clone) -> None:
    clone.make("repro", CPU_INDEX="reached")
    (clone.at / ".venv/lib/python3.11/site-packages/torch-2.14.1+cpu.dist-info").mkdir(parents=True)
    clone.make("repro")
    assert not clone.made()
    write_program(clone.bin / "nvidia-smi", TOOL)
    clone.make("repro", UV_TORCH_BACKEND="cpu")
    assert not clone.made()
    clone.make("repro")
    assert clone.made()


def test_without_git_make_says_why(clone: Clone, tmp_path: Path) -> None:
    shutil.rmtree(clone.at / ".git")
    said = clone.make_fails("repro", GIT_CEILING_DIRECTORIES=str(tmp_path))
    assert "not a git repository" in said and "git init" in said and not clone.made()


def test_a_folder_of_another_repository_will_do(clone: Clone, tmp_path: Path) -> None:
    (clone.at / ".git").rename(tmp_path / ".git")
    clone.make("repro")
    assert "dvc repro" in clone.calls


def test_a_worktree_will_do(clone: Clone, tmp_path: Path) -> None:
    author = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for command in ("add --all", "commit -qm start", "worktree add -q ../worktree"):
        assert clone.run("git", *command.split(), at=clone.at, **author).returncode == 0
    clone.at = tmp_path / "worktree"
    assert (clone.at / ".git").is_file()
    clone.make("repro")
    assert "dvc repro" in clone.calls


# pyproject.toml and the lock

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
OURS = ("ablation", "simsiam", "stages")
NAMES = {"PIL": "pillow", "ruamel": "ruamel.yaml", "sklearn": "scikit-learn"}


def imported(folder: str) -> set[str]:
    """The packages that the code in a folder imports, by the names they are installed by."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules = [node.module]
            found |= {module.split(".")[0] for module in modules}
    return {NAMES.get(name, name) for name in found - sys.stdlib_module_names - {*OURS, "tests", "benchmarks"}}


def names(requirements: list[str]) -> set[str]:
    return {requirement.split("==")[0] for requirement in requirements}


def test_what_the_code_imports_is_a_dependency() -> None:
    dependencies = names(PROJECT["project"]["dependencies"])
    for folder in OURS:
        assert imported(folder) <= dependencies
    test = PROJECT["project"]["optional-dependencies"]["test"]
    assert imported("tests") <= dependencies | names(test)


def test_pins_are_those_of_the_lock() -> None:
    lock = {line.split(" ;")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()}
    extra = PROJECT["project"]["optional-dependencies"]["test"]
    assert {pin.replace(".yaml", "-yaml") for pin in PROJECT["project"]["dependencies"] + extra} <= lock


def test_every_folder_with_code_is_installed() -> None:
    """By `pip install -e .` alone: setuptools takes the folders that have an __init__.py and that a pattern names."""
    patterns = SETUPTOOLS["packages"]["find"]["include"]
    for folder in {path.parent for name in OURS for path in (ROOT / name).rglob("*.py")}:
        assert (folder / "__init__.py").exists()
        assert any(fnmatch(".".join(folder.relative_to(ROOT).parts), pattern) for pattern in patterns)


def test_what_the_code_reads_beside_it_is_installed() -> None:
    for name in ("report.html.j2", "published.csv"):
        assert [path for folder in OURS for path in (ROOT / folder).rglob(name)]
        assert any(fnmatch(name, pattern) for pattern in SETUPTOOLS["package-data"]["*"])

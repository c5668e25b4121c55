"""What `make test-cluster` says where there is no Slurm, and that what it runs is shell. The rest is its own."""

import shutil
import subprocess
import sys

import pytest

from tests import cluster


def test_it_says_in_one_line_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cluster"])
    monkeypatch.setattr(shutil, "which", lambda name, path: None if name == "slurmctld" else name)
    with pytest.raises(SystemExit, match=r"^make test-cluster needs Slurm, .* no slurmctld; on Debian: apt-get .*munge$"):
        cluster.main()


@pytest.mark.parametrize("block", [cluster.LOCKS, cluster.STUDY, cluster.TABLES, cluster.TRAIN, cluster.REST])
def test_the_page_s_blocks_are_shell(block: str) -> None:
    assert subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True).stderr == ""
    for script in block.split("<<'END'\n")[1:]:
        first, *lines = script.removesuffix("END\n").splitlines()
        assert first == "#!/bin/bash"
        options = [line.startswith("#SBATCH ") for line in lines]
        assert any(options) and options == sorted(options, reverse=True)  # Slurm reads none after the first command
        assert subprocess.run(["bash", "-n"], input="\n".join(lines), text=True, capture_output=True).stderr == ""

"""Two processes that train together on the CPU, against one process that does the same sums."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Generator

from simsiam import engine
from simsiam.engine import train
from simsiam.errors import UserError
from simsiam.models import Encoder, SimSiam
from simsiam.schedule import cosine
from simsiam.seeds import derive
from tests import two_processes
from tests.two_processes import ENCODER, IMAGES, SETTINGS, loss_of

ROOT = Path(__file__).parent.parent


def torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "tests/two_processes.py", str(folder), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_two_processes_take_the_steps_of_one_with_both_shares(tmp_path: Path) -> None:
    """BatchNorm sees a share at a time, and its running statistics are those of the first share."""
    result = torchrun(tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))

    model = SimSiam(Encoder(ENCODER), 16).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    losses, indices = [], []
    for step in range(10):
        optimizer.param_groups[0]["lr"] = 0.4 * 40 / 256 * cosine(step, 10)
        epoch, number = divmod(step, 5)
        order = torch.randperm(200, generator=Generator().manual_seed(derive(0, 0, epoch)))
        shares = order[number * 40 : (number + 1) * 40].split(20)
        generators = [Generator().manual_seed(derive(0, 1, step, rank)) for rank in (0, 1)]
        loss0, _ = loss_of(model, shares[0], generators[0])
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        loss1, _ = loss_of(model, shares[1], generators[1])
        loss = (loss0 + loss1) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
        losses.append(loss.item())
        indices.append(float(shares[0].sum() + shares[1].sum()) / 2)

    for name, expected in model.state_dict().items():
        torch.testing.assert_close(first["model"][name], expected, atol=1e-9, rtol=1e-9, msg=name)
    for name, _ in model.named_parameters():
        assert torch.equal(first["model"][name], second["model"][name]), f"the processes differ in {name}"
    assert first["records"] == second["records"]
    assert [record["loss"] for record in first["records"]] == pytest.approx(
        [sum(losses[:5]) / 5, sum(losses[5:]) / 5], abs=1e-6
    )
    assert [record["indices"] for record in first["records"]] == [sum(indices[:5]) / 5, sum(indices[5:]) / 5]


def test_a_failing_process_ends_the_run_and_another_number_of_processes_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    result = torchrun(tmp_path, "7")
    assert result.returncode != 0 and "process 1 fails" in result.stderr
    assert time.monotonic() - started < 60  # it does not wait for the ten minutes of a process that stopped answering
    assert not list(tmp_path.glob("rank*.pt"))

    before = (engine.SAVE_EVERY, engine.LOOK_EVERY)
    records = two_processes.fit(SimSiam(Encoder(ENCODER), 16).double(), tmp_path).records
    engine.SAVE_EVERY, engine.LOOK_EVERY = before
    assert "going on from step 6 of 10" in capsys.readouterr().err
    assert [record["step"] for record in records] == [5, 10]
    a_step = sum(range(200)) / 5
    assert records[0]["indices"] == a_step / 2  # of two processes, with half a batch each
    assert a_step / 2 < records[1]["indices"] < a_step  # of one, but for the first step


def test_a_batch_that_cannot_be_shared_evenly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.parallel.size", lambda: 3)
    model = SimSiam(Encoder(ENCODER), 16)
    with pytest.raises(UserError, match="batch_size is 40, which 3 processes cannot share evenly"):
        train(model, loss_of, examples=len(IMAGES), settings=SETTINGS, device=torch.device("cpu"), name="x")

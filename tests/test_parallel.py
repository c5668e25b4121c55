"""Two processes that train together on the CPU, against one process that does the same sums."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from simsiam import engine, parallel
from simsiam.engine import train
from simsiam.errors import UserError
from simsiam.methods.every import METHODS
from simsiam.schedule import cosine
from simsiam.seeds import derive
from tests import some_latents, two_processes
from tests.two_processes import IMAGES, LR, SETTINGS, loss_of

ROOT = Path(__file__).parent.parent
LIMIT = 300  # seconds; far under the ten minutes that a process waits for one that has stopped answering


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests/two_processes.py, or `-m` another module, in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", *arguments]
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes) as process:
        try:
            output, errors = process.communicate(timeout=LIMIT)
        except BaseException:
            process.terminate()  # upon which torchrun ends its own
            process.communicate(timeout=60)
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def test_two_processes_take_the_steps_of_one_with_both_shares(tmp_path: Path) -> None:
    """BatchNorm sees a share at a time, and its running statistics are those of the first share."""
    result = torchrun("tests/two_processes.py", str(tmp_path))
    assert result.returncode == 0, result.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))

    model = two_processes.model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    losses, indices = [], []
    for step in range(10):
        optimizer.param_groups[0]["lr"] = LR * 40 / 256 * cosine(step, 10)
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
    shared = [[{name: record[name] for name in ("step", "loss", "indices")} for record in found["records"]]
              for found in (first, second)]  # fmt: skip
    assert shared[0] == shared[1]
    assert [record["loss"] for record in first["records"]] == pytest.approx(
        [sum(losses[:5]) / 5, sum(losses[5:]) / 5], abs=1e-6
    )
    assert [record["indices"] for record in first["records"]] == [sum(indices[:5]) / 5, sum(indices[5:]) / 5]
    # What is dear is watched by one of them.
    assert all(record["watched_by"] == 0 for record in first["records"])
    assert not any("watched_by" in record for record in second["records"])
    assert first["machine"]["processes"] == 2


def test_a_failing_process_ends_the_run_and_another_number_of_processes_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = torchrun("tests/two_processes.py", str(tmp_path), "7")
    assert result.returncode != 0 and "process 1 fails" in result.stderr
    assert not list(tmp_path.glob("rank*.pt"))

    monkeypatch.setattr(engine, "SAVE_EVERY", engine.SAVE_EVERY)  # which `fit` changes
    monkeypatch.setattr(engine, "LOOK_EVERY", engine.LOOK_EVERY)
    records = two_processes.fit(two_processes.model(), tmp_path).records
    assert "going on from step 6 of 10" in capsys.readouterr().err
    assert [record["step"] for record in records] == [5, 10]
    a_step = sum(range(200)) / 5
    assert records[0]["indices"] == a_step / 2  # of two processes, with half a batch each
    assert a_step / 2 < records[1]["indices"] < a_step  # of one, but for the first step


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path: Path) -> None:
    """Of every method, on the same latents: what is compared within a batch, or remembered of it, is of the whole batch."""
    result = torchrun("-m", "tests.some_latents", str(tmp_path / "found.pt"))
    assert result.returncode == 0, result.stderr
    both = torch.load(tmp_path / "found.pt")
    assert set(both) == set(METHODS)
    for name, found in both.items():
        expected = some_latents.loss_and_gradients(name)
        assert set(found) == set(expected) and len(expected) > 1
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=f"{name}: {key}")


@pytest.mark.parametrize("name", ["simclr", "barlow_twins", "vicreg", "swav"])
def test_the_loss_of_a_batch_is_not_the_mean_of_its_halves(name: str) -> None:
    """Else the test above could not fail."""
    method = some_latents.given(name)
    latents = some_latents.latents_for(method)
    halves = [method(*(z.chunk(2)[half] for z in latents))[0].item() for half in (0, 1)]
    assert abs(method(*latents)[0].item() - sum(halves) / 2) > 0.01


def test_a_batch_that_cannot_be_shared_evenly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simsiam.parallel.size", lambda: 3)
    with pytest.raises(UserError, match="batch_size is 40, which 3 processes cannot share evenly"):
        train(
            two_processes.model(),
            loss_of,
            examples=len(IMAGES),
            settings=SETTINGS,
            lr=LR,
            seed=0,
            device=torch.device("cpu"),
            name="x",
        )


def test_one_process_needs_nothing_of_it() -> None:
    module, values = torch.nn.Linear(2, 2), torch.ones(3)
    assert (parallel.rank(), parallel.size()) == (0, 1)
    assert parallel.share(module) is module and parallel.mean(values) is parallel.gathered(values) is values
    assert parallel.any_of(True, torch.device("cpu")) and not parallel.any_of(False, torch.device("cpu"))
    assert parallel.first_alone(lambda: 7) == 7


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert parallel.local_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match="there are 2 GPUs: start at most as many processes"):
        parallel.local_device()

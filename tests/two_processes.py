"""What tests/test_parallel.py starts with torchrun: train a small SimSiam, and save what each process ends with.

torchrun --nproc-per-node=2 tests/two_processes.py FOLDER [FAIL_AT]     FAIL_AT: the step at which process 1 fails
"""

import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from simsiam import engine, parallel
from simsiam.augment import random_views
from simsiam.checkpoint import Store
from simsiam.engine import Record, Result, train
from simsiam.images import to_tensor
from simsiam.methods.simsiam import SimSiam
from simsiam.networks import Encoder
from simsiam.settings import Training
from tests.some import COLOURFUL, SIMSIAM, TINY, but, cifar_500

VIEW = but(COLOURFUL, view_size=16, crop_scale=[0.5, 1.0])
SETTINGS = Training(epochs=2, min_steps=0, batch_size=40, momentum=0.9, weight_decay=5e-4, precision="fp32", compile="never")
LR = 0.4
IMAGES = to_tensor(cifar_500().x_train[:200], torch.device("cpu"))


def model() -> SimSiam:
    """Always the same weights, in double precision."""
    return SimSiam(Encoder(TINY), SIMSIAM).double()


def loss_of(network: nn.Module, batch: Tensor, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """The SimSiam loss of a batch; `indices` is watched, the sum of the batch's."""
    x = IMAGES[batch]
    loss, _ = network(*(view.double() for view in random_views(x, generator, [VIEW, VIEW])))
    return loss, {"indices": batch.sum()}


def fit(model: SimSiam, folder: Path, fail_at: int = -1) -> Result:
    """Train, with a checkpoint at every look and a look at every step."""
    engine.SAVE_EVERY, engine.LOOK_EVERY, calls = -1.0, 1, 0

    def failing(network: nn.Module, batch: Tensor, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        if calls == fail_at and parallel.rank() == 1:
            raise RuntimeError("process 1 fails")
        return loss_of(network, batch, generator)

    def watch(record: Record) -> Record:
        return {"watched_by": float(parallel.rank())}

    return train(
        model,
        failing,
        examples=len(IMAGES),
        settings=SETTINGS,
        lr=LR,
        seed=0,
        device=torch.device("cpu"),
        name="two",
        store_for=lambda identity: nullcontext(Store(folder / "store")),
        watch=watch,
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with parallel.joined(torch.device("cpu")):
        ours = model()
        if parallel.rank() == 1:  # process 0's weights count
            nn.init.ones_(next(ours.predictor.parameters()))
        result = fit(ours, folder, *map(int, sys.argv[2:]))
        found = {"model": ours.state_dict(), "records": result.records, "machine": result.machine}
        torch.save(found, folder / f"rank{parallel.rank()}.pt")

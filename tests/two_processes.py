"""What tests/test_parallel.py starts with torchrun: train a small SimSiam, and save what each process ends with.

torchrun --nproc-per-node=2 tests/two_processes.py FOLDER [FAIL_AT]     FAIL_AT: the step at which process 1 fails
"""

import sys
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from simsiam import engine, parallel
from simsiam.augment import AugmentSettings, random_view
from simsiam.checkpoint import Store
from simsiam.engine import Result, TrainSettings, train
from simsiam.files import read_npz
from simsiam.losses import simsiam_loss
from simsiam.models import Encoder, EncoderSettings, SimSiam

ENCODER = EncoderSettings(8, "strided", 10, 8, "cifar10", 2, 16, True, 3)
VIEW = AugmentSettings(16, (0.5, 1.0), 0.5, (0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.0)
SETTINGS = TrainSettings(epochs=2, batch_size=40, lr=0.4, momentum=0.9, weight_decay=5e-4, seed=0, precision="fp32")
IMAGES = torch.from_numpy(read_npz(Path(__file__).parent / "data/cifar10_500.npz")["x_train"][:200]).permute(0, 3, 1, 2)


def loss_of(network: nn.Module, batch: Tensor, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """The SimSiam loss of a batch, in double precision; `batch` is watched as the sum of its indices."""
    x = IMAGES[batch]
    views = [random_view(x, generator, VIEW).double() for _ in range(2)]
    loss = simsiam_loss(*network(*views))
    return loss, {"indices": batch.sum()}


def fit(model: SimSiam, folder: Path, fail_at: int = -1) -> Result:
    """Train, with a checkpoint at every look and a look at every step."""
    engine.SAVE_EVERY, engine.LOOK_EVERY, calls = 0.0, 1, 0

    def failing(network: nn.Module, batch: Tensor, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        nonlocal calls
        calls += 1
        if calls == fail_at and parallel.rank() == 1:
            raise RuntimeError("process 1 fails")
        return loss_of(network, batch, generator)

    cpu = torch.device("cpu")
    return train(
        model, failing, examples=len(IMAGES), settings=SETTINGS, device=cpu, name="two", store=Store(folder / "store")
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with parallel.joined(torch.device("cpu")):
        model = SimSiam(Encoder(ENCODER), 16).double()
        if parallel.rank() == 1:  # process 0's weights count
            nn.init.ones_(model.predictor[0].weight)  # type: ignore[arg-type]
        result = fit(model, folder, *map(int, sys.argv[2:]))
        torch.save({"model": model.state_dict(), "records": result.records}, folder / f"rank{parallel.rank()}.pt")

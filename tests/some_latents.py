"""Methods whose latents a test gives: the views are the latents, but for one linear map.

torchrun --nproc-per-node=2 -m tests.some_latents FILE     saves what each method's loss and gradients are in two processes
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam import parallel
from simsiam.methods import options
from simsiam.methods.every import METHODS
from simsiam.methods.method import Method
from simsiam.settings import EncoderSettings, load
from tests.some import COLOURFUL, TINY, but, generator

PARAMS = Path(__file__).parent.parent / "params.yaml"
WHOLE = but(TINY, latent_norm=False, hidden_norm=False)  # no BatchNorm, which sees a share of the batch at a time
N, D = 24, TINY.latent_dim


class Given(nn.Module):
    """An encoder whose views are latents (N, d); `map` is the identity."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.map = nn.Parameter(torch.eye(settings.latent_dim))

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        return view, F.linear(view, self.map)


def given(name: str, settings: EncoderSettings = TINY, **changes: Any) -> Any:
    """The method of this name with the settings of params.yaml, with changes, on latents that a test gives."""
    own = options(load(PARAMS, [f"method={name}"]), classes=3)
    return METHODS[name](Given(settings), but(own, **changes))  # type: ignore[arg-type]


def random(n: int = N, d: int = D, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=generator(seed))


def latents_for(method: Method) -> list[Tensor]:
    """As many views as it wants, which agree a little."""
    return [random() + 0.5 * random(seed=1 + view) for view in range(len(method.views(COLOURFUL)))]


def loss_and_gradients(name: str) -> dict[str, Tensor]:
    """Of this process's share of the batch, with gradients averaged over the processes as training has them, and buffers."""
    method = given(name, WHOLE)
    network = parallel.share(method)
    shares = [z.chunk(parallel.size())[parallel.rank()] for z in latents_for(method)]
    labels = (torch.arange(N) % 3).chunk(parallel.size())[parallel.rank()]
    loss, _ = network(*shares, **({"labels": labels} if method.labelled else {}))
    loss.backward()
    found = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
    return found | dict(method.named_buffers()) | {"loss": parallel.mean(loss.detach())}


if __name__ == "__main__":
    with parallel.joined(torch.device("cpu")):
        results = {name: loss_and_gradients(name) for name in METHODS}
        if parallel.rank() == 0:
            torch.save(results, sys.argv[1])

"""SimSiam (Chen & He 2020, arXiv 2011.10566, Algorithm 1): each view's latent is predicted from the other's."""

from typing import Annotated, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from simsiam.networks import Encoder, seeded
from simsiam.seeds import derive
from simsiam.settings import Section

SMALLEST_BOTTLENECK = 32


class SimSiamOptions(Section):
    stop_gradient: bool
    predictor_hidden: Annotated[int, Field(ge=1, le=16_384)] | None  # None: `bottleneck` of the latent
    predictor_lr: Literal["cosine", "constant"]  # constant: section 4.2 of the paper


class SimSiam(nn.Module):
    """An encoder f and a predictor h."""

    Options = SimSiamOptions
    views = 2
    lowest_loss = -1.0

    def __init__(self, encoder: Encoder, options: SimSiamOptions) -> None:
        super().__init__()
        self.encoder = encoder
        self.options = options
        latent_dim = encoder.settings.latent_dim
        with seeded(derive(encoder.settings.seed, 2)):  # another stream than the encoder's
            self.predictor = predictor(latent_dim, options.predictor_hidden or bottleneck(latent_dim))

    @property
    def constant_lr(self) -> nn.Module | None:
        """What keeps the peak learning rate."""
        return self.predictor if self.options.predictor_lr == "constant" else None

    def forward(self, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor]:
        """D(p1, z2)/2 + D(p2, z1)/2, equations 2 and 4: in [-1, 1], and -1 when all predictions are right."""
        z1, z2 = self.encoder(view1)[1], self.encoder(view2)[1]
        p1, p2 = self.predictor(z1), self.predictor(z2)
        loss = (self.distance(p1, z2) + self.distance(p2, z1)) / 2
        return loss, z1.detach()

    def distance(self, p: Tensor, z: Tensor) -> Tensor:
        """D(p, z) of equation 1 for p, z (N, d): the mean of -cos(p, z). With stop-gradient, no gradient flows into z."""
        p, z = p.float(), z.float()
        return -F.cosine_similarity(p, z.detach() if self.options.stop_gradient else z, dim=1).mean()


def predictor(latent_dim: int, hidden: int) -> nn.Sequential:
    """Latent (N, d) -> prediction (N, d) through a bottleneck; no BatchNorm on the output (section 4.4)."""
    return nn.Sequential(
        nn.Linear(latent_dim, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, latent_dim)
    )


def bottleneck(latent_dim: int) -> int:
    """Hidden units of the predictor: d/4 as in the paper's appendix B, but never under 32.

    The paper's d is 2048, where a quarter still makes a wide layer. At d = 2 a quarter is no unit at all, and a few units
    behind BatchNorm and ReLU are easily dead; 32 train at every d from 2 on.
    """
    return max(latent_dim // 4, SMALLEST_BOTTLENECK)

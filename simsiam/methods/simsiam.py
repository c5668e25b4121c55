"""SimSiam (Chen & He 2020, arXiv 2011.10566, Algorithm 1): each view's latent is predicted from the other's.

Its switches take away one by one what is said to keep it from collapsing (their section 4; Tian et al. 2021, arXiv
2102.06810).
"""

import copy
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from simsiam.methods.method import Hidden, Method, MethodOptions, Momentum, follow
from simsiam.networks import Encoder, predictor, seeded
from simsiam.schedule import OwnRate
from simsiam.seeds import derive

SMALLEST_BOTTLENECK = 32


class SimSiamOptions(MethodOptions):
    """predictor: `fixed` stays as it was initialised (section 4.2); `linear` is one matrix (Tian et al., section 3).

    target: what a prediction is compared with. `none` is the other view's latent with its gradient; `ema` the other view's
    latent from a moving average of the encoder.
    """

    stop_gradient: bool  # False: whatever the target is, the gradient flows into the other view's latent
    predictor: Literal["mlp", "none", "fixed", "linear"]
    predictor_hidden: Hidden | None  # None: `bottleneck` of the latent
    predictor_lr: Literal["cosine", "constant"]  # constant: section 4.2
    predictor_lr_times: Annotated[float, Field(gt=0, le=1000)]  # the others' learning rate
    target: Literal["stop_gradient", "none", "ema"]
    target_momentum: Momentum  # of `ema`


class SimSiam(Method):
    """An encoder f and a predictor h."""

    Options = SimSiamOptions
    title = "SimSiam"
    latent_norm = True
    lowest_loss = -1.0
    options: SimSiamOptions

    def __init__(self, encoder: Encoder, options: SimSiamOptions) -> None:
        super().__init__(encoder, options)
        self.stop_gradient = options.stop_gradient and options.target != "none"
        d = encoder.settings.latent_dim
        self.predictor: nn.Module
        with seeded(derive(encoder.settings.seed, 2)):  # another stream than the encoder's
            if options.predictor == "none":
                self.predictor = nn.Identity()
            elif options.predictor == "linear":
                self.predictor = nn.Linear(d, d, bias=False)
            else:
                self.predictor = predictor(d, options.predictor_hidden or bottleneck(d), encoder.settings.hidden_norm)
        self.predictor.requires_grad_(options.predictor != "fixed")
        self.target = copy.deepcopy(encoder).requires_grad_(False) if options.target == "ema" else None

    @property
    def own_rates(self) -> list[OwnRate]:
        return [OwnRate(self.predictor, self.options.predictor_lr_times, self.options.predictor_lr == "constant")]

    def forward(self, *views: Tensor) -> tuple[Tensor, Tensor]:
        """D(p1, z2)/2 + D(p2, z1)/2, equations 2 and 4: in [-1, 1], and -1 when all predictions are right."""
        z1, z2 = (self.encoder(view)[1] for view in views)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        t1, t2 = self.targets(views, (z1, z2))
        loss = (distance(p1, t2) + distance(p2, t1)) / 2
        return loss, z1.detach()

    def targets(self, views: tuple[Tensor, ...], latents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the predictions are compared with: for each view a (N, d), without gradient where it is stopped.

        With a moving average and no stop-gradient, a target is the average's latent in value, and the gradient flows into
        the encoder's own, as if the two were one.
        """
        if self.target is None:
            return tuple(z.detach() for z in latents) if self.stop_gradient else latents
        with torch.no_grad():
            averages = tuple(self.target(view)[1] for view in views)
        if self.stop_gradient:
            return averages
        return tuple(z + (average - z).detach() for z, average in zip(latents, averages, strict=True))

    def after_step(self, done: float) -> None:
        if self.target is not None:
            follow(self.target, self.encoder, self.options.target_momentum)


def distance(p: Tensor, z: Tensor) -> Tensor:
    """D(p, z) of equation 1 for p, z (N, d), computed in float32: the mean of -cos(p, z)."""
    return -F.cosine_similarity(p.float(), z.float(), dim=1).mean()


def bottleneck(latent_dim: int) -> int:
    """Hidden units of the predictor: d/4 as in the paper's appendix B, but never under 32.

    The paper's d is 2048, where a quarter still makes a wide layer. At d = 2 a quarter is no unit at all, and a few units
    behind BatchNorm and ReLU are easily dead; 32 train at every d from 2 on.
    """
    return max(latent_dim // 4, SMALLEST_BOTTLENECK)

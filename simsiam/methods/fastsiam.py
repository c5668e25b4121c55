"""FastSiam (Pototzky, Sultan & Schmidt-Thieme, GCPR 2022): SimSiam with a target that is the mean of several views."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from simsiam.methods.method import Hidden, Method, MethodOptions
from simsiam.methods.simsiam import bottleneck, distance
from simsiam.networks import Encoder, predictor, seeded
from simsiam.schedule import OwnRate
from simsiam.seeds import derive
from simsiam.settings import Augment


class FastSiamOptions(MethodOptions):
    stop_gradient: bool
    views: Annotated[int, Field(ge=2, le=16)]
    predictor_hidden: Hidden | None  # these two: as SimSiam's
    predictor_lr: Literal["cosine", "constant"]


class FastSiam(Method):
    """An encoder and a predictor. With two views it is SimSiam."""

    Options = FastSiamOptions
    title = "FastSiam"
    latent_norm = True
    lowest_loss = -1.0
    options: FastSiamOptions

    def __init__(self, encoder: Encoder, options: FastSiamOptions) -> None:
        super().__init__(encoder, options)
        self.stop_gradient = options.stop_gradient
        d = encoder.settings.latent_dim
        with seeded(derive(encoder.settings.seed, 2)):
            self.predictor = predictor(d, options.predictor_hidden or bottleneck(d), encoder.settings.hidden_norm)

    @property
    def own_rates(self) -> list[OwnRate]:
        return [OwnRate(self.predictor, constant=self.options.predictor_lr == "constant")]

    def views(self, augment: Augment) -> list[Augment]:
        return [augment] * self.options.views

    def forward(self, *views: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over the views of D(p, the mean of the other views' latents): in [-1, 1]."""
        latents = [self.encoder(view)[1] for view in views]
        targets = [z.detach() for z in latents] if self.stop_gradient else latents
        losses = []
        for own, z in enumerate(latents):
            others = [target for view, target in enumerate(targets) if view != own]
            losses.append(distance(self.predictor(z), torch.stack(others).float().mean(0)))
        return torch.stack(losses).mean(), latents[0].detach()

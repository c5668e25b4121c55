"""BYOL (Grill et al. 2020, arXiv 2006.07733): the latent that a slowly moving target gives the other view is predicted."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from simsiam.methods.method import Hidden, Method, MethodOptions, Momentum, follow
from simsiam.networks import Encoder, predictor, seeded
from simsiam.seeds import derive


class BYOLOptions(MethodOptions):
    predictor_hidden: Hidden | None  # None: as many as the projector's, as in the paper's section 3.3
    target_momentum: Momentum  # at the beginning; 1 at the end


class BYOL(Method):
    """An online encoder with a predictor, and a target encoder that is the moving average of the online one."""

    Options = BYOLOptions
    title = "BYOL"
    options: BYOLOptions

    def __init__(self, encoder: Encoder, options: BYOLOptions) -> None:
        super().__init__(encoder, options)
        self.target = copy.deepcopy(encoder).requires_grad_(False)
        settings = encoder.settings
        with seeded(derive(settings.seed, 2)):
            hidden = options.predictor_hidden or settings.projector_hidden
            self.predictor = predictor(settings.latent_dim, hidden, settings.hidden_norm)

    def forward(self, *views: Tensor) -> tuple[Tensor, Tensor]:
        """Equation 2 and the same with the views exchanged: in [0, 8], and 0 when all predictions are right."""
        z1, z2 = (self.encoder(view)[1] for view in views)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        with torch.no_grad():
            t1, t2 = (self.target(view)[1] for view in views)
        return distance(p1, t2) + distance(p2, t1), z1.detach()

    def after_step(self, done: float) -> None:
        """Equation 1, with a momentum that goes to 1 on half a cosine (section 3.3)."""
        momentum = 1 - (1 - self.options.target_momentum) * (math.cos(math.pi * done) + 1) / 2
        follow(self.target, self.encoder, momentum)


def distance(p: Tensor, z: Tensor) -> Tensor:
    """Equation 2 for p, z (N, d), computed in float32: the mean squared distance of the directions, 2 - 2 cos(p, z)."""
    return 2 - 2 * F.cosine_similarity(p.float(), z.float(), dim=1).mean()

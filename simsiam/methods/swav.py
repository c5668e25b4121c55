"""SwAV (Caron et al. 2020, arXiv 2006.09882): the prototypes that one view is assigned to are predicted from another."""

from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from simsiam.methods.method import Method, MethodOptions, Temperature
from simsiam.networks import Encoder, seeded
from simsiam.seeds import derive
from simsiam.settings import Augment, Count, CropScale, Share

SMALLEST_VIEW = 8  # pixels


class SwAVOptions(MethodOptions):
    prototypes: Count
    temperature: Temperature  # tau of equation 2
    epsilon: Temperature  # of equation 3: how evenly a view is shared out
    sinkhorn_rounds: Annotated[int, Field(ge=1, le=1000)]
    frozen: Share  # of the training, at its beginning, in which the prototypes stay as they are
    small_views: Annotated[int, Field(ge=0, le=16)]  # besides the two that are assigned
    small_size: Annotated[float, Field(gt=0, le=1)]  # their side, as a share of the others'
    small_scale: CropScale


class SwAV(Method):
    """Prototypes C (K, d), each of length 1."""

    Options = SwAVOptions
    title = "SwAV"
    options: SwAVOptions
    trains: Tensor

    def __init__(self, encoder: Encoder, options: SwAVOptions) -> None:
        super().__init__(encoder, options)
        with seeded(derive(encoder.settings.seed, 2)):
            self.prototypes = nn.Parameter(F.normalize(torch.randn(options.prototypes, encoder.settings.latent_dim), dim=1))
        self.register_buffer("trains", torch.tensor(float(options.frozen == 0)))  # 0: the prototypes are still frozen

    def views(self, augment: Augment) -> list[Augment]:
        """Two views of the recipe's size, and the small ones (multi-crop, section 3.2)."""
        size = max(SMALLEST_VIEW, round(self.options.small_size * augment.view_size))
        small = augment.model_copy(update={"view_size": size, "crop_scale": self.options.small_scale})
        return [augment, augment] + [small] * self.options.small_views

    def loss(self, *latents: Tensor) -> Tensor:
        """Equations 2 and 6, averaged over the pairs of views as in the authors' code.

        The first two views are assigned, and each is predicted from every other view.
        """
        prototypes = torch.lerp(self.prototypes.detach(), self.prototypes, self.trains)
        scores = [F.normalize(z, dim=1) @ prototypes.T for z in latents]
        with torch.no_grad():
            codes = [sinkhorn(each / self.options.epsilon, self.options.sinkhorn_rounds) for each in scores[:2]]
        predictions = [F.log_softmax(each / self.options.temperature, dim=1) for each in scores]
        pairs = [(q, log_p) for i, q in enumerate(codes) for v, log_p in enumerate(predictions) if v != i]
        return torch.stack([-(q * log_p).sum(1).mean() for q, log_p in pairs]).mean()

    @torch.no_grad()
    def after_step(self, done: float) -> None:
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        self.trains.fill_(float(done >= self.options.frozen))


def sinkhorn(scores: Tensor, rounds: int) -> Tensor:
    """Equations 3 to 5: scores / epsilon (B, K) -> how much of each view goes to each prototype, (B, K).

    Each view is shared out whole, and the more rounds, the more nearly each prototype gets the same, B / K. In logarithms,
    where nothing overflows.
    """
    for _ in range(rounds):
        scores = scores - scores.logsumexp(0, keepdim=True)
        scores = scores - scores.logsumexp(1, keepdim=True)
    return scores.exp()

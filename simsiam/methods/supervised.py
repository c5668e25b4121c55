"""Supervised training on the same views, with the same network and budget: what methods without labels are measured by."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam.methods.method import Method, MethodOptions
from simsiam.networks import Encoder, seeded
from simsiam.seeds import derive


class SupervisedOptions(MethodOptions):
    classes: int  # of the images


class Supervised(Method):
    """A linear classifier on the latent."""

    Options = SupervisedOptions
    title = "supervised training"
    labelled = True

    def __init__(self, encoder: Encoder, options: SupervisedOptions) -> None:
        super().__init__(encoder, options)
        with seeded(derive(encoder.settings.seed, 2)):
            self.head = nn.Linear(encoder.settings.latent_dim, options.classes)

    def forward(self, *views: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The cross-entropy of each view's class, averaged over views and images: log(classes) where nothing is known."""
        latents = [self.encoder(view)[1] for view in views]
        losses = [F.cross_entropy(self.head(z).float(), labels) for z in latents]
        return torch.stack(losses).mean(), latents[0].detach()

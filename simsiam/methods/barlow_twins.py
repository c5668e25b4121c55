"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230): two views' latents correlate, each number with itself alone."""

import torch.nn.functional as F
from torch import Tensor

from simsiam.methods.method import Method, MethodOptions, Weight


class BarlowTwinsOptions(MethodOptions):
    redundancy: Weight  # lambda of equation 1


class BarlowTwins(Method):
    """The cross-correlation of the two views' latents over the batch is to be the identity."""

    Options = BarlowTwinsOptions
    title = "Barlow Twins"
    latent_norm = True  # as their code has it: the loss standardises the latent anyway
    options: BarlowTwinsOptions

    def loss(self, *latents: Tensor) -> Tensor:
        """Equation 1: 0 where both views' latents are equal and their numbers uncorrelated."""
        a, b = (F.batch_norm(z, None, None, training=True) for z in latents)  # mean 0, deviation 1 over the batch
        correlation = a.T @ b / len(a)  # equation 2
        same = correlation.diagonal()
        redundancy = correlation.square().sum() - same.square().sum()
        return (1 - same).square().sum() + self.options.redundancy * redundancy

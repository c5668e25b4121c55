"""SimCLR (Chen, Kornblith, Norouzi & Hinton 2020, arXiv 2002.05709): a view's partner is found among the whole batch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from simsiam.methods.method import Method, MethodOptions, Temperature


class SimCLROptions(MethodOptions):
    temperature: Temperature


class SimCLR(Method):
    """NT-Xent, the normalised temperature-scaled cross-entropy."""

    Options = SimCLROptions
    title = "SimCLR"
    latent_norm = True  # as their code has it, and BYOL's section 3.3 remarks
    options: SimCLROptions

    def loss(self, *latents: Tensor) -> Tensor:
        """Equation 1, averaged over all 2N views as in Algorithm 1: log(2N - 1) where all latents are equal."""
        n = len(latents[0])
        z = F.normalize(torch.cat(latents), dim=1)
        similarities = z @ z.T / self.options.temperature
        itself = torch.eye(2 * n, dtype=torch.bool, device=z.device)
        partners = torch.arange(2 * n, device=z.device).roll(n)
        return F.cross_entropy(similarities.masked_fill(itself, -torch.inf), partners)

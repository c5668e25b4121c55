"""The SimSiam loss and the measure of its collapse (Chen & He 2020, Algorithm 1)."""

import torch.nn.functional as F
from torch import Tensor


def negative_cosine(p: Tensor, z: Tensor, *, stop_gradient: bool = True) -> Tensor:
    """Mean over the batch of -cos(p, z), in [-1, 1]: D(p, z) of the paper's equation 1.

    p, z: (N, d). With stop_gradient, z is a constant: no gradient flows into it.
    """
    return -F.cosine_similarity(p, z.detach() if stop_gradient else z, dim=1).mean()


def simsiam_loss(p1: Tensor, p2: Tensor, z1: Tensor, z2: Tensor, *, stop_gradient: bool = True) -> Tensor:
    """D(p1, z2)/2 + D(p2, z1)/2, the paper's equations 2 and 4. All (N, d); -1 is perfect agreement."""
    return (negative_cosine(p1, z2, stop_gradient=stop_gradient) + negative_cosine(p2, z1, stop_gradient=stop_gradient)) / 2


def z_std(z: Tensor) -> Tensor:
    """Standard deviation of l2-normalised latents, averaged over dimensions, times sqrt(d).

    z: (N, d). 1 when the latents fill the sphere evenly, 0 when they have collapsed to a point (Chen & He, section 4.1).
    """
    return F.normalize(z, dim=1).std(0).mean() * z.shape[1] ** 0.5

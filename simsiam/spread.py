"""How a batch's latents are spread: evenly, on one line, or at one point.

What a loss of cosines sees of a latent is its direction, so all measures but RankMe are of l2-normalised latents: with the
lengths in, a few long latents on one line hold 99 % of the variance in runs at d = 2 that are healthy. None is centred: what
centring leaves of latents at one point is noise, and well spread.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def z_std(z: Tensor) -> Tensor:
    """Standard deviation of l2-normalised latents, averaged over dimensions, times sqrt(d).

    z: (N, d). 1 when the latents fill the sphere evenly, 0 when they have collapsed to a point (Chen & He, section 4.1).
    """
    return F.normalize(z, dim=1).std(0, correction=min(1, len(z) - 1)).mean() * z.shape[1] ** 0.5


def spread(z: Tensor) -> dict[str, float]:
    """`rankme` and `first_share` of one batch's latents z (N, d), of float32 or less and on any device.

    rankme: effective rank in [1, min(N, d)], Garrido et al. 2023, equation 1, as `metrics.rankme` of the batch.
    first_share: of all directions, the mean squared cosine with the one axis that they have most in common, in [1/d, 1]:
    the first eigenvalue's share of the trace of their second moments. 1 for latents that are all 0. Both are NaN where z is.
    """
    z = z.detach().double().cpu()
    if not z.isfinite().all():
        return {"rankme": float("nan"), "first_share": float("nan")}
    directions = _eigenvalues(F.normalize(z, dim=1))
    first_share = float(directions[-1] / directions.sum()) if directions[-1] > 0 else 1.0
    return {"rankme": rankme(z), "first_share": first_share}


def rankme(x: Tensor) -> float:
    """Effective rank of one batch's x (N, d), in [1, min(N, d)], as `metrics.rankme`; NaN where x is."""
    x = x.detach().double().cpu()
    if not x.isfinite().all():
        return float("nan")
    singular = _eigenvalues(x).sqrt()
    shares = singular[singular > 0] / singular.sum()
    return float((-(shares * shares.log()).sum()).exp())


def _eigenvalues(x: Tensor) -> Tensor:
    """The squared singular values of x (N, d), smallest first: of its smaller Gram matrix, and without rounding below 0."""
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram).clamp_min(0)
    return eigenvalues

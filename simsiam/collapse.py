"""Collapse, told from the latents of training batches: all at one point, or all on one line.

What a loss of cosines sees of a latent is its direction, so that all measures but RankMe are of l2-normalised latents, and
none is centred: images that all have nearly the same latent are then on one direction too. Centred, what is left of them is
noise, which spreads well; and with latents as long as they come, one direction of long ones takes 99 % of the variance in
runs at d = 2 that are healthy.
"""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Verdict = Literal["healthy", "collapsed to a point", "collapsed onto one direction", "views too alike"]

POINT = 0.3  # z_std below this
LINE = 0.95  # share of the first direction above this, on a scale from an even spread to a line
ALIKE = -0.97  # loss below this
RECORDS = 3  # that are judged together


def z_std(z: Tensor) -> Tensor:
    """Standard deviation of l2-normalised latents, averaged over dimensions, times sqrt(d).

    z: (N, d). 1 when the latents fill the sphere evenly, 0 when they have collapsed to a point (Chen & He, section 4.1).
    """
    return F.normalize(z, dim=1).std(0, correction=min(1, len(z) - 1)).mean() * z.shape[1] ** 0.5


def spread(z: Tensor) -> dict[str, float]:
    """`rankme` and `first_share` of one batch's latents z (N, d), of any floating dtype and on any device.

    rankme: effective rank in [1, min(N, d)], Garrido et al. 2023, equation 1, as `metrics.rankme` of the batch.
    first_share: of all directions, the mean squared cosine with the one axis that they have most in common, in [1/d, 1]:
    the first eigenvalue's share of the trace of their second moments. 1 for latents that are all 0. Both are NaN where z is.
    """
    z = z.detach().double().cpu()
    if not z.isfinite().all():
        return {"rankme": float("nan"), "first_share": float("nan")}
    singular = _eigenvalues(z / z.abs().max().clamp_min(1e-300)).sqrt()
    directions = _eigenvalues(F.normalize(z, dim=1))
    shares = singular[singular > 0] / singular.sum()
    return {
        "rankme": float((-(shares * shares.log()).sum()).exp()),
        "first_share": float(directions[-1] / directions.sum()) if directions[-1] > 0 else 1.0,
    }


def judge(z_std: float, first_share: float, loss: float, *, dim: int) -> Verdict:
    """What the numbers of training batches say of latents with `dim` dimensions.

    Where the thresholds are from: 49 small trainings with and without stop-gradient and BatchNorm on the latent, batches of
    16 to 512, d = 2 to 2048, recorded from the first step on.
    - A point is left of by z_std: at .3 the mean direction carries .91 of every latent. Healthy runs stay above .39.
    - BatchNorm on the latent allows no point. It ends with few images opposite to all others, at the least one of a batch
      of B: a z_std of 2 / sqrt(B), which is .5 at 16, and more where more images are on the smaller side. So a line is
      told by first_share. That is 1/d for an even spread, and higher the lower d is: healthy runs pass .82 at d = 8, .88 at
      d = 3 and .96 at d = 2, lines end at .98 to 1, so the threshold is .97 at d = 2 and falls to .94.
    - RankMe is not judged: noise in the other directions lifts it, with B and d, so that lines have 1 to 5 (91 where one of
      512 is opposite), healthy runs 3.2 and more at d = 8, and at d = 2 both have 1.3.
    - A loss near -1 and healthy latents: the views of an image are nearly the same, and there is little to learn.
    """
    line = 1 / dim + LINE * (1 - 1 / dim)
    if z_std < POINT or first_share > line:
        # Does most of the spread lie along the common axis (both ends of it are in use) or beside it?
        return "collapsed onto one direction" if z_std**2 > 2 * (1 - first_share) + 1e-6 else "collapsed to a point"
    return "views too alike" if loss < ALIKE else "healthy"


def of_run(records: Sequence[Mapping[str, float]], dim: int) -> Verdict:
    """Judge a training, running or ended, by the medians of its last three records of loss, z_std and first_share.

    One batch may say anything, at d = 2 most of all. Fewer than three records say nothing yet, which counts as healthy.
    """
    if len(records) < RECORDS:
        return "healthy"
    seen = {name: median(record[name] for record in records[-RECORDS:]) for name in ("z_std", "first_share", "loss")}
    return judge(**seen, dim=dim)


def words(verdict: Verdict, record: Mapping[str, float]) -> str:
    """One line for a user: what was seen (in `record`: loss, z_std, rankme, first_share), what it means, what to try."""
    seen = f"z_std {record['z_std']:.2f}, first direction {record['first_share']:.1%}, RankMe {record['rankme']:.1f}"
    remedy = "it comes of stop_gradient: false, too small a batch_size or latent_dim, or too large an lr"
    return {
        "healthy": f"the latent is healthy ({seen})",
        "collapsed to a point": f"COLLAPSED to a point: all images have nearly the same latent ({seen}); {remedy}",
        "collapsed onto one direction": f"COLLAPSED onto one direction: latents hardly differ but in sign ({seen}); {remedy}",
        "views too alike": f"VIEWS TOO ALIKE: the latent is healthy ({seen}), but a loss of {record['loss']:.3f} leaves little "
        "to learn; try stronger augmentation: a smaller crop_scale, more jitter",
    }[verdict]


def _eigenvalues(x: Tensor) -> Tensor:
    """The squared singular values of x (N, d), smallest first: of its smaller Gram matrix, and without rounding below 0."""
    gram = x @ x.T if len(x) < x.shape[1] else x.T @ x
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram).clamp_min(0)
    return eigenvalues

"""Linear evaluation: how much a linear classifier reads out of frozen features."""

import sys
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController
from torch import Tensor

from simsiam.errors import UserError
from simsiam.images import Floats, Labels, split
from simsiam.metrics import top_k

L2S = tuple(10.0**power for power in range(5, -15, -1))  # wide, since only the strengths about the best are fitted
TIE = 1e-3  # losses on the slice (nats) that differ by less are equal
LOOSE, TIGHT = 2e-3, 1e-4  # `fit` ends at a gradient this small: to rank strengths, and for good (float32's noise is 5e-6)
MOST_STEPS = 1000
BLOCK = 1024  # rows that are copied to float64 at a time
POOLS = ThreadpoolController()
ONE_THREAD = {"libscipy_openblas": 1}  # SciPy's would wait for its few sums by spinning, on the cores that torch needs


@dataclass(frozen=True)
class Probe:
    """A linear classifier at its optimum: logits = features @ weight.T + bias."""

    weight: NDArray[np.float32]  # (classes, d)
    bias: NDArray[np.float32]  # (classes,)
    l2: float  # the strength that was chosen on the held-out slice
    whitened: bool  # whether it weighs on the weights of whitened features, also as the slice said
    held_out: dict[float, float]  # strength -> top-1 on the slice, trained without it, for each that was tried
    loss: float  # mean cross-entropy of all training images at the end, nats, penalty not counted
    gradient_norm: float  # and the largest component of the gradient, see `fit`
    iterations: int  # of the last fit

    def scores(self, features: Floats) -> Floats:
        """Logits (N, classes)."""
        return features @ self.weight.T + self.bias


def linear_probe(
    features: Floats,
    labels: Labels,
    *,
    classes: int,
    held_out: int,
    seed: int,
    device: torch.device,
    l2s: tuple[float, ...] = L2S,
    name: str,
) -> Probe:
    """Logistic regression of labels (N,), all below `classes`, on features (N, d), solved to its optimum.

    It minimises mean cross-entropy + l2 / 2 * |W|^2 with a free intercept. W are the weights of the features standardised
    by their own mean and deviation: scikit-learn's StandardScaler, then LogisticRegression(C=1 / (N * l2)); or of whitened
    ones: PCA(whiten=True) after it. The first needs fewer labels where the signal is in the directions that vary most; the
    second does not see how the dimensions were mixed. The one, and the l2, with the lowest loss on `held_out` of the
    examples after a fit to the others is used; of equals the first, and the strongest. The loss, because top-1 is too
    coarse on a slice of 50. A choice at the edge of `l2s`, or a fit that stops short of the optimum, is a warning on stderr.
    Raises UserError for features that are not finite.
    """
    kept, held = split(labels, held_out, seed)
    order = np.concatenate([kept, held])
    centre, axes, variances = principal_axes(features, device, name)
    x, y = _rotate(features, order, centre, axes), torch.from_numpy(labels[order]).to(device)
    sizes = [len(kept), len(held)]
    (x_kept, x_held), (y_kept, y_held) = x.split(sizes), y.split(sizes)
    # A direction that varies next to nothing is not whitened: rounding would become as large as the rest.
    metrics = {False: torch.ones_like(variances), True: variances.clamp(min=1e-9 * variances.max().item() or 1)}
    fits: dict[tuple[bool, float], Fit] = {}
    losses: dict[tuple[bool, float], float] = {}
    accuracies: dict[tuple[bool, float], float] = {}

    def attempt(way: tuple[bool, float], near: tuple[bool, float] | None) -> float:
        whiten, l2 = way
        start = fits[near].weight if near else None
        fits[way] = fit(x_kept, y_kept, variances, l2 * metrics[whiten], classes=classes, start=start, tolerance=LOOSE)
        scores = _logits(fits[way].weight, x_held).T
        losses[way] = F.cross_entropy(scores, y_held).item()
        accuracies[way] = top_k(scores.cpu().numpy(), labels[held], 1)
        return losses[way]

    # Along the strengths the loss on the slice falls, then rises: from the middle go stronger until it rises, and weaker
    # only where that gained nothing.
    grid = sorted(l2s)
    middle = int(np.abs(np.log(grid) - np.log(2 / len(kept))).argmin())  # the best is mostly near
    for whiten in (False, True) if len(kept) > 10 * len(variances) else (False,):  # few examples are white as they are
        ways = [(whiten, l2) for l2 in grid]
        so_far = min(losses, key=losses.__getitem__, default=None)
        first = best = attempt(ways[middle], so_far)
        if so_far and best > losses[so_far]:
            continue
        # Stronger unless at a loss, weaker only for a gain.
        for side, needed in ((ways[middle:], -TIE), (ways[middle::-1], TIE)):
            for near, way in pairwise(side):
                if attempt(way, near) > best - needed:
                    break
                best = min(best, losses[way])
            if best < first - TIE:
                break
    best = min(losses.values())
    chosen = min((way for way in losses if losses[way] <= best + TIE), key=lambda way: (way[0], -way[1]))
    whiten, l2 = chosen
    # At the strong end there is nothing to look for beyond a classifier that knows no more than the classes' shares.
    shares = y_kept.bincount().double() / len(kept)
    learned = torch.special.entr(shares).sum().item() - fits[chosen].loss
    if l2 == grid[0] or (l2 == grid[-1] and learned > TIE):
        print(f"warning: {name}: l2 {l2:g} is at the edge of what was tried: the best may lie beyond", file=sys.stderr)
    last = fit(x, y, variances, l2 * metrics[whiten], classes=classes, start=fits[chosen].weight)
    if not last.converged:
        print(
            f"warning: {name}: not at the optimum after {last.iterations} iterations (gradient {last.gradient_norm:.1e})",
            file=sys.stderr,
        )
    weight = (last.weight[:, :-1] @ axes.T).float()
    bias = (last.weight[:, -1] - weight.double() @ centre).float()
    tried = {way[1]: top1 for way, top1 in accuracies.items() if way[0] == whiten}
    return Probe(weight.cpu().numpy(), bias.cpu().numpy(), l2, whiten, tried, last.loss, last.gradient_norm, last.iterations)


@dataclass(frozen=True)
class Fit:
    """Where `fit` ended."""

    weight: Tensor  # (classes, d + 1) float64, the intercept last
    loss: float  # mean cross-entropy, nats, penalty not counted
    gradient_norm: float
    iterations: int
    converged: bool


def fit(
    x: Tensor,
    labels: Tensor,
    variances: Tensor,
    penalties: Tensor,
    *,
    classes: int,
    start: Tensor | None = None,
    tolerance: float = TIGHT,
) -> Fit:
    """Multinomial logistic regression of labels (N,) on uncorrelated x (N, d) by L-BFGS.

    Minimises mean cross-entropy + sum of penalties / 2 * weight^2 with a free intercept; `variances` of x and `penalties`
    are (d,) float64. The optimiser sees each weight divided by (p (1 - p) * variance + penalty)^-1/2 at p = 1 / classes: the
    curvature is then about 1 in every direction, and some dozen iterations do whatever the features are. It has converged
    where no component of the gradient by these exceeds `tolerance`; the loss is then within some 1e-5 of its minimum, and
    further from it only where classes are all but separable and next to nothing holds the weights back.
    """
    curvature = (classes - 1) / classes**2
    scale = F.pad(curvature * variances + penalties, (0, 1), value=curvature) ** -0.5  # the intercept is last
    penalty = F.pad(penalties, (0, 1)) * scale**2
    each = torch.arange(len(x), device=x.device)
    if start is None:
        start = torch.zeros(classes, len(scale), dtype=torch.float64, device=x.device)

    def objective(scaled: Tensor) -> tuple[float, Tensor]:
        log_p = _logits(scaled * scale, x).log_softmax(0)
        loss = (penalty * scaled**2).sum() / 2 - log_p[labels, each].mean(dtype=torch.float64)
        residual = log_p.exp_()
        residual[labels, each] -= 1
        gradient = torch.cat([residual @ x, residual.sum(1, keepdim=True)], 1).double() / len(x) * scale + penalty * scaled
        return loss.item(), gradient

    # SciPy's first step has length 1: in units of the first gradient it is the one that a curvature of 1 asks for.
    first = objective(start / scale)
    unit = first[1].norm().item() or 1
    known = [first]  # SciPy begins there

    def at(point: NDArray[np.float64]) -> Tensor:
        return unit * torch.from_numpy(point).to(x.device).view_as(start)

    def in_units(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        loss, gradient = known.pop() if known else objective(at(point))
        return loss, unit * gradient.cpu().numpy().ravel()

    options = {"gtol": unit * tolerance, "ftol": 0, "maxiter": MOST_STEPS, "maxfun": 2 * MOST_STEPS}
    begin = (start / scale / unit).cpu().numpy().ravel()
    with POOLS.limit(limits=ONE_THREAD):
        end = minimize(in_units, begin, jac=True, method="L-BFGS-B", options=options)
    norm = float(np.abs(end.jac).max()) / unit
    scaled = at(end.x)
    if norm > tolerance and end.nit < MOST_STEPS and x.dtype == torch.float32:  # what hardly varies drowns in its rounding
        return fit(x.double(), labels, variances, penalties, classes=classes, start=scaled * scale, tolerance=tolerance)
    loss = float(end.fun) - (penalty * scaled**2).sum().item() / 2
    return Fit(scaled * scale, loss, norm, end.nit, norm <= tolerance)


def principal_axes(features: Floats, device: torch.device, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Centre (d,), axes (d, d) and variances (d,), float64: the columns of (features - centre) @ axes are uncorrelated.

    They are the standardised features, turned. A dimension that varies by no more than its rounding has axes of 0.
    Raises UserError for features that are not finite.
    """
    given = torch.from_numpy(features)
    centre = given.mean(0, dtype=torch.float64).to(device)
    if not centre.isfinite().all():
        raise UserError(f"{name}: the features are not finite: the encoder has diverged, train it with a lower lr")
    covariance = torch.zeros(len(centre), len(centre), dtype=torch.float64, device=device)
    for part in given.split(BLOCK):
        centred = part.to(device).double() - centre
        covariance.addmm_(centred.T, centred, alpha=1 / len(features))
    deviation = covariance.diagonal().sqrt()
    inverse = torch.where(deviation > 1e-6 * centre.abs(), 1 / deviation, 0)
    variances, vectors = torch.linalg.eigh(covariance * inverse * inverse[:, None])
    return centre, inverse[:, None] * vectors, variances.clamp(min=0)


def _rotate(features: Floats, order: NDArray[np.int64], centre: Tensor, axes: Tensor) -> Tensor:
    """(features[order] - centre) @ axes, summed in float64 since the smallest variances matter."""
    dtype = torch.float32 if axes.device.type == "cpu" else torch.float64  # products of float32 may be TF32 on a GPU
    x = torch.empty(features.shape, dtype=dtype, device=axes.device)
    for first in range(0, len(order), BLOCK):
        rows = order[first : first + BLOCK]
        x[first : first + BLOCK] = (torch.from_numpy(features[rows]).to(axes.device).double() - centre) @ axes
    return x


def _logits(weight: Tensor, x: Tensor) -> Tensor:
    """(classes, N) of x's type, contiguous: what follows is many times faster than the other way round."""
    return torch.addmm(weight[:, -1].to(x.dtype), x, weight[:, :-1].T.to(x.dtype)).T.contiguous()

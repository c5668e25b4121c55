"""Linear evaluation: how much a linear classifier reads out of frozen features."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from simsiam.errors import UserError
from simsiam.images import Floats, Labels, split
from simsiam.metrics import top_k

L2S = tuple(10.0**power for power in range(4, -13, -1))  # only the strengths around the best one are fitted
LOOSE, TIGHT = 1e-3, 1e-5  # gradients at which a fit ends: to rank strengths, and to be reported
TIE = 1e-3  # held-out losses (nats) closer than this are equal
MOST_STEPS = 1000


@dataclass(frozen=True)
class Probe:
    """A linear classifier at its optimum: logits = features @ weight.T + bias."""

    weight: NDArray[np.float32]  # (classes, d), for the features as they come
    bias: NDArray[np.float32]  # (classes,)
    l2: float  # the strength that was chosen on the held-out slice
    held_out: dict[float, float]  # top-1 on the slice, fitted without it, for each strength that was tried
    loss: float  # mean cross-entropy of the training images, nats, without the penalty
    gradient_norm: float  # largest component at the end, see `fit`
    iterations: int

    def scores(self, features: Floats) -> Floats:
        """Logits (N, classes)."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True)
class Fit:
    """Where `fit` ended, and whether that is the optimum."""

    weight: Tensor  # (classes, r + 1) float64, the intercept last
    loss: float  # mean cross-entropy, nats
    gradient_norm: float
    iterations: int
    converged: bool


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
    """Multinomial logistic regression of labels (N,), below `classes`, on features (N, d), solved to its optimum.

    It minimises mean cross-entropy + l2 / 2 * |W|^2, where W are the weights of the features standardised by their own
    mean and deviation; the intercept is free. scikit-learn's StandardScaler and LogisticRegression(C=1 / (N * l2)) do the
    same. `l2` is the one of `l2s` with the lowest loss on `held_out` of the examples after a fit to the others, the
    stronger of equals. The loss and not top-1: it is smooth in l2, and tells strengths apart on a slice of 50 images.
    A choice at an end of `l2s`, and a fit that is not at its optimum, are warnings on stderr. Raises UserError for
    features that are not finite.
    """
    kept, held = split(labels, held_out, seed)
    order = np.concatenate([kept, held])
    centre, axes, variances = principal_axes(features, name)
    x, y = _rotate(features[order], centre, axes, device), torch.from_numpy(labels[order]).long().to(device)
    (x_kept, x_held), (y_kept, y_held) = x.split([len(kept), len(held)]), y.split([len(kept), len(held)])
    fits: dict[float, Fit] = {}
    losses: dict[float, float] = {}
    accuracies: dict[float, float] = {}

    def attempt(l2: float, near: float | None) -> float:
        start = None if near is None else fits[near].weight
        fits[l2] = fit(x_kept, y_kept, variances, classes=classes, l2=l2, start=start, tolerance=LOOSE)
        scores = _logits(fits[l2].weight, x_held).T
        losses[l2] = F.cross_entropy(scores, y_held).item()
        accuracies[l2] = top_k(scores.cpu().numpy(), labels[held], 1)
        return losses[l2]

    # The held-out loss falls and then rises along the strengths: walk from the middle to where it no longer falls.
    grid = sorted(l2s)
    middle = len(grid) // 2
    best = attempt(grid[middle], None)
    for at in range(middle - 1, -1, -1):  # weaker
        if attempt(grid[at], grid[at + 1]) > best - TIE:
            break
        best = losses[grid[at]]
    for at in range(middle + 1, len(grid)):  # stronger
        if attempt(grid[at], grid[at - 1]) > best + TIE:
            break
        best = min(best, losses[grid[at]])
    chosen = max(l2 for l2, loss in losses.items() if loss <= min(losses.values()) + TIE)
    return fits, losses, accuracies, chosen


def principal_axes(features: Floats, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Centre (d,), axes (d, d) and variances (d,): (features - centre) @ axes are the standardised features, turned so that
    no two of them correlate. A dimension that varies by no more than its rounding has axes of 0.
    """
    centre = features.mean(0, dtype=np.float64)
    if not np.isfinite(centre).all():
        raise UserError(f"{name}: the features are not finite: look at the training's curve, or delete them and embed again")
    covariance = np.zeros((len(centre), len(centre)))
    for rows in range(0, len(features), 4096):
        part = features[rows : rows + 4096] - centre
        covariance += part.T @ part / len(features)
    deviation = np.sqrt(covariance.diagonal())
    constant = deviation <= 1e-6 * np.hypot(centre, deviation)
    inverse = np.where(constant, 0.0, 1 / np.where(constant, 1.0, deviation))
    variances, vectors = np.linalg.eigh(covariance * inverse * inverse[:, None])
    return centre, inverse[:, None] * vectors, variances.clip(0)


def _rotate(features, centre, axes, device):
    dtype = torch.float32 if device.type == "cpu" else torch.float64  # float32 may be TF32 on a GPU
    out = np.empty(features.shape, np.float32)
    for rows in range(0, len(features), 4096):
        out[rows : rows + 4096] = (features[rows : rows + 4096] - centre) @ axes
    return torch.from_numpy(out).to(device, dtype)


def _logits(weight: Tensor, x: Tensor) -> Tensor:
    """(classes, n) float64: a class's logits side by side, three times as fast as an example's."""
    return (weight[:, :-1].to(x.dtype) @ x.T).double() + weight[:, -1:]


def fit(x, y, variances, *, classes, l2, start=None, tolerance=TIGHT):
    curvature = (classes - 1) / classes**2
    scale = torch.from_numpy(np.append(curvature * variances + l2, curvature) ** -0.5).to(x.device)
    penalty = l2 * scale**2
    penalty[-1] = 0
    each = torch.arange(len(y), device=x.device)
    if start is None:
        start = torch.zeros(classes, len(scale), dtype=torch.float64, device=x.device)
    cross_entropy = 0.
    ev = 0
    def objective(flat):
        nonlocal cross_entropy, ev
        ev += 1
        u = torch.from_numpy(flat).to(x.device).view(classes, -1)
        log_p = _logits(u * scale, x).log_softmax(0)
        cross_entropy = -log_p[y, each].mean().item()
        residual = log_p.exp_()
        residual[y, each] -= 1
        gradient = torch.cat([(residual.to(x.dtype) @ x).double(), residual.sum(1, keepdim=True)], 1) * scale / len(y)
        gradient += penalty * u
        return cross_entropy + 0.5 * (penalty * u * u).sum().item(), gradient.cpu().numpy().ravel()

    end = minimize(objective, (start / scale).cpu().numpy().ravel(), jac=True, method="L-BFGS-B",
                   options={"gtol": tolerance, "ftol": 0, "maxiter": MOST_STEPS, "maxfun": 2*MOST_STEPS})
    objective(end.x)
    f = Fit(torch.from_numpy(end.x).to(x.device).view(classes, -1) * scale, cross_entropy, float(np.abs(end.jac).max()), end.nit, end.success)
    object.__setattr__(f, 'ev', ev)
    return f

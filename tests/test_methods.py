"""The loss against the paper's pseudo-code and its analytic limits; where gradients do and do not flow."""

import numpy as np
import pytest
import torch
from torch import Tensor

from simsiam.losses import negative_cosine, simsiam_loss, z_std
from tests.conftest import generator


def random(n: int = 16, d: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=generator(seed))


def test_the_papers_pseudo_code() -> None:
    p1, p2, z1, z2 = (random(seed=seed) for seed in range(4))

    def distance(p: Tensor, z: Tensor) -> float:  # Algorithm 1, D, in numpy
        a, b = p.numpy(), z.numpy()
        a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
        return float(-(a * b).sum(axis=1).mean())

    expected = distance(p1, z2) / 2 + distance(p2, z1) / 2
    assert float(simsiam_loss(p1, p2, z1, z2)) == pytest.approx(expected, abs=1e-6)


def test_limits() -> None:
    z = random()
    assert float(negative_cosine(3 * z, z)) == pytest.approx(-1, abs=1e-6)  # the same direction, whatever the length
    assert float(negative_cosine(-z, z)) == pytest.approx(1, abs=1e-6)
    assert float(negative_cosine(torch.eye(4), torch.eye(4).roll(1, 0))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_where_gradients_flow(stop_gradient: bool) -> None:
    p, z = random(seed=0).requires_grad_(), random(seed=1).requires_grad_()
    negative_cosine(p, z, stop_gradient=stop_gradient).backward()
    assert p.grad is not None and float(p.grad.abs().max()) > 0
    assert (z.grad is None) == stop_gradient


def test_symmetric_in_the_views() -> None:
    p1, p2, z1, z2 = (random(seed=seed) for seed in range(4))
    assert float(simsiam_loss(p1, p2, z1, z2)) == pytest.approx(float(simsiam_loss(p2, p1, z2, z1)), abs=1e-6)


def test_z_std_is_one_on_the_sphere_and_zero_at_a_point() -> None:
    assert float(z_std(random(20_000, 64))) == pytest.approx(1, abs=0.01)
    assert float(z_std(torch.ones(100, 64))) == pytest.approx(0, abs=1e-6)
    assert float(z_std(5 * random(200, 64))) == pytest.approx(float(z_std(random(200, 64))), abs=1e-5)

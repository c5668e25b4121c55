"""Each method's loss against the paper's formula written out here, at its limits, and where its gradient flows."""

import math
from collections import deque
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from simsiam.methods.every import METHODS
from simsiam.methods.swav import sinkhorn
from tests.some import COLOURFUL, TINY, but
from tests.some_latents import D, N, given, latents_for, random

Array = NDArray[np.float64]


def array(x: Tensor) -> Array:
    return x.detach().double().numpy()


def unit(x: Array) -> Array:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def whitened(seed: int = 0, scale: float = 1.0) -> Tensor:
    """Latents of mean 0 whose covariance, over N, is exactly the identity times the square of `scale`."""
    z = array(random(seed=seed))
    z = z - z.mean(0)
    left, _, right = np.linalg.svd(z, full_matrices=False)
    return torch.from_numpy(scale * math.sqrt(N) * left @ right).float()


class TestSimCLR:
    @pytest.mark.parametrize("temperature", [0.1, 0.5])
    def test_algorithm_1(self, temperature: float) -> None:
        z1, z2 = random(seed=0), random(seed=1)
        z = np.empty((2 * N, D))
        z[0::2], z[1::2] = array(z1), array(z2)  # views 2k - 1 and 2k are of image k
        s = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in z] for a in z])

        def term(i: int, j: int) -> float:
            others = sum(math.exp(s[i, k] / temperature) for k in range(2 * N) if k != i)
            return -math.log(math.exp(s[i, j] / temperature) / others)

        expected = sum(term(2 * k, 2 * k + 1) + term(2 * k + 1, 2 * k) for k in range(N)) / (2 * N)
        assert given("simclr", temperature=temperature)(z1, z2)[0].item() == pytest.approx(expected, rel=1e-5)

    def test_limits(self) -> None:
        z = random(1).expand(N, D)
        assert given("simclr")(z, 3 * z)[0].item() == pytest.approx(math.log(2 * N - 1), rel=1e-6)
        apart = torch.eye(D)  # pairs agree, and are at right angles to all others
        expected = math.log(1 + (2 * D - 2) * math.exp(-1 / 0.2))
        assert given("simclr", temperature=0.2)(apart, apart)[0].item() == pytest.approx(expected, rel=1e-5)


class TestBYOL:
    def test_equation_2_both_ways(self) -> None:
        method = given("byol").eval()  # BatchNorm of the predictor with its first statistics: none
        nn.init.normal_(method.target.map)
        z1, z2 = random(seed=0), random(seed=1)

        def distance(p: Tensor, z: Tensor) -> float:
            return float(((unit(array(p)) - unit(array(z))) ** 2).sum(1).mean())

        expected = sum(distance(method.predictor(a), b @ method.target.map.T) for a, b in ((z1, z2), (z2, z1)))
        loss, latents = method(z1, z2)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        assert torch.equal(latents, z1) and not latents.requires_grad

    def test_limits(self) -> None:
        method, z = given("byol"), random()
        method.predictor = nn.Identity()
        assert method(z, 2 * z)[0].item() == pytest.approx(0, abs=1e-5)
        assert method(z, -z)[0].item() == pytest.approx(8, rel=1e-6)

    def test_the_target_begins_as_the_online_encoder_and_gets_no_gradient(self) -> None:
        method = given("byol")
        assert torch.equal(method.target.map, method.encoder.map)
        method(*latents_for(method))[0].backward()
        assert method.target.map.grad is None and bool(method.encoder.map.grad.any())
        assert all(p.grad is not None for p in method.predictor.parameters())

    def test_only_the_predicting_side_gets_a_gradient(self) -> None:
        method = given("byol")
        for parameter in method.predictor.parameters():
            nn.init.zeros_(parameter)
        nn.init.ones_(method.predictor[-1].bias)  # a prediction that does not look at its input
        method(*latents_for(method))[0].backward()
        assert not method.encoder.map.grad.any()

    @pytest.mark.parametrize("momentum", [0.996, 0.5, 0.0])
    def test_the_target_after_k_steps_is_the_exact_average(self, momentum: float) -> None:
        method, steps = given("byol", target_momentum=momentum), 7
        expected = array(method.encoder.map)
        for k in range(1, steps + 1):
            nn.init.constant_(method.encoder.map, float(k))
            method.after_step(k / steps)
            tau = 1 - (1 - momentum) * (math.cos(math.pi * k / steps) + 1) / 2  # section 3.3
            expected = tau * expected + (1 - tau) * k
        np.testing.assert_allclose(array(method.target.map), expected, rtol=1e-5)
        last = method.target.map.clone()
        nn.init.constant_(method.encoder.map, 100.0)
        method.after_step(1.0)
        assert torch.equal(method.target.map, last)  # at the end it stands still


class TestFastSiam:
    @pytest.mark.parametrize("views", [2, 3, 4])
    def test_each_view_predicts_the_mean_of_the_others(self, views: int) -> None:
        method = given("fastsiam", views=views).eval()
        z = [random(seed=seed) for seed in range(views)]
        expected = 0.0
        for own in range(views):
            p = unit(array(method.predictor(z[own])))
            target = np.mean([array(z[other]) for other in range(views) if other != own], axis=0)
            expected -= float((p * unit(target)).sum(1).mean()) / views
        assert method(*z)[0].item() == pytest.approx(expected, rel=1e-5)

    def test_with_two_views_it_is_simsiam(self) -> None:
        two, one = given("fastsiam", views=2), given("simsiam")
        z1, z2 = random(seed=0), random(seed=1)
        for method in (two, one):
            method(z1, z2)[0].backward()
        assert two(z1, z2)[0].item() == pytest.approx(one(z1, z2)[0].item(), rel=1e-6)
        torch.testing.assert_close(two.encoder.map.grad, one.encoder.map.grad)
        (own,), (simsiams,) = two.own_rates, one.own_rates
        assert own.part is two.predictor and own[1:] == simsiams[1:] == (1.0, True)

    @pytest.mark.parametrize("stop_gradient", [True, False])
    def test_no_gradient_flows_through_the_mean(self, stop_gradient: bool) -> None:
        method = given("fastsiam", stop_gradient=stop_gradient)
        for parameter in method.predictor.parameters():
            nn.init.zeros_(parameter)
        nn.init.ones_(method.predictor[-1].bias)
        method(*latents_for(method))[0].backward()
        assert bool(method.encoder.map.grad.any()) != stop_gradient == method.stop_gradient


class TestBarlowTwins:
    @pytest.mark.parametrize("redundancy", [0.005, 1.0])
    def test_equations_1_and_2(self, redundancy: float) -> None:
        z1, z2 = random(seed=0), random(seed=1) + 2
        a, b = (array(z) - array(z).mean(0) for z in (z1, z2))
        expected = 0.0
        for i in range(D):
            for j in range(D):
                c = (a[:, i] * b[:, j]).sum() / math.sqrt((a[:, i] ** 2).sum()) / math.sqrt((b[:, j] ** 2).sum())
                expected += (1 - c) ** 2 if i == j else redundancy * c**2
        assert given("barlow_twins", redundancy=redundancy)(z1, z2)[0].item() == pytest.approx(expected, rel=1e-4)

    def test_limits(self) -> None:
        method, z = given("barlow_twins", redundancy=0.1), whitened()
        assert method(z, 5 * z + 1)[0].item() == pytest.approx(0, abs=1e-6)
        assert method(z, -z)[0].item() == pytest.approx(4 * D, rel=1e-4)
        same = random(d=1).expand(N, D)  # all numbers are one
        assert method(same, same)[0].item() == pytest.approx(0.1 * D * (D - 1), rel=1e-3)
        point = torch.ones(N, D, requires_grad=True)  # nothing varies
        loss = method(point, point)[0]
        loss.backward()
        assert loss.item() == pytest.approx(D) and bool(point.grad is not None and point.grad.isfinite().all())


class TestVICReg:
    def test_equations_1_to_6(self) -> None:
        z1, z2 = 0.7 * random(seed=0), 0.9 * random(seed=1) + 2
        a, b = array(z1), array(z2)

        def v(z: Array) -> float:
            return float(np.mean([max(0, 1 - math.sqrt(z[:, j].var(ddof=1) + 1e-4)) for j in range(D)]))

        def c(z: Array) -> float:
            matrix = np.cov(z.T)
            return float(sum(matrix[i, j] ** 2 for i in range(D) for j in range(D) if i != j) / D)

        s = float(np.mean([((a[n] - b[n]) ** 2).sum() for n in range(N)]))
        expected = 25 * s / D + 25 * (v(a) + v(b)) / 2 + 1 * (c(a) + c(b))
        assert v(a) > 0 and given("vicreg")(z1, z2)[0].item() == pytest.approx(expected, rel=1e-5)
        none = {"invariance": 0.0, "variance": 0.0, "covariance": 0.0}
        parts = [given("vicreg", TINY, **none | {term: 1.0})(z1, z2)[0].item() for term in none]
        assert parts == pytest.approx([s / D, (v(a) + v(b)) / 2, c(a) + c(b)], rel=1e-5)

    def test_limits(self) -> None:
        method, z = given("vicreg"), whitened(scale=1.01)
        assert method(z, z)[0].item() == pytest.approx(0, abs=1e-6)
        point = torch.ones(N, D, requires_grad=True)
        loss = method(point, point)[0]
        loss.backward()
        assert loss.item() == pytest.approx(25 * (1 - 0.01)) and bool(point.grad is not None and point.grad.isfinite().all())


class TestSwAV:
    PAPERS: ClassVar[dict[str, Any]] = {"prototypes": 5, "frozen": 0.0, "temperature": 0.1, "epsilon": 0.05}

    def test_codes_are_the_paper_s(self) -> None:
        """Equation 5 by the iterations of its appendix A.1: over prototypes, then over views, three times."""
        scores = random(12, 5)
        q = np.exp(array(scores) / 0.05).T  # (K, B)
        q /= q.sum()
        for _ in range(3):
            q /= q.sum(1, keepdims=True) * 5
            q /= q.sum(0, keepdims=True) * 12
        np.testing.assert_allclose(array(sinkhorn(scores / 0.05, 3)), 12 * q.T, atol=1e-5)

    @pytest.mark.parametrize(("views", "prototypes"), [(12, 5), (5, 12), (8, 8)])
    def test_codes_share_out_views_whole_and_prototypes_evenly(self, views: int, prototypes: int) -> None:
        codes = sinkhorn(random(views, prototypes).double() / 0.2, 2000)
        torch.testing.assert_close(codes.sum(1), torch.ones(views).double())
        torch.testing.assert_close(codes.sum(0), torch.full((prototypes,), views / prototypes).double(), rtol=1e-4, atol=0)
        assert bool((codes >= 0).all()) and float(codes.std()) > 0.01

    def test_codes_of_scores_that_would_overflow(self) -> None:
        codes = sinkhorn(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 0.001, 3)
        torch.testing.assert_close(codes, torch.eye(2))

    @pytest.mark.parametrize("small_views", [0, 3])
    def test_equation_6(self, small_views: int) -> None:
        method = given("swav", **self.PAPERS, small_views=small_views)
        z = [random(seed=seed) for seed in range(2 + small_views)]
        c = array(method.prototypes)
        assert np.linalg.norm(c, axis=1) == pytest.approx(1, rel=1e-6)
        scores = [unit(array(each)) @ c.T for each in z]
        codes = [array(sinkhorn(torch.from_numpy(each) / 0.05, 3)) for each in scores]
        terms = []
        for i in (0, 1):
            for v in range(2 + small_views):
                if v != i:
                    p = np.exp(scores[v] / 0.1) / np.exp(scores[v] / 0.1).sum(1, keepdims=True)
                    terms.append(-(codes[i] * np.log(p)).sum(1).mean())
        assert len(terms) == 2 * (1 + small_views)
        assert method(*z)[0].item() == pytest.approx(float(np.mean(terms)), rel=1e-5)

    def test_where_nothing_is_known(self) -> None:
        """Latents at right angles to every prototype."""
        method = given("swav", prototypes=4)
        method.prototypes.data = torch.eye(D)[:4]
        z = torch.eye(D)[4:].repeat(3, 1)
        assert method(z, z.roll(1, 0))[0].item() == pytest.approx(math.log(4), rel=1e-6)

    def test_no_gradient_flows_through_the_codes(self) -> None:
        method = given("swav", **self.PAPERS)
        z1, z2 = random(seed=0), random(seed=1)
        method(z1, z2)[0].backward()
        weight, prototypes = torch.eye(D, requires_grad=True), method.prototypes.detach().clone().requires_grad_()
        scores = [F.normalize(z @ weight.T, dim=1) @ prototypes.T for z in (z1, z2)]
        codes = [sinkhorn(each.detach() / 0.05, 3) for each in scores]
        logs = [F.log_softmax(each / 0.1, dim=1) for each in scores]
        (-((codes[0] * logs[1]).sum(1).mean() + (codes[1] * logs[0]).sum(1).mean()) / 2).backward()
        torch.testing.assert_close(method.encoder.map.grad, weight.grad)
        torch.testing.assert_close(method.prototypes.grad, prototypes.grad)

    def test_prototypes_keep_their_length_and_stay_while_they_are_frozen(self) -> None:
        method = given("swav", prototypes=5, frozen=0.5)
        optimizer = torch.optim.SGD(method.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
        seen = [method.prototypes.detach().clone()]
        for step in range(1, 7):
            optimizer.zero_grad()
            method(random(seed=0), random(seed=1))[0].backward()
            optimizer.step()
            method.after_step(step / 6)
            seen.append(method.prototypes.detach().clone())
            assert method.prototypes.norm(dim=1).tolist() == pytest.approx([1] * 5, rel=1e-5)
        moved = [float((after - before).abs().max()) > 1e-4 for before, after in pairwise(seen)]
        assert moved == [False] * 3 + [True] * 3

    def test_small_views(self) -> None:
        augment = but(COLOURFUL, view_size=32)
        assert given("swav").views(augment) == [augment, augment]
        large1, large2, *small = given("swav", small_views=3).views(augment)
        assert large1 == large2 == augment and len(small) == 3
        assert {(each.view_size, *each.crop_scale) for each in small} == {(14, 0.05, 0.14)}
        assert small[0] == but(augment, view_size=14, crop_scale=[0.05, 0.14])
        assert given("swav", small_views=1).views(but(augment, view_size=16))[2].view_size == 8


class TestMoCo:
    @pytest.mark.parametrize("temperature", [0.1, 0.5])
    def test_equation_1_both_ways(self, temperature: float) -> None:
        method = given("moco", temperature=temperature, queue=7)
        nn.init.normal_(method.target.map)
        z = [random(seed=0), random(seed=1)]
        negatives = array(method.queue)
        assert np.linalg.norm(negatives, axis=1) == pytest.approx(1, rel=1e-6)
        terms = []
        for query, key in ((0, 1), (1, 0)):
            q, k = unit(array(z[query])), unit(array(z[key]) @ array(method.target.map).T)
            for n in range(N):
                partner = math.exp(q[n] @ k[n] / temperature)
                others = sum(math.exp(q[n] @ negative / temperature) for negative in negatives)
                terms.append(-math.log(partner / (partner + others)))
        loss, latents = method(*z)
        assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)
        assert torch.equal(latents, z[0]) and not latents.requires_grad

    def test_limits(self) -> None:
        method, z = given("moco", queue=6, temperature=0.2), torch.eye(D)[:1].expand(N, D)
        method.queue.copy_(z[:6])
        assert method(z, 3 * z)[0].item() == pytest.approx(math.log(7), rel=1e-6)
        method.queue.copy_(torch.eye(D)[1:7])  # at right angles
        assert method(z, 3 * z)[0].item() == pytest.approx(math.log(1 + 6 * math.exp(-1 / 0.2)), rel=1e-5)

    def test_no_gradient_flows_through_the_keys(self) -> None:
        """Not the queue's, which `forward` changes, either: it is that of the loss with all keys as constants."""
        method = given("moco", queue=30)
        views, z = ([random(seed=seed).requires_grad_() for seed in (0, 1)] for _ in range(2))
        negatives, weight = method.queue.clone(), torch.eye(D, requires_grad=True)
        method(*views)[0].backward()
        for query, key in (z, z[::-1]):
            q, k = F.normalize(query @ weight.T, dim=1), F.normalize(key.detach(), dim=1)
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.T], dim=1) / 0.1
            (F.cross_entropy(logits, torch.zeros(N, dtype=torch.int64)) / 2).backward()
        for ours, expected in zip([method.encoder.map, *views], [weight, *z], strict=True):
            torch.testing.assert_close(ours.grad, expected.grad)
        assert method.target.map.grad is None and not method.queue.requires_grad

    @pytest.mark.parametrize("length", [2 * N * 3, 2 * N + 5, 2 * N, 2 * N - 5, 1])
    def test_the_queue_has_the_last_keys(self, length: int) -> None:
        """Whether a batch divides it, does not, or is longer than it."""
        method = given("moco", queue=length)
        nn.init.normal_(method.target.map)
        expected = deque(array(method.queue), maxlen=length)
        for step in range(5):
            z1, z2 = random(seed=2 * step), random(seed=2 * step + 1)
            method.train(step != 3)  # only what is trained on is remembered
            method(z1, z2)
            if step != 3:
                k1, k2 = (unit(array(z) @ array(method.target.map).T) for z in (z1, z2))
                expected.extend(key for pair in zip(k1, k2, strict=True) for key in pair)
            oldest_first = np.roll(array(method.queue), -int(method.enqueued), axis=0)
            np.testing.assert_allclose(oldest_first, np.array(expected), atol=1e-6)

    def test_equation_2(self) -> None:
        method, steps = given("moco", target_momentum=0.9), 5
        assert torch.equal(method.target.map, method.encoder.map)
        expected = array(method.encoder.map)
        for k in range(1, steps + 1):
            nn.init.constant_(method.encoder.map, float(k))
            method.after_step(k / steps)
            expected = 0.9 * expected + 0.1 * k
        np.testing.assert_allclose(array(method.target.map), expected, rtol=1e-5)


class TestSupervised:
    def test_cross_entropy_of_each_view(self) -> None:
        method, labels = given("supervised"), torch.arange(N) % 3
        z1, z2 = random(seed=0), random(seed=1)
        weight, bias = array(method.head.weight), array(method.head.bias)
        expected = 0.0
        for z in (z1, z2):
            logits = array(z) @ weight.T + bias
            p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            expected -= float(np.log(p[np.arange(N), labels.numpy()]).mean()) / 2
        loss, latents = method(z1, z2, labels=labels)
        assert loss.item() == pytest.approx(expected, rel=1e-5) and torch.equal(latents, z1)

    def test_where_nothing_is_known(self) -> None:
        method = given("supervised")
        for parameter in method.head.parameters():
            nn.init.zeros_(parameter)
        labels = torch.arange(N) % 3
        assert method(random(), random(), labels=labels)[0].item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("name", list(METHODS))
def test_what_is_trained_gets_a_gradient_and_nothing_else(name: str) -> None:
    method = given(name)
    latents = [z.requires_grad_() for z in latents_for(method)]
    method(*latents, **({"labels": torch.arange(N) % 3} if method.labelled else {}))[0].backward()
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (not key.startswith("target.")), key
    assert all(bool(z.grad is not None and z.grad.abs().sum(1).min() > 0) for z in latents)


@pytest.mark.parametrize("name", list(METHODS))
def test_what_torch_compile_makes_of_it_is_the_same(name: str) -> None:
    """But for the code that it writes, which takes minutes: the graphs and their gradients."""
    losses, gradients = [], []
    for compiled in (False, True):
        method = given(name)
        network = torch.compile(method, backend="aot_eager") if compiled else method
        for done in (0.5, 1.0):
            known: dict[str, Any] = {"labels": torch.arange(N) % 3} if method.labelled else {}
            loss = network(*latents_for(method), **known)[0]
            loss.backward()
            with torch.no_grad():
                method.encoder.map.sub_(method.encoder.map.grad, alpha=0.1)
            method.after_step(done)
        losses.append(loss.item())
        gradients.append(method.encoder.map.grad)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", list(METHODS))
def test_what_is_remembered_changes_in_place(name: str) -> None:
    """A GPU replays a step on the memory that it was recorded with."""
    method = given(name)
    before = method.state_dict()
    for done in (0.5, 1.0):
        method(*latents_for(method), **({"labels": torch.arange(N) % 3} if method.labelled else {}))
        method.after_step(done)
    assert all(value.data_ptr() == before[key].data_ptr() for key, value in method.state_dict().items())


@pytest.mark.parametrize("name", list(METHODS))
def test_a_loss_is_not_rounded_where_the_network_is(name: str) -> None:
    """In bf16 a number has eight bits: of the latents that the network gives, the loss is computed in float32."""
    method = given(name).eval()  # nothing is remembered of the first batch
    for head in ("predictor", "head"):  # a network too
        if hasattr(method, head):
            setattr(method, head, nn.Identity())
    views = [z.bfloat16().float() for z in latents_for(method)]
    known: dict[str, Any] = {"labels": torch.arange(N) % 3} if method.labelled else {}
    exact = method(*views, **known)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = method(*views, **known)[0]
    assert rounded.dtype == torch.float32 and rounded.item() == pytest.approx(exact.item(), rel=1e-6)

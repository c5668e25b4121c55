"""What is called collapsed, and what is not: analytic latents, the committed runs, and two real trainings."""

from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam import collapse
from tests.conftest import generator

BATCHES, DIMS = [16, 128, 512], [2, 8, 512, 2048]


def judge(z: Tensor, loss: float = -0.8) -> str:
    return collapse.judge(float(collapse.z_std(z)), collapse.spread(z)["first_share"], loss, dim=z.shape[1])


def normed(z: Tensor) -> Tensor:
    """What BatchNorm without affine makes of a batch."""
    return nn.BatchNorm1d(z.shape[1], affine=False)(z)


def gaussian(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=generator(seed))


def test_z_std_is_one_on_the_sphere_and_zero_at_a_point() -> None:
    assert float(collapse.z_std(gaussian(20_000, 64))) == pytest.approx(1, abs=0.01)
    assert float(collapse.z_std(torch.ones(100, 64))) == pytest.approx(0, abs=1e-6)
    assert float(collapse.z_std(5 * gaussian(200, 64))) == pytest.approx(float(collapse.z_std(gaussian(200, 64))), abs=1e-5)


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("batch", BATCHES)
class TestAnalytic:
    def test_even_spread_is_healthy(self, batch: int, d: int) -> None:
        assert judge(gaussian(batch, d)) == judge(normed(gaussian(batch, d))) == "healthy"

    def test_point(self, batch: int, d: int) -> None:
        z = F.normalize(gaussian(1, d)) + 0.05 * F.normalize(gaussian(batch, d, seed=1))
        assert judge(z) == judge(torch.ones(batch, d)) == judge(torch.zeros(batch, d)) == "collapsed to a point"

    def test_line(self, batch: int, d: int) -> None:
        z = gaussian(batch, 1) * gaussian(1, d, seed=1)
        assert judge(z) == judge(normed(z)) == "collapsed onto one direction"
        noisy = F.normalize(z) + 0.1 * F.normalize(gaussian(batch, d, seed=2))  # as training has it
        assert judge(noisy) == judge(normed(noisy)) == "collapsed onto one direction"

    @pytest.mark.parametrize("share", [0, 0.1])  # 0: a single image
    def test_batchnorm_leaves_few_images_opposite_to_all_others(self, batch: int, d: int, share: float) -> None:
        few = max(1, round(share * batch))
        z = normed((torch.arange(batch) < few).float()[:, None] * gaussian(1, d))
        s = few / batch
        assert float(collapse.z_std(z)) == pytest.approx(2 * (s * (1 - s)) ** 0.5 * (batch / (batch - 1)) ** 0.5, rel=1e-3)
        assert judge(z) == "collapsed onto one direction"


def test_spread() -> None:
    for n, d in [(16, 8), (8, 16)]:
        z = gaussian(n, d)
        singular = torch.linalg.svdvals(z.double())
        p = singular / singular.sum()
        found = collapse.spread(z)
        assert found["rankme"] == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-6)
        first = torch.linalg.svdvals(F.normalize(z.double(), dim=1))[0] ** 2 / n
        assert found["first_share"] == pytest.approx(float(first), rel=1e-6)
    two = torch.tensor([[1.0, 0.0], [0.0, 3.0]])  # at right angles: half of the directions each, whatever their length
    assert collapse.spread(two)["first_share"] == pytest.approx(0.5)
    assert collapse.spread(torch.eye(2))["rankme"] == pytest.approx(2)


def test_spread_of_what_is_hardly_there() -> None:
    for z in [torch.zeros(4, 3), torch.ones(4, 3), torch.full((4, 3), 1e-30), torch.full((4, 3), 3e38), torch.ones(1, 3)]:
        assert collapse.spread(z) == pytest.approx({"rankme": 1, "first_share": 1})
        assert float(collapse.z_std(z)) == pytest.approx(0, abs=1e-6)
    broken = collapse.spread(torch.tensor([[float("nan"), 1.0], [0.0, 1.0]]))
    assert broken["rankme"] != broken["rankme"] and broken["first_share"] != broken["first_share"]


# Of the study's encoders (laptop, 10 epochs, with stop-gradient): the lowest z_std and loss of any record, and the highest
# first_share of batches at this dimension, with and without BatchNorm on the latent, 2,000 records from the first step on.
HEALTHY = [
    (2, 0.901, -0.742, 0.964),
    (8, 0.786, -0.793, 0.822),
    (32, 0.840, -0.776, 0.623),
    (128, 0.832, -0.793, 0.623),
    (512, 0.805, -0.837, 0.523),
    (2048, 0.789, -0.842, 0.420),
]


@pytest.mark.parametrize(("d", "z_std", "loss", "first_share"), HEALTHY)
def test_healthy_runs(d: int, z_std: float, loss: float, first_share: float) -> None:
    assert collapse.judge(z_std, first_share, loss, dim=d) == "healthy"


@pytest.mark.parametrize(
    ("z_std", "first_share", "loss", "d", "verdict"),
    [
        (0.003, 0.9999, -1.000, 512, "collapsed to a point"),  # the study's point without stop-gradient
        (0.159, 0.973, -0.986, 2, "collapsed to a point"),  # with it, and a network too narrow for d = 2
        (0.508, 0.991, -0.841, 8, "collapsed onto one direction"),  # BatchNorm on the latent, no stop-gradient, batch 16
        (0.251, 0.999, -0.961, 8, "collapsed onto one direction"),  # batch 128
        (0.850, 0.300, -0.990, 512, "views too alike"),  # two views that are the same image
        (0.100, 0.990, -0.990, 512, "collapsed to a point"),  # a collapse has a loss near -1, too
        (float("nan"), float("nan"), float("nan"), 512, "healthy"),  # the loss says what is wrong
    ],
)
def test_seen_in_training(z_std: float, first_share: float, loss: float, d: int, verdict: str) -> None:
    assert collapse.judge(z_std, first_share, loss, dim=d) == verdict


def test_a_run_is_judged_by_the_median_of_its_last_records() -> None:
    good = {"z_std": 0.9, "first_share": 0.5, "rankme": 9.0, "loss": -0.8}
    bad = {"z_std": 0.9, "first_share": 0.99, "rankme": 1.2, "loss": -0.8}
    assert collapse.of_run([], 8) == collapse.of_run([bad, bad], 8) == "healthy"  # too few
    assert collapse.of_run([bad, good, good], 8) == collapse.of_run([good, good, bad], 8) == "healthy"  # one batch
    assert collapse.of_run([good, good, bad, bad], 8) == collapse.of_run([bad, good, bad], 8) == "collapsed onto one direction"
    assert collapse.of_run([bad, bad, bad, good, good], 8) == "healthy"  # over


def test_words() -> None:
    record = {"z_std": 0.05, "first_share": 0.99, "rankme": 1.2, "loss": -0.99}
    with_, without = (collapse.words("collapsed to a point", record, stop_gradient=on) for on in (True, False))
    assert "0.050" in with_ and "batch_size" in with_ and "stop_gradient is off" in without
    assert "99.0%" in collapse.words("collapsed onto one direction", record)
    assert "crop_scale" in collapse.words("views too alike", record)
    assert "COLLAPSED" not in collapse.words("healthy", record) + collapse.words("views too alike", record)


def train(images: Tensor, *, stop_gradient: bool, steps: int, d: int = 16, batch: int = 64) -> list[dict[str, float]]:
    """SimSiam on real images with BatchNorm on the latent, in the fewest lines; a record every fifth step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = nn.Sequential(
            nn.Linear(3 * 16 * 16, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, d), nn.BatchNorm1d(d, affine=False)
        )
        predictor = nn.Sequential(nn.Linear(d, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, d))
    optimizer = torch.optim.SGD([*encoder.parameters(), *predictor.parameters()], lr=0.1, momentum=0.9, weight_decay=5e-4)
    random, records = generator(), []
    for step in range(1, steps + 1):
        x = images[torch.randperm(len(images), generator=random)[:batch]].float() / 255

        def view(x: Tensor) -> Tensor:  # a random quarter of the image, brighter or darker
            row, column = torch.randint(0, 17, (2,), generator=random).tolist()
            crop = x[:, :, row : row + 16, column : column + 16]
            return (crop * (0.6 + 0.8 * torch.rand(len(x), 1, 1, 1, generator=random)) - 0.45).flatten(1) * 4

        z1, z2 = encoder(view(x)), encoder(view(x))
        t1, t2 = (z1.detach(), z2.detach()) if stop_gradient else (z1, z2)
        loss = -(F.cosine_similarity(predictor(z1), t2).mean() + F.cosine_similarity(predictor(z2), t1).mean()) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            records.append({"step": step, "loss": loss.item(), "z_std": collapse.z_std(z1.detach()).item(), **collapse.spread(z1)})
    return records


def test_a_collapse_behind_batchnorm_is_seen_while_it_happens(images: Tensor) -> None:
    records = train(images, stop_gradient=False, steps=400)
    verdicts = [collapse.of_run(seen, 16) for seen in accumulate([record] for record in records)]
    assert "collapsed onto one direction" in verdicts[: len(verdicts) // 2]
    assert verdicts[-1] == "collapsed onto one direction"
    assert records[-1]["z_std"] > 0.1  # by z_std alone it was not seen

    twin = train(images, stop_gradient=True, steps=400)
    assert {collapse.of_run(seen, 16) for seen in accumulate([record] for record in twin)} == {"healthy"}
    assert min(record["loss"] for record in twin) < -0.5  # it did train

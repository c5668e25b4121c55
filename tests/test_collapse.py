"""What is called collapsed, and what is not: analytic latents, the committed runs, and two real trainings."""

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simsiam import collapse, spread
from simsiam.checkpoint import Store
from simsiam.engine import Diverged, Record
from simsiam.methods.simsiam import SimSiam
from simsiam.networks import Encoder
from simsiam.pretrain import LOOKED_AT, pretrain
from simsiam.settings import EncoderSettings, Pretrain
from tests.some import COLOURFUL, SIMSIAM, but, generator

BATCHES, DIMS = [16, 128, 512], [2, 8, 512, 2048]
SETTINGS = Pretrain(
    epochs=20,
    min_steps=0,
    batch_size=64,
    lr=0.8,
    momentum=0.9,
    weight_decay=5e-4,
    precision="fp32",
    compile="never",
    knn=0,
    augment=but(COLOURFUL, view_size=16),
)


def judge(z: Tensor, loss: float = -0.8) -> str:
    return collapse.judge(float(spread.z_std(z)), loss=loss, dim=z.shape[1], lowest_loss=-1.0, **spread.spread(z))


def normed(z: Tensor) -> Tensor:
    """What BatchNorm without affine makes of a batch."""
    return nn.BatchNorm1d(z.shape[1], affine=False)(z)


def gaussian(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=generator(seed))


def test_z_std_is_one_on_the_sphere_and_zero_at_a_point() -> None:
    assert float(spread.z_std(gaussian(20_000, 64))) == pytest.approx(1, abs=0.01)
    assert float(spread.z_std(torch.ones(100, 64))) == pytest.approx(0, abs=1e-6)
    assert float(spread.z_std(5 * gaussian(200, 64))) == pytest.approx(float(spread.z_std(gaussian(200, 64))), abs=1e-5)


@pytest.mark.parametrize("d", DIMS)
@pytest.mark.parametrize("batch", BATCHES)
class TestAnalytic:
    def test_even_spread_is_healthy(self, batch: int, d: int) -> None:
        assert judge(gaussian(batch, d)) == judge(normed(gaussian(batch, d))) == "healthy"

    def test_point(self, batch: int, d: int) -> None:
        z = F.normalize(gaussian(1, d)) + 0.05 * F.normalize(gaussian(batch, d, seed=1))
        assert judge(z) == judge(torch.ones(batch, d)) == judge(torch.zeros(batch, d)) == "collapsed to a point"

    def test_line(self, batch: int, d: int) -> None:
        z = gaussian(batch, 1) * gaussian(1, d, seed=1).sign()
        assert judge(z) == judge(normed(z)) == "collapsed onto one direction"
        noisy = F.normalize(z) + 0.1 * F.normalize(gaussian(batch, d, seed=2))  # as training has it
        assert judge(noisy) == judge(normed(noisy)) == "collapsed onto one direction"

    @pytest.mark.parametrize("share", [0, 0.1])  # 0: a single image
    def test_batchnorm_leaves_few_images_opposite_to_all_others(self, batch: int, d: int, share: float) -> None:
        few = max(1, round(share * batch))
        z = normed((torch.arange(batch) < few).float()[:, None] * gaussian(1, d).sign())
        s = few / batch
        assert float(spread.z_std(z)) == pytest.approx(2 * (s * (1 - s)) ** 0.5 * (batch / (batch - 1)) ** 0.5, rel=1e-3)
        assert judge(z) == "collapsed onto one direction"


def test_spread() -> None:
    for n, d in [(16, 8), (8, 16)]:
        z = gaussian(n, d)
        singular = torch.linalg.svdvals(z.double())
        p = singular / singular.sum()
        found = spread.spread(z)
        assert found["rankme"] == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-6)
        first = torch.linalg.svdvals(F.normalize(z.double(), dim=1))[0] ** 2 / n
        assert found["first_share"] == pytest.approx(float(first), rel=1e-6)
    two = torch.tensor([[1.0, 0.0], [0.0, 3.0]])  # at right angles: half of the directions each, whatever their length
    assert spread.spread(two)["first_share"] == pytest.approx(0.5)
    assert spread.spread(torch.eye(2))["rankme"] == pytest.approx(2)


def test_spread_of_what_is_hardly_there() -> None:
    for z in [torch.zeros(4, 3), torch.ones(4, 3), torch.full((4, 3), 1e-30), torch.full((4, 3), 3e38), torch.ones(1, 3)]:
        assert spread.spread(z) == pytest.approx({"rankme": 1, "first_share": 1})
        assert float(spread.z_std(z)) == pytest.approx(0, abs=1e-6)
    broken = spread.spread(torch.tensor([[float("nan"), 1.0], [0.0, 1.0]]))
    assert broken["rankme"] != broken["rankme"] and broken["first_share"] != broken["first_share"]


# Of the study's encoders (laptop, 10 epochs, with stop-gradient): the lowest z_std and loss of any record, and RankMe of the
# test images. The highest first_share is of other, short healthy runs, 2,000 records from the first step on.
HEALTHY = [
    (2, 0.901, 0.964, 1.89, -0.742),
    (8, 0.786, 0.822, 5.38, -0.793),
    (32, 0.840, 0.689, 6.17, -0.776),
    (128, 0.832, 0.623, 6.43, -0.793),
    (512, 0.805, 0.523, 11.64, -0.837),
    (2048, 0.789, 0.420, 41.36, -0.842),
]


@pytest.mark.parametrize(("d", "z_std", "first_share", "rankme", "loss"), HEALTHY)
def test_healthy_runs(d: int, z_std: float, first_share: float, rankme: float, loss: float) -> None:
    assert collapse.judge(z_std, first_share, rankme, loss, dim=d, lowest_loss=-1.0) == "healthy"


@pytest.mark.parametrize(
    ("d", "z_std", "first_share", "rankme", "loss", "verdict"),
    [
        (512, 0.003, 0.9999, 3.16, -1.000, "collapsed to a point"),  # the study's point without stop-gradient
        (2, 0.159, 0.973, 1.31, -0.986, "collapsed to a point"),  # with it, and a network too narrow for d = 2
        (8, 0.508, 0.991, 1.23, -0.841, "collapsed onto one direction"),  # BatchNorm, no stop-gradient, batch 16
        (512, 0.516, 0.983, 1.71, -0.709, "collapsed onto one direction"),
        (8, 0.251, 0.999, 1.20, -0.961, "collapsed onto one direction"),  # batch 128
        (512, 0.194, 0.998, 1.20, -0.985, "collapsed onto one direction"),  # batch 512
        (512, 0.605, 0.840, 2.02, -0.770, "collapsed onto one direction"),  # `report` without stop-gradient, step 1300
        (512, 0.823, 0.752, 4.02, -0.552, "healthy"),  # not yet: the same at step 300
        (128, 0.859, 0.409, 24.8, -0.632, "healthy"),
        (8, 0.854, 0.815, 2.90, -0.430, "healthy"),  # a low RankMe is no wonder at d = 8
        (512, 0.844, 0.523, 2.90, -0.632, "healthy"),  # nor where a few latents are long
        (2, 0.990, 0.958, 1.41, -0.160, "healthy"),  # on its way, at step 60
        (3, 0.392, 0.797, 1.88, -0.895, "healthy"),
        (512, 0.835, 0.347, 21.0, -0.975, "views too alike"),  # without augmentation
        (2, 0.399, 0.859, 2.00, -0.995, "views too alike"),
        (512, 0.100, 0.990, 6.37, -0.990, "collapsed to a point"),  # a collapse has a loss near -1, too
        (512, float("nan"), float("nan"), float("nan"), float("nan"), "healthy"),  # the loss says what is wrong
    ],
)
def test_seen_in_training(d: int, z_std: float, first_share: float, rankme: float, loss: float, verdict: str) -> None:
    assert collapse.judge(z_std, first_share, rankme, loss, dim=d, lowest_loss=-1.0) == verdict


@pytest.mark.parametrize(("loss", "lowest_loss"), [(-5.0, None), (-0.99, None), (0.5, 0.0), (-1.9, -2.0)])
def test_what_a_loss_says_of_the_views_is_its_method_s(loss: float, lowest_loss: float | None) -> None:
    assert collapse.judge(0.9, 0.5, 9.0, loss, dim=8, lowest_loss=lowest_loss) == "healthy"
    if lowest_loss is not None:
        assert collapse.judge(0.9, 0.5, 9.0, lowest_loss + 0.03, dim=8, lowest_loss=lowest_loss) == "views too alike"


def record(rank: float = 50.0, loss: float = -0.8, **others: float) -> dict[str, float]:
    """Of a healthy latent, but for what is given."""
    return {"z_std": 0.9, "first_share": 0.5, "rankme": 9.0, "loss": loss, "backbone_rankme": rank} | others


def test_a_run_is_judged_by_the_median_of_its_last_records() -> None:
    good, bad = record(), record(first_share=0.99, rankme=1.2)
    of_run = partial(collapse.of_run, dim=8, lowest_loss=-1.0)
    assert of_run([]) == of_run([bad, bad]) == "healthy"  # too few
    assert of_run([bad, good, good]) == of_run([good, good, bad]) == "healthy"  # one batch
    assert of_run([good, good, bad, bad]) == of_run([bad, good, bad]) == "collapsed onto one direction"
    assert of_run([bad, bad, bad, good, good]) == "healthy"  # over


def verdicts(ranks: list[float], losses: list[float]) -> list[str]:
    """After each record."""
    records = [record(rank, loss) for rank, loss in zip(ranks, losses, strict=True)]
    return [collapse.of_run(records[: n + 1], 8, -1.0) for n in range(len(records))]


def test_less_than_half_of_its_own_highest_rank_with_a_lower_loss_is_losing_rank() -> None:
    falling = [-0.5 - 0.01 * n for n in range(8)]
    ranks = [30.0, 40, 40, 40, 19, 19, 19, 19]
    assert verdicts(ranks, falling) == ["healthy"] * 5 + ["losing rank"] * 3  # once two of three records say so
    assert set(verdicts([30.0, 40, 40, 40, 21, 21, 21, 21], falling)) == {"healthy"}
    assert set(verdicts(ranks, falling[::-1])) == {"healthy"}  # what has gone wrong there, the loss tells
    assert set(verdicts([40.0, 40, 90, 40, 40, 40, 40, 40], falling)) == {"healthy"}  # one batch of a high rank
    assert set(verdicts([40.0, 40, 40, 40, 9, 40, 40, 40], falling)) == {"healthy"}  # or of a low one
    assert verdicts([*ranks[:5], 19, 35, 35], falling)[-3:] == ["losing rank", "losing rank", "healthy"]  # it comes back
    assert set(verdicts(ranks[4:] * 2, falling)) == {"healthy"}  # of its own highest
    assert set(verdicts([*ranks[:4], *[float("nan")] * 4], falling)) == {"healthy"}


def test_a_collapse_that_is_worse_comes_before_a_loss_of_rank() -> None:
    records = [record(40, -0.5)] * 3 + [record(5, -0.6, first_share=0.99, rankme=1.2)] * 3
    assert collapse.of_run(records, 8, -1.0) == "collapsed onto one direction"


# Trainings of the `laptop` network on CIFAR-10: RankMe of the backbone and loss, in every second or third record.
SEEN: dict[str, tuple[list[float], list[float], int | None]] = {
    "d = 2, rate .4, 10 epochs": (
        [24.81, 25.07, 22.59, 21.09, 22.41, 21.07, 21.53, 20.46, 18.35, 19.59, 18.06, 17.54, 15.32, 17.49, 17.73, 17.42],
        [-0.45, -0.56, -0.65, -0.63, -0.64, -0.61, -0.63, -0.66, -0.63, -0.66, -0.65, -0.57, -0.75, -0.72, -0.70, -0.69],
        None,
    ),
    "d = 2048, rate .8, 16 epochs of 10,000 images": (
        [32.95, 39.71, 40.55, 40.03, 41.63, 42.03, 46.72, 40.34, 41.95, 43.65, 42.89, 44.49, 44.95, 47.01, 45.46, 47.30],
        [-0.54, -0.62, -0.67, -0.71, -0.73, -0.76, -0.75, -0.77, -0.78, -0.78, -0.80, -0.80, -0.80, -0.81, -0.81, -0.81],
        None,
    ),
    "d = 512, rate .8, 8 epochs": (
        [35.22, 37.42, 35.40, 30.90, 29.46, 21.98, 18.37, 17.20, 15.53, 14.56, 13.48, 14.24, 13.86, 13.82, 14.24, 14.93],
        [-0.46, -0.64, -0.73, -0.75, -0.74, -0.78, -0.77, -0.76, -0.74, -0.77, -0.79, -0.78, -0.80, -0.80, -0.82, -0.83],
        8,
    ),
    "d = 512, rate 1.6, 6 epochs": (
        [38.05, 32.67, 16.98, 17.14, 14.68, 13.64, 11.76, 8.27, 9.06, 8.18, 7.86, 6.53, 6.76, 7.04, 6.84, 6.68],
        [-0.45, -0.56, -0.64, -0.63, -0.67, -0.65, -0.68, -0.70, -0.73, -0.77, -0.76, -0.79, -0.81, -0.80, -0.80, -0.81],
        5,
    ),
}


@pytest.mark.parametrize("run", SEEN)
def test_ranks_seen_in_training(run: str) -> None:
    """Healthy, or losing rank from some record on to the end."""
    ranks, losses, since = SEEN[run]
    since = len(ranks) if since is None else since
    assert verdicts(ranks, losses) == ["healthy"] * since + ["losing rank"] * (len(ranks) - since)


def test_words() -> None:
    records = [record(64, -0.2)] * 3 + [record(22, -0.985, z_std=0.05, first_share=0.99, rankme=1.2)] * 3
    for verdict in ("collapsed to a point", "collapsed onto one direction"):
        line = collapse.words(verdict, records)
        assert verdict.replace("collapsed", "COLLAPSED") in line and "a larger batch_size" in line
        assert "z_std 0.05, first direction 99.0%, RankMe 1.2" in line
        assert "stop_gradient is off" in collapse.words(verdict, records, stop_gradient=False)
    alike = collapse.words("views too alike", records)
    assert "-0.985" in alike and "crop_scale" in alike
    assert "COLLAPSED" not in collapse.words("healthy", records) + alike
    losing = collapse.words("losing rank", records)
    assert "LOSING RANK: RankMe of the backbone's features was 64 and is 22" in losing and "a smaller lr" in losing
    assert "\n" not in losing and collapse.words("healthy", records[:1]).startswith("the latent is healthy")


def test_a_collapse_behind_batchnorm_is_announced_while_it_happens(
    tiny: EncoderSettings, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts, heard, last = {}, {}, {}
    for stop_gradient in (False, True):
        encoder = Encoder(but(tiny, latent_dim=16, projector_hidden=64, latent_norm=True))
        options = but(SIMSIAM, stop_gradient=stop_gradient, predictor_hidden=None)
        records = pretrain(SimSiam(encoder, options), images, settings=SETTINGS, seed=0).records  # one for each epoch
        verdicts[stop_gradient] = [collapse.of_run(records[:n], 16, -1.0) for n in range(1, len(records) + 1)]
        heard[stop_gradient], last[stop_gradient] = capsys.readouterr().err, records[-1]
    assert set(verdicts[False][:2]) == {"healthy"}
    assert set(verdicts[False][len(records) // 2 :]) == {"collapsed onto one direction"}
    assert last[False]["z_std"] > 0.2  # which is not near 0
    assert heard[False].count("COLLAPSED onto one direction") == 1
    assert set(verdicts[True]) == {"healthy"} and "COLLAPSED" not in heard[True]
    assert last[True]["loss"] < -0.4  # and it learned


def simsiam(tiny: EncoderSettings, **changes: object) -> SimSiam:
    return SimSiam(Encoder(but(tiny, **changes)), but(SIMSIAM, predictor_hidden=None))


def test_a_loss_of_rank_is_announced_while_it_happens(
    tiny: EncoderSettings, images: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 19 times the rate the loss is lower, and the latent looks healthy."""
    ends = {}
    for lr, verdict in ((0.8, "healthy"), (15.0, "losing rank")):
        method = simsiam(tiny, latent_dim=16, projector_hidden=64, latent_norm=False)
        records = pretrain(method, images, settings=but(SETTINGS, epochs=30, lr=lr), seed=0).records
        assert collapse.of_run(records, 16, -1.0) == verdict
        assert capsys.readouterr().err.count("LOSING RANK: RankMe of the backbone's features was") == (lr == 15)
        ends[lr] = records[-1]
    assert ends[15]["backbone_rankme"] < ends[0.8]["backbone_rankme"] and ends[15]["loss"] < ends[0.8]["loss"]


def test_the_backbone_s_rank_is_that_of_the_last_batch_s_last_view(tiny: EncoderSettings, images: Tensor) -> None:
    method, seen = simsiam(tiny), []
    method.encoder.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().double()))
    records = pretrain(method, images, settings=but(SETTINGS, epochs=2), seed=0).records
    assert len(seen) == 2 * 12  # two views in six steps of two epochs
    for record, last in zip(records, (seen[11], seen[23]), strict=True):
        shares = torch.linalg.svdvals(last) / torch.linalg.svdvals(last).sum()
        assert record["backbone_rankme"] == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-6)


def test_a_large_batch_s_rank_is_that_of_some_of_it(
    tiny: EncoderSettings, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def rankme(x: Tensor) -> float:
        given.append(len(x))
        return 9.0

    monkeypatch.setattr(spread, "rankme", rankme)
    pretrain(simsiam(tiny), images, settings=but(SETTINGS, epochs=1, batch_size=300), seed=0)
    assert min(given) == LOOKED_AT < 300


def test_nothing_is_left_hanging_on_the_encoder(tiny: EncoderSettings, images: Tensor) -> None:
    method = simsiam(tiny)
    pretrain(method, images, settings=but(SETTINGS, epochs=1), seed=0)
    nn.init.constant_(method.predictor[0].weight, float("nan"))  # type: ignore[index]
    with pytest.raises(Diverged):
        pretrain(method, images, settings=but(SETTINGS, epochs=1), seed=0)
    assert not method.encoder.backbone._forward_hooks


def test_a_training_that_goes_on_is_judged_by_all_its_records(
    tiny: EncoderSettings, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The highest rank may have been seen before it was cut short."""
    monkeypatch.setattr("simsiam.engine.SAVE_EVERY", -1.0)
    monkeypatch.setattr("simsiam.engine.LOOK_EVERY", 1)
    judged: list[list[float]] = []
    killed, steps = simsiam(tiny), []

    def of_run(records: list[Record], *of: object, labelled: bool) -> str:
        judged.append([record["step"] for record in records])
        return "healthy"

    monkeypatch.setattr(collapse, "of_run", of_run)

    def stop(module: nn.Module, inputs: object) -> None:
        steps.append(1)
        if len(steps) == 15:
            raise RuntimeError("killed")

    killed.register_forward_pre_hook(stop)
    train = partial(pretrain, settings=but(SETTINGS, epochs=4), seed=0, store_for=lambda _: nullcontext(Store(tmp_path)))
    with pytest.raises(RuntimeError, match="killed"):
        train(killed, images)
    train(simsiam(tiny), images)
    assert judged == [[6], [6, 12], [6, 12, 18], [6, 12, 18, 24]]

"""The probe is logistic regression at its optimum, whatever the features' scale, correlations and rank are."""

import warnings
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from simsiam import probe as module
from simsiam.errors import UserError
from simsiam.features import extract
from simsiam.images import Floats, ImageSet, Labels, split
from simsiam.metrics import top_k
from simsiam.networks import Encoder
from simsiam.probe import L2S, Probe, fit, linear_probe, principal_axes
from simsiam.settings import EncoderSettings
from tests.some import but, rng

CPU = torch.device("cpu")
TRAIN, TEST = slice(0, 800), slice(800, 3200)
LABELS = np.arange(3200) % 10


def probe(
    features: Floats,
    labels: Labels = LABELS[TRAIN],
    *,
    classes: int = 10,
    l2s: tuple[float, ...] = L2S,
    held_out: int = 100,
) -> Probe:
    return linear_probe(features, labels, classes=classes, held_out=held_out, seed=0, device=CPU, l2s=l2s, name="t")


def turned(features: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Uncorrelated features, and their variances."""
    centre, axes, variances = principal_axes(features, CPU, "t")
    return ((torch.from_numpy(features) - centre) @ axes).float(), variances


def top1(found: Probe, features: Floats, labels: Labels = LABELS[TEST]) -> float:
    return top_k(found.scores(features), labels, 1)


def loss(scores: Floats, labels: Labels) -> float:
    return float(-log_softmax(scores.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def condition_1000(d: int) -> NDArray[np.float64]:
    """An invertible matrix (d, d) with singular values from 1 to 1e-3."""
    left, right = (np.linalg.qr(rng(seed).normal(size=(d, d)))[0] for seed in (5, 6))
    return (left * np.logspace(0, -3, d)) @ right


@pytest.fixture(scope="module")
def plain() -> NDArray[np.float32]:
    """(3200, 12): clouds around ten centres."""
    centres = rng().normal(size=(10, 12))
    return (centres[LABELS] + 0.9 * rng(1).normal(size=(3200, 12))).astype(np.float32)


@pytest.mark.parametrize("space", ["pixels", "backbone", "latent"])
@pytest.mark.parametrize("l2", [1e-2, 1e-4])
def test_a_probe_is_scikit_learns_logistic_regression(
    space: str, l2: float, cifar: ImageSet, images: Tensor, tiny: EncoderSettings
) -> None:
    backbone, latent = extract(Encoder(but(tiny, latent_dim=32)), images)
    pixels = cifar.x_train.reshape(400, -1)[:, ::32].astype(np.float32)
    features = {"pixels": pixels, "backbone": backbone, "latent": latent}[space]
    found = probe(features, cifar.y_train, l2s=(l2,))
    assert not found.whitened
    agrees(found, features, cifar.y_train, StandardScaler())


def test_a_whitened_one_too(plain: NDArray[np.float32]) -> None:
    mixed = (plain @ condition_1000(12)).astype(np.float32)
    found = probe(mixed[TRAIN])
    assert found.whitened
    assert min(found.held_out) > 1e-7  # not the strengths that were tried without whitening
    agrees(found, mixed[TRAIN], LABELS[TRAIN], StandardScaler(), PCA(whiten=True))


def agrees(found: Probe, features: Floats, labels: Labels, *scaled: StandardScaler | PCA) -> None:
    """With scikit-learn's logistic regression at the same strength, on features scaled by these."""
    solver = LogisticRegression(C=1 / (len(labels) * found.l2), max_iter=10_000, tol=1e-6)
    theirs = make_pipeline(*scaled, solver).fit(features.astype(np.float64), labels).decision_function(features)
    assert found.loss == pytest.approx(loss(theirs, labels), abs=1e-3)
    assert found.loss == pytest.approx(loss(found.scores(features), labels), abs=1e-4)  # folded into raw features
    assert top1(found, features, labels) == pytest.approx(top_k(theirs, labels, 1), abs=0.003)
    np.testing.assert_allclose(softmax(found.scores(features), 1), softmax(theirs, 1), atol=0.02)


def test_it_ends_at_the_optimum_of_its_objective(plain: NDArray[np.float32]) -> None:
    """The gradient by the weights of standardised features, in float64 and from the raw weights that are returned."""
    x, y = plain[TRAIN].astype(np.float64), LABELS[TRAIN]
    found = probe(plain[TRAIN])
    assert not found.whitened
    residual = softmax(found.scores(plain[TRAIN]).astype(np.float64), 1) - np.eye(10)[y]
    weights = found.weight * x.std(0)
    gradient = residual.T @ ((x - x.mean(0)) / x.std(0)) / len(x) + found.l2 * weights
    assert np.abs(gradient).max() < 1e-4 and np.abs(residual.mean(0)).max() < 1e-4
    assert np.abs(found.l2 * weights).max() > 1e-3  # or the penalty could be missing from both
    assert found.gradient_norm < 1e-4 and found.iterations > 5


def test_neither_scale_nor_shift_of_a_dimension_matters(plain: NDArray[np.float32]) -> None:
    scale = 10 ** rng(2).uniform(-8, 8, 12)
    other = ((plain + rng(3).uniform(-100, 100, 12)) * scale).astype(np.float32)
    one, two = probe(plain[TRAIN]), probe(other[TRAIN])
    assert two.l2 == one.l2 and two.loss == pytest.approx(one.loss, abs=1e-4)
    assert top1(two, other[TEST]) == pytest.approx(top1(one, plain[TEST]), abs=0.001)


def test_an_invertible_mixing_costs_next_to_nothing(plain: NDArray[np.float32]) -> None:
    mixed = (plain @ condition_1000(12)).astype(np.float32)
    one, two = probe(plain[TRAIN]), probe(mixed[TRAIN])
    assert top1(one, plain[TEST]) > 0.85
    assert top1(two, mixed[TEST]) == pytest.approx(top1(one, plain[TEST]), abs=0.01)
    assert two.iterations < 60  # without the turn to uncorrelated directions: hundreds


def degenerate(case: str, plain: NDArray[np.float32]) -> NDArray[np.float64]:
    noise = rng(4).normal(size=(len(plain), 12))
    match case:
        case "dead":
            return np.concatenate([plain, np.zeros((len(plain), 3)), np.full((len(plain), 3), 0.1)], 1)
        case "dead but for rounding":
            return np.concatenate([plain, 7 * (1 + 1e-7 * noise)], 1)
        case "duplicated":
            return np.concatenate([plain, plain, 3 * plain], 1)
        case "rank-deficient":
            return plain @ rng(7).normal(size=(12, 40))
        case "rank-deficient and mixed":
            return plain @ condition_1000(12) @ rng(7).normal(size=(12, 40))
        case "small beside the mean":  # as collapsed without the stop-gradient: the deviation is .025 of the norm
            return 1 + 0.025 / plain.std() * plain
        case "equal":
            return np.full((len(plain), 12), 0.3)
        case "equal but for rounding":
            return (1 + 1e-7 * noise) * rng(8).normal(size=12)
        case "one direction":
            return noise[:, :1] * rng(8).normal(size=(1, 12)) + 1e-7 * noise
    raise AssertionError(case)


INFORMATIVE = [
    "dead",
    "dead but for rounding",
    "duplicated",
    "rank-deficient",
    "rank-deficient and mixed",
    "small beside the mean",
]


@pytest.mark.parametrize("case", [*INFORMATIVE, "equal", "equal but for rounding", "one direction"])
def test_degenerate_features_do_no_harm(
    case: str, plain: NDArray[np.float32], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []

    def watched(*given: Any, **named: Any) -> module.Fit:
        fits.append(fit(*given, **named))
        return fits[-1]

    monkeypatch.setattr(module, "fit", watched)
    features = degenerate(case, plain).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = probe(features[TRAIN])
    assert all(one.weight.isfinite().all() for one in fits) and fits[-1].converged
    assert np.isfinite(found.weight).all() and np.isfinite(found.bias).all()
    assert capsys.readouterr().err == ""
    if case in INFORMATIVE:
        assert top1(found, features[TEST]) == pytest.approx(top1(probe(plain[TRAIN]), plain[TEST]), abs=0.01)
    else:
        assert top1(found, features[TEST]) == pytest.approx(0.1, abs=0.03)
        assert found.loss == pytest.approx(np.log(10), abs=0.02)
        assert np.abs(found.scores(features)).max() < 1
    if case.startswith(("dead", "equal")):  # nothing is read from what is only rounding
        assert not found.weight[:, 12 if case.startswith("dead") else 0 :].any()


def test_the_intercept_is_free() -> None:
    labels = np.repeat([0, 1, 2], [500, 250, 50])
    found = probe(rng().normal(size=(800, 4)).astype(np.float32) + 5, labels, classes=3, l2s=(1e6,))
    shares = softmax(found.scores(np.full((1, 4), 5, np.float32)), 1)[0]
    np.testing.assert_allclose(shares, [500 / 800, 250 / 800, 50 / 800], atol=1e-3)


def test_classes_are_what_the_caller_says(plain: NDArray[np.float32]) -> None:
    found = probe(plain[TRAIN], classes=13)  # no example of the last three
    assert found.weight.shape == (13, 12) and found.bias.shape == (13,)
    assert found.scores(plain[TEST]).argmax(1).max() == 9
    assert top1(found, plain[TEST]) == pytest.approx(top1(probe(plain[TRAIN]), plain[TEST]), abs=0.005)


def test_two_classes(plain: NDArray[np.float32]) -> None:
    few = LABELS < 2
    features, labels = plain[few], LABELS[few]
    found = probe(features[:300], labels[:300], classes=2)
    assert found.weight.shape == (2, 12) and top1(found, features[300:], labels[300:]) > 0.95


@pytest.mark.parametrize(("held_out", "missing"), [(5, 1), (100, 0)])
def test_a_class_may_be_missing_from_the_slice_or_from_the_others(
    held_out: int, missing: int, plain: NDArray[np.float32]
) -> None:
    rows = np.concatenate([np.flatnonzero(LABELS[TRAIN] < 9), [9]])  # a single example of the last class
    assert not (LABELS[rows][split(LABELS[rows], held_out, 0)[missing]] == 9).any()
    found = probe(plain[rows], LABELS[rows], held_out=held_out)
    assert np.isfinite(found.weight).all() and top1(found, plain[rows], LABELS[rows]) > 0.85


def test_the_strength_follows_what_the_slice_says(plain: NDArray[np.float32], capsys: pytest.CaptureFixture[str]) -> None:
    """Few examples among many useless dimensions need a strong penalty; many examples of few dimensions hardly any."""
    labels = np.arange(4000) % 4
    wide = rng().normal(size=(4000, 100)).astype(np.float32)
    wide[:, :4] += 1.5 * np.eye(4, dtype=np.float32)[labels]
    few = probe(wide[:200], labels[:200], classes=4)
    assert few.l2 >= 0.01 > 2 * probe(plain, LABELS).l2
    weak = probe(wide[:200], labels[:200], classes=4, l2s=(1e-6,))
    assert top1(few, wide[2000:], labels[2000:]) > top1(weak, wide[2000:], labels[2000:]) + 0.03
    assert set(few.held_out) <= set(L2S) and len(few.held_out) >= 3 and few.l2 not in (min(L2S), max(L2S))
    assert "l2 1e-06 is at the edge" in (said := capsys.readouterr().err) and said.count("\n") == 1  # only of the third


def test_weaker_strengths_are_not_fitted_where_stronger_ones_gain(plain: NDArray[np.float32]) -> None:
    """The middle of 180 examples is .01: from there the loss on the slice falls to one side only."""
    labels = np.arange(200) % 4
    wide = rng().normal(size=(200, 100)).astype(np.float32)
    wide[:, :4] += 1.5 * np.eye(4, dtype=np.float32)[labels]
    strong = probe(wide, labels, classes=4, held_out=20)
    assert strong.l2 > min(strong.held_out) == pytest.approx(0.01)
    weak = probe(plain, LABELS, held_out=320)  # the middle is .001
    assert min(weak.held_out) < weak.l2 < 0.001 and sorted(weak.held_out)[-2:] == pytest.approx([0.001, 0.01])


def test_a_fit_that_starts_near_wastes_no_evaluation(plain: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    """SciPy's own first step is far too long there, and has to be taken back."""
    x, variances = turned(plain[TRAIN])
    y = torch.from_numpy(LABELS[TRAIN])
    near = fit(x, y, variances, torch.full_like(variances, 1e-3), classes=10, tolerance=module.LOOSE)
    counted = Mock(side_effect=module._logits)
    monkeypatch.setattr(module, "_logits", counted)
    monkeypatch.setattr(module, "MOST_STEPS", 1)
    fit(x, y, variances, torch.full_like(variances, 1e-3), classes=10, start=near.weight)
    assert counted.call_count == 2  # where it starts, and where the step ends


def test_where_float32_rounds_too_much_it_goes_on_in_float64(plain: NDArray[np.float32]) -> None:
    x, variances = turned(plain[TRAIN])
    y, penalties = torch.from_numpy(LABELS[TRAIN]), torch.full_like(variances, 1e-3)
    found = fit(x, y, variances, penalties, classes=10, tolerance=1e-9)
    exact = fit(x.double(), y, variances, penalties, classes=10, tolerance=1e-9)
    assert found.converged and found.gradient_norm <= 1e-9
    assert found.loss == pytest.approx(exact.loss, abs=1e-9)


@pytest.mark.parametrize(("d", "expected"), [(8, {False, True}), (60, {False})])
def test_few_examples_are_not_whitened(d: int, expected: set[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """100 examples besides the slice: in 60 dimensions they would all be equally far from each other."""
    whitened = set()

    def watched(x: Tensor, y: Tensor, variances: Tensor, penalties: Tensor, **named: Any) -> module.Fit:
        whitened.add(bool(penalties.max() > penalties.min()))
        return fit(x, y, variances, penalties, **named)

    monkeypatch.setattr(module, "fit", watched)
    probe(rng().normal(size=(200, d)).astype(np.float32) + 5 * rng(1).normal(size=(200, 1)), LABELS[:200])
    assert whitened == expected


def test_of_equal_strengths_the_strongest_is_used(plain: NDArray[np.float32]) -> None:
    noisy = (plain[TRAIN] + 3 * rng(2).normal(size=(800, 12))).astype(np.float32)
    kept, held = split(LABELS[TRAIN], 100, 0)
    x, variances = turned(noisy)
    y = torch.from_numpy(LABELS[TRAIN])

    def held_scores(l2: float) -> Floats:
        weight = fit(x[kept], y[kept], variances, torch.full_like(variances, l2), classes=10).weight.numpy()
        return x[held].numpy() @ weight[:, :-1].T + weight[:, -1]

    def held_loss(l2: float) -> float:
        return loss(held_scores(l2), LABELS[TRAIN][held])

    assert 0.0001 < held_loss(0.012) - held_loss(0.01) < module.TIE < held_loss(0.03) - held_loss(0.01)
    found = probe(noisy, l2s=(0.01, 0.012, 0.03))
    assert found.l2 == 0.012
    assert found.held_out[0.01] == pytest.approx(top_k(held_scores(0.01), LABELS[TRAIN][held], 1), abs=0.01)


@pytest.mark.parametrize("l2s", [(1e-2, 1e-1, 1.0, 10.0), (1e2, 1e1, 1.0)])
def test_a_choice_at_the_weak_edge_is_told(
    l2s: tuple[float, ...], plain: NDArray[np.float32], capsys: pytest.CaptureFixture[str]
) -> None:
    assert probe(plain[TRAIN], l2s=l2s).l2 == min(l2s)
    assert "warning: t: l2" in (said := capsys.readouterr().err) and "edge" in said and said.count("\n") == 1


def test_a_choice_at_the_strong_edge_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.arange(200) % 4
    features = rng().normal(size=(200, 100)).astype(np.float32)
    features[:, :4] += 1.5 * np.eye(4, dtype=np.float32)[labels]
    assert probe(features, labels, classes=4, l2s=(1e-7, 1e-6, 1e-5, 1e-4)).l2 == 1e-4
    assert "warning: t: l2 0.0001 is at the edge" in capsys.readouterr().err


def test_the_slice_is_not_fitted() -> None:
    """More dimensions than examples, labels without meaning: fitted, every label is right; held out, only by chance."""
    features, labels = rng().normal(size=(300, 400)).astype(np.float32), rng(1).permutation(np.arange(300) % 10)
    found = probe(features, labels, l2s=(1e-4,))
    assert found.held_out[1e-4] < 0.25
    assert top1(found, features, labels) == 1  # refitted on all


def test_what_did_not_converge_says_so(
    plain: NDArray[np.float32], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, variances = turned(plain[TRAIN])
    y = torch.from_numpy(LABELS[TRAIN])
    assert fit(x, y, variances, torch.full_like(variances, 1e-3), classes=10).converged
    monkeypatch.setattr(module, "MOST_STEPS", 3)
    ended = fit(x, y, variances, torch.full_like(variances, 1e-3), classes=10)
    assert not ended.converged and ended.iterations == 3 and ended.gradient_norm > 1e-4
    found = probe(plain[TRAIN])
    assert found.iterations <= 3
    assert "warning: t: not at the optimum after 3 iterations" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad: float, plain: NDArray[np.float32]) -> None:
    features = plain[TRAIN].copy()
    features[3, 2] = bad
    with pytest.raises(UserError, match="t: the features are not finite"):
        probe(features)

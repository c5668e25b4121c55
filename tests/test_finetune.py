"""SimSiam pretraining and fine-tuning on real images, small."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from simsiam import finetune as finetuning
from simsiam.engine import Diverged, Result
from simsiam.engine import train as train_for_real
from simsiam.errors import UserError
from simsiam.finetune import Finetuned, finetune, predict
from simsiam.images import ImageSet, to_tensor
from simsiam.methods.simsiam import SimSiam
from simsiam.metrics import top_k
from simsiam.networks import Classifier, Encoder, Space
from simsiam.pretrain import pretrain
from simsiam.settings import EncoderSettings, Finetune, Pretrain
from tests.some import COLOURFUL, SIMSIAM, but, timeless

VIEW = but(COLOURFUL, view_size=16, crop_scale=[0.5, 1.0])
SETTINGS = Pretrain(
    epochs=6,
    min_steps=0,
    batch_size=50,
    lr=0.4,
    momentum=0.9,
    weight_decay=5e-4,
    precision="fp32",
    compile="never",
    knn=0,
    augment=VIEW,
)
TUNING = Finetune(
    **SETTINGS.model_dump(exclude={"lr", "knn"}),
    lr=[0.4],
    scratch_lr=None,
    held_out=50,
    space="latent",
    labels=1.0,
    budget="fixed",
)


def test_pretraining_learns_and_is_reproducible(tiny: EncoderSettings, images: Tensor) -> None:
    runs = []
    for _ in range(2):
        model = SimSiam(Encoder(tiny), SIMSIAM)
        runs.append((pretrain(model, images, settings=SETTINGS, seed=0), model))
    (first, one), (second, two) = runs
    assert first.records[-1]["loss"] < first.records[0]["loss"] - 0.1
    assert first.records[-1]["z_std"] > 0.5
    assert timeless(first.records) == timeless(second.records)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    other = pretrain(SimSiam(Encoder(tiny), SIMSIAM), images, settings=SETTINGS, seed=1)
    assert other.records != first.records


def test_bf16_takes_the_step_of_fp32(tiny: EncoderSettings, images: Tensor) -> None:
    """A step from the same weights on the same views: the same loss, and the same direction for every parameter.

    The network is as wide as the `laptop` recipe's: in the tiny one a few roundings already turn the step.
    """
    wide = but(tiny, latent_dim=64, width=32, projector_hidden=128)
    start = SimSiam(Encoder(wide), but(SIMSIAM, predictor_hidden=32))
    pretrain(start, images, settings=but(SETTINGS, epochs=3), seed=0)  # past the zeros of the initial weights
    one_step = but(SETTINGS, epochs=1, batch_size=400, momentum=0.0, weight_decay=0.0, lr=0.1)
    losses, moves = {}, {}
    for precision in ("fp32", "bf16"):
        model = copy.deepcopy(start)
        result = pretrain(model, images, settings=but(one_step, precision=precision), seed=0)
        losses[precision] = result.records[0]["loss"]
        after = dict(model.named_parameters())
        moves[precision] = {name: (after[name] - before).detach().flatten() for name, before in start.named_parameters()}
    assert losses["bf16"] != losses["fp32"] and losses["bf16"] == pytest.approx(losses["fp32"], abs=2e-3)
    whole = {precision: torch.cat(list(steps.values())) for precision, steps in moves.items()}
    assert torch.cosine_similarity(whole["bf16"], whole["fp32"], dim=0) > 0.99
    assert float(whole["bf16"].norm()) == pytest.approx(float(whole["fp32"].norm()), rel=0.05)
    for name, expected in moves["fp32"].items():
        assert torch.cosine_similarity(moves["bf16"][name], expected, dim=0) > 0.9, name


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_without_stop_gradient_the_latent_collapses(tiny: EncoderSettings, images: Tensor, stop_gradient: bool) -> None:
    model = SimSiam(Encoder(but(tiny, latent_norm=False)), but(SIMSIAM, stop_gradient=stop_gradient))
    last = pretrain(model, images, settings=but(SETTINGS, epochs=20), seed=0).records[-1]
    assert (last["z_std"] > 0.5) if stop_gradient else (last["z_std"] < 0.1 and last["loss"] < -0.99)


def test_two_latent_dimensions_train(tiny: EncoderSettings, images: Tensor) -> None:
    model = SimSiam(Encoder(but(tiny, latent_dim=2)), but(SIMSIAM, predictor_hidden=32))
    records = pretrain(model, images, settings=but(SETTINGS, epochs=20), seed=0).records
    assert records[-1]["loss"] < records[0]["loss"] - 0.1 and records[-1]["z_std"] > 0.5


@pytest.fixture
def small(images: Tensor) -> Tensor:
    """The training images in the size of the views."""
    return nn.functional.interpolate(images.float(), 16, mode="area").byte()


@pytest.fixture
def tune(tiny: EncoderSettings, small: Tensor, cifar: ImageSet) -> Callable[..., Finetuned]:
    """Fine-tune the tiny encoder with other settings for some keys."""

    def tune(encoder: Encoder | None = None, images: Tensor = small, **changes: Any) -> Finetuned:
        lr = changes.pop("lr", TUNING.lr)  # any rate: those that diverge at once are beyond what params.yaml may have
        settings = but(TUNING, **changes).model_copy(update={"lr": lr})
        return finetune(encoder or Encoder(tiny), images, cifar.y_train, classes=10, settings=settings, seed=0, name="test")

    return tune


def test_finetuning_fits_real_images_and_leaves_the_encoder_alone(
    tiny: EncoderSettings, small: Tensor, cifar: ImageSet, tune: Callable[..., Finetuned]
) -> None:
    encoder = Encoder(tiny)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    plain = but(VIEW, crop_scale=[0.9, 1.0], jitter_probability=0.0, grey=0.0)
    tuned = tune(encoder, epochs=80, augment=plain)
    assert top_k(predict(tuned.classifier, small)[0], cifar.y_train, 1) > 0.9
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    assert tuned.trials == [] and (tuned.lr, tuned.epochs, tuned.batch_size, tuned.images) == (0.4, 80, 50, 400)


def test_the_rate_is_chosen_on_held_out_images(tune: Callable[..., Finetuned]) -> None:
    tuned = tune(epochs=10, lr=[1e-6, 0.2], held_out=100)
    found = {trial["lr"]: trial["top1"] or 0.0 for trial in tuned.trials}
    assert tuned.lr == 0.2 and list(found) == [1e-6, 0.2] and found[0.2] > found[1e-6]


def test_with_its_head_on_the_backbone_the_projector_has_no_part(
    tiny: EncoderSettings, tune: Callable[..., Finetuned]
) -> None:
    encoder = Encoder(tiny)
    tuned = tune(encoder, epochs=1, lr=[0.1], space="backbone").classifier
    assert all(map(torch.equal, tuned.encoder.projector.state_dict().values(), encoder.projector.state_dict().values()))
    assert not any(map(torch.equal, tuned.encoder.backbone.parameters(), encoder.backbone.parameters()))


@pytest.mark.parametrize("space", ["backbone", "latent"])
def test_predict_is_the_classifier(tiny: EncoderSettings, cifar: ImageSet, space: Space) -> None:
    size = 64 if space == "backbone" else 8
    classifier = Classifier(Encoder(tiny), torch.nn.Linear(size, 10), space).eval()
    pixels = to_tensor(cifar.x_test, torch.device("cpu"))
    logits, read = predict(classifier, pixels)
    with torch.inference_mode():
        expected = classifier(pixels.float() / 255).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=1e-4)
    assert read.shape == (100, size)


def test_one_rate_that_diverges_does_not_end_it(tune: Callable[..., Finetuned], capsys: pytest.CaptureFixture[str]) -> None:
    tuned = tune(epochs=1, lr=[1e9, 0.1])  # at 1e9 the loss is not finite in the second step
    assert tuned.lr == 0.1
    assert [(trial["lr"], trial["top1"] is None) for trial in tuned.trials] == [(1e9, True), (0.1, False)]
    told = capsys.readouterr().err
    assert "trial of lr 1e+09" in told and "(passed over)" in told
    assert all(np.isfinite(value).all() for value in predict(tuned.classifier, torch.zeros(4, 3, 16, 16).byte()))


def test_rates_that_all_diverge_are_an_error(tune: Callable[..., Finetuned]) -> None:
    with pytest.raises(Diverged, match=r"test: the loss diverges at every learning rate of .*: try smaller") as caught:
        tune(epochs=1, lr=[1e9, 2e9])
    assert "\n" not in str(caught.value)


Fake = Callable[..., list[tuple[str, int, float]]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Trainings that do nothing, and trials that have the top-1 that is given for their rate and epochs.

    Returns where they are noted: name, epochs and rate.
    """

    def install(top1s: dict[tuple[float, int], float]) -> list[tuple[str, int, float]]:
        done: list[tuple[str, int, float]] = []

        def train(classifier: nn.Module, loss_of: object, *, settings: Any, lr: float, name: str, **_: object) -> Result:
            done.append((name, settings.epochs, lr))
            return Result([], 0.0, 0.0, 0.0, {})

        monkeypatch.setattr(finetuning, "train", train)
        monkeypatch.setattr(finetuning, "predict", lambda classifier, images: (None, None))
        monkeypatch.setattr(finetuning, "top_k", lambda scores, labels, k: top1s[done[-1][2], done[-1][1]])
        return done

    return install


@pytest.mark.parametrize(
    ("top1s", "epochs"),
    [
        ([0.3, 0.2], 2),  # twice as long is worse
        ([0.3, 0.3], 2),  # or the same
        ([0.3, 0.4, 0.5, 0.45], 8),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], 128),  # it rises for ever: 6 doublings
    ],
)
def test_a_budget_grows_while_the_held_out_top1_rises(
    tune: Callable[..., Finetuned], fake: Fake, top1s: list[float], epochs: int
) -> None:
    done = fake({(0.4, 2 * 2**n): top1 for n, top1 in enumerate(top1s)})
    tuned = tune(epochs=2, budget="grow")
    assert [trial["top1"] for trial in tuned.trials] == top1s
    assert [trial["epochs"] for trial in tuned.trials] == [2 * 2**n for n in range(len(top1s))]
    assert tuned.epochs == epochs and done[-1] == ("test", epochs, 0.4)
    assert done[0] == ("test, trial of lr 0.4, 2 epochs", 2, 0.4)


def test_a_budget_grows_at_the_best_rate(tune: Callable[..., Finetuned], fake: Fake) -> None:
    done = fake({(0.1, 2): 0.2, (0.4, 2): 0.5, (0.8, 2): 0.3, (0.4, 4): 0.6, (0.4, 8): 0.55})
    tuned = tune(epochs=2, lr=[0.1, 0.4, 0.8], budget="grow")
    assert (tuned.lr, tuned.epochs, len(done)) == (0.4, 4, 6)


def test_a_longer_training_that_diverges_ends_the_growing(tune: Callable[..., Finetuned], monkeypatch: Any) -> None:
    def train(*args: Any, settings: Any, **others: Any) -> Result:
        if settings.epochs > 1:
            raise Diverged("test: the loss is nan")
        return train_for_real(*args, settings=settings, **others)

    monkeypatch.setattr(finetuning, "train", train)
    tuned = tune(epochs=1, budget="grow")
    assert tuned.epochs == 1 and [trial["top1"] is None for trial in tuned.trials] == [False, True]


def test_a_budget_really_grows(tune: Callable[..., Finetuned]) -> None:
    """With nothing faked."""
    tuned = tune(epochs=2, budget="grow", held_out=100)
    assert tuned.epochs > 2 and tuned.result.records[-1]["epoch"] == tuned.epochs
    best = max(trial["top1"] or 0.0 for trial in tuned.trials)
    assert next(trial["top1"] for trial in tuned.trials if trial["epochs"] == tuned.epochs) == best > 0.1


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every training of finetune is given."""
    calls: list[dict[str, Any]] = []

    def train(classifier: nn.Module, loss_of: Any, **others: Any) -> Result:
        calls.append(others | {"loss_of": loss_of})
        return Result([], 0.0, 0.0, 0.0, {})

    monkeypatch.setattr(finetuning, "train", train)
    return calls


@pytest.mark.parametrize(
    ("share", "used", "batch_size", "epochs"),
    [(1.0, 400, 50, 6), (0.5, 200, 50, 12), (0.1, 40, 20, 24), (0.05, 20, 10, 24)],
)
def test_few_labels_are_as_many_of_each_class_for_as_many_steps(
    tune: Callable[..., Finetuned],
    cifar: ImageSet,
    seen: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    share: float,
    used: int,
    batch_size: int,
    epochs: int,
) -> None:
    targets: list[Tensor] = []

    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        targets.append(labels)
        return torch.zeros(())

    monkeypatch.setattr(nn.functional, "cross_entropy", cross_entropy)  # which is told of all examples of the training
    tuned = tune(labels=share)
    (call,) = seen
    call["loss_of"](tuned.classifier, torch.arange(call["examples"]), torch.Generator())
    assert np.bincount(targets[0].numpy()).tolist() == [used // 10] * 10
    assert (tuned.images, tuned.batch_size, tuned.epochs) == (used, batch_size, epochs)
    assert (call["examples"], call["settings"].batch_size, call["settings"].epochs) == (used, batch_size, epochs)
    assert epochs * (used // batch_size) == 6 * (400 // 50)  # steps


def test_a_trial_s_images_are_held_out_of_it_and_used_at_the_end(
    tune: Callable[..., Finetuned], seen: list[dict[str, Any]]
) -> None:
    tune(lr=[0.1, 0.2], labels=0.5, held_out=100)  # half of the labels: half of the slice
    assert [call["examples"] for call in seen] == [150, 150, 200]


@pytest.mark.parametrize(("share", "count", "fewest"), [(0.001, 0, 0), (0.0025, 1, 0), (0.045, 18, 1)])
def test_hardly_any_labels_are_one_line(tune: Callable[..., Finetuned], share: float, count: int, fewest: int) -> None:
    words = f"test: labels is {share}, {count} of 400 images, {fewest} of the smallest class: it takes"
    with pytest.raises(UserError, match=f"^{words}"):
        tune(labels=share, epochs=1)


def test_trainings_differ_by_what_they_are_of(tiny: EncoderSettings, small: Tensor, cifar: ImageSet) -> None:
    identities: list[Any] = []

    def store_for(identity: dict[str, Any]) -> nullcontext[None]:
        identities.append(identity)
        return nullcontext()

    def run(**changes: Any) -> None:
        given = {"classes": 10, "settings": but(TUNING, **{"epochs": 1} | changes), "seed": 0, "name": "test"}
        finetune(Encoder(tiny), small, cifar.y_train, **given, about={"start": "a"}, store_for=store_for)  # type: ignore[arg-type]

    run()
    run(space="backbone")
    run(labels=0.5)  # twice as many epochs of half as many
    run(augment=but(VIEW, flip=0.25))
    run(held_out=30)  # which has no part in it
    assert identities[0]["start"] == "a" and identities[0] == identities[4]
    assert all(one != other for n, one in enumerate(identities[:4]) for other in identities[:n])

"""Planted copies are found, in the right place, and healthy data that is all alike raises no alarm."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from simsiam import look, plots
from simsiam.images import ImageSet, Pixels
from simsiam.look import Copies
from tests.some import CLASSES, rng


def jpeg(image: Pixels) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=60)
    return np.array(Image.open(buffer))


def cropped(image: Pixels) -> Pixels:
    side = len(image)
    return np.array(Image.fromarray(image[1:-1, 1:-1]).resize((side, side), Image.Resampling.BICUBIC))


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "darker": lambda image: (0.8 * image).astype(np.uint8),
    "less contrast": lambda image: (0.7 * image + 40).astype(np.uint8),
    "grey": lambda image: np.repeat(image.mean(2, keepdims=True), 3, 2).astype(np.uint8),
    "jpeg": jpeg,
    "a pixel to the right": lambda image: np.roll(image, 1, 1),
    "two pixels up": lambda image: np.concatenate([image[2:], image[-1:], image[-1:]]),
    "cropped": cropped,
    "noise": lambda image: (image + rng().normal(0, 5, image.shape)).clip(0, 255).astype(np.uint8),
}


def grey(images: NDArray[np.floating]) -> Pixels:
    return np.repeat(images.clip(0, 255).round().astype(np.uint8)[..., None], 3, 3)


def digits() -> Pixels:
    """scikit-learn's, at 16 pixels."""
    return grey(load_digits().images.repeat(2, 1).repeat(2, 2) * 255 / 16)


def chests(number: int, side: int = 48, noise: float = 2) -> Pixels:
    """Smooth and all alike: a body, two lungs, ribs, each a little elsewhere."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    images = []
    for a in rng().normal(0, 0.06, (number, 8)):
        lungs = sum(
            np.exp(-((((x - s * (0.45 + a[0])) / (0.3 + a[1])) ** 2 + ((y + a[2]) / (0.6 + a[3])) ** 2) ** 2))
            for s in (-1, 1)
        )
        ribs = np.cos(14 * (1 + a[4]) * (y + 0.3 * abs(x)) + 10 * a[5]) * lungs
        body = np.exp(-((x / (0.9 + a[6])) ** 4 + (y / 1.2) ** 4))
        images.append(200 * body - 110 * lungs * (1 + a[7]) + 16 * ribs)
    return grey(np.stack(images) + rng(1).normal(0, noise, (number, side, side)))


def test_the_sample_of_cifar10_has_no_copies(cifar: ImageSet) -> None:
    inside, leaks = look.find_copies(cifar.x_train, cifar.x_test)
    assert (inside.of >= 0).sum() + (leaks.of >= 0).sum() == 0
    assert not (inside.score.any() or leaks.score.any() or inside.exact.any() or leaks.exact.any())


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_where_they_are(change: str, cifar: ImageSet) -> None:
    origins = rng().permutation(len(cifar.x_train))[:40]
    changed = np.stack([CHANGES[change](image) for image in cifar.x_train[origins]])
    # Planted among test images, in an order of their own, and among the training images.
    leaks = look.find_copies(cifar.x_train, np.concatenate([cifar.x_test[:20], changed]))[1]
    assert (leaks.of[:20] == -1).all() and not leaks.exact.any()
    found = leaks.of[20:]
    assert (found == origins).sum() >= 36 and set(found[found != origins]) <= {-1}
    assert (leaks.score[20:][found >= 0] > look.AGREEMENT).all()
    inside = look.find_copies(np.concatenate([cifar.x_train, changed]), cifar.x_test)[0]
    pairs = inside.of[len(cifar.x_train) :]
    assert (pairs == origins).sum() >= 36
    assert (inside.of[origins[pairs == origins]] == 400 + np.flatnonzero(pairs == origins)).mean() > 0.9


@pytest.mark.parametrize("few", [True, False])
def test_exact_copies_are_counted_as_such(few: bool, cifar: ImageSet) -> None:
    train = cifar.x_train[:30] if few else cifar.x_train
    train = np.concatenate([train, train[[7, 7, 3]]])
    n = len(train)
    inside, leaks = look.find_copies(train, np.concatenate([cifar.x_test[:5], train[[3, n - 2, 20]]]))
    assert leaks.of.tolist() == [-1] * 5 + [3, 7, 20]  # the first of several
    assert leaks.exact.tolist() == [False] * 5 + [True] * 3 and leaks.score.tolist() == [0] * 5 + [1] * 3
    assert np.flatnonzero(inside.exact).tolist() == [3, 7, n - 3, n - 2, n - 1]
    assert inside.of[[3, 7, n - 3, n - 2, n - 1]].tolist() == [n - 1, n - 3, 7, 7, 3]


def test_a_set_of_nothing_but_copies_is_found_out(cifar: ImageSet) -> None:
    """Augmented offline and then split: what is ordinary cannot be learned from nearest neighbours, for all are copies."""
    changes = (lambda image: image, CHANGES["darker"], CHANGES["jpeg"], CHANGES["cropped"])
    images = np.stack([change(image) for image in cifar.images for change in changes])
    order = rng().permutation(len(images))
    train, test = order[:1600], order[1600:]
    inside, leaks = look.find_copies(images[train], images[test])
    assert (leaks.of >= 0).mean() > 0.9 and (inside.of >= 0).mean() > 0.9
    assert (train[leaks.of[leaks.of >= 0]] // 4 == test[leaks.of >= 0] // 4).all()


@pytest.mark.parametrize(
    "images", [digits, lambda: chests(700), lambda: chests(700, noise=0.3)], ids=["digits", "chests", "smooth"]
)
def test_images_that_are_all_alike_are_not_copies_but_their_copies_are(images: Callable[[], Pixels]) -> None:
    train, test = np.split(images(), [600])
    origins = np.arange(100, 130)
    copies = np.concatenate([train[origins], (0.9 * train[origins]).astype(np.uint8)])
    inside, leaks = look.find_copies(train, np.concatenate([test, copies]))
    assert (inside.of >= 0).mean() <= 0.003 and (leaks.of[: len(test)] >= 0).mean() <= 0.01
    assert (leaks.of[len(test) :] == np.tile(origins, 2)).mean() > 0.9


def test_blank_images_are_no_near_copies_of_each_other(cifar: ImageSet) -> None:
    blanks = np.broadcast_to(rng().integers(0, 256, (40, 1, 1, 3), np.uint8), (40, 32, 32, 3))
    train = np.concatenate([cifar.x_train, blanks])
    assert look.blank(train).tolist() == [False] * 400 + [True] * 40
    inside, leaks = look.find_copies(train, np.concatenate([blanks[:1], blanks[:2] ^ 1]))
    assert leaks.of.tolist() == [400, -1, -1] and (inside.of == -1).all()
    inside, leaks = look.find_copies(blanks[[0] * 130], blanks)  # nothing but blank images
    assert leaks.of.tolist() == [0] + 39 * [-1] and inside.exact.all()


@pytest.mark.parametrize("itself", [True, False])
def test_nearest_is_what_a_full_search_finds(itself: bool) -> None:
    bank = torch.nn.functional.normalize(torch.from_numpy(rng().normal(size=(2200, 6))).float(), dim=1)
    queries = (
        bank if itself else torch.nn.functional.normalize(torch.from_numpy(rng(1).normal(size=(150, 6))).float(), dim=1)
    )
    who, found = look.nearest(bank, queries, 0.97, itself=itself)
    cosines = (queries.double() @ bank.double().T).numpy()
    if itself:
        np.fill_diagonal(cosines, -1)
    assert who.tolist() == np.flatnonzero(cosines.max(1) > 0.97).tolist() and 10 < len(who) < len(queries)
    best = np.argsort(-cosines[who], 1)[:, :3]
    assert (found == np.where(np.take_along_axis(cosines[who], best, 1) > 0.97, best, -1)).all()
    assert (found == -1).any() and (found[:, 2] >= 0).any()


def test_agreement_is_the_best_correlation_of_all_shifts(cifar: ImageSet) -> None:
    def flat(gradient: NDArray[np.float32]) -> NDArray[np.float32]:
        return gradient.ravel() / np.linalg.norm(gradient)

    i, j = rng().integers(0, 400, (2, 70))
    g = look.gradients(cifar.x_train, look.SIDE)
    g = torch.nn.functional.avg_pool2d(g / (g.norm(dim=1, keepdim=True) + look.FAINT), 3, 1)
    left, right = g[i][:, :, 4:-4, 4:-4].numpy(), g[j].numpy()
    expected = [
        max(flat(a) @ flat(b[:, y : y + 20, x : x + 20]) for y in range(9) for x in range(9))
        for a, b in zip(left, right, strict=True)
    ]
    assert np.allclose(look.agreement(cifar.x_train, i, cifar.x_train, j).numpy(), expected, atol=1e-4)


def test_the_number_of_threads_does_not_matter(cifar: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    test = np.stack([CHANGES["cropped"](image) for image in cifar.x_train[:50]])
    alone = look.find_copies(cifar.x_train, test)[1]
    # Not by torch's own number: operations on three threads wait for minutes on cores that others use, too.
    monkeypatch.setattr(look, "ThreadPoolExecutor", lambda _, **how: ThreadPoolExecutor(3, **how))
    together = look.find_copies(cifar.x_train, test)[1]
    assert (alone.of == together.of).all() and (alone.of >= 0).any()


def test_torch_has_its_threads_back() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        state = torch.__config__.parallel_info()
        assert look.spread(lambda chosen: chosen.start, 10, 3) == [0, 3, 6, 9]
        assert torch.__config__.parallel_info() == state
        with ThreadPoolExecutor(1) as pool:  # the number that threads begin with
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_numbers_and_words(cifar: ImageSet) -> None:
    y_train, y_test = cifar.y_train.copy(), cifar.y_test.copy()
    numbers = look.look(cifar.x_train, y_train, cifar.x_test, y_test, CLASSES)[0]
    assert numbers["classes"]["cat"] == {"train": 40, "test": 10} and numbers["imbalance"] == 1 and numbers["blank"] == 0
    assert numbers["copies"] == {part: {"exact": 0, "near": 0, "other_class": 0} for part in ("train", "test")}
    assert look.words(numbers) == []

    x_train, x_test = cifar.x_train.copy(), cifar.x_test.copy()
    x_test[:3], y_test[:3] = cifar.x_train[:3], y_train[:3]
    x_test[3], y_test[3] = jpeg(cifar.x_train[3]), (y_train[3] + 1) % 10
    x_test[4], x_train[-1] = 7, 8
    keep = (y_train != 2) | (np.cumsum(y_train == 2) <= 3)  # 3 birds
    numbers, leaks, _ = look.look(x_train[keep], y_train[keep], x_test, y_test, CLASSES)
    assert numbers["copies"]["test"] == {"exact": 3, "near": 1, "other_class": 1}
    assert np.flatnonzero(leaks.of >= 0).tolist() == [0, 1, 2, 3] and numbers["imbalance"] == pytest.approx(40 / 3)
    uneven, blanks, leaked = look.words(numbers)
    assert "3 of bird" in uneven and blanks.endswith(": 2")
    assert (
        leaked.startswith("4 of 100 test images (4.0%)")
        and "3 byte for byte, 1 as near copies, 1 with another label" in leaked
    )
    assert look.striking(leaks, y_test, y_train[keep], 9).tolist()[0][0] == 3


def test_without_labels_nothing_contradicts() -> None:
    x = rng().integers(0, 256, (130, 16, 16, 3), np.uint8)
    none = np.full(130, -1)
    numbers, leaks, _ = look.look(x, none, x[:5], none[:5], ())
    assert numbers["copies"]["test"] == {"exact": 5, "near": 0, "other_class": 0}
    some = np.arange(130) % 2  # an image without a label does not contradict one that has
    for labels, others in ((some, none), (none, some)):
        assert look.count(leaks, labels[:5], others)["other_class"] == 0
    assert numbers["classes"] == {} and len(look.words(numbers)) == 1 and leaks.of.tolist() == [0, 1, 2, 3, 4]


def test_striking_pairs_come_once() -> None:
    labels = np.array([0, 0, 1, 1, 1])
    inside = Copies(np.array([1, 0, 3, 2, -1]), np.zeros(5, bool), np.array([0.9, 0.9, 0.95, 0.95, 0], np.float32))
    assert look.striking(inside, labels, labels, 9).tolist() == [[2, 3], [0, 1]]
    assert look.striking(inside, labels, labels, 1).tolist() == [[2, 3]]
    other = np.array([0, 1, 1, 0, 1])
    leaks = Copies(np.array([3, 0, 0, 4, -1]), np.zeros(5, bool), np.array([0.9, 0.99, 0.8, 0.95, 0], np.float32))
    # 1, 2: of the same training image. Those with two labels first.
    assert look.striking(leaks, labels, other, 9).tolist() == [[2, 0], [3, 4], [0, 3]]


def drawn(figure: Figure) -> list[str]:
    figure.canvas.draw()
    return [axes.get_title() for axes in figure.axes if axes.axison]


def test_figures(cifar: ImageSet) -> None:
    pairs = [(cifar.x_test[0], cifar.x_train[0]), (cifar.x_test[1], cifar.x_train[1])]
    titles = drawn(
        plots.twins_figure(pairs, [("test/x.png", "a/" * 20 + "y.png")] * 2, [("cat", "dog"), ("", "")], "copies")
    )
    assert (
        titles[0] == "cat\ntest/x.png"
        and titles[2].startswith("dog\n…")
        and titles[2].endswith("/y.png")
        and len(titles) == 4
    )
    views = rng().random((5, 2, 16, 16, 3), np.float32)
    figure = plots.views_figure(cifar.x_train[:5], views, "where it is, its colours")
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 15 and {axes.get_title() for axes in shown} == {"image", ""}
    assert "its colours" in figure.get_suptitle()

"""A look at the images before training: how many of which class, blank ones, and copies, above all of test images.

Near copies: candidates have alike outlines, and their gradients agree when laid over each other. How well they must agree
follows from this set's ordinary neighbours: two digits or two chest x-rays are alike without being copies. Colour is not
looked at: the same picture in other colours is a copy, a mirrored one is not.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from simsiam.images import Labels, Pixels

T = TypeVar("T")
Bools = NDArray[np.bool_]
CANDIDATES = 3  # so many for each image
OUTLINES = 0.4  # a candidate's outlines lack at most this share of what those of an ordinary neighbour lack of a cosine of 1
CHANCE = 2e-3  # a copy agrees as well as by chance one image of 500 does with any other,
AGREEMENT = 0.84  # and at least so well: of CIFAR-10's pairs that do, few show two things
SIDE, SHIFT = 32, 4  # gradients are laid over each other at 32 pixels, at shifts of up to 4
FAINT = 30  # a gradient of 5 of the 255 levels from pixel to pixel, as `gradients` counts it (three channels, two pixels)
JUDGED = 120  # with fewer images nothing is known about ordinary neighbours, and only exact copies are sought
IMBALANCE = 10  # worth a word: the largest class has more than ten times the images of the smallest


@dataclass(frozen=True)
class Copies:
    """For each of Q images another one that shows the same."""

    of: Labels  # (Q,), its index, or -1: there is none
    exact: Bools  # (Q,), byte for byte
    score: NDArray[np.float32]  # (Q,), how well the gradients agree: 1 where exact, 0 where there is none


@dataclass(frozen=True)
class Ordinary:
    """Where neighbours end and copies begin."""

    sample: Tensor  # (m,) images: the third nearest of these is an image's ordinary neighbour
    gate: float  # cosine of the outlines of candidates
    share: float  # of the distance (1 - agreement) of its ordinary neighbour that an image's copy is away at most
    bound: float  # agreement of copies


def look(
    x_train: Pixels, y_train: Labels, x_test: Pixels, y_test: Labels, classes: Sequence[str]
) -> tuple[dict[str, Any], Copies, Copies]:
    """Numbers for a JSON file, and for each test image, and for each training image, its copy among the training images."""
    inside, leaks = find_copies(x_train, x_test)
    train, test = (np.bincount(y[y >= 0], minlength=len(classes)).tolist() for y in (y_train, y_test))
    numbers = {
        "images": {"train": len(x_train), "test": len(x_test)},
        "classes": {name: {"train": a, "test": b} for name, a, b in zip(classes, train, test, strict=True)},
        "imbalance": max(train, default=1) / max(min(train, default=1), 1),
        "blank": int(blank(x_train).sum() + blank(x_test).sum()),
        "copies": {"test": count(leaks, y_test, y_train), "train": count(inside, y_train, y_train)},
    }
    return numbers, leaks, inside


def count(copies: Copies, labels: Labels, others: Labels) -> dict[str, int]:
    """How many images have an exact copy, how many only a near one, and of how many of both the copy has another label."""
    labelled = (copies.of >= 0) & (labels >= 0) & (others[copies.of] >= 0)
    exact = int(copies.exact.sum())
    other = int((labelled & (labels != others[copies.of])).sum())
    return {"exact": exact, "near": int((copies.of >= 0).sum()) - exact, "other_class": other}


def words(numbers: dict[str, Any]) -> list[str]:
    """What of `look`'s numbers a person should know before training, a line each."""
    found = []
    if numbers["imbalance"] > IMBALANCE:
        sizes = {name: parts["train"] for name, parts in numbers["classes"].items()}
        least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        counts = f"{sizes[most]:,} training images of {most}, {sizes[least]:,} of {least}"
        found.append(f"the classes are very uneven ({counts}): read the balanced accuracy")
    if numbers["blank"]:
        found.append(f"images of one colour, from which nothing can be learned: {numbers['blank']:,}")
    for part, name, where in (
        ("test", "test", "are in the training part, too, and raise every accuracy"),
        ("train", "training", "are there more than once"),
    ):
        counts, images = numbers["copies"][part], numbers["images"][part]
        if total := counts["exact"] + counts["near"]:
            other = f", {counts['other_class']:,} with another label" if counts["other_class"] else ""
            kinds = f"{counts['exact']:,} byte for byte, {counts['near']:,} as near copies{other}"
            found.append(f"{total:,} of {images:,} {name} images ({total / images:.1%}) {where}: {kinds}")
    return found


def striking(copies: Copies, labels: Labels, others: Labels, number: int) -> Labels:
    """Up to `number` pairs (pairs, 2) of an image and its copy: those with two labels first, then those most alike.

    Of each image copied one pair. `others` is `labels` where the copies are in the same set; then no pair comes both ways.
    """
    found = np.flatnonzero(copies.of >= 0)
    found = found[np.lexsort((-copies.score[found], labels[found] == others[copies.of[found]]))]
    copied = np.minimum(found, copies.of[found]) if others is labels else copies.of[found]
    found = found[np.sort(np.unique(copied, return_index=True)[1])][:number]
    return np.stack([found, copies.of[found]], 1)


def blank(images: Pixels) -> Bools:
    """Which of the images (N, S, S, 3) have one colour everywhere, (N,)."""
    return np.array([(image == image[0, 0]).all() for image in images], bool)


def find_copies(train: Pixels, test: Pixels) -> tuple[Copies, Copies]:
    """Copies of the training images (N, S, S, 3) among the other training images, and of the test images among them all.

    Blank images have only exact copies. The same images in the same order give the same copies.
    """
    exact = exact_copies(train, test)
    found = [Copies(same.copy(), same >= 0, (same >= 0).astype(np.float32)) for same in exact]
    if len(train) < JUDGED:
        return found[0], found[1]
    bank, queries = decorrelate(outlines(train), outlines(test))
    usual = ordinary(train, bank)
    for images, rows, copies in ((train, bank, found[0]), (test, queries, found[1])):
        who, candidates = nearest(bank, rows, usual.gate, itself=images is train)
        for candidate in candidates.T:  # the nearest first; the next one where that is no copy
            asking = (candidate >= 0) & (copies.of[who] < 0)
            i, j = who[asking], candidate[asking]
            score = agreement(images, i, train, j).numpy()
            i, j, score = (values[score >= usual.bound] for values in (i, j, score))
            # Some images are nearer to all others than most are: the digits 1.
            third = usual.sample[(rows[i] @ bank[usual.sample].T).topk(3, 1).indices[:, 2]].numpy()
            good = 1 - score <= usual.share * (1 - agreement(images, i, train, third).numpy()) + 1e-6
            copies.of[i[good]], copies.score[i[good]] = j[good], score[good]
    return found[0], found[1]


def exact_copies(train: Pixels, test: Pixels) -> tuple[Labels, Labels]:
    """The first other training image with the same bytes, or -1, of each training image and of each test image."""
    first: dict[bytes, int] = {}
    inside, leaks = np.full(len(train), -1), np.full(len(test), -1)
    for index, image in enumerate(train):
        same = first.setdefault(hashlib.sha256(image.tobytes()).digest(), index)
        if same != index:
            inside[index] = same
            inside[same] = index if inside[same] < 0 else inside[same]
    for index, image in enumerate(test):
        leaks[index] = first.get(hashlib.sha256(image.tobytes()).digest(), -1)
    return inside, leaks


def gradients(images: Pixels, side: int) -> Tensor:
    """Horizontal and vertical gradient (N, 2, side - 2, side - 2) of the images' brightness at so many pixels."""
    grey = torch.from_numpy(np.ascontiguousarray(images)).sum(3, dtype=torch.int16).float()[:, None]
    grey = F.adaptive_avg_pool2d(grey, side)
    return torch.cat([grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2], grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]], 1)


def outlines(images: Pixels) -> Tensor:
    """How strong the gradient is in six directions in each of 4 x 4 overlapping windows, (N, 96) of length 1."""

    def work(chosen: slice) -> Tensor:
        gradient = gradients(images[chosen], 16)
        # By the root of its length, so that one strong edge does not drown the others.
        gradient /= gradient.square().sum(1, keepdim=True).pow(0.25).clamp_min(0.01)
        x, y = gradient.split(1, 1)
        strength = [(x * math.cos(turn * math.pi / 3) + y * math.sin(turn * math.pi / 3)).relu_() for turn in range(6)]
        features = F.avg_pool2d(torch.cat(strength, 1), 5, 3, padding=1).flatten(1)
        return F.normalize(features - features.mean(1, keepdim=True), dim=1)

    return torch.cat(spread(work, len(images), 250))


def decorrelate(train: Tensor, test: Tensor) -> list[Tensor]:
    """Both (N, d) in the training images' first 48 principal components, halfway to equal variances, at length 1."""
    centre = train.mean(0)
    variances, axes = torch.linalg.eigh((train - centre).T @ (train - centre) / len(train))
    axes = axes[:, -48:] * variances[-48:].clamp_min(1e-6) ** -0.25
    return [F.normalize((features - centre) @ axes, dim=1) for features in (train, test)]


def ordinary(images: Pixels, bank: Tensor) -> Ordinary:
    """How near neighbours come that are no copies, from those that up to 500 images have in a sample of the others.

    In a sample few images meet their own copies, however many there are. From the 3rd to the 30th neighbour in it, the
    distance 1 - agreement grows as a power of the rank; that power says how near the nearest of all images comes by chance.
    """
    order = torch.randperm(len(bank), generator=torch.Generator().manual_seed(0))
    sample = order[: min(2000, len(bank) // 4)]
    asking = order[len(sample) : len(sample) + 500]
    cosines, found = (bank[asking] @ bank[sample].T).topk(30, 1)
    chosen = (sample[found[:, rank]].numpy() for rank in (2, 29))
    near, far = (max(float(1 - agreement(images, asking.numpy(), images, j).median()), 1e-6) for j in chosen)
    share = (CHANCE * len(sample) / 3 / len(bank)) ** math.log10(max(far / near, 1))
    return Ordinary(
        sample, 1 - OUTLINES * (1 - float(cosines[:, 2].median())), share, max(AGREEMENT, 1 - near * share - 1e-6)
    )


def nearest(bank: Tensor, queries: Tensor, gate: float, *, itself: bool) -> tuple[Labels, Labels]:
    """Which queries (Q', sorted) have neighbours in the bank at a cosine over the gate, and the nearest of these.

    Rows have length 1. Neighbours: (Q', CANDIDATES) indices, nearest first, -1 where there are fewer. itself: the queries
    are the bank, and no one is its own neighbour.
    """
    columns = bank.T.contiguous()

    def work(chosen: slice) -> tuple[Tensor, Tensor]:
        buffer = torch.empty(64, len(bank))  # used again, and so few rows that they stay in the processor's cache
        who, found = [], []
        for start in range(chosen.start, min(chosen.stop, len(queries)), len(buffer)):
            rows = queries[start : start + len(buffer)]
            cosines = torch.mm(rows, columns, out=buffer[: len(rows)])
            if itself:
                cosines[torch.arange(len(rows)), start + torch.arange(len(rows))] = -2
            over = torch.nonzero(cosines.amax(1) > gate)[:, 0]
            values, indices = cosines[over].topk(CANDIDATES, 1)
            who.append(over + start)
            found.append(torch.where(values > gate, indices, -1))
        return torch.cat(who), torch.cat(found)

    parts = spread(work, len(queries), 2048)
    return torch.cat([who for who, _ in parts]).numpy(), torch.cat([found for _, found in parts]).numpy()


def agreement(left: Pixels, i: Labels, right: Pixels, j: Labels) -> Tensor:
    """Correlation (N,) of the gradients of the middle of left[i] with those of right[j], at the shift where it is best."""

    def work(chosen: slice) -> Tensor:
        a, b = (gradients(x[at[chosen]], SIDE) for x, at in ((left, i), (right, j)))
        # Weak gradients count almost as much as strong ones, or else all dark shapes on a bright ground would agree.
        a, b = (F.avg_pool2d(g / (g.square().sum(1, keepdim=True).sqrt_() + FAINT), 3, 1) for g in (a, b))
        middle = a[:, :, SHIFT:-SHIFT, SHIFT:-SHIFT]
        product = F.conv2d(b.flatten(0, 1)[None], middle, groups=len(a))[0]
        energy = F.avg_pool2d(b.square().sum(1), middle.shape[-1], 1, divisor_override=1)
        scale = energy.sqrt() * middle.flatten(1).norm(dim=1)[:, None, None]
        return (product / scale.clamp_min(1e-3)).flatten(1).amax(1)

    return torch.cat([torch.zeros(0), *spread(work, len(i), 64)])


def spread(work: Callable[[slice], T], length: int, step: int) -> list[T]:
    """What `work` makes of all slices of so many, in order, each on one of torch's threads.

    Threads that share operations as small as these would wait for each other most of the time.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(work, (slice(start, start + step) for start in range(0, length, step))))
    finally:
        torch.set_num_threads(threads)

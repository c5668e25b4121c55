"""What of the settings fits a set of images: recipes are written for 50,000 colour images of 32 pixels.

Each function takes a section and what matters of the images, and gives the section back with what has to be otherwise. For
images like CIFAR-10's that is nothing.
"""

import math
import sys
from typing import TypeVar

import numpy as np

from simsiam.images import ImageSet, Labels
from simsiam.settings import Augment, Embed, Explain, Finetune, LinearEval, Model, Pretrain, Project, Section

SIDE = 32  # of the images that view sizes and backgrounds are given for, in pixels
SMALL = 16  # up to this side a stem that halves it leaves one place at the end, of which a new network sees a corner
LARGE = 96  # from this side on a stem that halves the image twice
FEWEST = 4  # labels of a class, of which one may be held out
T = TypeVar("T", Pretrain, Finetune)
S = TypeVar("S", bound=Section)


def model(settings: Model, images: ImageSet) -> Model:
    """Large images go through the stem that was made for them, small ones through one that halves nothing.

    A new network's blocks are their shortcuts, which look at one pixel of two: at 16 pixels the `strided` one sees 3 x 3 of
    the image's corner, and as a control it would be no better than chance.
    """
    if images.size >= LARGE:
        return settings.model_copy(update={"stem": "imagenet"})
    if images.size <= SMALL and settings.stem == "strided":
        return settings.model_copy(update={"stem": "cifar"})
    return settings


def pretrain(settings: Pretrain, images: ImageSet, *, labelled: bool = False) -> Pretrain:
    """Batches and epochs for as many images as there are, views for their size and kind; a fifth at most is held out.

    labelled: only the labelled images are trained on.
    """
    knn = held_out(settings.knn, len(images.x_train)) if images.labelled else 0
    count = len(images.x_train if labelled else images.x_pretrain) - knn
    return _training(settings, count, images).model_copy(update={"knn": knn})


def finetune(settings: Finetune, images: ImageSet) -> Finetune:
    """As `pretrain`, and a fifth of the training images is the most to be held out."""
    return _training(settings, len(images.x_train), images).model_copy(
        update={"held_out": held_out(settings.held_out, len(images.x_train))}
    )


def _training(settings: T, count: int, images: ImageSet) -> T:
    batch_size = min(settings.batch_size, max(4, count // 2))
    epochs = max(settings.epochs, math.ceil(settings.min_steps / max(1, count // batch_size)))
    views = augment(settings.augment, images)
    return settings.model_copy(update={"batch_size": batch_size, "epochs": epochs, "augment": views})


def augment(settings: Augment, images: ImageSet) -> Augment:
    """Larger views of larger images; no mirroring where that makes another thing; no change of colour without one."""
    view = settings.view_size
    update: dict[str, object] = {"view_size": max(min(view, images.size), round(view * images.size / SIDE))}
    if not images.mirrors:
        update["flip"] = 0.0
    if images.grey:
        update |= {"jitter": [*settings.jitter[:2], 0.0, 0.0], "grey": 0.0}
    return settings.model_copy(update=update)


def held_out(asked: int, count: int) -> int:
    """A fifth of the images at most."""
    return min(asked, max(1, count // 5))


def embed(settings: Embed, images: ImageSet) -> Embed:
    """Not more neighbours than half of what a class has on average; queries that are there."""
    count, test = len(images.x_train), len(images.x_test)
    k = min(settings.knn_k, max(1, count // (2 * max(1, len(images.classes)))))
    return settings.model_copy(update={"knn_k": k, "queries": _there(settings.queries, test)})


def linear_eval(settings: LinearEval, labels: Labels) -> LinearEval:
    """A fifth of the images at most is held out; of a share of the labels the smallest class has `FEWEST`."""
    fewest = np.bincount(labels).min()
    shares = [share for share in settings.few_labels if share * fewest >= FEWEST]
    return settings.model_copy(update={"held_out": held_out(settings.held_out, len(labels)), "few_labels": shares})


def project(settings: Project, test: int) -> Project:
    """As many points as there are test images, and a third of them as neighbours."""
    points = min(settings.points, test)
    return settings.model_copy(update={"points": points, "perplexity": min(settings.perplexity, max(1.0, (points - 1) / 3))})


def explain(settings: Explain, images: ImageSet) -> Explain:
    """Images that are there, two or none to measure; what a large image takes of the memory its background gives."""
    share = min(1.0, (SIDE / images.size) ** 2)
    test = len(images.x_test)
    measured = min(settings.mass_images, test // 2)
    return settings.model_copy(
        update={
            "images": _there(settings.images, test),
            "background": max(10, round(settings.background * share)),
            "mass_background": max(10, round(settings.mass_background * share)),
            "mass_images": measured if measured > 1 else 0,
        }
    )


def _there(asked: list[int], count: int) -> list[int]:
    return [index for index in asked if index < count] or [0]


def of(images: ImageSet) -> str:
    """The images in a few words."""
    train, others = len(images.x_train), len(images.x_pretrain) - len(images.x_train)
    counts = f"{train:,} labelled and {others:,} unlabelled" if others else f"{train:,}"
    return f"{counts}{' grey' if images.grey else ''} images of {images.size} pixels"


def say(name: str, before: S, after: S, of: str) -> S:
    """`after`, once a line on stderr has said in what it differs from `before`, and of which images that is."""
    was, now = _flat(before), _flat(after)
    if changes := [f"{key} {_short(now[key])} instead of {was[key]}" for key in now if now[key] != was[key]]:
        print(f"{name}: for {of}: {', '.join(changes)}", file=sys.stderr)
    return after


def _flat(section: Section) -> dict[str, object]:
    content = section.model_dump()
    return content | content.pop("augment", {})


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

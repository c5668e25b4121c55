"""A look at the images, and at the views that pretraining makes of them: python -m stages.look"""

import sys
from pathlib import Path

import numpy as np
import torch

from simsiam import fitting
from simsiam.augment import random_views
from simsiam.augment import words as changes
from simsiam.files import write_npz
from simsiam.images import ImageSet, to_tensor
from simsiam.look import look as look_at
from simsiam.look import striking, words
from simsiam.plots import draw, note_figure, twins_figure, views_figure
from simsiam.seeds import derive
from simsiam.settings import Augment, Params
from stages.common import Metrics, load_images, main

PAIRS, VIEWS = 16, 16  # that are shown


def look(params: Params, root: Path) -> Metrics:
    """Write data/copies.npz, the test images' copies in the training part, and the figures of copies and of views."""
    images = load_images(root)
    known = images.labels[: len(images.x_pretrain)]  # -1 for those that are for pretraining only
    numbers, leaks, _ = look_at(images.x_pretrain, known, images.x_test, images.y_test, images.classes)
    warnings = words(numbers)
    for line in warnings:
        print(f"look: {line}", file=sys.stderr)
    write_npz(root / "data/copies.npz", of=leaks.of)
    pairs = striking(leaks, images.y_test, known, PAIRS)
    figure = root / "reports/figures/copies.png"
    if len(pairs):
        both = [(images.x_test[i], images.x_pretrain[j]) for i, j in pairs]
        names = [(images.names[len(images.x_pretrain) + i], images.names[j]) for i, j in pairs]
        labels = [tuple(images.classes[y] if y >= 0 else "" for y in (images.y_test[i], known[j])) for i, j in pairs]
        draw(figure, twins_figure, both, names, labels, "Test images (above) and their copies in the training part (below)")
    else:
        draw(figure, note_figure, "No test image has a copy in the training part.")
    augment = fitting.augment(params.chosen.pretrain.augment, images)
    draw(root / "reports/figures/views.png", views_figure, *views_of(images, augment, params.seed), changes(augment))
    return numbers | {"warnings": warnings, "skipped": images.skipped}


def views_of(images: ImageSet, augment: Augment, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Some images (n, S, S, 3) uint8, evenly chosen, and two views of each (n, 2, V, V, 3) in [0, 1]."""
    some = images.x_pretrain[np.unique(np.linspace(0, len(images.x_pretrain) - 1, VIEWS).astype(int))]
    generator = torch.Generator().manual_seed(derive(seed, 3))
    views = torch.stack(random_views(to_tensor(some, torch.device("cpu")), generator, [augment, augment]), 1)
    return some, views.permute(0, 1, 3, 4, 2).numpy()


if __name__ == "__main__":
    main(look)

"""Pretrain an encoder without labels: python -m stages.pretrain"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simsiam import code, collapse, fitting, parallel
from simsiam.checkpoint import NO_ARITHMETIC, open_store
from simsiam.engine import Record, pick_device
from simsiam.features import knn_look
from simsiam.files import write_csv
from simsiam.images import ImageSet, split, to_tensor
from simsiam.methods import build
from simsiam.methods.method import Method
from simsiam.networks import save_encoder
from simsiam.pretrain import pretrain as train_method
from simsiam.pretrain import seconds_a_step
from simsiam.settings import Params, Pretrain
from stages.common import Metrics, load_images, main


def pretrain(params: Params, root: Path, *, fresh: bool = False) -> Metrics | None:
    """Write models/encoder.pt and, while it trains, reports/curves/pretrain.csv. `fresh` forgets what was trained before.

    The `knn` images that are held out are in no batch: they are new to a method that learns from labels, too. Their labels
    and those of their neighbours are used for the look alone.

    Of several processes that `torchrun` started, only the first writes, and has metrics to return.
    """
    images, device, recipe = load_images(root), pick_device(), params.chosen
    these = fitting.of(images)
    model = fitting.say("pretrain", recipe.model, fitting.model(recipe.model, images), these)
    method = build(params, images, model)
    fitted = fitting.pretrain(recipe.pretrain, images, labelled=method.labelled)
    settings = fitting.say("pretrain", recipe.pretrain, fitted, these)
    if own := method.options.lr:
        print(f"pretrain: lr {own:g} is that of {params.method} in this recipe, instead of {settings.lr:g}", file=sys.stderr)
        settings = settings.model_copy(update={"lr": own})
    pixels = to_tensor(images.x_train if method.labelled else images.x_pretrain, device)
    labels = torch.from_numpy(images.y_train).to(device) if method.labelled else None
    look = None
    if settings.knn:
        kept, held = split(images.y_train, settings.knn, params.seed)
        look = knn_look(pixels, images.y_train, kept, held, params.seed)
        others = torch.from_numpy(np.delete(np.arange(len(pixels)), held)).to(device)
        pixels, labels = pixels[others], labels[others] if labels is not None else None
    about = {
        "method": params.method,
        "code": code.digest(type(method).__module__, NO_ARITHMETIC),  # which the training loop does not import
        "options": method.options.model_dump(exclude={"lr"}),  # which is the training's
        "encoder": method.encoder.settings.model_dump(),
        "images": images.digest if method.labelled or settings.knn else images.pixels_digest,
    } | ({"knn": settings.knn, "look": code.digest("simsiam.features", NO_ARITHMETIC)} if settings.knn else {})

    def write_curve(records: list[Record]) -> None:
        write_csv(root / "reports/curves/pretrain.csv", records)

    with parallel.joined(device):
        if parallel.size() == 1:
            print(f"pretrain: {foretold(method, pixels, labels, images, settings, params)}", file=sys.stderr)
        result = train_method(
            method,
            pixels,
            labels,
            settings=settings,
            seed=params.seed,
            about=about,
            store_for=partial(open_store, root, "simsiam.pretrain", fresh=fresh),
            on_epoch=write_curve,
            look=look,
        )
        if parallel.rank() > 0:
            return None
    save_encoder(root / "models/encoder.pt", method.encoder)
    last = result.records[-1]
    verdict = collapse.of_run(result.records, params.latent_dim, method.lowest_loss, labelled=method.labelled)
    warning = ""
    if verdict != "healthy":
        warning = collapse.words(verdict, result.records, stop_gradient=method.stop_gradient)
        print(f"pretrain: {warning}", file=sys.stderr)
    return {
        **{name: last[name] for name in ("loss", "z_std", "rankme", "first_share", "backbone_rankme")},
        "verdict": verdict,
        "epochs": settings.epochs,
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images_per_second, 1),
        "peak_memory": round(result.peak_memory, 1),
        "settings": [{"model": model.model_dump(), "pretrain": settings.model_dump()}],
        # A list, which DVC's tables leave out.
        "trained": [
            params.model_dump(include={"recipe", "method", "latent_dim", "stop_gradient", "seed"})
            | result.machine
            | {"warning": warning, "method_name": method.title, "with_labels": method.labelled}
        ],
    }


def foretold(
    method: Method, pixels: Tensor, labels: Tensor | None, images: ImageSet, settings: Pretrain, params: Params
) -> str:
    """How long it will take here, from some steps: what a view costs is about in proportion to its area."""
    step, tuning = seconds_a_step(method, pixels, settings, labels), fitting.finetune(params.chosen.finetune, images)
    steps = settings.epochs * (len(pixels) // settings.batch_size)
    area = step / settings.batch_size / sum(view.view_size**2 for view in method.views(settings.augment))
    features = 2 / 3 * area * (len(images.x_train) + len(images.x_test)) * images.size**2  # of two encoders
    trainings = sum(1 + len(lr) * (len(lr) > 1) for lr in (tuning.lr, tuning.scratch_lr or tuning.lr))
    tuned = trainings * tuning.epochs * len(images.x_train) * area * tuning.augment.view_size**2 * images.labelled
    minutes = (steps * step / 60, (features + tuned) / 60 + 1)
    return f"{steps:,} steps take about {minutes[0]:.1f} minutes here, and all that follows about {minutes[1]:.0f}"


if __name__ == "__main__":
    main(pretrain, resumes=True, joins=True)

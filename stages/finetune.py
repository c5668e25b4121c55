"""Fine-tune the whole network with a linear head, from the encoder and from scratch: python -m stages.finetune"""

import sys
from functools import partial
from pathlib import Path

import numpy as np

from simsiam import fitting
from simsiam.checkpoint import open_store
from simsiam.engine import Record, pick_device
from simsiam.files import sha256_file, write_csv, write_npz
from simsiam.finetune import Finetuned, predict
from simsiam.finetune import finetune as train_classifier
from simsiam.images import to_tensor
from simsiam.metrics import accuracies
from simsiam.networks import Encoder, load_encoder, save_classifier
from simsiam.settings import Params
from stages.common import Metrics, load_images, main
from stages.left_out import left_out


def finetune(params: Params, root: Path, *, fresh: bool = False) -> Metrics:
    """Write models/finetuned.pt and the curves; data/finetuned.npz: what the head reads of the test images, which are right.

    From scratch is the same training from the random encoder, at learning rates of its own where it has some.
    `fresh` forgets what was trained before.
    """
    images, device, chosen = load_images(root), pick_device(), params.chosen.finetune
    if not images.labelled:
        curves = (f"reports/curves/finetune_from_{start}.csv" for start in ("encoder", "scratch"))
        return left_out("finetune", root, "data/finetuned.npz", "models/finetuned.pt", *curves)
    settings = fitting.say("finetune", chosen, fitting.finetune(chosen, images), fitting.of(images))
    train_images, test_images = to_tensor(images.x_train, device), to_tensor(images.x_test, device)
    encoder = load_encoder(root / "models/encoder.pt")
    weights = sha256_file(root / "models/encoder.pt")

    def trained(start: str, begin: Encoder, identity: str, lr: list[float]) -> Finetuned:
        def write_curve(records: list[Record]) -> None:
            write_csv(root / f"reports/curves/finetune_from_{start}.csv", records)

        return train_classifier(
            begin,
            train_images,
            images.y_train,
            classes=len(images.classes),
            settings=settings.model_copy(update={"lr": lr}),
            seed=params.seed,
            name=f"finetune from {start}",
            about={"images": images.digest, "encoder": encoder.settings.model_dump(), "start": identity},
            store_for=partial(open_store, root, "simsiam.finetune", fresh=fresh),
            on_epoch=write_curve,
        )

    def scored(tuned: Finetuned, scores: np.ndarray) -> Metrics:
        return accuracies(scores, images.y_test) | {
            "loss": tuned.result.records[-1]["loss"],
            "lr": tuned.lr,
            "epochs": tuned.epochs,
        }

    tuned = trained("encoder", encoder, weights, settings.lr)
    scratch = trained("scratch", Encoder(encoder.settings), "scratch", settings.scratch_lr or settings.lr)
    scores, read = predict(tuned.classifier, test_images)
    found = scored(tuned, scores)
    save_classifier(root / "models/finetuned.pt", tuned.classifier)
    write_npz(root / "data/finetuned.npz", finetuned_test=read, right=scores.argmax(1) == images.y_test)
    print(f"finetune: {found['top1']:.1%} of the test images right", file=sys.stderr)
    return {
        **found,
        "scratch": scored(scratch, predict(scratch.classifier, test_images)[0]),
        "images": tuned.images,
        "batch_size": tuned.batch_size,
        "seconds": round(tuned.result.seconds, 1),
        "images_per_second": round(tuned.result.images_per_second, 1),
        "settings": [settings.model_dump()],
        "trained": [tuned.result.machine],
        "trials": tuned.trials,
        "scratch_trials": scratch.trials,
    }


if __name__ == "__main__":
    main(finetune, resumes=True)

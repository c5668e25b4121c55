"""Fine-tune the whole network with a linear head on the latent: python -m stages.finetune"""

import sys
from dataclasses import asdict
from pathlib import Path

from simsiam.augment import AugmentSettings
from simsiam.checkpoint import open_store, save_weights
from simsiam.data import SHA256, load, to_tensor
from simsiam.engine import Record, TrainSettings, pick_device
from simsiam.files import sha256_file, write_csv, write_npz
from simsiam.finetune import finetune as train_classifier
from simsiam.finetune import predict
from simsiam.metrics import top_k
from simsiam.models import load_encoder
from simsiam.params import Params
from stages.common import Metrics, main


def finetune(params: Params, root: Path, *, fresh: bool = False) -> Metrics:
    """Write models/finetuned.pt, the curve, and the fine-tuned features of the test images as data/finetuned.npz.

    `fresh` forgets what was trained before.
    """
    data, device, chosen = load(root / "data/cifar10.npz"), pick_device(), params.chosen.finetune
    settings = TrainSettings(seed=params.seed, lr=chosen.lr[0], **chosen.model_dump(exclude={"lr", "held_out", "augment"}))
    augment = AugmentSettings(**chosen.augment.model_dump())
    encoder = load_encoder(root / "models/encoder.pt")
    inputs = SHA256 | {"encoder": sha256_file(root / "models/encoder.pt")}
    identity = {"training": asdict(settings), "augment": asdict(augment), "held_out": chosen.held_out}

    def write_curve(records: list[Record]) -> None:
        write_csv(root / "reports/curves/finetune.csv", records)

    tuned = train_classifier(
        encoder,
        to_tensor(data.x_train, device),
        data.y_train,
        augment=augment,
        settings=settings,
        lrs=chosen.lr,
        held_out=chosen.held_out,
        store_for=lambda trial: open_store(root, Path(__file__), identity | trial, inputs, fresh=fresh),
        on_epoch=write_curve,
    )
    scores, latent = predict(tuned.classifier, to_tensor(data.x_test, device))
    save_weights(
        root / "models/finetuned.pt",
        {
            "settings": asdict(encoder.settings),
            "weights": tuned.classifier.encoder.state_dict(),
            "head": tuned.classifier.head.state_dict(),
        },
    )
    write_npz(root / "data/finetuned.npz", latent_test=latent)
    print(f"finetune: {top_k(scores, data.y_test, 1):.1%} of the test images right", file=sys.stderr)
    return {
        "top1": top_k(scores, data.y_test, 1),
        "top5": top_k(scores, data.y_test, 5),
        "loss": tuned.result.records[-1]["loss"],
        "epochs": settings.epochs,
        "lr": tuned.lr,
        "seconds": round(tuned.result.seconds, 1),
        "images_per_second": round(tuned.result.images_per_second, 1),
        "trained": [tuned.result.machine],
        "held_out": [{"lr": lr, "top1": top1} for lr, top1 in tuned.held_out_top1.items()],
    }


if __name__ == "__main__":
    main(finetune, resumes=True)

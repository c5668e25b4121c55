"""Fine-tuning on few labels, from the pretrained and from a random encoder: python -m ablation.few_labels"""

from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from simsiam.augment import AugmentSettings
from simsiam.checkpoint import Store, open_store
from simsiam.data import SHA256, load, split, to_tensor
from simsiam.engine import TrainSettings, pick_device
from simsiam.files import read_json, sha256_file
from simsiam.finetune import finetune, predict
from simsiam.metrics import top_k
from simsiam.models import Encoder, load_encoder
from simsiam.params import Params
from stages.common import Metrics, main


def few_labels(params: Params, root: Path, *, fresh: bool = False) -> Metrics:
    """Write the test top-1 after fine-tuning on shares of the training images, as many of each class.

    Each training takes as many steps as on all images, so that only the labels differ. A learning rate is chosen, where
    there are several, on the same part of the given images. With all labels, stage finetune has done it for the pretrained
    encoder. Does nothing without stop-gradient or where the latent dimension is not in `ablation.few_labels`.
    """
    if params.latent_dim not in params.ablation.few_labels.latent_dim or not params.stop_gradient:
        return {}
    data, device, chosen = load(root / "data/cifar10.npz"), pick_device(), params.chosen.finetune
    images, test = to_tensor(data.x_train, device), to_tensor(data.x_test, device)
    settings = TrainSettings(seed=params.seed, lr=chosen.lr[0], **chosen.model_dump(exclude={"lr", "held_out", "augment"}))
    augment = AugmentSettings(**chosen.augment.model_dump())
    pretrained = load_encoder(root / "models/encoder.pt")
    inputs = SHA256 | {"encoder": sha256_file(root / "models/encoder.pt")}

    def place(identity: dict[str, Any], trial: dict[str, Any]) -> AbstractContextManager[Store | None]:
        return open_store(root, Path(__file__), identity | trial, inputs, fresh=fresh)

    metrics: Metrics = {}
    for share in params.ablation.few_labels.share:
        count = round(share * len(data.y_train))
        few = split(data.y_train, count, params.seed)[1] if share < 1 else slice(None)
        batch_size = min(settings.batch_size, count // 2)
        steps = settings.epochs * (len(data.y_train) // settings.batch_size)
        fewer = replace(settings, batch_size=batch_size, epochs=max(1, round(steps / (count // batch_size))))
        metrics[f"{100 * share:g}%"] = {"images": count, "epochs": fewer.epochs}
        for start, encoder in (("pretrained", pretrained), ("random", Encoder(pretrained.settings))):
            if start == "pretrained" and share == 1:
                metrics["100%"][start] = read_json(root / "reports/metrics/finetune.json")["finetune"]["top1"]
                continue
            identity = {"training": asdict(fewer), "augment": asdict(augment), "share": share, "start": start}
            tuned = finetune(
                encoder,
                images[few],
                data.y_train[few],
                augment=augment,
                settings=fewer,
                lrs=chosen.lr,
                held_out=max(10, round(share * chosen.held_out)),
                store_for=partial(place, identity),
            )
            metrics[f"{100 * share:g}%"][start] = top_k(predict(tuned.classifier, test)[0], data.y_test, 1)
    return metrics


if __name__ == "__main__":
    main(few_labels, resumes=True)

"""Fine-tunings that the pipeline does not do, for the study: python -m ablation.finetunings"""

from dataclasses import asdict, replace
from pathlib import Path

from simsiam.augment import AugmentSettings
from simsiam.checkpoint import open_store
from simsiam.data import SHA256, Floats, load, split, to_tensor
from simsiam.engine import TrainSettings, pick_device
from simsiam.files import read_json, sha256_file
from simsiam.finetune import finetune, predict
from simsiam.metrics import top_k
from simsiam.models import Encoder, Space, load_encoder
from simsiam.params import Params
from stages.common import Metrics, main


def finetunings(params: Params, root: Path, *, fresh: bool = False) -> Metrics:
    """Write test accuracies after fine-tuning with the head on the backbone, and after fine-tuning on few labels.

    Few labels, where `ablation.few_labels` names the latent dimension and there was stop-gradient: on shares of the training
    images, as many of each class, from the pretrained and from a random encoder. Each training takes about as many steps as
    on all images, in batches of at most half the labelled ones. A learning rate is chosen, where there are several, on the
    same part of the given images. With all labels, stage finetune has done it for the pretrained encoder.
    """
    data, device, chosen = load(root / "data/cifar10.npz"), pick_device(), params.chosen.finetune
    images, test = to_tensor(data.x_train, device), to_tensor(data.x_test, device)
    full = TrainSettings(seed=params.seed, lr=chosen.lr[0], **chosen.model_dump(exclude={"lr", "held_out", "augment"}))
    augment = AugmentSettings(**chosen.augment.model_dump())
    pretrained = load_encoder(root / "models/encoder.pt")
    inputs = SHA256 | {"encoder": sha256_file(root / "models/encoder.pt")}

    def test_scores(start: str, share: float = 1.0, settings: TrainSettings = full, space: Space = "latent") -> Floats:
        few = split(data.y_train, round(share * len(data.y_train)), params.seed)[1] if share < 1 else slice(None)
        identity = {"training": asdict(settings), "augment": asdict(augment)} | {
            "start": start,
            "share": share,
            "space": space,
        }
        tuned = finetune(
            pretrained if start == "pretrained" else Encoder(pretrained.settings),
            images[few],
            data.y_train[few],
            augment=augment,
            settings=settings,
            lrs=chosen.lr,
            held_out=max(10, round(share * chosen.held_out)),
            space=space,
            store_for=lambda trial: open_store(root, Path(__file__), identity | trial, inputs, fresh=fresh),
        )
        return predict(tuned.classifier, test)[0]

    scores = test_scores("pretrained", space="backbone")
    metrics: Metrics = {"backbone": {f"top{k}": top_k(scores, data.y_test, k) for k in (1, 5)}, "few_labels": {}}
    if params.latent_dim not in params.ablation.few_labels.latent_dim or not params.stop_gradient:
        return metrics
    for share in params.ablation.few_labels.share:
        count = round(share * len(data.y_train))
        batch_size = min(full.batch_size, count // 2)
        steps = full.epochs * (len(data.y_train) // full.batch_size)
        settings = replace(full, batch_size=batch_size, epochs=max(1, round(steps / (count // batch_size))))
        found: Metrics = {"images": count, "epochs": settings.epochs}
        for start in ("pretrained", "random"):
            if start == "pretrained" and share == 1:
                found[start] = read_json(root / "reports/metrics/finetune.json")["finetune"]["top1"]
            else:
                found[start] = top_k(test_scores(start, share, settings), data.y_test, 1)
        metrics["few_labels"][f"{100 * share:g}%"] = found
    return metrics


if __name__ == "__main__":
    main(finetunings, resumes=True)

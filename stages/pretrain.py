"""Pretrain a SimSiam encoder: python -m stages.pretrain"""

import sys
from dataclasses import asdict
from pathlib import Path

from simsiam import parallel
from simsiam.augment import AugmentSettings
from simsiam.checkpoint import open_store
from simsiam.data import SHA256, load, to_tensor
from simsiam.engine import Record, TrainSettings, pick_device
from simsiam.files import write_csv
from simsiam.models import Encoder, EncoderSettings, SimSiam, bottleneck, save_encoder
from simsiam.params import Params
from simsiam.pretrain import pretrain as train_simsiam
from stages.common import Metrics, main

COLLAPSED = 0.1  # z_std below this: the latents are all but one point


def pretrain(params: Params, root: Path, *, fresh: bool = False) -> Metrics | None:
    """Write models/encoder.pt and, while it trains, reports/curves/pretrain.csv. `fresh` forgets what was trained before.

    Of several processes that `torchrun` started, only the first writes, and has metrics to return.
    """
    model, chosen = params.chosen.model, params.chosen.pretrain
    encoder = Encoder(
        EncoderSettings(latent_dim=params.latent_dim, seed=params.seed, **model.model_dump(exclude={"predictor_hidden"}))
    )
    hidden = model.predictor_hidden or bottleneck(params.latent_dim)
    settings = TrainSettings(seed=params.seed, **chosen.model_dump(exclude={"predictor_lr", "augment"}))
    augment = AugmentSettings(**chosen.augment.model_dump())
    identity = {
        "encoder": asdict(encoder.settings),
        "predictor_hidden": hidden,
        "predictor_lr": chosen.predictor_lr,
        "stop_gradient": params.stop_gradient,
        "training": asdict(settings),
        "augment": asdict(augment),
    }

    def write_curve(records: list[Record]) -> None:
        write_csv(root / "reports/curves/pretrain.csv", records)

    device = pick_device()
    with parallel.joined(device), open_store(root, Path(__file__), identity, SHA256, fresh=fresh) as store:
        result = train_simsiam(
            SimSiam(encoder, hidden),
            to_tensor(load(root / "data/cifar10.npz").x_train, device),
            augment=augment,
            settings=settings,
            stop_gradient=params.stop_gradient,
            constant_predictor_lr=chosen.predictor_lr == "constant",
            store=store,
            on_epoch=write_curve,
        )
        if parallel.rank() > 0:
            return None
    save_encoder(root / "models/encoder.pt", encoder)
    last = result.records[-1]
    if last["z_std"] < COLLAPSED:
        print(
            f"pretrain: COLLAPSED: z_std is {last['z_std']:.3f} (healthy is near 1): all images have nearly the same latent."
            + ("" if not params.stop_gradient else " Try a larger batch_size or a smaller lr."),
            file=sys.stderr,
        )
    return {
        "loss": last["loss"],
        "z_std": last["z_std"],
        "epochs": settings.epochs,
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images_per_second, 1),
        "predictor_hidden": hidden,
        "trained": [  # a list, which DVC's tables leave out
            {
                "recipe": params.recipe,
                "latent_dim": params.latent_dim,
                "stop_gradient": params.stop_gradient,
                "seed": params.seed,
                **result.machine,
            }
        ],
    }


if __name__ == "__main__":
    main(pretrain, resumes=True, joins=True)

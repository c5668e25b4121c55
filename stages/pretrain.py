"""Pretrain an encoder without labels: python -m stages.pretrain"""

import sys
from functools import partial
from pathlib import Path

from simsiam import code, collapse, parallel
from simsiam.checkpoint import NO_ARITHMETIC, open_store
from simsiam.engine import Record, pick_device
from simsiam.files import write_csv
from simsiam.images import to_tensor
from simsiam.methods import build
from simsiam.networks import save_encoder
from simsiam.pretrain import pretrain as train_method
from simsiam.settings import Params
from stages.common import Metrics, load_images, main


def pretrain(params: Params, root: Path, *, fresh: bool = False) -> Metrics | None:
    """Write models/encoder.pt and, while it trains, reports/curves/pretrain.csv. `fresh` forgets what was trained before.

    Of several processes that `torchrun` started, only the first writes, and has metrics to return.
    """
    images, device = load_images(root), pick_device()
    method = build(params, images.normalisation)
    about = {
        "method": params.method,
        "code": code.digest(type(method).__module__, NO_ARITHMETIC),  # which the training loop does not import
        "options": method.options.model_dump(),
        "encoder": method.encoder.settings.model_dump(),
        "images": images.digest,
    }

    def write_curve(records: list[Record]) -> None:
        write_csv(root / "reports/curves/pretrain.csv", records)

    with parallel.joined(device):
        result = train_method(
            method,
            to_tensor(images.x_train, device),
            settings=params.chosen.pretrain,
            seed=params.seed,
            about=about,
            store_for=partial(open_store, root, "simsiam.pretrain", fresh=fresh),
            on_epoch=write_curve,
        )
        if parallel.rank() > 0:
            return None
    save_encoder(root / "models/encoder.pt", method.encoder)
    last, verdict = result.records[-1], collapse.of_run(result.records, params.latent_dim, method.lowest_loss)
    warning = ""
    if verdict != "healthy":
        warning = collapse.words(verdict, last, stop_gradient=params.stop_gradient)
        print(f"pretrain: {warning}", file=sys.stderr)
    return {
        **{name: last[name] for name in ("loss", "z_std", "rankme", "first_share")},
        "verdict": verdict,
        "epochs": params.chosen.pretrain.epochs,
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images_per_second, 1),
        # A list, which DVC's tables leave out.
        "trained": [
            params.model_dump(include={"recipe", "method", "latent_dim", "stop_gradient", "seed"})
            | result.machine
            | {"warning": warning}
        ],
    }


if __name__ == "__main__":
    main(pretrain, resumes=True, joins=True)

"""What the stages found at one point of the grid, in two small files for git: python -m ablation.collect"""

from pathlib import Path

import numpy as np
import pandas as pd

from simsiam.files import read_json, read_npz, write_json, write_npz
from simsiam.params import Params
from stages.common import main

STAGES = ("pretrain", "embed", "linear_eval", "finetune", "project", "explain", "finetunings", "shap_mass")


def collect(params: Params, root: Path) -> None:
    """Write <point>.json with every metric, and <point>.npz with curve, maps and SHAP values, to ablation/results/<recipe>/.

    That is a folder of the repository, not of `root`, which is the point's. The SHAP values are summed over the channels, in
    half precision.
    """
    result = {"point": {name: getattr(params, name) for name in ("recipe", "latent_dim", "stop_gradient", "seed")}}
    for stage in STAGES:
        result |= read_json(root / f"reports/metrics/{stage}.json")

    tables = {"curve": pd.read_csv(root / "reports/curves/pretrain.csv")}
    tables["maps"] = pd.read_csv(root / "reports/projection.csv").drop(columns="class")
    arrays = {f"{name}_{column}": table[column].to_numpy(np.float32) for name, table in tables.items() for column in table}
    shap = read_npz(root / "data/shap.npz")
    arrays |= {f"shap_{name}": shap[name] for name in ("images", "labels", "shown", "frozen_logits", "finetuned_logits")}
    arrays |= {f"shap_{name}": shap[f"{name}_values"].sum(1).astype(np.float16) for name in ("frozen", "finetuned")}

    place = Path("ablation/results") / params.recipe / point_name(params.latent_dim, params.stop_gradient, params.seed)
    write_json(place.with_suffix(".json"), result)
    write_npz(place.with_suffix(".npz"), **arrays)


def point_name(latent_dim: int, stop_gradient: bool, seed: int) -> str:
    """As ablation/dvc.yaml names the points of a recipe."""
    return f"{latent_dim}-{str(stop_gradient).lower()}-{seed}"


if __name__ == "__main__":
    main(collect)

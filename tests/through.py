"""Any images through every stage, with an encoder that takes seconds."""

import json
from pathlib import Path
from typing import Any

from simsiam.settings import Params, load
from stages.download import download
from stages.embed import embed
from stages.explain import explain
from stages.finetune import finetune
from stages.linear_eval import linear_eval
from stages.look import look
from stages.pretrain import pretrain
from stages.project import project
from stages.report import report

STAGES = (download, look, pretrain, embed, linear_eval, finetune, project, explain, report)
QUICK = {
    "latent_dim": 8,
    "recipes.base.model.width": 8,
    "recipes.base.model.projector_hidden": 16,
    "recipes.laptop.model.width": 8,
    "recipes.laptop.pretrain.epochs": 2,
    "recipes.laptop.pretrain.min_steps": 0,
    "recipes.laptop.finetune.min_steps": 0,
    "recipes.laptop.pretrain.batch_size": 16,
    "recipes.laptop.finetune.epochs": 2,
    "recipes.laptop.finetune.batch_size": 16,
    "recipes.laptop.finetune.held_out": 16,
    "embed.queries": [0, 39],
    "embed.knn_k": 200,  # more than there are images
    "linear_eval.held_out": 16,
    "linear_eval.few_labels": [0.5],
    "linear_eval.draws": 2,
    "project.points": 1500,  # as well
    "project.perplexity": 8,
    "explain.images": [0, 39],
    "explain.outputs": 4,
    "explain.background": 10,
    "explain.mass_images": 4,
}


def quick(**changes: Any) -> Params:
    """The settings of params.yaml, made small, with changes; `__` stands for a dot."""
    given = QUICK | {key.replace("__", "."): value for key, value in changes.items()}
    return load(Path(__file__).parent.parent / "params.yaml", [f"{key}={json.dumps(value)}" for key, value in given.items()])

"""SHAP values of the frozen and of the fine-tuned network: python -m stages.explain"""

from pathlib import Path

import numpy as np
import torch

from simsiam.checkpoint import load_weights
from simsiam.data import load, split, to_tensor
from simsiam.errors import UserError
from simsiam.explain import explain as shap_values
from simsiam.files import write_npz
from simsiam.models import load_classifier, load_encoder, with_head
from simsiam.parallel import local_device
from simsiam.params import Params
from simsiam.plots import save, shap_figure
from stages.common import Metrics, main


def explain(params: Params, root: Path) -> Metrics:
    """Write data/shap.npz and the figure: for each image the true class and the other classes that score highest.

    Both networks put a linear head on the latent. "frozen" is the pretrained encoder with the head of linear_eval,
    "finetuned" the fine-tuned network.
    """
    data, device, chosen = load(root / "data/cifar10.npz"), local_device(), params.explain
    torch.backends.cudnn.allow_tf32 = False  # a GPU's rounding to TF32 would show in the residual
    if max(chosen.images) >= len(data.x_test):
        raise UserError(f"explain.images: {max(chosen.images)} is not one of the {len(data.x_test)} test images")
    # A sample of the training set with every class in it, as the network sees it.
    background = split(data.y_train, min(chosen.background, len(data.y_train) - 1), params.seed)[1]
    pixels = to_tensor(data.x_test[chosen.images], device).float() / 255
    reference = to_tensor(data.x_train[background], device).float() / 255

    networks = {
        "frozen": with_head(load_encoder(root / "models/encoder.pt"), load_weights(root / "models/linear.pt")["latent"]),
        "finetuned": load_classifier(root / "models/finetuned.pt"),
    }
    found = {name: shap_values(network.to(device), pixels, reference, name=name) for name, network in networks.items()}
    labels = data.y_test[chosen.images]
    shown = classes_to_show(labels, found["finetuned"].logits, chosen.outputs)
    write_npz(
        root / "data/shap.npz",
        images=data.x_test[chosen.images],
        labels=labels,
        shown=shown,
        **{f"{name}_values": explanation.values for name, explanation in found.items()},
        **{f"{name}_expected": explanation.expected for name, explanation in found.items()},
        **{f"{name}_logits": explanation.logits for name, explanation in found.items()},
    )
    figure = shap_figure(
        data.x_test[chosen.images],
        labels,
        shown,
        {name: (explanation.values, explanation.logits) for name, explanation in found.items()},
    )
    save(root / "reports/figures/shap.png", figure)
    return {
        "additivity_residual": max(explanation.residual for explanation in found.values()),
        "residual": {name: explanation.residual for name, explanation in found.items()},
        "images": len(labels),
        "background": len(background),
    }


def classes_to_show(labels: np.ndarray, logits: np.ndarray, outputs: int) -> np.ndarray:
    """For each image its own class, then the others by falling logit: (N, outputs)."""
    own_first = logits.copy()
    own_first[np.arange(len(labels)), labels] = np.inf
    return np.argsort(-own_first, axis=1, kind="stable")[:, :outputs]


if __name__ == "__main__":
    main(explain)

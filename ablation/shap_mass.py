"""Where in the image the SHAP values lie: python -m ablation.shap_mass"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from simsiam.checkpoint import load_weights
from simsiam.data import load, split, to_tensor
from simsiam.explain import explain, mass_by_quadrant, mass_radius
from simsiam.models import Encoder, load_classifier, load_encoder, with_head
from simsiam.parallel import local_device
from simsiam.params import Params
from stages.common import Metrics, main


def shap_mass(params: Params, root: Path) -> Metrics:
    """Write the share of each quadrant in the SHAP mass, and the mass's mean distance from the middle, with intervals.

    Of the frozen and the fine-tuned network, of a random encoder with a trained head, and of the frozen network as it is
    usually written, for which shap's values do not add up. Does nothing where the latent dimension is not in
    `ablation.shap_mass`.
    """
    chosen = params.ablation.shap_mass
    if params.latent_dim not in chosen.latent_dim:
        return {}
    data, device = load(root / "data/cifar10.npz"), local_device()
    torch.backends.cudnn.allow_tf32 = False
    images = split(data.y_test, chosen.images, params.seed)[1]
    background = split(data.y_train, chosen.background, params.seed)[1]
    pixels = to_tensor(data.x_test[images], device).float() / 255
    reference = to_tensor(data.x_train[background], device).float() / 255

    encoder, heads = load_encoder(root / "models/encoder.pt"), load_weights(root / "models/linear.pt")
    frozen = with_head(encoder, heads["latent"])
    networks = {
        "frozen": frozen,
        "finetuned": load_classifier(root / "models/finetuned.pt"),
        "random": with_head(Encoder(encoder.settings), heads["random_latent"]),
        "stock": frozen,
    }
    metrics: Metrics = {"images": len(images), "background": len(background)}
    for name, network in networks.items():
        found = explain(network.to(device), pixels, reference, name=name, stock=name == "stock")
        metrics[name] = {
            "quadrants": [interval(share) for share in mass_by_quadrant(found.values).T],
            "radius": interval(mass_radius(found.values)),
            "residual": found.residual,
        }
    return metrics


def interval(samples: NDArray[np.float64]) -> dict[str, float]:
    """Mean of samples (N,), and the half width of its 95 % interval (normal approximation)."""
    return {"mean": float(samples.mean()), "half_width": float(1.96 * samples.std(ddof=1) / len(samples) ** 0.5)}


if __name__ == "__main__":
    main(shap_mass)

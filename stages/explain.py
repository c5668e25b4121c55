"""SHAP values of the frozen, the fine-tuned and the random network: python -m stages.explain"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from simsiam import fitting
from simsiam.checkpoint import load_weights
from simsiam.errors import UserError
from simsiam.explain import Explanation, mass_by_quadrant, mass_radius
from simsiam.explain import explain as shap_values
from simsiam.files import write_npz
from simsiam.images import ImageSet, split, to_tensor
from simsiam.networks import Classifier, Encoder, load_classifier, load_encoder, with_head
from simsiam.parallel import local_device
from simsiam.plots import draw, note_figure, shap_figure
from simsiam.settings import Explain, Params
from stages.common import Metrics, load_images, main
from stages.left_out import REASON, left_out


def explain(params: Params, root: Path) -> Metrics:
    """Write data/shap.npz and the figure: for each image the true class and the other classes that score highest.

    All networks put a linear head on the same space. "frozen" is the pretrained encoder with the head of linear_eval,
    "random" the random encoder with the head that linear_eval trained on it, "finetuned" the fine-tuned network. With
    `explain.mass_images` it is also measured where in the image the values lie.
    """
    images, device = load_images(root), local_device()
    if not images.labelled:
        draw(root / "reports/figures/shap.png", note_figure, f"SHAP is left out: {REASON}")
        return left_out("explain", root, "data/shap.npz")
    chosen = fitting.say("explain", params.explain, fitting.explain(params.explain, images), fitting.of(images))
    torch.backends.cudnn.allow_tf32 = False  # a GPU's rounding to TF32 would show in the residual

    encoder, heads = load_encoder(root / "models/encoder.pt"), load_weights(root / "models/linear.pt")
    tuned = load_classifier(root / "models/finetuned.pt")
    try:
        frozen = with_head(encoder, heads[tuned.space], tuned.space)
        random = with_head(Encoder(encoder.settings), heads[f"random_{tuned.space}"], tuned.space)
    except (KeyError, TypeError, AttributeError, RuntimeError):
        raise UserError("models/linear.pt does not hold the linear heads: delete it and run `dvc repro`") from None
    networks = {"frozen": frozen, "finetuned": tuned, "random": random}

    pixels = to_tensor(images.x_test[chosen.images], device).float() / 255
    reference = background(images, chosen.background, params.seed, device)
    found = {name: shap_values(network.to(device), pixels, reference, name=name) for name, network in networks.items()}
    labels = images.y_test[chosen.images]
    shown = classes_to_show(labels, found["finetuned"].logits, chosen.outputs)
    write_npz(
        root / "data/shap.npz",
        images=images.x_test[chosen.images],
        labels=labels,
        shown=shown,
        **{f"{name}_values": explanation.values for name, explanation in found.items()},
        **{f"{name}_expected": explanation.expected for name, explanation in found.items()},
        **{f"{name}_logits": explanation.logits for name, explanation in found.items()},
    )
    draw(
        root / "reports/figures/shap.png",
        shap_figure,
        images.x_test[chosen.images],
        labels,
        shown,
        {name: (explanation.values, explanation.logits) for name, explanation in found.items()},
        images.classes,
    )
    metrics: Metrics = {
        "additivity_residual": max(explanation.residual for explanation in found.values()),
        "residual": {name: explanation.residual for name, explanation in found.items()},
        "images": len(labels),
        "background": len(reference),
        "settings": [chosen.model_dump()],
    }
    if chosen.mass_images:
        metrics["mass"] = mass(networks, images, chosen, params.seed, device)
    return metrics


def mass(networks: dict[str, Classifier], images: ImageSet, chosen: Explain, seed: int, device: torch.device) -> Metrics:
    """Of each network, the share of each quadrant in the SHAP mass, and the mass's mean distance from the middle.

    "stock" is the frozen network as a ResNet is usually written, for which shap's values do not add up.
    """
    pixels = to_tensor(images.x_test[split(images.y_test, chosen.mass_images, seed)[1]], device).float() / 255
    reference = background(images, chosen.mass_background, seed, device)
    found: Metrics = {"images": len(pixels), "background": len(reference)}
    for name, network in (networks | {"stock": networks["frozen"]}).items():
        values: Explanation = shap_values(network.to(device), pixels, reference, name=f"{name}, mass", stock=name == "stock")
        found[name] = {
            "quadrants": [interval(share) for share in mass_by_quadrant(values.values).T],
            "radius": interval(mass_radius(values.values)),
            "residual": values.residual,
        }
    return found


def background(images: ImageSet, count: int, seed: int, device: torch.device) -> torch.Tensor:
    """A sample of the training images with every class in it, as the network sees it."""
    chosen = split(images.y_train, min(count, len(images.y_train) - 1), seed)[1]
    return to_tensor(images.x_train[chosen], device).float() / 255


def interval(samples: NDArray[np.float64]) -> dict[str, float]:
    """Mean of samples (N,), and the half width of its 95 % interval (normal approximation)."""
    return {"mean": float(samples.mean()), "half_width": float(1.96 * samples.std(ddof=1) / len(samples) ** 0.5)}


def classes_to_show(labels: np.ndarray, logits: np.ndarray, outputs: int) -> np.ndarray:
    """For each image its own class, then the others by falling logit: (N, outputs)."""
    own_first = logits.copy()
    own_first[np.arange(len(labels)), labels] = np.inf
    return np.argsort(-own_first, axis=1, kind="stable")[:, :outputs]


if __name__ == "__main__":
    main(explain)

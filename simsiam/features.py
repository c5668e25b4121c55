"""Images through a frozen encoder."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simsiam.engine import progress_bar
from simsiam.images import Labels, split
from simsiam.metrics import knn_top1
from simsiam.networks import Encoder

BANK = 10  # neighbours to choose from, at most, for each image that is looked at while an encoder trains
NEIGHBOURS, TEMPERATURE = 200, 0.1  # as `embed` has them by default; half of an average class at most


def extract(
    encoder: Encoder, images: Tensor, *, batch_size: int = 125, name: str = "features"
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Backbone features (N, 8 * width) and latents (N, latent_dim) of images (N, 3, S, S) uint8, without augmentation.

    Runs on the images' device in evaluation mode and fp32 (TF32 on a GPU): bf16 would round away what spread nearly
    collapsed features have. The encoder and each of its parts come back in the mode, on the device and with the very weights
    and BatchNorm buffers that they had.
    """
    modes = {module: module.training for module in encoder.modules()}
    home = next(encoder.parameters()).device
    encoder.to(images.device).eval()
    backbone = np.empty((len(images), encoder.backbone.dim), np.float32)
    latent = np.empty((len(images), encoder.settings.latent_dim), np.float32)
    with torch.inference_mode(), progress_bar(len(images), name) as bar:
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            h, z = encoder(batch.float().div(255).contiguous(memory_format=torch.channels_last))
            backbone[start : start + batch_size], latent[start : start + batch_size] = h.cpu().numpy(), z.cpu().numpy()
            bar.update(len(batch))
    encoder.to(home)
    for module, mode in modes.items():
        module.training = mode
    return backbone, latent


def knn_look(
    images: Tensor, labels: Labels, kept: NDArray[np.int64], held: NDArray[np.int64], seed: int
) -> Callable[[Encoder], float]:
    """A look at an encoder while it trains: top-1 of the held-out training images by the kNN of the others, on the backbone.

    images (N, 3, S, S) uint8 on the device of the training; labels (N,) all of them known; kept, held: indices, by `split`.
    Of the kept ones 10 times as many as are held out are the bank, by seed, the same share of each class.
    """
    if BANK * len(held) < len(kept):
        kept = kept[split(labels[kept], BANK * len(held), seed)[1]]
    classes = int(labels.max()) + 1
    seen = images[torch.from_numpy(np.concatenate([held, kept])).to(images.device)]

    def look(encoder: Encoder) -> float:
        queries, bank = np.split(extract(encoder, seen, name="")[0], [len(held)])
        k = min(NEIGHBOURS, max(1, len(kept) // (2 * classes)))
        return knn_top1(bank, labels[kept], queries, labels[held], classes=classes, k=k, temperature=TEMPERATURE)

    return look

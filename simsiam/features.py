"""Images through a frozen encoder."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simsiam.engine import progress_bar
from simsiam.networks import Encoder


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

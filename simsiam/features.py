"""Images through a frozen encoder."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simsiam.engine import progress_bar
from simsiam.models import Encoder


def extract(
    encoder: Encoder, images: Tensor, *, batch_size: int = 500, name: str = "features"
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Backbone features (N, 8 * width) and latents (N, latent_dim) of images (N, 3, S, S) uint8, without augmentation.

    Runs on the images' device in evaluation mode and fp32 (TF32 on a GPU): bf16 would round away what
    spread nearly collapsed features have. The encoder comes back in the mode and with the very weights and BatchNorm buffers
    it had.
    """
    was_training = encoder.training
    encoder.to(images.device).eval()
    features, latents = [], []
    with torch.inference_mode(), progress_bar(len(images), name) as bar:
        for batch in torch.split(images, batch_size):
            h, z = encoder(batch.float().div(255).contiguous(memory_format=torch.channels_last))
            features.append(h)
            latents.append(z)
            bar.update(len(batch))
    encoder.train(was_training)
    return torch.cat(features).cpu().numpy(), torch.cat(latents).cpu().numpy()

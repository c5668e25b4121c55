"""What tests are made of, for those too that run without pytest: small images, encoders and views."""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from simsiam.engine import Record
from simsiam.files import read_npz
from simsiam.images import ImageSet, from_arrays
from simsiam.methods.simsiam import SimSiamOptions
from simsiam.settings import Augment, EncoderSettings, Section

SMALL = Path(__file__).parent / "data/cifar10_500.npz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
S = TypeVar("S", bound=Section)

PLAIN = Augment(
    view_size=32,
    crop_scale=[1.0, 1.0],
    flip=0.0,
    jitter=[0.0, 0.0, 0.0, 0.0],
    jitter_probability=0.0,
    grey=0.0,
    blur=0.0,
)
COLOURFUL = PLAIN.model_copy(
    update={"crop_scale": [0.2, 1.0], "flip": 0.5, "jitter": [0.4, 0.4, 0.4, 0.1], "jitter_probability": 0.8, "grey": 0.2}
)


# The smallest encoder that has every part.
TINY = EncoderSettings(
    latent_dim=8,
    stem="strided",
    depth=10,
    width=8,
    normalisation="data",
    projector_layers=2,
    projector_hidden=16,
    hidden_norm=True,
    latent_norm=True,
    seed=3,
    mean=(0.49, 0.48, 0.45),
    std=(0.25, 0.24, 0.26),
)

# SimSiam as it is in the paper.
SIMSIAM = SimSiamOptions(
    lr=None,
    stop_gradient=True,
    predictor="mlp",
    predictor_hidden=16,
    predictor_lr="cosine",
    predictor_lr_times=1.0,
    target="stop_gradient",
    target_momentum=0.99,
)


def cifar_500() -> ImageSet:
    """500 real CIFAR-10 images: 40 training and 10 test images of each class."""
    return from_arrays(**read_npz(SMALL), classes=CLASSES)


def but(settings: S, **changes: Any) -> S:
    """The settings with others for some keys, checked as those of params.yaml are."""
    return type(settings).model_validate(settings.model_dump() | changes)


def timeless(records: list[Record]) -> list[Record]:
    """Records without the seconds, which are no two runs' the same."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)

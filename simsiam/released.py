"""An encoder to pass on: its weights in half precision, in safetensors files, and a card that says what it is.

The backbone has the names of torchvision's ResNet, so that it can be used without this project.
"""

import hashlib
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from simsiam.errors import UserError
from simsiam.files import read_json, write_bytes, write_json
from simsiam.networks import BLOCKS_PER_STAGE, Encoder
from simsiam.settings import EncoderSettings

Weights = dict[str, Tensor]
PARTS = ("backbone", "projector", "linear")  # a .safetensors file each


@dataclass(frozen=True)
class Released:
    """What lies in a folder that `write` made."""

    encoder: Encoder  # in evaluation mode
    heads: dict[str, Weights]  # space -> `weight` (classes, d) and `bias` of the linear classifier on it
    card: dict[str, Any]  # what it was made from, how, and what it scores


def write(folder: Path, encoder: Encoder, heads: dict[str, Weights], card: dict[str, Any]) -> None:
    """Write backbone, projector and linear .safetensors, and card.json, which gets the encoder's settings and their SHA-256.

    Matrices and kernels are float16; what BatchNorm has, biases and the linear classifiers are float32. What was there
    stays whole until all is written.
    """
    named = torchvision_names(encoder)
    backbone = {named[name]: value for name, value in encoder.backbone.state_dict().items()}
    linear = {f"{space}.{name}": value for space, head in heads.items() for name, value in head.items()}
    contents = {}
    for name, weights in zip(PARTS, (backbone, encoder.projector.state_dict(), linear), strict=True):
        halve = name != "linear"
        halved = {key: (value.half() if halve and value.ndim > 1 else value).contiguous() for key, value in weights.items()}
        contents[name] = save(halved)
    digests = {name: _digest(content) for name, content in contents.items()}
    scratch = folder / f".{secrets.token_hex(4)}.tmp"
    try:
        for name, content in contents.items():
            write_bytes(scratch / f"{name}.safetensors", content)
        write_json(scratch / "card.json", {"encoder": encoder.settings.model_dump(), "sha256": digests} | card)
        for name in (*(f"{name}.safetensors" for name in PARTS), "card.json"):
            (scratch / name).replace(folder / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read(folder: Path) -> Released:
    """What `write` wrote, in float32. Raises UserError where it is missing, damaged, or of another release than the card."""
    how = "get it anew"
    card = read_json(folder / "card.json", how=how)
    try:
        contents = {name: (folder / f"{name}.safetensors").read_bytes() for name in PARTS}
        if other := [name for name in PARTS if card["sha256"][name] != _digest(contents[name])]:
            raise ValueError(f"{other[0]}.safetensors is damaged, or not the one that card.json is of")
        parts = {name: load(content) for name, content in contents.items()}
        weights = {name: {key: value.float() for key, value in part.items()} for name, part in parts.items()}
        encoder = Encoder(EncoderSettings.model_validate(card["encoder"], strict=False)).eval()
        ours = {theirs: name for name, theirs in torchvision_names(encoder).items()}
        encoder.backbone.load_state_dict({ours[name]: value for name, value in weights["backbone"].items()})
        encoder.projector.load_state_dict(weights["projector"])
        heads: dict[str, Weights] = {}
        for key, value in weights["linear"].items():
            space, name = key.split(".")
            heads.setdefault(space, {})[name] = value
    except (OSError, SafetensorError, ValidationError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder} does not hold an encoder ({' '.join(str(error).split())[:200]}): {how}") from None
    return Released(encoder, heads, card)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def torchvision_names(encoder: Encoder) -> dict[str, str]:
    """The backbone's names -> those that torchvision.models.resnet gives the same weights."""
    first, count = 4 if encoder.settings.stem == "imagenet" else 3, BLOCKS_PER_STAGE[encoder.settings.depth]
    names = {}
    for name in encoder.backbone.state_dict():
        number, rest = re.fullmatch(r"layers\.(\d+)\.(.+)", name).groups()  # type: ignore[union-attr]
        stage, block = divmod(int(number) - first, count)
        before = {0: "conv1", 1: "bn1"}.get(int(number), f"layer{stage + 1}.{block}")
        names[name] = f"{before}.{rest.replace('shortcut', 'downsample')}"
    return names

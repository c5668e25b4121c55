"""The learning rate as a pure function of the step, and the parts that have another."""

import math
from typing import NamedTuple

from torch import nn


class OwnRate(NamedTuple):
    """Of a part of what is trained, where its learning rate is not that of the rest."""

    part: nn.Module
    times: float = 1.0  # that of the rest
    constant: bool = False  # stays at its peak


def cosine(step: int, steps: int) -> float:
    """Factor on the peak learning rate at `step` of `steps`: 1 at the first, falling on a half cosine towards 0."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))

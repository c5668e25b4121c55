"""The learning rate as a pure function of the step."""

import math


def cosine(step: int, steps: int) -> float:
    """Factor on the peak learning rate at `step` of `steps`: 1 at the first, falling on a half cosine towards 0."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))

"""Seeds for independent streams of random numbers."""

import numpy as np


def derive(*numbers: int) -> int:
    """A seed, below 2**32, for each tuple of non-negative integers (seed, what for, step, ...); two are hardly ever equal.

    torch's CPU generator looks at the lower 32 bits of its seed only, so seeds made by adding large numbers may be equal.
    """
    return int(np.random.SeedSequence([len(numbers), *numbers]).generate_state(1)[0])

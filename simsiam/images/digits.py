"""scikit-learn's 1,797 handwritten digits, which every installation has: real images, without any network."""

import numpy as np

from simsiam.images import ImageSet
from simsiam.images.arrays import gathered


def read(test_share: float, seed: int) -> ImageSet:
    """Grey images of 8 x 8 pixels, still (N, 8, 8, 1), and their ten classes."""
    from sklearn.datasets import load_digits  # takes a second to import

    found = load_digits()
    images = (found.images * (255 / 16)).round().astype(np.uint8)  # ink, from 0 to 16
    return gathered((images, found.target), None, None, None, test_share, seed, mirrors=False)

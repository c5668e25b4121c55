"""First filters that decorrelate an image's pixels, made from the images alone."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from simsiam.images import Pixels

PATCHES = 200_000  # that are looked at, at most twice as many
RIDGE = 5e-3  # is added to the variances of standardised patches, so that what is hardly there is not blown up
NOTHING = 1e-4  # share of the largest variance; a direction with less, as grey images have, is no filter


def whitening(images: Pixels, mean: tuple[float, ...], std: tuple[float, ...], side: int) -> tuple[float, ...]:
    """Filters (K, 3, side, side), flattened, whose outputs on the images are uncorrelated and about as strong each.

    images: (N, S, S, 3) uint8. mean, std: the network's standardisation, which these filters come after. They are the
    eigenvectors of the covariance of the patches over the root of the eigenvalue, the strongest first, at most 3 * side^2 of
    them, and then the negatives of all, as a ReLU keeps one sign. A network with fewer channels takes the first of these: of
    CIFAR-10's 21 directions that are more than `NOTHING` a width of 32 has all, and eleven both ways. Deterministic; to five
    places.
    """
    places = ((images.shape[1] - side) // side + 1) ** 2  # of patches that do not overlap
    some = images[:: max(1, len(images) * places // PATCHES)]
    windows = sliding_window_view(some, (side, side), (1, 2))[:, ::side, ::side]  # (N, rows, columns, 3, side, side)
    patches = (windows / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    values, vectors = np.linalg.eigh(np.cov(patches.reshape(-1, 3 * side * side), rowvar=False))
    values, vectors = values[::-1], vectors[:, ::-1]
    vectors *= np.sign(vectors[np.abs(vectors).argmax(0), range(len(values))])  # an eigenvector's sign means nothing
    kept = values > NOTHING * values[0]
    filters = (vectors / np.sqrt(values.clip(0) + RIDGE)).T[kept]
    return tuple(np.concatenate([filters, -filters]).round(5).ravel().tolist())

"""The control without a network: how near an image's patches are to those of a dictionary (Coates, Lee & Ng 2011).

"An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS 2011: patches of 6x6 pixels at every place,
each less its own mean and over its own deviation, whitened by ZCA; k-means; the "triangle" activation; sums over quadrants.
The k-means is the spherical one of Coates & Ng 2012, "Learning Feature Representations with K-means": on held-out training
images of CIFAR-10 a linear probe reads more out of it than of the plain one. Images of more than 32 pixels are made smaller
first: a patch stays a small part of what is to be seen, and time and memory are bounded.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from simsiam.engine import progress_bar
from simsiam.seeds import derive

PATCH = 6  # side in pixels
LARGEST = 32  # side of the images that patches are taken from
EPSILON = 10.0  # is added to a patch's variance, of values from 0 to 255; this and the next are Coates & Ng's (2012)
RIDGE = 0.1  # is added to the eigenvalues of the normalised patches' covariance
ROUNDS = 10  # of k-means
AT_ONCE = 2**21  # numbers for each patch and centroid that are made at a time: they stay in a processor's cache


class Dictionary(NamedTuple):
    """K centroids, and how a normalised patch x is whitened: (x - mean) @ whitening. Float32."""

    mean: Tensor  # (108,)
    whitening: Tensor  # (108, 108), symmetric
    centroids: Tensor  # (K, 108), of length 1


def learn(images: Tensor, *, centroids: int, patches: int, seed: int) -> Dictionary:
    """The centroids of `patches` random patches of images (N, 3, S, S) uint8, S at least 6, on the images' device."""
    sampled = normalise(sample(shrink(images), patches, seed))
    mean, whitening = zca(sampled)
    return Dictionary(mean, whitening, spherical_kmeans((sampled - mean) @ whitening, centroids, seed))


def extract(dictionary: Dictionary, images: Tensor, *, name: str = "patches") -> NDArray[np.float32]:
    """Features (N, 4K) of images (N, 3, S, S) uint8: each centroid's triangle activations, summed over the quadrants.

    Quadrant by quadrant: top left, top right, bottom left, bottom right. On the images' device, where the dictionary has to
    be; it takes some times `AT_ONCE` floats beyond the images, however many these are.
    """
    count, side = len(dictionary.centroids), min(images.shape[-1], LARGEST) - PATCH + 1
    features = np.empty((len(images), 4 * count), np.float32)
    done = 0
    with torch.inference_mode(), progress_bar(len(images), name) as bar:
        for batch in images.split(max(1, AT_ONCE // (side**2 * count))):
            every = F.unfold(shrink(batch).float(), PATCH).transpose(1, 2).reshape(-1, len(dictionary.mean))
            white = (normalise(every) - dictionary.mean) @ dictionary.whitening
            pooled = quadrants(triangle(white, dictionary.centroids).view(len(batch), side, side, count))
            features[done : done + len(batch)] = pooled.cpu().numpy()
            done += len(batch)
            bar.update(len(batch))
    return features


def shrink(images: Tensor) -> Tensor:
    """Images (N, 3, S, S) uint8 as they are, or made smaller to 32 x 32."""
    if images.shape[-1] <= LARGEST:
        return images
    size = (LARGEST, LARGEST)
    parts = (F.interpolate(part.float(), size, mode="bilinear", antialias=True) for part in images.split(500))
    return torch.cat([part.round().clamp(0, 255).byte() for part in parts])


def sample(images: Tensor, count: int, seed: int) -> Tensor:
    """`count` random patches (count, 108) float32 in [0, 255] of images (N, 3, S, S), each from any image and place."""
    generator = torch.Generator().manual_seed(derive(seed, 4))
    places = images.shape[-1] - PATCH + 1
    which, top, left = (torch.randint(high, (count, 1, 1, 1), generator=generator) for high in (len(images), places, places))
    channel, row, column = torch.meshgrid(torch.arange(3), torch.arange(PATCH), torch.arange(PATCH), indexing="ij")
    index = (each.to(images.device) for each in (which, channel, top + row, left + column))
    return images[tuple(index)].flatten(1).float()


def normalise(patches: Tensor) -> Tensor:
    """Each patch (N, d) less its mean and over its deviation: brightness and contrast are gone (section 3.1.1)."""
    variance, mean = torch.var_mean(patches, 1, keepdim=True)
    return (patches - mean) / (variance + EPSILON).sqrt()


def zca(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and symmetric matrix (d, d) that make patches (N, d) white: covariance C becomes C (C + RIDGE)^-1."""
    patches = patches.double()
    values, vectors = torch.linalg.eigh(patches.T.cov())
    return patches.mean(0).float(), ((vectors / (values + RIDGE).sqrt()) @ vectors.T).float()


def spherical_kmeans(white: Tensor, count: int, seed: int) -> Tensor:
    """Directions (count, d) of length 1, of patches (N, d): each patch pulls the one whose product with it is the largest.

    Coates & Ng 2012, section 3: D <- X S^T + D, then each is made 1 long; S has the product, of either sign, of each patch
    and its direction.
    """
    generator = torch.Generator().manual_seed(derive(seed, 5))
    centroids = F.normalize(torch.randn(count, white.shape[1], generator=generator)).to(white.device)
    for _ in range(ROUNDS):
        total = centroids.clone()
        for part in white.split(max(1, AT_ONCE // count)):
            products = part @ centroids.T
            best = products.abs().argmax(1, keepdim=True)
            total += torch.zeros_like(products).scatter_(1, best, products.gather(1, best)).T @ part
        centroids = F.normalize(total)
    return centroids


def triangle(white: Tensor, centroids: Tensor) -> Tensor:
    """f_k = max(0, mean(z) - z_k), z_k the distance to centroid k: (N, d) and (K, d) -> (N, K). About half of them are 0."""
    distances = torch.cdist(white, centroids)
    mean = distances.mean(1, keepdim=True)
    return distances.neg_().add_(mean).clamp_(min=0)


def quadrants(maps: Tensor) -> Tensor:
    """Maps (N, side, side, K) summed over four quadrants, (N, 4K). Of an odd side the first half is the larger one."""
    half = (maps.shape[1] + 1) // 2
    halves = slice(half), slice(half, None)
    return torch.cat([maps[:, rows, columns].sum((1, 2)) for rows in halves for columns in halves], 1)

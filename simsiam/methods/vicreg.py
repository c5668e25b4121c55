"""VICReg (Bardes, Ponce & LeCun 2022, arXiv 2105.04906): variance, invariance and covariance of the latents, regularised."""

import torch.nn.functional as F
from torch import Tensor

from simsiam.methods.method import Method, MethodOptions, Weight

EPSILON = 1e-4  # added to a variance, of which the root is taken


class VICRegOptions(MethodOptions):
    invariance: Weight  # lambda, mu and nu of equation 6
    variance: Weight
    covariance: Weight


class VICReg(Method):
    """Each view's latents are to vary, their numbers not to vary together, and the views to agree."""

    Options = VICRegOptions
    title = "VICReg"
    options: VICRegOptions

    def loss(self, *latents: Tensor) -> Tensor:
        """Equation 6 as the authors' code has it, to which the published weights belong.

        There the invariance is a mean over dimensions too (equation 5: a sum), and the variance the mean over both views
        (equation 6: a sum). 0 where the views agree and their numbers are uncorrelated with a deviation of 1 or more.
        """
        weights, (z1, z2) = self.options, latents
        spread = (variance(z1) + variance(z2)) / 2
        return (
            weights.invariance * F.mse_loss(z1, z2)
            + weights.variance * spread
            + weights.covariance * (covariance(z1) + covariance(z2))
        )


def variance(z: Tensor) -> Tensor:
    """v of equations 1 and 2 for z (N, d): by how much deviations are below 1, averaged over dimensions."""
    return F.relu(1 - (z.var(0) + EPSILON).sqrt()).mean()


def covariance(z: Tensor) -> Tensor:
    """c of equations 3 and 4 for z (N, d): the squared covariances of different numbers, summed, over d."""
    z = z - z.mean(0)
    matrix = z.T @ z / (len(z) - 1)
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / z.shape[1]

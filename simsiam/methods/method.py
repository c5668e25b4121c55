"""What every method of pretraining is: a module, made of an encoder, that turns views into a loss."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from simsiam import parallel
from simsiam.networks import Encoder
from simsiam.schedule import OwnRate
from simsiam.settings import Augment, Rate, Section

Hidden = Annotated[int, Field(ge=1, le=16_384)]  # units of a hidden layer
Momentum = Annotated[float, Field(ge=0, le=1)]  # of a moving average: the share of it that a step leaves
Temperature = Annotated[float, Field(ge=0.001, le=10)]
Weight = Annotated[float, Field(ge=0, le=10_000)]  # of a term of the loss


class MethodOptions(Section):
    """The settings that are a method's alone, from recipes.<recipe>.methods.<name>.

    A method's own class of them may have two fields that are not there: `stop_gradient`, the one at the top of params.yaml,
    and `classes`, how many the images have.
    """

    lr: Rate | None  # this method's learning rate in this recipe; None: that of recipes.<recipe>.pretrain


class Method(nn.Module):
    """What a training, the stages and the analysis know of a method. It overrides what is otherwise with it.

    A method whose loss is a function of the latents alone has only `loss` to define; another has a `forward` of its own.
    Parameters that are not to be trained do not require a gradient. Heads are drawn from derive(encoder.settings.seed, 2).
    """

    Options: type[MethodOptions] = MethodOptions
    title: str  # what it is called on the page
    lowest_loss: float | None = None  # what its loss is where all views agree, if that tells views that are too alike
    latent_norm = False  # whether its authors have BatchNorm, without affine, on the latent
    stop_gradient = True  # False: one was left out, which is why it collapses if it does
    labelled = False  # True: `forward` takes the images' `labels`, (N,) int64, too, and sees no image without one

    encoder: Encoder
    options: Any

    def __init__(self, encoder: Encoder, options: Any) -> None:
        super().__init__()
        self.encoder, self.options = encoder, options

    @property
    def own_rates(self) -> list[OwnRate]:
        """The parts whose learning rate is not the others'."""
        return []

    def views(self, augment: Augment) -> list[Augment]:
        """What each of the views that it wants of an image goes through. augment: the recipe's."""
        return [augment, augment]

    def forward(self, *views: Tensor) -> tuple[Tensor, Tensor]:
        """Views (N, 3, S, S) in [0, 1] of the same N images -> the scalar loss, and the first view's latents (N, d).

        The latents, by which a collapse is noticed, have no gradient.
        """
        latents = [self.encoder(view)[1].float() for view in views]
        with torch.autocast(latents[0].device.type, enabled=False):  # a loss is not rounded, as the network may be
            loss = self.loss(*map(parallel.gathered, latents))
        return loss, latents[0].detach()

    def loss(self, *latents: Tensor) -> Tensor:
        """The scalar loss of each view's latents (N, d), float32, of the whole batch: of all processes."""
        raise NotImplementedError

    def after_step(self, done: float) -> None:
        """Called after every step of the optimiser. done: the share of the training that is behind it, in (0, 1]."""


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move the parameters of `target` to momentum * target + (1 - momentum) * online."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), 1 - momentum)

"""SimSiam pretraining (Chen & He 2020, Algorithm 1)."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from simsiam.augment import AugmentSettings, random_view
from simsiam.checkpoint import Store
from simsiam.engine import Record, Result, TrainSettings, train
from simsiam.losses import simsiam_loss, z_std
from simsiam.models import SimSiam


def pretrain(
    model: SimSiam,
    images: Tensor,
    *,
    augment: AugmentSettings,
    settings: TrainSettings,
    stop_gradient: bool = True,
    constant_predictor_lr: bool = False,
    store: Store | None = None,
    on_epoch: Callable[[list[Record]], None] = lambda records: None,
) -> Result:
    """Train `model` in place to predict one random view's latent from the other's.

    images: (N, 3, S, S) uint8 on the device to train on. Records carry `loss` and `z_std`.
    Raises UserError when the loss is not finite, and Interrupted, once saved, when asked to stop.
    """
    model.to(images.device).to(memory_format=torch.channels_last)

    def loss_of(network: nn.Module, batch: Tensor, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        x = images[batch]
        p1, p2, z1, z2 = network(random_view(x, generator, augment), random_view(x, generator, augment))
        loss = simsiam_loss(p1.float(), p2.float(), z1.float(), z2.float(), stop_gradient=stop_gradient)
        return loss, {"z_std": z_std(z1.detach().float())}

    return train(
        model,
        loss_of,
        examples=len(images),
        settings=settings,
        device=images.device,
        name="pretrain",
        constant_lr=model.predictor if constant_predictor_lr else None,
        store=store,
        on_epoch=on_epoch,
    )

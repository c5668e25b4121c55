"""Pretraining by any method: views of unlabelled images in, a trained encoder out."""

import copy
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from simsiam import collapse
from simsiam.augment import random_views
from simsiam.engine import Record, Result, StoreFor, resolve_precision, train
from simsiam.settings import Pretrain

RANKED = 256  # images of a batch whose features' rank is taken: of 1,000 it would cost as much as a step


def seconds_a_step(method: Any, images: Tensor, settings: Pretrain) -> float:
    """How long a step takes here, of some on a copy of the method: the training itself has not begun."""
    trial, generator, seconds = copy.deepcopy(method), Generator().manual_seed(0), []
    trial.to(images.device).to(memory_format=torch.channels_last)
    for _ in range(4):
        started = time.monotonic()
        views = random_views(images[: settings.batch_size], generator, settings.augment, method.views)
        with torch.autocast(
            images.device.type, torch.bfloat16, resolve_precision(settings.precision, images.device) == "bf16"
        ):
            loss = trial(*views)[0]
        loss.backward()
        loss.item()  # a GPU has ended only now
        seconds.append(time.monotonic() - started)
    return min(seconds)


def pretrain(
    method: Any,
    images: Tensor,
    *,
    settings: Pretrain,
    seed: int,
    about: dict[str, object] | None = None,
    store_for: StoreFor = lambda identity: nullcontext(),
    on_epoch: Callable[[list[Record]], None] = lambda records: None,
) -> Result:
    """Train `method` (`simsiam.methods`), and with it its encoder, in place on random views of images.

    images: (N, 3, S, S) uint8 on the device to train on. about: what identifies method and images, for the checkpoints.
    Records carry the loss and z_std, means since the last record, and of the last batch's latents RankMe and the first
    direction's share, of its features RankMe. A collapse, or a loss of rank, is announced on stderr when it is seen.
    Raises Diverged when the loss is not finite, and Interrupted, once saved, when asked to stop.
    """
    method.to(images.device).to(memory_format=torch.channels_last)
    latest: list[Tensor] = []  # the last batch's latents
    features: list[Tensor] = []  # of its first view, as the backbone has them
    seen: list[Record] = []
    told: list[str] = []
    stop_gradient = getattr(method.options, "stop_gradient", True)

    def keep(backbone: nn.Module, images: tuple[Tensor, ...], output: Tensor) -> None:
        if not features:
            features.append(output.detach())

    def loss_of(network: nn.Module, batch: Tensor, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        features.clear()
        loss, latents = network(*random_views(images[batch], generator, settings.augment, method.views))
        latest[:] = [latents.float()]
        return loss, {"z_std": collapse.z_std(latest[0])}

    def watch(record: Record) -> Record:
        extra = collapse.spread(latest[0]) | {"backbone_rankme": collapse.rankme(features[0][:RANKED])}
        seen.append(record | extra)
        verdict = collapse.of_run(seen, latest[0].shape[1], method.lowest_loss)
        if verdict not in ("healthy", *told):
            told.append(verdict)
            tqdm.write(
                f"pretrain, step {record['step']}: {collapse.words(verdict, seen, stop_gradient=stop_gradient)}",
                file=sys.stderr,
            )
        return extra

    def after_epoch(records: list[Record]) -> None:
        seen[:] = records  # those of earlier sessions too
        on_epoch(records)

    hook = method.encoder.backbone.register_forward_hook(keep)
    try:
        return train(
            method,
            loss_of,
            examples=len(images),
            settings=settings,
            lr=settings.lr,
            seed=seed,
            device=images.device,
            name="pretrain",
            about=(about or {}) | {"augment": settings.augment.model_dump()},
            constant_lr=method.constant_lr,
            store_for=store_for,
            watch=watch,
            on_epoch=after_epoch,
        )
    finally:
        hook.remove()

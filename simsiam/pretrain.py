"""Pretraining by any method: views of images in, a trained encoder out."""

import copy
import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Generator, Tensor, nn
from tqdm import tqdm

from simsiam import collapse, spread
from simsiam.augment import random_views
from simsiam.engine import Record, Result, StoreFor, resolve_precision, train
from simsiam.methods.method import Method
from simsiam.networks import Encoder
from simsiam.settings import Pretrain

LOOKED_AT = 256  # latents and features of a batch whose spread and rank are measured: of 512 it takes as long as some steps


def seconds_a_step(method: Method, images: Tensor, settings: Pretrain, labels: Tensor | None = None) -> float:
    """How long a step takes here, of some on a copy of the method: the training itself has not begun."""
    trial, generator, seconds = copy.deepcopy(method), Generator().manual_seed(0), []
    trial.to(images.device).to(memory_format=torch.channels_last)
    known = {} if labels is None else {"labels": labels[: settings.batch_size]}
    for _ in range(4):
        started = time.monotonic()
        views = random_views(images[: settings.batch_size], generator, method.views(settings.augment))
        with torch.autocast(
            images.device.type, torch.bfloat16, resolve_precision(settings.precision, images.device) == "bf16"
        ):
            loss = trial(*views, **known)[0]
        loss.backward()
        loss.item()  # a GPU has ended only now
        seconds.append(time.monotonic() - started)
    return min(seconds)


def pretrain(
    method: Method,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    settings: Pretrain,
    seed: int,
    about: dict[str, object] | None = None,
    store_for: StoreFor = lambda identity: nullcontext(),
    on_epoch: Callable[[list[Record]], None] = lambda records: None,
    look: Callable[[Encoder], float] | None = None,
) -> Result:
    """Train `method` (`simsiam.methods`), and with it its encoder, in place on random views of images.

    images: (N, 3, S, S) uint8 on the device to train on. labels: (N,) int64 on the same, for a method that learns from them.
    about: what identifies method and images, for the checkpoints.
    Records carry the loss and z_std, means since the last record, and of the last batch's latents, 256 at most, RankMe and
    the first direction's share, of its features RankMe; where there is a `look`, `knn` is what it says of the encoder at an
    epoch's end, and NaN else. It changes nothing of the encoder. A collapse, or a loss of rank, is announced on stderr when
    it is seen.
    Raises Diverged when the loss is not finite, and Interrupted, once saved, when asked to stop.
    """
    method.to(images.device).to(memory_format=torch.channels_last)
    latest: list[Tensor] = []  # the last batch's latents
    features: list[Tensor] = []  # of its last view, as the backbone has them
    seen: list[Record] = []
    told: list[str] = []
    views, steps = method.views(settings.augment), len(images) // settings.batch_size

    def keep(backbone: nn.Module, images: tuple[Tensor, ...], output: Tensor) -> None:
        # Not where a look has it evaluate. On a GPU it is called while a step is recorded, and each replay fills the tensor.
        if backbone.training:
            features[:] = [output.detach()]

    def loss_of(network: nn.Module, batch: Tensor, generator: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        known = {} if labels is None else {"labels": labels[batch]}
        loss, latents = network(*random_views(images[batch], generator, views), **known)
        latest[:] = [latents.detach().float()]
        return loss, {"z_std": spread.z_std(latest[0])}

    def watch(record: Record) -> Record:
        extra = spread.spread(latest[0][:LOOKED_AT]) | {"backbone_rankme": spread.rankme(features[0][:LOOKED_AT])}
        seen.append(record | extra)
        verdict = collapse.of_run(seen, latest[0].shape[1], method.lowest_loss, labelled=method.labelled)
        if verdict not in ("healthy", *told):
            told.append(verdict)
            words = collapse.words(verdict, seen, stop_gradient=method.stop_gradient)
            tqdm.write(f"pretrain, step {record['step']}: {words}", file=sys.stderr)
        if look:
            extra["knn"] = look(method.encoder) if record["step"] % steps == 0 else math.nan
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
            own_rates=method.own_rates,
            after_step=method.after_step,
            store_for=store_for,
            watch=watch,
            on_epoch=after_epoch,
        )
    finally:
        hook.remove()

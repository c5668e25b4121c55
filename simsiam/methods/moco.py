"""MoCo v2 (He et al. 2020, arXiv 1911.05722; Chen et al. 2020, arXiv 2003.04297): a view's partner is found in a queue."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from simsiam import parallel
from simsiam.methods.method import Method, MethodOptions, Momentum, Temperature, follow
from simsiam.networks import Encoder, seeded
from simsiam.seeds import derive
from simsiam.settings import Count


class MoCoOptions(MethodOptions):
    temperature: Temperature  # tau of equation 1
    queue: Count  # K, how many keys it has
    target_momentum: Momentum  # m of equation 2, constant


class MoCo(Method):
    """The encoder gives queries, a target that is its moving average gives keys, and the queue (K, d) has the last ones.

    Both views are queries, as the authors' notebook for CIFAR-10 can have it; in the papers one is. BatchNorm is neither
    shuffled, which takes several GPUs (section 3.3), nor split, as in the notebook for one: that a key can be known by the
    statistics of its batch costs 4 points of kNN there after 800 epochs.
    """

    Options = MoCoOptions
    title = "MoCo v2"
    options: MoCoOptions
    queue: Tensor
    enqueued: Tensor

    def __init__(self, encoder: Encoder, options: MoCoOptions) -> None:
        super().__init__(encoder, options)
        self.target = copy.deepcopy(encoder).requires_grad_(False)
        with seeded(derive(encoder.settings.seed, 2)):
            self.register_buffer("queue", F.normalize(torch.randn(options.queue, encoder.settings.latent_dim), dim=1))
        self.register_buffer("enqueued", torch.tensor(0))  # how many keys it has been given

    def forward(self, *views: Tensor) -> tuple[Tensor, Tensor]:
        """Equation 1 over the other view's key and the queue, averaged over all 2N views: log(K + 1) where all are equal."""
        latents = torch.stack([self.encoder(view)[1] for view in views], dim=1)  # (N, 2, d)
        with torch.no_grad():
            keys = torch.stack([self.target(view)[1] for view in views], dim=1)
        with torch.autocast(latents.device.type, enabled=False):
            q, k = F.normalize(latents.float(), dim=2), F.normalize(keys.float(), dim=2)
            partners = (q * k.flip(1)).sum(2, keepdim=True)
            others = q @ self.queue.clone().T  # which the gradient needs as they are now
            similarities = torch.cat([partners, others], dim=2) / self.options.temperature
            loss = (similarities.logsumexp(2) - similarities[:, :, 0]).mean()
        if self.training:
            self.enqueue(parallel.gathered(k).flatten(0, 1))
        return loss, latents[:, 0].detach()

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest keys by these (n, d), of which a queue that is shorter gets the last."""
        keys = keys[-len(self.queue) :]  # which of two keys in one row is the last, a GPU does not say
        rows = (self.enqueued + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue.index_copy_(0, rows, keys)
        self.enqueued += len(keys)

    def after_step(self, done: float) -> None:
        """Equation 2."""
        follow(self.target, self.encoder, self.options.target_momentum)

"""Random views of a batch of images, made by tensor operations on the batch's device.

Every sample gets its own crop, flip, colours and blur. All random numbers are drawn first, on the CPU, from the generator
handed in; the operations are then pure functions of images and parameters, on whatever device the images are. Given
the same parameters each operation equals torchvision's functional one on float images (tests/test_augment.py). One
thing differs from torchvision's ColorJitter: the order of its four operations is not drawn per image, but once for a batch
and all of its views that have the same settings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Generator, Tensor

from simsiam.settings import Augment

GREY = (0.2989, 0.587, 0.114)  # ITU-R 601 luma, torchvision's weights
BLUR_SIGMA = (0.1, 2.0)  # pixels


@dataclass(frozen=True)
class Drawn:
    """The random numbers of one view of N images."""

    numbers: Tensor  # (11, N) float32; each row is one parameter, in the order that `make_view` names them
    jitter_order: list[int]  # a permutation of brightness 0, contrast 1, saturation 2, hue 3, for the whole batch


def random_views(images: Tensor, generator: Generator, views: Sequence[Augment]) -> list[Tensor]:
    """Random views of each image, one for each of the settings in `views`.

    images: (N, 3, S, S) uint8 on any device. generator: on the CPU, so that every device makes the same views (a GPU up to
    the rounding of TF32) and nobody waits for one.
    Returns for each of `views` (N, 3, view_size, view_size) float32 in [0, 1], channels_last.
    """
    pictures, (n, _, size, _) = images.float().div_(255), images.shape
    made: list[Tensor] = []
    for settings, alike in groupby(views):  # those that are alike at once: fewer and larger operations
        count = len(list(alike))
        drawn = draw(count * n, size, generator, settings)
        made += make_view(pictures.repeat(count, 1, 1, 1), drawn, settings).split(n)
    return made


def words(settings: Augment) -> str:
    """What two views of one image may differ in, for a reader."""
    small, large = settings.crop_scale
    brightness, contrast, saturation, hue = (value * (settings.jitter_probability > 0) for value in settings.jitter)
    changes = {
        f"crop of {small:.0%} to {large:.0%} of the area": small < 1,
        "left and right": settings.flip > 0,
        "brightness": brightness > 0,
        "contrast": contrast > 0,
        "saturation": saturation > 0,
        "hue": hue > 0,
        "colour or none": settings.grey > 0,
        "sharpness": settings.blur > 0,
    }
    return ", ".join(change for change, happens in changes.items() if happens) or "nothing"


def draw(n: int, size: int, generator: Generator, settings: Augment) -> Drawn:
    """What happens to each of n images of size x size pixels. An operation that is not chosen gets its neutral parameter."""

    def chosen(probability: float) -> Tensor:  # (n,) bool
        return torch.rand(n, generator=generator) < probability

    crop = random_crop(n, size, settings.crop_scale, generator)
    flip = chosen(settings.flip)
    jitter = (2 * torch.rand(4, n, generator=generator) - 1) * torch.tensor(settings.jitter).view(4, 1)
    jitter = jitter * chosen(settings.jitter_probability)
    order = torch.randperm(4, generator=generator).tolist()
    grey = chosen(settings.grey)
    low, high = BLUR_SIGMA
    sigma = (low + (high - low) * torch.rand(n, generator=generator)) * chosen(settings.blur)
    return Drawn(torch.stack([*crop, flip.float(), *jitter, grey.float(), sigma]), order)


def make_view(images: Tensor, drawn: Drawn, settings: Augment) -> Tensor:
    """The view of each image (N, 3, S, S), float32 in [0, 1], that was drawn. Returns what `random_views` does, once."""
    numbers = drawn.numbers.pin_memory() if images.is_cuda else drawn.numbers
    numbers = numbers.to(images.device, non_blocking=True)
    top, left, height, width, flip, brightness, contrast, saturation, hue, grey_, sigma = numbers
    with torch.autocast(images.device.type, enabled=False):  # views are not rounded to bf16, as the network may be
        views = crop_resize(images, top, left, height, width, settings.view_size, flip > 0)
        if settings.jitter_probability > 0:
            operations = (
                lambda x: adjust_brightness(x, 1 + brightness),
                lambda x: adjust_contrast(x, 1 + contrast),
                lambda x: adjust_saturation(x, 1 + saturation),
                lambda x: adjust_hue(x, hue),
            )
            for index in drawn.jitter_order:
                views = operations[index](views)
        if settings.grey > 0:
            views = torch.where(_per_sample(grey_ > 0), grey(views), views)
        if settings.blur > 0:
            views = blur(views, sigma)
    return views.contiguous(memory_format=torch.channels_last)


def random_crop(
    n: int,
    size: int,
    scale: Sequence[float],
    generator: Generator,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    tries: int = 10,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Crops as torchvision's RandomResizedCrop draws them: (top, left, height, width), each (N,) whole pixels.

    Area uniform in `scale` times the image's, aspect ratio log-uniform in `ratio`; of `tries` draws the first that fits
    inside the image counts, and where none does, the whole image.
    """

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, tries, generator=generator)

    area = uniform(*scale) * size * size
    log_low, log_high = torch.log(torch.tensor(ratio)).tolist()
    aspect = torch.exp(uniform(log_low, log_high))
    widths, heights = torch.round(torch.sqrt(area * aspect)), torch.round(torch.sqrt(area / aspect))
    fits = (widths >= 1) & (widths <= size) & (heights >= 1) & (heights <= size)
    first = fits.int().argmax(1, keepdim=True)
    whole = torch.full((n,), float(size))
    width = torch.where(fits.any(1), widths.gather(1, first).squeeze(1), whole)
    height = torch.where(fits.any(1), heights.gather(1, first).squeeze(1), whole)
    corner = torch.rand(2, n, generator=generator)
    top, left = torch.floor(corner[0] * (size - height + 1)), torch.floor(corner[1] * (size - width + 1))
    return top, left, height, width


def crop_resize(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, out: int, flip: Tensor) -> Tensor:
    """Cut a box out of each image, resize it to out x out (bilinear, antialiased), mirror it where `flip` says so.

    images: (N, C, S, S) float; top, left, height, width: (N,) pixels; flip: (N,) bool. Returns (N, C, out, out).
    Resizing is linear and separable, so it is one matrix for the rows and one for the columns of each image.
    """
    size = images.shape[-1]
    rows = _resize_matrix(top, height, size, out)
    columns = _resize_matrix(left, width, size, out)
    columns = torch.where(flip.view(-1, 1, 1), columns.flip(1), columns)
    return rows.unsqueeze(1) @ images @ columns.transpose(1, 2).unsqueeze(1)


def _resize_matrix(start: Tensor, length: Tensor, size: int, out: int) -> Tensor:
    """(N, out, size) weights that resample `length` pixels from `start` on to `out` pixels with a triangle filter."""
    start, length = start.view(-1, 1, 1), length.view(-1, 1, 1)
    pixels = torch.arange(size, device=start.device).view(1, 1, -1)
    scale = length / out
    centre = start + scale * (torch.arange(out, device=start.device).view(1, -1, 1) + 0.5)
    weights = (1 - (pixels + 0.5 - centre).abs() / scale.clamp(min=1)).clamp(min=0)
    weights = weights * ((pixels >= start) & (pixels < start + length))
    return weights / weights.sum(2, keepdim=True)


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """images (N, 3, H, W) in [0, 1], factor (N,) >= 0. As torchvision's function of the name."""
    return (images * _per_sample(factor)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean grey level of the image. Shapes and range as adjust_brightness."""
    mean = grey(images)[:, :1].mean((2, 3), keepdim=True)
    return torch.lerp(mean, images, _per_sample(factor)).clamp_(0, 1)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's own grey version. Shapes and range as adjust_brightness."""
    return torch.lerp(grey(images), images, _per_sample(factor)).clamp_(0, 1)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` (N,) whole turns, in [-0.5, 0.5], keeping HSV's saturation and value."""
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == red, (green - blue) / safe, torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4)
    )
    hue = hue.unsqueeze(1) + 6 * _per_sample(shift)
    offsets = torch.arange(5, 0, -2, device=images.device).view(1, 3, 1, 1)
    k = (hue + offsets).remainder_(6)
    share = torch.minimum(k, 4 - k).clamp_(0, 1)
    return value.unsqueeze(1) - share.mul_(chroma.unsqueeze(1))


def grey(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> the luma of each pixel in all three channels."""
    red, green, blue = images.unbind(1)  # scalars, as a tensor of weights made here would have a GPU's host wait
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue).unsqueeze(1).expand_as(images)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """3x3 Gaussian blur with a sigma (N,) of its own for each image, edges reflected; a sigma of 0 changes nothing."""
    side = _per_sample(torch.exp(-0.5 / sigma**2))
    side, middle = side / (1 + 2 * side), 1 / (1 + 2 * side)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    rows = (padded[:, :, :-2] + padded[:, :, 2:]).mul_(side).add_(middle * padded[:, :, 1:-1])
    return (rows[..., :-2] + rows[..., 2:]).mul_(side).add_(middle * rows[..., 1:-1])


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)

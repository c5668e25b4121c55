"""Pictures of any kind -> squares of one size, as a person sees them."""

import contextlib
from collections.abc import Iterable
from statistics import median
from typing import Literal

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from simsiam.errors import Unusable
from simsiam.images import Pixels
from simsiam.machine import free_memory

SMALLEST, USUAL = 16, 64  # the side of images whose size nobody has set lies between these
COPIES = 2  # of all images, which a training has in memory
FEATURES = 8192  # bytes an image: 512 numbers on the backbone and 512 on the latent, of two encoders
WHITES = (255, 4095, 65535)  # of 8, 12 and 16 bits: medical images of 12 bits come in files of 16
Square = Literal["crop", "pad"]


def usual_size(sides: Iterable[int]) -> int:
    """The side of squares made of pictures with these shorter sides, where nobody has set it."""
    return max(SMALLEST, min(USUAL, int(median(sides))))


def as_seen(picture: Image.Image) -> Image.Image:
    """A picture upright, in RGB, over white where it is transparent. Raises what Pillow raises where it cannot be read."""
    with contextlib.suppress(Exception):  # damaged EXIF data: people see the picture all the same
        picture = ImageOps.exif_transpose(picture)
    if picture.mode[0] in "IF":  # 16 or 32 bits, integers or floats
        return Image.fromarray(_eight_bits(np.asarray(picture, np.float64))).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _eight_bits(values: np.ndarray) -> Pixels:
    """Grey values in 0..255. White is that of the fewest bits that hold them all (of floats, 1 may be), else the highest."""
    low, high = float(values.min()), float(values.max())
    whites = WHITES if (values == values.round()).all() else (1, *WHITES)
    if low < 0 or high > WHITES[-1]:
        values, white = values - low, high - low
    else:
        white = next(white for white in whites if high <= white)
    return (values * (255 / white)).round().astype(np.uint8)


def squared(picture: Image.Image, size: int, square: Square) -> Image.Image:
    """The middle of a picture, or all of it with its mean colour beside it, in size x size pixels, antialiased."""
    if square == "crop":
        return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    mean = picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    return ImageOps.pad(picture, (size, size), Image.Resampling.BICUBIC, color=mean)  # type: ignore[arg-type]


def fitted(images: Pixels, size: int | None, square: Square) -> Pixels:
    """Images (N, H, W, 1 or 3) -> (N, size, size, 3): the same array where there is nothing to do. Raises Unusable."""
    size = size or usual_size([min(images.shape[1:3])])
    if images.shape[1:] == (size, size, 3):
        return images
    check_memory(len(images), size)
    made = np.empty((len(images), size, size, 3), np.uint8)
    for n, image in enumerate(tqdm(images, desc=f"to {size} x {size} pixels", unit=" images", delay=1)):
        picture = Image.fromarray(image if image.shape[2] == 3 else image[..., 0])
        made[n] = np.asarray(squared(picture, size, square)).reshape(size, size, -1)  # grey in all three
    return made


def check_memory(count: int, size: int) -> None:
    """Raises Unusable where the pipeline would not have the memory for so many images of that size."""
    need, free = count * (COPIES * size * size * 3 + FEATURES), free_memory()
    if need > free:
        raise Unusable(
            f"has {count:,} images: in {size} x {size} pixels of 3 bytes, {COPIES} times in memory, and {FEATURES:,} bytes "
            f"of features each, they need {need / 1e9:.1f} GB where {free / 1e9:.1f} GB are free: set a smaller data.size, "
            "or take fewer images"
        )

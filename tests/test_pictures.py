"""Pictures of every kind as a person sees them, against what they were made of."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simsiam.errors import Unusable
from simsiam.images import ImageSet, pictures
from simsiam.images.pictures import as_seen, check_memory, fitted, squared, usual_size


@pytest.fixture
def ramp() -> Image.Image:
    """24 x 16 pixels: darker to the left and, by less, to the top."""
    return Image.fromarray((np.arange(24)[None] * 8 + np.arange(16)[:, None] * 4).astype(np.uint8))


def again(picture: Image.Image, kind: str, **options: Any) -> Image.Image:
    """The picture after a file of that kind."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return Image.open(buffer)


def apart(found: Image.Image, expected: Image.Image) -> float:
    assert found.mode == "RGB" and found.size == expected.size
    return float(np.abs(np.asarray(found, int) - np.asarray(expected.convert("RGB"), int)).max())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright(ramp: Image.Image, orientation: int) -> None:
    """Turned back by hand from how the EXIF standard says that the camera was held."""
    turns = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}  # Image.Transpose
    back = {0: 0, 1: 1, 3: 3, 2: 2, 4: 4, 5: 5, 6: 6}
    stored = ramp
    for turn in turns.get(orientation, []):
        stored = stored.transpose(Image.Transpose(back[turn]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert apart(as_seen(again(stored, "PNG", exif=exif)), ramp) == 0


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"Exif\0\0no exif"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_data_does_no_harm(ramp: Image.Image, exif: bytes) -> None:
    assert apart(as_seen(again(ramp, "PNG", exif=exif)), ramp) == 0


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr", "P", "I"])
def test_the_same_picture_in_another_mode(ramp: Image.Image, mode: str) -> None:
    assert apart(as_seen(ramp.convert("RGB").convert(mode, palette=Image.Palette.ADAPTIVE)), ramp) <= 2


def test_a_printers_jpeg_is_not_a_negative(ramp: Image.Image) -> None:
    assert apart(as_seen(again(ramp.convert("RGB").convert("CMYK"), "JPEG", quality=95)), ramp) < 20


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(ramp: Image.Image, mode: str) -> None:
    mask = Image.new("L", ramp.size, 255)
    mask.paste(0, (0, 0, 12, 16))
    if mode == "P":
        seen = as_seen(
            again(
                Image.fromarray(np.where(np.asarray(mask) > 0, 90, 7).astype(np.uint8)).convert("P"), "PNG", transparency=7
            )
        )
        assert seen.getpixel((0, 0)) == (255, 255, 255) and seen.getpixel((20, 0)) == (90, 90, 90)
        return
    picture = ramp.convert(mode)
    picture.putalpha(mask)
    seen = as_seen(again(picture, "PNG"))
    assert seen.getpixel((3, 3)) == (255, 255, 255) and seen.getpixel((20, 3)) == (172, 172, 172)
    picture.putalpha(Image.new("L", ramp.size, 128))
    assert as_seen(picture).getpixel((0, 0)) == (127, 127, 127)  # half of black over white


@pytest.mark.parametrize(
    ("dtype", "factor"), [(np.uint16, 257), (np.uint16, 16), (np.uint16, 1), (np.float32, 1 / 255), (np.float32, 1.0)]
)
def test_more_bits_are_neither_black_nor_white(dtype: Any, factor: float) -> None:
    """A grey ramp up to white, in files of 16 bits (of which it uses 16, 12 or 8) and of floats."""
    ramp = np.arange(256).reshape(16, 16)
    made = as_seen(again(Image.fromarray((ramp * factor).astype(dtype)), "TIFF"))
    assert made.mode == "RGB" and np.abs(np.asarray(made, int)[..., 0] - ramp).max() <= 1
    assert len(np.unique(np.asarray(made))) >= 255


def test_values_of_no_known_range_are_stretched() -> None:
    hounsfield = np.linspace(-1000, 3000, 256).reshape(16, 16).astype(np.float32)
    seen = np.asarray(as_seen(Image.fromarray(hounsfield)))
    assert seen.min() == 0 and seen.max() == 255 and (np.diff(seen[..., 0].ravel().astype(int)) >= 0).all()


def test_squares(ramp: Image.Image) -> None:
    """The middle 16 of 24 columns, or all of them between two bars of the mean grey."""
    crop = np.asarray(squared(ramp.convert("RGB"), 16, "crop"))
    assert (crop[..., 0] == np.asarray(ramp)[:, 4:20]).all()
    pad = np.asarray(squared(ramp.convert("RGB"), 24, "pad"))
    assert (pad[4:20, :, 0] == np.asarray(ramp)).all() and (pad[:4] == pad[0, 0]).all() and (pad[20:] == pad[0, 0]).all()
    assert pad[0, 0, 0] == pytest.approx(np.asarray(ramp).mean(), abs=1)
    same = Image.fromarray(crop)
    for square in ("crop", "pad"):
        assert (np.asarray(squared(same, 16, square)) == crop).all()


def test_a_smaller_picture_is_antialiased() -> None:
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32))).convert("RGB")
    assert np.ptp(np.asarray(squared(stripes, 16, "crop"))) < 20


@pytest.mark.parametrize(("sides", "size"), [([8], 16), ([28, 28], 28), ([40, 50, 400], 50), ([224], 64)])
def test_the_usual_size(sides: list[int], size: int) -> None:
    assert usual_size(sides) == size


def test_images_that_fit_are_not_copied(cifar: ImageSet) -> None:
    assert fitted(cifar.images, None, "crop") is cifar.images and fitted(cifar.images, 32, "pad") is cifar.images
    assert fitted(cifar.images[:3], 48, "crop").shape == (3, 48, 48, 3)
    wide = np.repeat(cifar.images[:3, :, :, :1], 2, axis=2)  # (3, 32, 64, 1)
    assert (fitted(wide, None, "crop") == fitted(wide, 32, "crop")).all()
    grey = fitted(cifar.images[:3, ..., :1], None, "crop")
    assert grey.shape == (3, 32, 32, 3) and (grey == cifar.images[:3, ..., :1]).all()


def test_what_has_no_place_in_memory_is_refused_with_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "free_memory", lambda: 2 * 10**9)
    check_memory(60_000, 64)
    with pytest.raises(Unusable) as caught:
        check_memory(100_000, 64)
    assert (
        "has 100,000 images: in 64 x 64 pixels of 3 bytes, 2 times in memory, and 8,192 bytes of features each, "
        "they need 3.3 GB where 2.0 GB are free" in str(caught.value)
    )

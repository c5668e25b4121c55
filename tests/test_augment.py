"""Each operation against torchvision's functional reference, given the same parameters; draws against their laws."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as reference
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from simsiam import augment
from simsiam.augment import random_crop, random_views
from simsiam.settings import Augment
from tests.some import COLOURFUL, PLAIN, but, generator


@pytest.fixture
def pictures(images: Tensor) -> Tensor:
    return images[:40].float() / 255


@pytest.mark.parametrize("out", [32, 24, 12])
def test_crop_resize_and_flip(pictures: Tensor, out: int) -> None:
    top, left, height, width = random_crop(len(pictures), 32, (0.2, 1.0), generator())
    flip = torch.arange(len(pictures)) % 2 == 0
    ours = augment.crop_resize(pictures, top, left, height, width, out, flip)
    for n, picture in enumerate(pictures):
        box = [int(value[n]) for value in (top, left, height, width)]
        theirs = reference.resized_crop(picture, *box, size=[out, out], antialias=True)
        theirs = reference.horizontal_flip(theirs) if flip[n] else theirs
        torch.testing.assert_close(ours[n], theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (augment.adjust_brightness, reference.adjust_brightness, 0.0, 2.0),
        (augment.adjust_contrast, reference.adjust_contrast, 0.0, 2.0),
        (augment.adjust_saturation, reference.adjust_saturation, 0.0, 2.0),
        (augment.adjust_hue, reference.adjust_hue, -0.5, 0.5),
    ],
)
def test_colour(
    pictures: Tensor, ours: Callable[..., Tensor], theirs: Callable[..., Tensor], low: float, high: float
) -> None:
    factors = torch.linspace(low, high, len(pictures))
    result = ours(pictures, factors)
    for picture, factor, got in zip(pictures, factors, result, strict=True):
        torch.testing.assert_close(got, theirs(picture, float(factor)), atol=3e-6, rtol=0)


def test_grey(pictures: Tensor) -> None:
    expected = reference.rgb_to_grayscale(pictures, num_output_channels=3)
    torch.testing.assert_close(augment.grey(pictures), expected, atol=2e-6, rtol=0)


def test_blur(pictures: Tensor) -> None:
    sigma = torch.linspace(0.1, 2.0, len(pictures))
    for picture, s, got in zip(pictures, sigma, augment.blur(pictures, sigma), strict=True):
        torch.testing.assert_close(got, reference.gaussian_blur(picture, [3, 3], [float(s)] * 2), atol=2e-6, rtol=0)


def test_a_blur_of_sigma_0_changes_nothing(pictures: Tensor) -> None:
    torch.testing.assert_close(augment.blur(pictures, torch.zeros(len(pictures))), pictures, atol=1e-7, rtol=0)


def test_a_view_is_its_operations_in_the_drawn_order(images: Tensor) -> None:
    settings = but(COLOURFUL, view_size=24, blur=0.5)
    for seed in range(3):
        drawn = augment.draw(30, 32, generator(seed), settings)
        views = augment.make_view(images[:30] / 255, drawn, settings)
        for n, numbers in enumerate(drawn.numbers.T.tolist()):
            *box, flip, brightness, contrast, saturation, hue, grey, sigma = numbers
            picture = reference.resized_crop(
                images[n].float() / 255, *[int(side) for side in box], size=[24, 24], antialias=True
            )
            picture = reference.horizontal_flip(picture) if flip else picture
            operations = [
                (reference.adjust_brightness, 1 + brightness),
                (reference.adjust_contrast, 1 + contrast),
                (reference.adjust_saturation, 1 + saturation),
                (reference.adjust_hue, hue),
            ]
            for function, factor in (operations[index] for index in drawn.jitter_order):
                picture = function(picture, factor)
            picture = reference.rgb_to_grayscale(picture, num_output_channels=3) if grey else picture
            picture = reference.gaussian_blur(picture, [3, 3], [sigma] * 2) if sigma else picture
            torch.testing.assert_close(views[n], picture, atol=1e-5, rtol=0)


def test_all_orders_of_the_colour_jitter_are_drawn() -> None:
    random, drawn = generator(), but(PLAIN, jitter_probability=1.0)
    assert len({tuple(augment.draw(2, 32, random, drawn).jitter_order) for _ in range(500)}) == 24


def test_crops_have_the_law_of_random_resized_crop() -> None:
    n = 4000
    _, _, height, width = random_crop(n, 32, (0.2, 1.0), generator())
    torch.manual_seed(0)
    image = torch.zeros(3, 32, 32)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(n)]).float()
    for ours, expected in ((height * width, theirs[:, 2] * theirs[:, 3]), (height / width, theirs[:, 2] / theirs[:, 3])):
        quantiles = torch.linspace(0.05, 0.95, 10)
        spread = float(expected.quantile(0.95) - expected.quantile(0.05))
        assert float((ours.quantile(quantiles) - expected.quantile(quantiles)).abs().max()) < 0.06 * spread


def test_crops_lie_inside() -> None:
    top, left, height, width = random_crop(2000, 32, (0.05, 1.0), generator())
    assert float(top.min()) >= 0 and float(left.min()) >= 0
    assert float((top + height).max()) <= 32 and float((left + width).max()) <= 32
    assert float(height.min()) >= 1 and float(width.min()) >= 1


def test_a_view_that_changes_nothing_is_the_image(images: Tensor) -> None:
    torch.testing.assert_close(
        random_views(images[:8], generator(), [PLAIN])[0], images[:8].float() / 255, atol=1e-6, rtol=0
    )


def test_views_come_from_the_generator_alone(images: Tensor) -> None:
    settings = but(COLOURFUL, view_size=24, blur=0.5)
    state = torch.get_rng_state()
    one, two = random_views(images[:50], generator(1), [settings, settings])
    again = random_views(images[:50], generator(1), [settings, settings])
    assert torch.equal(one, again[0]) and torch.equal(two, again[1])
    assert not torch.equal(one, two)
    assert not torch.equal(one, random_views(images[:50], generator(2), [settings])[0])
    assert torch.equal(state, torch.get_rng_state())
    assert one.shape == (50, 3, 24, 24) and float(one.min()) >= 0 and float(one.max()) <= 1
    assert one.is_contiguous(memory_format=torch.channels_last)


def test_each_of_the_views_has_the_settings_and_the_image_in_its_place(images: Tensor) -> None:
    """Those that are alike are made at once."""
    small = but(PLAIN, view_size=16)
    some = images[:20]
    plain, other, little, last = random_views(some, generator(), [PLAIN, PLAIN, small, but(PLAIN, grey=1.0)])
    torch.testing.assert_close(plain, some.float() / 255, atol=1e-6, rtol=0)
    assert torch.equal(plain, other) and little.shape == (20, 3, 16, 16)
    torch.testing.assert_close(little, F.interpolate(plain, 16, mode="bilinear", antialias=True))
    assert torch.equal(last[:, 0], last[:, 2]) and not torch.equal(plain[:, 0], plain[:, 2])


def test_every_image_gets_its_own_parameters(images: Tensor) -> None:
    settings = but(COLOURFUL, blur=0.5)
    views = random_views(images[:1].expand(30, -1, -1, -1), generator(), [settings])[0]
    assert len({tuple(view.flatten()[:20].tolist()) for view in views}) == 30


def test_probabilities(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "BLUR_SIGMA", (1.0, 2.0))  # a weak blur can hardly be seen

    def share(**change: float) -> float:
        settings = but(PLAIN, **change)
        views = random_views(images, generator(), [settings])[0]
        return float(((views - images.float() / 255).abs().amax((1, 2, 3)) > 1e-3).float().mean())

    for operation in ("flip", "grey", "blur"):
        assert share(**{operation: 1.0}) > 0.97  # a few images are grey or flat already
        assert 0.2 < share(**{operation: 0.3}) < 0.4


def test_an_operation_that_is_left_out_moves_no_other() -> None:
    """Crop and flip of an image are the same whether colours change or not, and so is each colour."""
    settings = but(COLOURFUL, blur=0.5)
    drawn = augment.draw(60, 32, generator(), settings).numbers
    for change, rows in (({"jitter_probability": 0.0}, range(5, 9)), ({"grey": 0.0}, [9]), ({"blur": 0.0}, [10])):
        without = augment.draw(60, 32, generator(), but(settings, **change)).numbers
        kept = [row for row in range(11) if row not in rows]
        assert torch.equal(without[kept], drawn[kept]) and bool((without[list(rows)] == 0).all())


def test_blurs_are_as_wide_as_the_paper_has_them() -> None:
    """Sigma between .1 and 2 pixels, uniformly (Chen & He 2020, section 3)."""
    sigma = augment.draw(4000, 32, generator(), but(PLAIN, blur=1.0)).numbers[10]
    quantiles = sigma.quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])).tolist()
    assert quantiles == pytest.approx([0.1, 0.575, 1.05, 1.525, 2.0], abs=0.05)


def test_the_crop_is_of_the_settings() -> None:
    def area(settings: Augment) -> Tensor:
        numbers = augment.draw(1000, 32, generator(), settings).numbers
        return numbers[2] * numbers[3] / 32**2

    small, large = area(but(PLAIN, crop_scale=[0.05, 0.1])), area(but(PLAIN, crop_scale=[0.7, 0.8]))
    assert float(small.min()) > 0.03 and float(small.max()) < 0.13
    assert float(large.quantile(0.05)) > 0.65 and float(large.quantile(0.95)) < 0.85

"""The resize is that of torch: bilinear and bicubic, with and without antialiasing, stretched."""

import numpy as np
import pytest
import torch

from exporter.inputs import resize
from exporter.inputs.resize import Frame, fit


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def by_torch(image: np.ndarray, size: tuple[int, int], mode: str, *, antialias: bool) -> np.ndarray:
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    options = {"mode": mode, "align_corners": False, "antialias": antialias}
    return torch.nn.functional.interpolate(pixels, size, **options)[0].numpy().clip(0, 255)


@pytest.mark.parametrize("source", [(64, 96), (96, 64), (20, 301), (33, 17), (5, 4)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [True, False])
def test_a_stretched_frame_is_the_resize_of_torch(source, mode, antialias):
    image = noise(*source)
    frame = Frame(32, 48, stretch=True, interpolation=mode, antialias=antialias)
    expected = by_torch(image, (32, 48), mode, antialias=antialias)
    assert np.abs(fit(image, frame) - expected).max() < 0.01  # of 255


@pytest.mark.parametrize("antialias", [True, False])
def test_a_stretched_frame_can_be_larger_than_its_crop(antialias):
    image = noise(60, 90)
    frame = Frame(32, 32, short_side=40, stretch=True, antialias=antialias)
    expected = by_torch(image, (40, 40), "bilinear", antialias=antialias)[:, 4:36, 4:36]
    assert np.abs(fit(image, frame) - expected).max() < 0.01


def test_crops_of_a_tall_frame_are_its_top_centre_and_bottom():
    image = noise(96, 32)
    crops = [fit(image, Frame(32, 32), crop=place) for place in range(3)]
    for place, found in zip((0, 32, 64), crops, strict=True):
        np.testing.assert_array_equal(found, image[place : place + 32].transpose(2, 0, 1))


@pytest.mark.parametrize("source", [(40, 60), (9, 300)])
def test_a_resize_is_a_sum_in_one_order_whatever_the_processor(source):
    """A matrix product of BLAS has other bits on another processor."""
    image, frame = noise(*source), Frame(16, 24, stretch=True)
    expected = image.transpose(2, 0, 1)
    for axis, size, cropped in ((1, source[0], 16), (2, source[1], 24)):
        weights = resize._weights(size, cropped, cropped, 1, frame)
        expected = np.stack([in_order(expected, row, axis) for row in weights], axis)
    np.testing.assert_array_equal(fit(image, frame), expected)


def in_order(values: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
    """Add the products one after another in float32."""
    total = np.float32(0)
    for place in np.flatnonzero(weights):
        total = total + values.take(place, axis) * weights[place]
    return total

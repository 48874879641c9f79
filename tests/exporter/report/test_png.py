import base64
from io import BytesIO

import matplotlib.image
import numpy as np
import pytest

from exporter.report.png import png, png_uri


@pytest.mark.parametrize("shape", [(1, 1, 3), (7, 5, 3), (64, 48, 3)])
def test_a_png_decodes_to_the_same_pixels(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    decoded = matplotlib.image.imread(BytesIO(png(pixels)), format="png")
    np.testing.assert_array_equal(np.rint(255 * decoded).astype(np.uint8), pixels)


def test_a_uri_holds_the_file():
    pixels = np.zeros((2, 2, 3), np.uint8)
    head, _, data = png_uri(pixels).partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(data) == png(pixels)

import numpy as np
import pytest

from exporter.files.packing import from_differences, from_planes, to_differences, to_planes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_differences_give_every_bit_back(dtype):
    rng = np.random.default_rng(0)
    near = rng.standard_normal((7, 9))
    array = (near * (1 + 1e-6 * rng.standard_normal(near.shape))).astype(dtype)
    array[0, :5] = [np.nan, np.inf, -np.inf, -0.0, np.finfo(dtype).tiny]
    near[1, :2] = [np.inf, np.nan]
    folded = to_differences(array, near)
    assert from_differences(folded, near, array.dtype).tobytes() == array.tobytes()


def test_neighbours_give_small_numbers_of_either_sign():
    near = np.array([1.0, 1.0, 1.0, -3.0])
    one = np.float32(1)
    up, down = np.nextafter(one, np.float32(2)), np.nextafter(one, np.float32(0))
    array = np.array([1.0, up, down, -3.0], np.float32)
    assert to_differences(array, near).tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "bool", "int64"])
def test_planes_give_the_array_back(dtype):
    array = np.random.default_rng(0).integers(0, 2, (3, 5)).astype(dtype)
    planes = to_planes(array)
    assert planes.shape == (array.itemsize, 15)
    assert np.array_equal(from_planes(planes, dtype, 3, 5), array)


@pytest.mark.parametrize("dtype", ["object", "complex64", "U3"])
def test_other_types_are_refused(dtype):
    with pytest.raises(ValueError, match="types"):
        from_planes(np.zeros((1, 3), np.uint8), dtype, 3)

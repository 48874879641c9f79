"""Numbers as bytes that pack well, exactly: planes of bytes, and differences from near numbers."""

from __future__ import annotations

import numpy as np


def to_planes(array: np.ndarray) -> np.ndarray:
    """Put the first bytes of all numbers first, then the second: `(itemsize, n)` of uint8."""
    bytes_of = np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.itemsize)
    return np.ascontiguousarray(bytes_of.T)


def from_planes(planes: np.ndarray, dtype: str, *shape: int) -> np.ndarray:
    """Undo `to_planes`.

    Raises:
        ValueError: if these are not planes of such an array.
    """
    kind = np.dtype(dtype)
    if kind.kind not in "fuib" or planes.dtype != np.uint8:
        raise ValueError("its types cannot be understood")
    return np.ascontiguousarray(planes.T).reshape(-1).view(kind).reshape(shape)


def to_differences(array: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Subtract the bit patterns of `near` from those of a float array of the same shape.

    Numbers that differ in their last bits give small integers of either sign, and these are folded
    to small integers without sign: 0, -1, 1, -2 are 0, 1, 2, 3.

    Returns:
        Unsigned integers, as wide as the floats of `array`.
    """
    signed = np.dtype(f"i{array.itemsize}")
    difference = _pattern(array) - _pattern(near.astype(array.dtype))
    sign = difference.view(signed) >> (8 * array.itemsize - 1)
    return (difference << difference.dtype.type(1)) ^ sign.view(difference.dtype)


def from_differences(folded: np.ndarray, near: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Undo `to_differences`; the floats have the type `dtype`."""
    one = folded.dtype.type(1)
    sign = -(folded & one).astype(f"i{folded.itemsize}")
    difference = (folded >> one) ^ sign.view(folded.dtype)
    return (_pattern(near.astype(dtype)) + difference).view(dtype)


def _pattern(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")

"""How many pieces an activation is cut into, so that what operations leave stays in a cache."""

from __future__ import annotations

import math

# Of the widest activation of a piece in float32: two such and their products fit the 1 to 2 MiB of
# second-level cache that a core has. Smaller pieces gain no more, and each is some nodes more.
PIECE_BYTES = 2**21
MOST_PIECES = 8  # each is traced on its own: large batches would take minutes


def count_pieces(size: int) -> int:
    """Pieces of an activation of `size` bytes."""
    return min(math.ceil(size / PIECE_BYTES), MOST_PIECES)

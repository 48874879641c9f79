"""Into how many pieces an activation is cut, so that a piece stays in the cache of a core."""

from __future__ import annotations

import math

# Bytes of the widest activation of one piece, in float32. Two such activations and their products
# fit into the 1 to 2 MiB of second-level cache of a core. Smaller pieces were not faster, and each
# piece adds nodes to the graph.
PIECE_BYTES = 2**21
MOST_PIECES = 8  # each piece is traced on its own: more would take minutes for a large batch


def count_pieces(size: int) -> int:
    """The number of pieces of an activation of `size` bytes."""
    return min(math.ceil(size / PIECE_BYTES), MOST_PIECES)

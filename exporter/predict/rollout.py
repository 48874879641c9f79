"""Attention weights of an export -> where the class token looks: the rollout over the frames.

Abnar and Zuidema (2020, arXiv:2005.00928): with the weights A of a block, averaged over its heads,
a block passes on (A + I) / 2 of what it reads, because of its residual. The product over all blocks
says how much of the class token at the end comes from each patch at the start.

In divided attention these are the weights over space; what attention over time mixes between the
frames is not followed. Axes: l blocks, g groups, n tokens of a group, f frames, p patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from exporter.errors import UsageError

SCHEMES = ("space", "joint", "divided")


def roll_out(attentions: np.ndarray, model: Mapping[str, Any]) -> np.ndarray:
    """Compute the share of each patch in the class token, `(f, h, w)` with a sum of at most 1.

    Args:
        attentions: The output `attentions` of one clip, `(l, g, heads, n, n)`.
        model: The entry `model` of the manifest.

    Raises:
        UsageError: if the scheme of the model is another one.
    """
    config = model["config"]
    scheme = config.get("scheme") or config.get("attn_type")
    if scheme not in SCHEMES:
        raise UsageError("tsformer explain", got=f"scheme {scheme}", expected=", ".join(SCHEMES))
    frames, patch = int(config["frames"]), int(config["patch_size"])
    grid = int(config["height"]) // patch, int(config["width"]) // patch
    weights = attentions.astype(np.float64).mean(2)  # l g n n
    if scheme == "joint":
        shares = _class_row(weights)[0, 1:]
        if model["family"] == "timesformer_vit":  # its tokens are in the order (h w f)
            shares = shares.reshape(-1, frames).T
        return shares.reshape(frames, *grid)
    shares = _class_rows(weights, shared=scheme == "divided")
    return shares.reshape(frames, *grid)


def _class_row(weights: np.ndarray) -> np.ndarray:
    """Follow the first token of one group through all blocks: `(l, 1, n, n) -> (1, n)`."""
    row = np.zeros((1, weights.shape[-1]))
    row[0, 0] = 1.0
    for block in weights[::-1]:
        row = (row + row @ block[0]) / 2
    return row


def _class_rows(weights: np.ndarray, *, shared: bool) -> np.ndarray:
    """Follow the class tokens of the frames, or the one they share: `(l, f, n, n) -> (f, p)`.

    A shared class token gets the mean of what the frames give it, and gives its own to all of them.
    """
    frames = weights.shape[1]
    rows = np.zeros(weights.shape[1:3])
    rows[:, 0] = 1 / frames
    for block in weights[::-1]:
        rows = (rows + np.einsum("fn,fnm->fm", rows, block)) / 2
        if shared:
            rows[:, 0] = rows[:, 0].mean()
    return rows[:, 1:]

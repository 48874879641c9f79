"""Find the classifier of a fine-tuned model, whatever its name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from model.config import ConfigError
from model.families.base import Family, is_transposed, shape_of

AUTO = ""
_HEAD = re.compile(r"(?i).*head.*|.*classif.*|fc\d*|.*_fc|fc_.*|cls.*|.*_cls|linear.*|.*logits.*")
# Parts of a file that have linear layers of their own and are no classifier of the clip.
_OTHER = re.compile(
    r"(?i)loss|criterion|metric|text|txt|lang|bert|token|decoder|aux|embedding|resblocks|attn_pool"
)
# The projection of a clip to the space that it shares with texts: a classifier only if asked for.
_SHARED = re.compile(r"(?i)(.*\.)?(vid|video|image|visual)_proj(ection)?(\..+)?")


@dataclass(frozen=True)
class Head:
    """A classifier: name of its weight or bias in the family -> key in the file.

    `others` are the paths of other classifiers, which are left aside.
    """

    keys: dict[str, str]
    others: list[str]
    notes: tuple[str, ...] = ()


def find_head(family: Family, prefix: str, scope: Mapping[str, Tensor], wanted: str | None) -> Head:
    """Find the linear layer after the last norm.

    Args:
        family: The family, which names its own classifier.
        prefix: The path of the model in the file.
        scope: The tensors of the file that belong to the model or lie beside it.
        wanted: The path of the layer; `None` for no classifier, `AUTO` if the keys decide.

    Returns:
        The classifier; its keys are empty for a headless model.

    Raises:
        ConfigError: if there are several such layers, or none with that path.
    """
    own = _own_head(family, prefix, scope)
    found, others = _linear_layers(family, prefix, scope)
    layers = [layer for layer in found if layer != own]
    named = [layer for layer in layers if _head_part(layer, prefix)]
    if wanted is None:
        others = layers if own is None else [own, *layers]
        return Head({}, others, ("taken without its classifier, as asked",))
    if own is not None and wanted in (AUTO, own, own.removeprefix(prefix)):
        _check_linear([key for key in others if key == f"{own}.weight"], scope)
        return Head(_parts(family, own, scope), named)
    if wanted != AUTO:
        named = [layer for layer in layers if layer == wanted or layer.endswith(f".{wanted}")]
        if len(named) != 1:
            raise ConfigError(
                f"has no single layer {wanted!r} as classifier: got {', '.join(layers) or 'none'}"
            )
    if len(named) != 1:
        if all(map(_SHARED.fullmatch, layers)):
            _check_linear(others, scope)
            return Head({}, [])
        raise ConfigError(
            f"has no certain classifier: got {', '.join(named or layers)}; give its path, as "
            f'--config \'{{"head": "{(named or layers)[0]}"}}\', or null for the features'
        )
    _check_alone(named[0], layers, prefix, scope)
    others = [layer for layer in layers if layer != named[0]] if wanted else []
    return Head(_parts(family, named[0], scope), others, (f"classifier: {named[0]}",))


def _own_head(family: Family, prefix: str, scope: Mapping[str, Tensor]) -> str | None:
    """Return the path of the family's own name, below the model or beside it."""
    parts = prefix.rstrip(".").split(".") if prefix else []
    for length in range(len(parts), -1, -1):
        path = ".".join([*parts[:length], str(family.head)])
        if f"{path}.weight" in scope:
            return path
        if f"{path}.bias" in scope:
            raise ConfigError(f"lacks weights: {path}.weight, beside {path}.bias")
    return None


def _linear_layers(
    family: Family, prefix: str, scope: Mapping[str, Tensor]
) -> tuple[list[str], list[str]]:
    """List the paths of the linear layers beside the model whose input is a token.

    Also list the weights of classifiers that are no such layer.
    """
    own = {key: tensor for key, tensor in scope.items() if key.startswith(prefix)}
    dim = next((t.shape[-1] for key, t in own.items() if key.endswith("cls_token") and t.ndim), 0)
    qkv = next((t for key, t in own.items() if key.endswith(".attn.qkv.weight")), None)
    axis = 0 if is_transposed(qkv) else 1
    layers: list[str] = []
    others: list[str] = []
    for key, tensor in scope.items():
        member = key.startswith(prefix) and re.fullmatch(family.members, key.removeprefix(prefix))
        if member or not key.endswith(".weight") or _OTHER.search(_beside(key, prefix)):
            continue
        if tensor.ndim == 2 and tensor.shape[axis] == dim:
            layers.append(key.removesuffix(".weight"))
        elif dim and tensor.ndim > 1 and _head_part(key.removesuffix(".weight"), prefix):
            others.append(key)
    return layers, others


def _beside(key: str, prefix: str) -> str:
    """Return the path without the first parts that it shares with the model's path."""
    parts, around = key.split("."), prefix.split(".")
    shared = next((i for i, (a, b) in enumerate(zip(parts, around, strict=False)) if a != b), 0)
    return ".".join(parts[shared:])


def _head_part(layer: str, prefix: str) -> str:
    """Return the path up to the part that names a classifier; "" if there is none."""
    parts = _beside(layer, prefix).split(".")
    for length, part in enumerate(parts, 1):
        if _HEAD.fullmatch(part):
            return layer.removesuffix(".".join(parts)) + ".".join(parts[:length])
    return ""


def _check_linear(others: list[str], scope: Mapping[str, Tensor]) -> None:
    """Raise `ConfigError` if there is a classifier whose input is not a token."""
    if others:
        raise ConfigError(
            "has a classifier that is no linear map of a token: "
            f"{shape_of(others[0], scope[others[0]])}; export the features with "
            "--config '{\"head\": null}'"
        )


def _check_alone(
    layer: str, layers: Sequence[str], prefix: str, scope: Mapping[str, Tensor]
) -> None:
    """Raise `ConfigError` if the classifier has more layers, which this package does not read."""
    root, heads = _head_part(layer, prefix) + ".", {layer, *_list_of_heads(layer, layers, scope)}
    more = [
        key
        for key in scope
        if key.startswith(root)
        and not (key.endswith((".weight", ".bias")) and key.rpartition(".")[0] in heads)
        and not _OTHER.search(_beside(key, prefix))
    ]
    if more:
        raise ConfigError(
            f"has a classifier of several layers: {layer} and {more[0]}, expected one linear map; "
            "export the features with --config '{\"head\": null}'"
        )


def _list_of_heads(
    layer: str, layers: Sequence[str], scope: Mapping[str, Tensor]
) -> tuple[str, ...]:
    """Return all classifiers of a list, as `fc_cls.0` and `fc_cls.1` of LaViLa; () for a stack.

    All of them read a token, their numbers have no gaps, and none of them gives a token.
    """
    root = layer.rpartition(".")[0]
    found = [each for each in layers if each.rpartition(".")[0] == root]
    numbered = {f"{root}.{number}" for number in range(len(found))}
    squares = any(len(set(scope[f"{each}.weight"].shape)) == 1 for each in found)
    return () if set(found) != numbered or squares else tuple(found)


def _parts(family: Family, layer: str, scope: Mapping[str, Tensor]) -> dict[str, str]:
    return {
        f"{family.head}.{part}": f"{layer}.{part}"
        for part in ("weight", "bias")
        if f"{layer}.{part}" in scope
    }

"""Stand-ins for the harmless objects that programs save beside weights, as an allow list.

A file names the class of each object that it holds. The classes of this list are replaced by inert
ones that keep the arguments and the state of an object as plain values. No class of the file is
imported, and none of its code runs. A file that names any other class is refused.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch

_DEEPEST = 8
_Global = tuple[Any, str]  # a stand-in and the full name that it stands for


class Inert:
    """An object of a file: the arguments of its constructor and its state."""

    source = ""
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Inert:  # noqa: ANN401, D102  # any class of a file
        self = object.__new__(cls)
        self.args = args
        self.state = None
        return self

    def __init__(self, *_args: object) -> None:
        """Take the arguments that `__new__` keeps."""

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        self.state = state

    def __repr__(self) -> str:
        return self.source  # torch names what a file wanted to call


class InertDict(Inert):
    """A class that is a dictionary: the object is a plain `OrderedDict`."""

    def __new__(cls, *args: Any) -> OrderedDict[Any, Any]:  # noqa: ANN401, D102  # see `Inert`
        first = args[0] if args and isinstance(args[0], Mapping) else {}
        return OrderedDict(first)


class InertList(Inert):
    """A class that is a list: the object is a plain `list`."""

    def __new__(cls, *args: Any) -> list[Any]:  # noqa: ANN401, D102  # see `Inert`
        return list(args[0]) if args and isinstance(args[0], (list, tuple)) else []


class InertBytes(Inert):
    """`_codecs.encode`, by which old pickles hold bytes."""

    def __new__(cls, text: str, *_encoding: str) -> bytes:  # noqa: D102  # see `Inert`
        return text.encode("latin1")


# Classes of attributes or values. What follows the last `:` are names in the module before it.
_OBJECTS = """
    argparse:Namespace
    types:SimpleNamespace
    typing:Any
    builtins:tuple list frozenset dict str int float bool complex slice range bytes getattr
    pathlib:PosixPath WindowsPath PurePosixPath PureWindowsPath Path PurePath
    pathlib._local:PosixPath WindowsPath PurePosixPath PureWindowsPath Path PurePath
    datetime:datetime date time timedelta timezone
    uuid:UUID
    decimal:Decimal
    fractions:Fraction
    numpy:dtype ndarray
    numpy.core.multiarray:scalar _reconstruct
    numpy._core.multiarray:scalar _reconstruct
    numpy.core.numeric:_frombuffer
    numpy._core.numeric:_frombuffer
    numpy.random._pickle:__generator_ctor __bit_generator_ctor __randomstate_ctor
    numpy.random._mt19937:MT19937
    numpy.random._pcg64:PCG64
    numpy.random._philox:Philox
    numpy.random._sfc64:SFC64
    numpy.random.bit_generator:SeedSequence __pyx_unpickle_SeedSequence
    torch.torch_version:TorchVersion
    omegaconf.base:ContainerMetadata Metadata Node
    omegaconf.dictconfig:DictConfig
    omegaconf.listconfig:ListConfig
    omegaconf.nodes:AnyNode StringNode IntegerNode FloatNode BooleanNode BytesNode PathNode EnumNode
    mmengine.config.config:Config
    mmengine.config:Config
    mmengine.logging.history_buffer:HistoryBuffer
    mmcv.utils.config:Config
    parse_config:ConfigParser
    transformers.models.timesformer.configuration_timesformer:TimesformerConfig
"""
_DICTS = """
    collections:defaultdict
    mmengine.config.config:ConfigDict
    mmengine.config:ConfigDict
    mmcv.utils.config:ConfigDict
    addict.addict:Dict
    fvcore.common.config:CfgNode
    yacs.config:CfgNode
    detectron2.config.config:CfgNode
    easydict:EasyDict
    box.box:Box
    munch:Munch
    lightning_fabric.utilities.data:AttributeDict
    lightning.fabric.utilities.data:AttributeDict
    pytorch_lightning.utilities.parsing:AttributeDict
    lightning.pytorch.utilities.parsing:AttributeDict
"""
_LISTS = "collections:deque"


def _list_globals() -> Iterator[_Global]:
    for text, base in ((_OBJECTS, Inert), (_DICTS, InertDict), (_LISTS, InertList)):
        for line in text.split("\n"):
            module, _, names = line.strip().partition(":")
            for name in names.split():
                source = f"{module}.{name}"
                yield type(base.__name__, (base,), {"source": source}), source


GLOBALS: tuple[_Global, ...] = tuple(_list_globals())


class PlainUnpickler(pickle.Unpickler):
    """Read a pickle that names classes of the allow list only.

    Raises:
        pickle.UnpicklingError: if the pickle names another class.
    """

    _ALLOWED: Mapping[str, Any] = {
        **{name: stand_in for stand_in, name in GLOBALS},
        "collections.OrderedDict": InertDict,
        "_codecs.encode": InertBytes,
        "builtins.set": type("Inert", (Inert,), {"source": "builtins.set"}),
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        """Return the stand-in of a class; nothing is imported."""
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"  # the name in Python 2
        if full not in self._ALLOWED:
            raise pickle.UnpicklingError(f"Unsupported global: {full}")
        return self._ALLOWED[full]


def plain(value: Any) -> Any:  # noqa: ANN401  # any object of a file
    """Convert one object of a file to plain Python values or a tensor; containers stay as they are.

    A numeric array becomes a tensor and a numeric scalar a number. Other arrays become `None`. An
    object with attributes becomes a dictionary of them.
    """
    for _ in range(_DEEPEST):  # an object may hold another, or itself
        if not isinstance(value, Inert):
            return value
        value = _open(value)
    return None


def _open(value: Inert) -> Any:  # noqa: ANN401
    module, _, name = value.source.rpartition(".")
    if module.startswith("numpy"):
        return _plain_numpy(value, name)
    if module.startswith("pathlib"):
        return "/".join(map(str, value.args))
    if module.startswith("omegaconf") and isinstance(value.state, Mapping):
        return value.state.get("_content", value.state.get("_val"))
    if isinstance(value.state, Mapping):
        return value.state
    if value.state is None and len(value.args) == 1:
        return value.args[0]
    return value.state if value.state is not None else value.args


def _plain_numpy(value: Inert, name: str) -> Any:  # noqa: ANN401
    if name == "scalar" and len(value.args) == 2:
        array = _array((), *value.args)
        return None if array is None else array.item()
    if name == "_reconstruct" and isinstance(value.state, tuple) and len(value.state) == 5:
        _version, shape, dtype, fortran, raw = value.state
        array = _array(shape, dtype, raw, fortran)
        return None if array is None else torch.from_numpy(array)
    if name == "_frombuffer" and len(value.args) == 4:
        raw, dtype, shape, order = value.args
        array = _array(shape, dtype, raw, order == "F")
        return None if array is None else torch.from_numpy(array)
    return None


def _array(shape: Any, dtype: Any, raw: Any, fortran: Any = False) -> np.ndarray | None:  # noqa: ANN401
    """Make an array of numbers from the parts of its pickle; `None` for other contents."""
    if (
        not isinstance(dtype, Inert)
        or not dtype.args
        or not isinstance(raw, (bytes, bytearray, str))
    ):
        return None
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    code, order = str(dtype.args[0]), "<"
    if isinstance(dtype.state, tuple) and len(dtype.state) > 1 and dtype.state[1] == ">":
        order = ">"
    if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"):
        return None
    flat = np.frombuffer(raw, np.dtype(order + code))
    array = flat.reshape(shape, order="F" if fortran else "C")
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="))).reshape(shape)

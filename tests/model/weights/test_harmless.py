"""Test the allow list for objects beside weights: what is opened, and what hostile files may do."""

import contextlib
import io
import os
import pickle
import pickletools
import struct
import sys
import types
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np
import pytest
import torch

from model import CheckpointError
from model.weights.file import read_weights
from model.weights.flatten import flatten
from model.weights.harmless import GLOBALS, Inert, PlainUnpickler, plain


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple:
        return self.call


def save(path: Path, content: object, form: str) -> Path:
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=4))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


@pytest.fixture
def module():
    """Make modules of any name, whose classes a test pickles."""
    made = []

    def make(name: str, *bases: type, **members: object) -> type:
        place, _, kind = name.rpartition(".")
        for depth in range(place.count(".") + 1):
            parent = ".".join(place.split(".")[: depth + 1])
            if parent not in sys.modules:
                sys.modules[parent] = types.ModuleType(parent)
                made.append(parent)
        cls = type(kind, bases, {"__module__": place, **members})
        setattr(sys.modules[place], kind, cls)
        return cls

    yield make
    for name in made:
        del sys.modules[name]


class TestAllowList:
    def test_no_stand_in_is_the_thing_it_stands_for(self):
        for stand_in, name in GLOBALS:
            assert issubclass(stand_in, Inert), name
            assert stand_in.source == name

    def test_constructors_with_effects_are_not_in_the_list(self):
        names = {name for _, name in GLOBALS}
        assert not names & {
            "builtins.eval",
            "builtins.exec",
            "builtins.open",
            "builtins.__import__",
        }
        assert not [name for name in names if name.startswith(("os.", "posix.", "subprocess."))]

    @pytest.mark.parametrize("form", ["zip", "old", "pickle"])
    @pytest.mark.parametrize("longest", [None, 2])
    def test_a_deque_opens_to_a_list(self, tmp_path, form, longest):
        losses = deque([1.0, 2.0, 3.0], maxlen=longest)
        weight = np.zeros(2, "f") if form == "pickle" else torch.zeros(2)
        found = read_weights(save(tmp_path / "m.pth", {"weight": weight, "losses": losses}, form))
        assert found.state["weight"].shape == (2,)
        assert found.settings["losses"] == list(losses)

    def test_the_configuration_of_omegaconf_opens_to_plain_values(self, module):
        """As omegaconf pickles it: nodes with a state, in a container with a content."""
        node = module("omegaconf.nodes.AnyNode", object)
        config = module("omegaconf.dictconfig.DictConfig", object)
        inner, outer = node(), config()
        inner.__dict__.update(_val=12, _parent=None)
        outer.__dict__.update(_content={"num_heads": inner}, _parent=None)
        buffer = io.BytesIO()
        torch.save({"hyper_parameters": outer}, buffer)
        buffer.seek(0)
        with torch.serialization.safe_globals(list(GLOBALS)):
            content = torch.load(buffer, weights_only=True)
        assert flatten(content).settings == {"hyper_parameters.num_heads": 12}

    @pytest.mark.parametrize(
        "name",
        ["fvcore.common.config.CfgNode", "mmengine.config.config.ConfigDict", "easydict.EasyDict",
         "lightning.fabric.utilities.data.AttributeDict"],
    )  # fmt: skip
    def test_a_dictionary_of_a_program_opens_to_plain_values(self, module, name):
        kind = module(name, dict)
        content = kind(DATA=kind(NUM_FRAMES=8))
        content.extra = "attribute"
        buffer = io.BytesIO()
        torch.save({"cfg": content}, buffer)
        buffer.seek(0)
        with torch.serialization.safe_globals(list(GLOBALS)):
            assert flatten(torch.load(buffer, weights_only=True)).settings == {
                "cfg.DATA.NUM_FRAMES": 8
            }

    def test_the_history_of_mmengine_opens_without_its_methods(self, module):
        """It pickles its own methods as `getattr(HistoryBuffer, name)`, which is never called."""
        history = module("mmengine.logging.history_buffer.HistoryBuffer", object)
        buffer, made = io.BytesIO(), history()
        made.__dict__.update(_max_length=10, _methods={"mean": Call(getattr, history, "mean")})
        torch.save({"loss": made}, buffer)
        buffer.seek(0)
        with torch.serialization.safe_globals(list(GLOBALS)):
            content = torch.load(buffer, weights_only=True)
        assert flatten(content).settings["loss._max_length"] == 10

    def test_an_object_that_holds_itself_opens_to_nothing(self):
        loop = Inert()
        loop.state = None
        loop.args = (loop,)
        assert plain(loop) is None

    def test_a_container_that_holds_itself_is_read_once(self):
        content: dict = {"a": torch.zeros(2), "lr": 0.1}
        content["self"] = [content]
        flat = flatten(content)
        assert (list(flat.tensors), flat.settings) == (["a"], {"lr": 0.1})


CALLS = {
    "a command": lambda marker: Call(os.system, f"touch {marker}"),
    "a file": lambda marker: Call(open, str(marker), "w"),
    "evaluated text": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
    "a method of a harmless class": lambda marker: Call(getattr, marker, "write_text"),
    "a path that touches": lambda marker: Call(Path.touch, marker),
}


class TestHostileFiles:
    @pytest.mark.parametrize("form", ["zip", "old", "pickle"])
    @pytest.mark.parametrize("what", CALLS)
    @pytest.mark.parametrize("inside", [False, True], ids=["alone", "beside the weights"])
    def test_nothing_runs(self, tmp_path, form, what, inside):
        marker = tmp_path / "ran"
        payload = CALLS[what](marker)
        content = {"model": {"a": torch.zeros(2)}, "args": payload} if inside else payload
        path = save(tmp_path / "m.pth", content, form)
        with contextlib.suppress(CheckpointError):
            read_weights(path)
        assert not marker.exists()

    def test_a_method_that_is_named_is_not_called(self, tmp_path):
        """The pickle calls `getattr(PosixPath, "touch")(path)`."""
        marker = tmp_path / "ran"
        call = f"c__builtin__\ngetattr\n(cpathlib\nPosixPath\nVtouch\ntR(V{marker}\ntR."
        path = tmp_path / "m.pdparams"
        path.write_bytes(b"\x80\x02" + call.encode())
        with pytest.raises(CheckpointError):
            read_weights(path)
        assert not marker.exists()

    @pytest.mark.parametrize("form", ["zip", "old", "pickle"])
    def test_a_class_outside_the_list_is_refused_with_its_name_and_the_remedy(self, tmp_path, form):
        path = save(tmp_path / "m.pth", {"model": {"a": torch.zeros(2)}, "b": Call(len, [])}, form)
        with pytest.raises(CheckpointError) as caught:
            read_weights(path)
        assert "nothing was run" in str(caught.value)
        assert "python -c" in str(caught.value)

    def test_a_state_cannot_change_a_stand_in(self):
        """BUILD on the class itself would set attributes for all later files."""
        code = b"\x80\x02cargparse\nNamespace\n(K\x01K\x02tb."
        with pytest.raises((TypeError, pickle.UnpicklingError)):
            PlainUnpickler(io.BytesIO(code)).load()
        assert [op.name for op, *_ in pickletools.genops(code)][-2] == "BUILD"
        assert all("state" not in vars(stand_in) for stand_in, _ in GLOBALS)

    @pytest.mark.parametrize(
        ("shape", "code", "raw"),
        [((10**9,), "f4", b"abcd"), ((-1, -1), "f4", b"abcd"), ((1,), "O8", b"abcdefgh"),
         ((1,), "f4", b"abc"), ("x", "f4", b"abcd")],
    )  # fmt: skip
    def test_an_array_whose_parts_do_not_fit_is_refused_or_left_out(
        self, tmp_path, shape, code, raw
    ):
        dtype = Call(sys.modules["numpy"].dtype, "f4")
        made = Call(sys.modules["numpy"]._core.numeric._frombuffer, raw, dtype, shape, "C")
        path = tmp_path / "m.pkl"
        path.write_bytes(pickle.dumps({"a": made}, 4).replace(b"f4", code.encode()))
        with pytest.raises(CheckpointError) as caught:
            read_weights(path)
        assert "\n" not in str(caught.value)

    def test_deep_nesting_is_read(self, tmp_path):
        content: object = {"a": torch.zeros(2)}
        for _ in range(200):
            content = [content]
        assert len(read_weights(save(tmp_path / "m.pth", content, "zip")).state) == 1

    @pytest.mark.parametrize("length", [3, 11, 30])
    def test_a_cut_pickle_is_refused(self, tmp_path, length):
        whole = pickle.dumps(OrderedDict(a=struct.pack("<f", 1.0)), 4)
        (tmp_path / "m.pdparams").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="not a whole"):
            read_weights(tmp_path / "m.pdparams")

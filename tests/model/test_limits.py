"""What a file may claim: refused in one line, before time and memory are taken."""

import json
import os
import time

import pytest
import torch
from safetensors.torch import save

from model import FastTimeSformer, load_checkpoint, save_checkpoint
from model.config import ConfigError, FastTimeSformerConfig
from model.limits import MOST
from model.weights.file import METADATA_KEY, CheckpointError


def hostile_tensors() -> dict[str, torch.Tensor]:
    one = torch.zeros(1)
    return {
        "meta": torch.empty(2**20, device="meta"),
        "sparse": torch.eye(4).to_sparse(),
        "sparse CSR": torch.eye(4).to_sparse_csr(),
        "stride 0": one.expand(2**31),
        "stride 0, huge": one.as_strided((2**40,), (0,)),
        "overlapping": torch.zeros(64).as_strided((64, 2**26), (1, 0)),
    }


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    "kind", ["meta", "sparse", "sparse CSR", "stride 0", "stride 0, huge", "overlapping"]
)
def test_a_tensor_that_is_not_plain_numbers_of_the_file_is_refused(tmp_path, kind):
    path = tmp_path / "hostile.pth"
    tensor = hostile_tensors()[kind]
    torch.save({"to_patch_embedding.weight": tensor, "other": torch.zeros(3)}, path)
    started = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert time.monotonic() - started < 5


def small() -> FastTimeSformer:
    return FastTimeSformer(2, 3, 32, 32, num_classes=2, depth=1, dim=32, dim_head=16)


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"depth": 10**9}, "depth must be at most 1,000"),
        ({"depth": 900}, "depth asks for 921,600 weights at least"),
        ({"dim": 16_384, "dim_head": 16}, "weights at least"),
        ({"frames": 10**6}, "frames must be at most 1,024"),
        ({"frames": 1024, "height": 4096, "width": 4096}, "at most 33,554,432"),
        ({"num_classes": 10**5}, "num_classes asks for 3,200,000 weights"),
    ],
)
def test_an_own_checkpoint_whose_metadata_claims_too_much_is_refused(tmp_path, claims, said):
    path = tmp_path / "own.safetensors"
    model = small()
    save_checkpoint(model, path)
    config = {**vars(model.config), **claims}
    description = {"version": 1, "family": "fast_timesformer", "config": config}
    path.write_bytes(save(model.state_dict(), metadata={METADATA_KEY: json.dumps(description)}))
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path)
    assert time.monotonic() - started < 5


def test_a_tied_weight_is_no_claim_too_large(tmp_path):
    path = tmp_path / "tied.pth"
    state = small().state_dict()
    torch.save(state | {f"again{i}": next(iter(state.values())) for i in range(3)}, path)
    with pytest.raises(CheckpointError) as caught:  # of the keys, not of a size
        load_checkpoint(path)
    assert "claims" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_refused_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="a pipe or a device"):
        load_checkpoint(tmp_path / "pipe.pth")


@pytest.mark.parametrize("name", ["frames", "num_classes", "dim", "depth"])
def test_every_size_has_a_limit(name):
    given = {"frames": 2, "channels": 3, "height": 32, "width": 32, "num_classes": 2}
    with pytest.raises(ConfigError, match=f"{name} must be at most {MOST[name]:,}"):
        FastTimeSformerConfig(**{**given, name: MOST[name] + 1})

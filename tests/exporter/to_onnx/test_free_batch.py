"""Test that a graph has the free batch that was asked for, or names the module that fixed it."""

import pytest
import torch
from torch import nn

from exporter.errors import OnnxError
from exporter.spec.option import BatchProfile
from exporter.to_onnx.export import export_onnx
from model import TimeSformerViT


class Fixing(nn.Module):
    def forward(self, x):
        return x + int(x.shape[0])


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.fixing = nn.Linear(4, 4), Fixing()

    def forward(self, video):
        return self.fixing(self.first(video)).flatten(1)


@pytest.mark.slow
def test_the_module_that_fixed_the_batch_is_named(tmp_path):
    with pytest.raises(OnnxError, match=r"free, but fixing fixed it: got video \(2, 3, 4\)"):
        export_onnx(
            Reader().eval(),
            {"video": torch.zeros(2, 3, 4)},
            tmp_path / "model.onnx",
            opset=20,
            dynamic_batch=BatchProfile(1, 2, 4),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "attn"),
    [
        ("space", "regular"),
        ("space", "fastformer"),
        ("joint", "performer"),
        ("divided", "fastformer"),
        ("local-global", "regular"),
        ("axial", "performer"),
    ],
)
def test_every_scheme_of_the_published_family_has_a_free_batch(tmp_path, scheme, attn):
    model = TimeSformerViT(
        2, 16, 16, 3, dim=16, depth=1, heads=2, patch_size=8, scheme=scheme, attn=attn
    )
    graph = export_onnx(
        model.eval(),
        {"video": torch.zeros(2, 2, 3, 16, 16)},
        tmp_path / "model.onnx",
        opset=20,
        dynamic_batch=BatchProfile(1, 2, 4),
    )
    assert graph.inputs[0].shape == ("batch", 2, 3, 16, 16)
    assert graph.outputs[0].shape == ("batch", 3)

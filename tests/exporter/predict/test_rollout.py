"""Test attention rollout against products of whole matrices, and the picture of `explain`."""

import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest

from exporter import ExportSpec
from exporter.cli import main
from exporter.errors import UsageError
from exporter.pipeline import export
from exporter.predict.rollout import roll_out
from exporter.report.attention import Explanation, contact_sheet, overlay

FRAMES, ROWS, COLUMNS, DEPTH, HEADS = 3, 2, 4, 2, 2
PATCHES = ROWS * COLUMNS
SIZES = {"frames": FRAMES, "height": 32, "width": 64, "patch_size": 16}


def weights(groups, tokens):
    drawn = np.random.default_rng(0).random((DEPTH, groups, HEADS, tokens, tokens)) ** 4
    return (drawn / drawn.sum(-1, keepdims=True)).astype(np.float32)


def whole_matrix(block):
    """One block of divided attention over all 1 + f p tokens, `(f, n, n)` -> `(1+fp, 1+fp)`."""
    made = np.zeros((1 + FRAMES * PATCHES,) * 2)
    for frame, one in enumerate(block):
        own = 1 + frame * PATCHES + np.arange(PATCHES)
        made[0, 0] += one[0, 0] / FRAMES
        made[0, own] = one[0, 1:] / FRAMES
        made[own, 0] = one[1:, 0]
        made[np.ix_(own, own)] = one[1:, 1:]
    return made


def product(matrices):
    found = np.eye(len(matrices[0]))
    for matrix in matrices:  # from the first block to the last
        found = (matrix + np.eye(len(matrix))) / 2 @ found
    return found


def test_divided_attention_is_rolled_out_over_all_tokens():
    given = weights(FRAMES, 1 + PATCHES)
    truth = product([whole_matrix(block) for block in given.astype(np.float64).mean(2)])[0]
    found = roll_out(given, {"family": "timesformer_vit", "config": {**SIZES, "scheme": "divided"}})
    assert found.shape == (FRAMES, ROWS, COLUMNS)
    np.testing.assert_allclose(found.ravel(), truth[1:], rtol=1e-9)
    assert 0 < found.sum() < 1


def test_space_attention_follows_the_class_token_of_each_frame():
    given = weights(FRAMES, 1 + PATCHES)
    found = roll_out(
        given, {"family": "fast_timesformer", "config": {**SIZES, "attn_type": "space"}}
    )
    for frame in range(FRAMES):
        truth = product(list(given[:, frame].astype(np.float64).mean(1)))[0, 1:] / FRAMES
        np.testing.assert_allclose(found[frame].ravel(), truth, rtol=1e-9)


@pytest.mark.parametrize(
    ("family", "order"), [("timesformer_vit", "hwf"), ("fast_timesformer", "fhw")]
)
def test_joint_attention_is_put_in_the_order_of_the_family(family, order):
    given = weights(1, 1 + FRAMES * PATCHES)
    truth = product(list(given[:, 0].astype(np.float64).mean(1)))[0, 1:]
    found = roll_out(given, {"family": family, "config": {**SIZES, "scheme": "joint"}})
    places = [order.index(axis) for axis in "fhw"]
    shape = [{"f": FRAMES, "h": ROWS, "w": COLUMNS}[axis] for axis in order]
    np.testing.assert_allclose(found, truth.reshape(shape).transpose(places), rtol=1e-9)


def test_another_scheme_is_refused():
    model = {"family": "fast_timesformer", "config": {**SIZES, "attn_type": "axial"}}
    with pytest.raises(UsageError, match=r"axial.*space, joint, divided"):
        roll_out(weights(12, 3), model)


def test_the_patch_with_most_attention_is_the_brightest():
    pixels = np.full((2, 32, 64, 3), 100, np.uint8)
    shares = np.full((2, ROWS, COLUMNS), 0.01)
    shares[1, 1, 2] = 0.2
    heat = overlay(pixels, shares).astype(int).sum(-1)
    assert heat.shape == (2, 32, 64)
    assert (heat[1, 16:, 32:48] == heat.max()).all()
    assert (heat == heat.max()).sum() == 16 * 16
    found = Explanation("c", "m", "", pixels, shares, ("a", "b"))
    np.testing.assert_allclose(found.of_frames, [0.08 / 0.35, 0.27 / 0.35])
    assert contact_sheet(pixels, pixels).shape == (2 * 36, 2 * 68, 3)


@pytest.fixture(scope="module")
def directory(tiny, tmp_path_factory, slow):
    """Export attentions once; tests must not change the result."""
    spec = ExportSpec(attn="regular", outputs=("logits", "attentions"), **tiny)
    return export(spec, tmp_path_factory.mktemp("explain") / "x").directory


@pytest.mark.slow
def test_explain_writes_a_picture_and_a_page_without_torch_and_onnx(
    directory, real_clips, tmp_path
):
    picture = tmp_path / "where.png"
    code = f"""
        import sys
        sys.modules["torch"] = sys.modules["onnx"] = None
        from exporter.cli import main
        sys.exit(main(["explain", {str(directory)!r}, {str(real_clips["bikes"])!r},
                       "-o", {str(picture)!r}]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("% of the attention") == 3
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG")
    start = content.index(b"IDAT")
    size = int.from_bytes(content[start - 4 : start])
    assert len(zlib.decompress(content[start + 4 : start + 4 + size])) > 100_000
    page = (tmp_path / "where.html").read_text()
    assert page.count("data:image/png;base64") == 6
    assert "bikes.mp4" in page


@pytest.mark.slow
def test_an_export_without_attentions_is_refused_with_the_remedy(exported, real_clips, capsys):
    made = str(exported("regular").directory)
    assert main(["explain", made, str(real_clips["bikes"])]) == 2
    assert "--outputs logits,attentions" in capsys.readouterr().err


def test_no_picture_is_left_without_its_page(directory, real_clips, tmp_path, capsys):
    (tmp_path / "where.html").mkdir()
    given = ["explain", str(directory), str(real_clips["bikes"])]
    assert main([*given, "-o", str(tmp_path / "where.png")]) == 2
    said = capsys.readouterr().err
    assert said == f"tsformer: output: cannot write {tmp_path}/where.html: Is a directory\n"
    assert [path.name for path in tmp_path.iterdir()] == ["where.html"]


def test_the_picture_must_be_a_png(directory, real_clips, capsys):
    assert main(["explain", str(directory), str(real_clips["bikes"]), "-o", "x.jpg"]) == 2
    assert "ends in .png" in capsys.readouterr().err

"""Test the column of features: its values, its form in each file, and that no way changes it."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exporter.cli import main
from exporter.errors import OutputError, UsageError
from exporter.predict import Predictor
from exporter.predict.features import describe
from exporter.predict.label import Labelling, find_clips, in_shard, label, rows_of
from exporter.predict.read import read_clip_or_reason

SIZE = 32  # of the features
THREE_CROPS = {"views": "1x3", "short_side": 40}  # larger than a frame: crops differ


def how(directory, **options):
    return Labelling(directory, **{"jobs": 0, "features": True, **options})


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(found):
    return sorted(json.dumps({**row, "seconds": 0}, sort_keys=True) for row in found)


@pytest.fixture(scope="module")
def expected(flexible, archive, tmp_path_factory):
    """Label the archive clip by clip in this process."""
    out = tmp_path_factory.mktemp("expected") / "rows.jsonl"
    label(how(flexible, batch=1), find_clips([archive]), out)
    return read(out)


class TestValues:
    def test_they_are_the_numbers_of_predict(self, expected, flexible):
        good = [row for row in expected if row["error"] is None]
        assert len(good) == 10
        with Predictor(flexible, batch=1) as predictor:
            found = list(describe(predictor, [row["clip"] for row in good]))
        for row, one in zip(good, found, strict=True):
            assert len(row["features"]) == SIZE
            assert np.array_equal(np.float32(row["features"]), one.outputs["features"])
            assert len(row["classes"]) == 5

    def test_a_bad_clip_has_none(self, expected):
        bad = [row for row in expected if row["error"]]
        assert [row["features"] for row in bad] == [None, None]

    def test_of_several_views_they_are_the_mean(self, flexible, archive, tmp_path):
        clip = archive / "a" / "7.mkv"
        label(how(flexible, clip=THREE_CROPS), [str(clip)], tmp_path / "rows.jsonl")
        (row,) = read(tmp_path / "rows.jsonl")
        with Predictor(flexible, clip=THREE_CROPS) as predictor:
            card = predictor.card
            views = read_clip_or_reason(clip, card.config, card.preprocessing).array
            single = [predictor.batches.run(view[None])["features"][0] for view in views]
            (one,) = describe(predictor, [clip])
            (prediction,) = predictor.predict([clip], top=1)
        assert len(single) == 3
        assert not np.allclose(single[0], single[2])
        np.testing.assert_allclose(row["features"], np.mean(single, 0), rtol=1e-5, atol=1e-6)
        assert np.array_equal(np.float32(row["features"]), one.outputs["features"])
        assert one.outputs["logits"].argmax() == prediction.classes[0].index

    def test_features_that_are_not_finite_are_an_error(self, flexible, archive):
        with how(flexible).open() as predictor:
            run, card = predictor.runner.run, predictor.card
            predictor.runner.run = lambda inputs: (
                run(inputs) | {"features": np.full((4, 8), np.nan)}
            )
            clip = read_clip_or_reason(archive / "a" / "1.mkv", card.config, card.preprocessing)
            (row,) = rows_of(predictor, [clip], how(flexible))
        assert row.error == "NaN or Inf among the features of onnxruntime"
        assert row.features is None


class TestEveryWay:
    def test_parquet_has_lists_of_a_fixed_size(self, expected, flexible, archive, tmp_path):
        label(how(flexible), find_clips([archive]), tmp_path / "rows.parquet")
        table = pq.read_table(tmp_path / "rows.parquet")
        assert table.schema.field("features").type == pa.list_(pa.float32(), SIZE)
        for row, other in zip(table.to_pylist(), expected, strict=True):
            values = other["features"] and np.float32(other["features"]).tolist()
            assert row["features"] == values

    @pytest.mark.slow
    def test_jobs_batch_and_shards_do_not_change_them(self, expected, flexible, archive, tmp_path):
        clips = find_clips([archive])
        label(how(flexible, jobs=2, batch=3), clips, tmp_path / "jobs.jsonl")
        assert without_times(read(tmp_path / "jobs.jsonl")) == without_times(expected)
        found = []
        for shard in ("1/2", "2/2"):
            out = tmp_path / f"{shard[0]}.jsonl"
            label(how(flexible), in_shard(clips, shard), out)
            found += read(out)
        assert without_times(found) == without_times(expected)

    def test_a_row_that_was_torn_in_them_is_done_again(self, expected, flexible, archive, tmp_path):
        out, clips = tmp_path / "rows.jsonl", find_clips([archive])
        label(how(flexible), clips, out)
        place = out.read_bytes().rindex(b'"features": [') + 40
        out.write_bytes(out.read_bytes()[:place])
        assert label(how(flexible), clips, out).before < len(clips)
        assert without_times(read(out)) == without_times(expected)


class TestRefusals:
    def test_rows_with_and_without_them_are_not_mixed(self, flexible, archive, tmp_path):
        clips = find_clips([archive / "b"])
        for first, then, got in ((True, False, "none"), (False, True, str(SIZE))):
            out = tmp_path / f"{first}.jsonl"
            label(how(flexible, features=first), clips, out)
            with pytest.raises(OutputError, match=f"another choice of --features: got {got}, "):
                label(how(flexible, features=then), clips, out)

    def test_an_export_without_them_is_refused_before_a_file_is_made(
        self, exported, archive, tmp_path, capsys
    ):
        out, directory = tmp_path / "rows.jsonl", exported().directory
        assert main(["label", str(directory), str(archive), "-o", str(out), "--features"]) == 2
        said = capsys.readouterr().err
        assert "got logits" in said
        assert "--outputs logits,features" in said
        assert list(tmp_path.iterdir()) == []

    def test_classes_of_a_model_without_logits_are_refused(self, flexible):
        with how(flexible, top=2).open() as predictor:
            card = predictor.card
        del card.outputs["logits"]
        assert how(flexible).classes_of_a_row(card) == 0
        with pytest.raises(UsageError, match="gives no classes, but features"):
            how(flexible, top=2).classes_of_a_row(card)

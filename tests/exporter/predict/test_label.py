"""Test rows of an archive: the same in every way to run, and kept over every kill."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from exporter.cli import main
from exporter.errors import MissingPackageError, OutputError, UsageError
from exporter.predict import Predictor, rows
from exporter.predict.label import Labelling, Row, find_clips, in_shard, label, rows_of
from exporter.predict.read import read_clip_or_reason
from exporter.predict.rows import RowLog

FIELDS = ["clip", "classes", "scores", "note", "error", "seconds"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(found):
    return sorted(json.dumps({**row, "seconds": 0}, sort_keys=True) for row in found)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"jobs": -1}, "--jobs: got -1, expected 0 to 512"),
        ({"jobs": 10**6}, "--jobs: got 1000000, expected 0 to 512"),
        ({"jobs": "2"}, "--jobs: got '2'"),
        ({"jobs": None}, "--jobs: got None, expected 0 to 512"),
        ({"threads": 0}, "--threads: got 0"),
        ({"batch": 1.5}, "--batch: got 1.5"),
    ],
)
def test_a_wrong_number_is_refused_where_it_is_given(wrong, said):
    with pytest.raises(UsageError, match=said):
        Labelling("made", **wrong)


@pytest.fixture(scope="module")
def expected(flexible, archive, tmp_path_factory):
    """Label the archive clip by clip in this process."""
    out = tmp_path_factory.mktemp("expected") / "rows.jsonl"
    label(Labelling(flexible, batch=1, jobs=0), find_clips([archive]), out)
    return read(out)


class TestRows:
    def test_each_clip_has_one_row_with_the_answer_of_predict(self, expected, flexible, archive):
        assert len(expected) == 12
        assert len({row["clip"] for row in expected}) == 12
        assert all(list(row) == FIELDS for row in expected)
        good = [row for row in expected if row["error"] is None]
        assert len(good) == 10
        with Predictor(flexible, batch=1) as predictor:
            for row, found in zip(good, predictor.predict([r["clip"] for r in good]), strict=True):
                assert row["classes"] == [entry.label for entry in found.classes]
                assert row["scores"] == [round(entry.score, 6) for entry in found.classes]

    def test_a_clip_that_cannot_be_read_is_a_row_with_the_reason(self, expected):
        bad = {row["clip"].rpartition("/")[2]: row for row in expected if row["error"]}
        assert set(bad) == {"notes.txt", "empty.mkv"}
        assert "notes.txt is not a video" in bad["notes.txt"]["error"]
        assert bad["notes.txt"]["classes"] == bad["notes.txt"]["scores"] == []

    @pytest.mark.parametrize("kind", [str, Path])
    def test_one_path_is_one_clip_and_not_a_clip_for_each_letter(
        self, expected, flexible, tmp_path, kind
    ):
        row = next(row for row in expected if row["error"] is None)
        clip = kind(row["clip"])
        assert find_clips(clip) == [row["clip"]]
        with Predictor(flexible) as predictor:
            assert [found.clip for found in predictor.predict(clip)] == [row["clip"]]
        for given in (clip, [clip]):
            out = tmp_path / f"{type(given).__name__}.jsonl"
            label(Labelling(flexible, batch=1, jobs=0), given, out)
            assert without_times(read(out)) == without_times([row])

    @pytest.mark.slow
    @pytest.mark.parametrize(("jobs", "batch"), [(1, None), (2, 3)])
    def test_jobs_and_batch_do_not_change_them(
        self, jobs, batch, expected, flexible, archive, tmp_path
    ):
        how = Labelling(flexible, batch=batch, jobs=jobs)
        label(how, find_clips([archive]), tmp_path / "rows.jsonl")
        found = read(tmp_path / "rows.jsonl")
        assert without_times(found) == without_times(expected)
        assert [row["clip"] for row in found] == [row["clip"] for row in expected]

    def test_every_batch_has_the_same_size(self, flexible, archive):
        with Labelling(flexible, batch=4).open() as predictor:
            sizes, run = [], predictor.runner.run
            predictor.runner.run = lambda inputs: sizes.append(len(inputs["video"])) or run(inputs)
            how = (predictor.card.config, predictor.card.preprocessing)
            clips = [archive / "a" / f"{i}.mkv" for i in (1, 2, 4, 5, 7)]
            read = [read_clip_or_reason(clip, *how) for clip in clips]
            assert len(rows_of(predictor, read, Labelling(flexible))) == 5
        assert sizes == [4, 4]

    def test_shards_divide_them(self, expected, flexible, archive, tmp_path):
        clips = find_clips([archive])
        found = []
        for shard in ("1/3", "2/3", "3/3"):
            out = tmp_path / f"{shard[0]}.jsonl"
            label(Labelling(flexible, jobs=0), in_shard(clips, shard), out)
            found += read(out)
        assert without_times(found) == without_times(expected)

    def test_the_shard_of_a_clip_does_not_depend_on_the_others(self, archive):
        clips = find_clips([archive])
        shards = [in_shard(clips, f"{i}/3") for i in (1, 2, 3)]
        assert sorted(clip for shard in shards for clip in shard) == sorted(clips)
        assert all(shards)
        assert in_shard(clips[5:], "2/3") == [clip for clip in shards[1] if clip in clips[5:]]

    @pytest.mark.parametrize(
        "shard",
        ["0/3", "4/3", "1", "1/0", "a/b", "1/2/3", pytest.param("1/" + "9" * 5000, id="long")],
    )
    def test_a_wrong_shard_is_refused(self, shard):
        with pytest.raises(UsageError, match=r"--shard: got .*, expected i/n"):
            in_shard(["x"], shard)

    def test_parquet_has_the_same_rows(self, expected, flexible, archive, tmp_path):
        out = tmp_path / "rows.parquet"
        label(Labelling(flexible, jobs=0), find_clips([archive]), out)
        table = pq.read_table(out)
        assert table.column_names == FIELDS
        assert without_times(table.to_pylist()) == without_times(expected)
        assert not list(tmp_path.glob(".*"))

    def test_a_name_that_is_no_text_is_written_as_text(self, flexible, archive, tmp_path):
        odd = tmp_path / "clip\udcff.mkv"
        odd.write_bytes((archive / "a" / "1.mkv").read_bytes())
        for out in (tmp_path / "rows.jsonl", tmp_path / "rows.parquet"):
            label(Labelling(flexible, jobs=0), [str(odd)], out)
            assert label(Labelling(flexible, jobs=0), [str(odd)], out).added == 0
        (row,) = read(tmp_path / "rows.jsonl")
        assert row["clip"].endswith("clip\\udcff.mkv")
        assert row["error"] is None


class TestGoingOn:
    def test_clips_with_a_row_are_passed_over(self, expected, flexible, archive, tmp_path):
        out, clips = tmp_path / "rows.jsonl", find_clips([archive])
        first = label(Labelling(flexible, jobs=0), clips[:5], out)
        then = label(Labelling(flexible, jobs=0), [*clips, *clips], out)
        assert (first.before, first.added) == (0, 5)
        assert (then.before, then.added, then.bad) == (5, 7, 2)
        assert without_times(read(out)) == without_times(expected)

    def test_a_torn_last_line_is_done_again(self, expected, flexible, archive, tmp_path):
        out, clips = tmp_path / "rows.jsonl", find_clips([archive])
        label(Labelling(flexible, jobs=0), clips, out)
        for cut in (1, 40, 700):
            out.write_bytes(out.read_bytes()[:-cut])
            label(Labelling(flexible, jobs=0), clips, out)
            assert without_times(read(out)) == without_times(expected)

    @pytest.mark.slow
    def test_kills_lose_no_clip_and_double_none(self, expected, flexible, archive, tmp_path):
        out, draw = tmp_path / "rows.jsonl", random.Random(0)
        command = [sys.executable, "-m", "exporter", "label", str(flexible), str(archive)]
        command += ["-o", str(out), "--jobs", "2", "--batch", "1"]
        for wanted in (1, 3, 5, 8):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while (not out.exists() or out.read_bytes().count(b"\n") < wanted) and (
                process.poll() is None
            ):
                time.sleep(0.001 * draw.random())
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        assert without_times(read(out)) == without_times(expected)

    def test_rows_of_another_model_are_not_continued(self, flexible, exported, archive, tmp_path):
        out = tmp_path / "rows.jsonl"
        clips = find_clips([archive / "b"])
        label(Labelling(flexible, jobs=0), clips, out)
        with pytest.raises(OutputError, match="made with another model"):
            label(Labelling(exported().directory, jobs=0), clips, out)
        said = "made with another --top: got 2, expected 5; name another file with -o"
        with pytest.raises(OutputError, match=said):
            label(Labelling(flexible, jobs=0, top=2), clips, out)

    def test_a_file_without_rows_is_continued_with_any_model(self, tmp_path):
        for made_by in ({"model": "a"}, {"model": "b"}):
            with RowLog(tmp_path / "rows.jsonl", made_by) as log:
                assert list(log.rows()) == []
        with RowLog(tmp_path / "rows.jsonl", {"model": "c"}) as log:
            log.append([{"clip": "a"}])
        with pytest.raises(OutputError, match=r"another model: got d, expected c"):
            RowLog(tmp_path / "rows.jsonl", {"model": "d"})

    def test_an_error_before_the_first_row_leaves_no_file(self, tmp_path):
        with pytest.raises(ValueError, match="early"), RowLog(tmp_path / "rows.jsonl", {}):
            raise ValueError("early")
        assert list(tmp_path.iterdir()) == []

    def test_an_error_keeps_the_rows_before_it(self, tmp_path):
        with pytest.raises(ValueError, match="late"), RowLog(tmp_path / "rows.jsonl", {}) as log:
            log.append([{"clip": "a"}])
            raise ValueError("late")
        assert read(tmp_path / "rows.jsonl") == [{"clip": "a"}]
        assert (tmp_path / "rows.jsonl.job.json").exists()

    def test_a_file_of_something_else_is_left_alone(self, flexible, archive, tmp_path):
        out = tmp_path / "notes.jsonl"
        out.write_text("mine\n")
        with pytest.raises(OutputError, match="has no rows of tsformer"):
            label(Labelling(flexible, jobs=0), find_clips([archive]), out)
        assert out.read_text() == "mine\n"

    def test_two_processes_do_not_append_at_the_same_time(self, tmp_path):
        with RowLog(tmp_path / "rows.jsonl", {}), pytest.raises(OutputError, match="another"):
            RowLog(tmp_path / "rows.jsonl", {})

    @pytest.mark.parametrize("line", ["{}", pytest.param("[" * 100_000, id="nested deeply")])
    def test_a_line_that_is_no_row_is_named(self, tmp_path, line):
        with RowLog(tmp_path / "rows.jsonl", {}) as log:
            log.append([{"clip": "a"}])
        with (tmp_path / "rows.jsonl").open("a") as file:
            file.write(f"{line}\n")
        with (
            RowLog(tmp_path / "rows.jsonl", {}) as log,
            pytest.raises(OutputError, match=r"rows\.jsonl:2 is no row"),
        ):
            list(log.rows())


class TestTheCommand:
    def test_it_says_what_it_did(self, flexible, archive, tmp_path, capsys, monkeypatch):
        out = tmp_path / "rows.jsonl"
        (tmp_path / "list.txt").write_text(f"{archive}/a/1.mkv\n\nbeside.mkv\n")
        (tmp_path / "beside.mkv").write_bytes((archive / "a" / "2.mkv").read_bytes())
        given = ["label", str(flexible), "--list", str(tmp_path / "list.txt"), "-o", str(out)]
        assert main([*given, "--jobs", "1"]) == 0
        said = capsys.readouterr()
        assert said.out.startswith(f"{out}: 2 clips; ")
        assert [row["clip"] for row in read(out)] == [
            f"{archive}/a/1.mkv",
            f"{tmp_path}/beside.mkv",
        ]
        assert main([*given, str(archive / "b"), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["before"], told["added"], told["bad"]) == (2, 5, 1)

    def test_a_clip_that_does_not_exist_is_an_error_before_anything_is_written(
        self, flexible, archive, tmp_path, capsys
    ):
        given = [str(archive), f"{tmp_path}/no.mp4", "-o", f"{tmp_path}/rows.jsonl"]
        assert main(["label", str(flexible), *given]) == 3
        message = f"tsformer: video: there is no file and no folder {tmp_path}/no.mp4"
        assert capsys.readouterr().err.startswith(message)
        assert not (tmp_path / "rows.jsonl").exists()

    @pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
    def test_a_line_of_a_list_ends_at_a_line_end_alone(self, separator):
        assert find_clips([], f"a{separator}b.mp4\r\nc.mp4") == [f"a{separator}b.mp4", "c.mp4"]

    def test_a_list_comes_from_standard_input(self, flexible, archive, tmp_path):
        given = ["--list", "-", "-o", str(tmp_path / "rows.jsonl"), "--jobs", "1"]
        done = subprocess.run(
            [sys.executable, "-m", "exporter", "label", str(flexible), *given],
            input=os.fsencode(f"{archive}/a/1.mkv\n"),
            capture_output=True,
            check=True,
        )
        assert b"1 clips" in done.stdout
        assert read(tmp_path / "rows.jsonl")[0]["clip"] == f"{archive}/a/1.mkv"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["{archive}"], "usage: -o is missing"),
            (["-o", "{out}.jsonl"], "usage: no clip is given"),
            (["{archive}", "-o", "{out}.csv"], "usage: -o: got"),
            (["{archive}", "-o", "{out}.jsonl", "--jobs", "0"], "usage: --jobs: got 0"),
            (
                ["{archive}", "-o", "{out}.jsonl", "--batch", "9"],
                "usage: --batch: got 9, expected 1 to 4",
            ),
            (
                ["{archive}", "-o", "{out}.jsonl", "--top", "13"],
                "usage: --top: got 13, expected 1 to 12",
            ),
            (["{archive}", "-o", "{out}.jsonl", "--device", "gpu"], "usage: --device: got gpu"),
        ],
    )
    def test_a_wrong_argument_is_one_line(
        self, arguments, said, flexible, archive, tmp_path, capsys
    ):
        filled = [word.format(out=tmp_path / "rows", archive=archive) for word in arguments]
        assert main(["label", str(flexible), *filled]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"tsformer: {said}")
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []

    def test_parquet_without_pyarrow_names_the_extra(self, flexible, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(MissingPackageError, match="file needs pyarrow, which is not installed"):
            label(Labelling(flexible, jobs=0), ["x"], tmp_path / "rows.parquet")


def test_long_torn_lines_are_cut(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"clip": "a"}\n' + b"x" * 200_000)
    rows._cut_torn_line(path)
    assert path.read_bytes() == b'{"clip": "a"}\n'
    path.write_bytes(b"x" * 200_000)
    rows._cut_torn_line(path)
    assert path.read_bytes() == b""


def test_a_row_without_an_answer_has_an_error():
    assert Row("a", error="why").classes == ()


def test_a_job_that_comes_second_changes_nothing(tmp_path):
    out = tmp_path / "rows.jsonl"
    with RowLog(out, {"model": "first"}):
        job = tmp_path / "rows.jsonl.job.json"
        job.unlink()  # as if both had looked for it before one wrote it
        with pytest.raises(OutputError, match="another process appends"):
            RowLog(out, {"model": "second"})
        assert not job.exists()

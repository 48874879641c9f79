"""Test that a Ray cluster on this machine gives the rows of this process."""

import json
import sys

import pytest

from exporter.cli import main
from exporter.errors import MissingPackageError
from exporter.predict.label import Labelling, find_clips, label
from exporter.predict.on_ray import labeller


def rows(path):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(json.dumps({**row, "seconds": 0}, sort_keys=True) for row in found)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray leaves sockets and files open
def test_workers_of_a_cluster_give_the_same_rows(flexible, archive, tmp_path):
    clips = find_clips([archive])
    here, there = (Labelling(flexible, jobs=jobs, features=True) for jobs in (0, 2))
    label(here, clips, tmp_path / "here.jsonl")
    label(here, clips[:3], tmp_path / "ray.jsonl")
    done = label(there, clips, tmp_path / "ray.jsonl", labeller=labeller("local"))
    assert (done.before, done.added) == (3, 9)
    assert rows(tmp_path / "ray.jsonl") == rows(tmp_path / "here.jsonl")


def test_without_ray_the_extra_is_named(flexible, archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match="needs ray, which is not installed"):
        labeller("local")
    out = str(tmp_path / "rows.jsonl")
    assert main(["label", str(flexible), str(archive), "-o", out, "--ray", "local"]) == 4
    assert capsys.readouterr().err.count("\n") == 1

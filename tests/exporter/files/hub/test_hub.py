"""Test models of the Hugging Face hub against a local server that speaks its protocol.

Each test asks in a process of its own: huggingface_hub reads its environment when it is imported.
"""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download

from exporter.cli import main
from exporter.errors import MissingPackageError
from exporter.files.hub import HubName, fetch, parse_name

NOWHERE = "http://127.0.0.1:9"  # nothing listens on the port of `discard`
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"
ASK = """
import json, sys
from exporter.errors import TsformerError
from exporter.files.hub import fetch, parse_name
for name in sys.argv[1:]:
    try:
        found = fetch(parse_name(name))
        files = sorted(path.name for path in found.directory.iterdir())
        print(json.dumps({"commit": found.commit, "pinned": found.pinned, "files": files}))
    except TsformerError as error:
        print(json.dumps({"error": str(error), "stage": error.stage, "code": error.exit_code}))
"""
UPLOAD = """
import sys
from pathlib import Path
from exporter.errors import TsformerError
from exporter.files.hub import push
try:
    print(push(Path(sys.argv[1]), sys.argv[2], private=True, revision=sys.argv[3] or None))
except TsformerError as error:
    print(f"{error.stage}: {error}")
"""


def run(code: str, environment: dict[str, str], *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


def ask(environment: dict[str, str], *names: str) -> list[dict]:
    return [json.loads(line) for line in run(ASK, environment, *names)]


class TestNames:
    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("facebook/timesformer", HubName("facebook/timesformer", None)),
            ("facebook/timesformer-k400@main", HubName("facebook/timesformer-k400", "main")),
            ("a/b.c@refs/pr/1", HubName("a/b.c", "refs/pr/1")),
            ("runs/last.pth", None),
            ("runs/last.safetensors", None),
            ("/a/b", None),
            ("./a/b", None),
            ("../b", None),
            ("a/b/c", None),
            ("model", None),
            ("a/b c", None),
        ],
    )
    def test_two_words_are_a_name_unless_they_are_a_path(self, text, name):
        assert parse_name(text) == name
        assert parse_name(Path(text)) == (name if text != "./a/b" else HubName("a/b", None))

    @pytest.mark.parametrize("kind", ["file", "directory", "broken link"])
    def test_a_path_that_exists_is_never_a_name(self, tmp_path, monkeypatch, kind):
        monkeypatch.chdir(tmp_path)
        place = tmp_path / "facebook" / "timesformer"
        place.parent.mkdir()
        if kind == "file":
            place.touch()
        elif kind == "directory":
            place.mkdir()
        else:
            place.symlink_to("nothing")
        assert parse_name("facebook/timesformer") is None
        assert parse_name("facebook/other") == HubName("facebook/other", None)


@pytest.mark.slow
class TestDownload:
    def test_a_model_is_downloaded_once_and_found_offline(self, hub, environment, model_directory):
        hub.add("facebook/tiny", model_directory)
        (found,) = ask(environment, "facebook/tiny")
        assert found["commit"] == COMMIT
        assert found["pinned"] == f"facebook/tiny@{COMMIT}"
        assert found["files"] == ["config.json", "model.safetensors"]
        hub.requests.clear()
        assert ask({**environment, "HF_HUB_OFFLINE": "1"}, "facebook/tiny") == [found]
        assert hub.requests == []
        assert ask({**environment, "HF_ENDPOINT": NOWHERE}, "facebook/tiny") == [found]

    def test_a_revision_is_resolved_to_its_commit(self, hub, environment, model_directory):
        hub.add("facebook/tiny", model_directory)
        hub.add("facebook/tiny", model_directory, OTHER_COMMIT)
        names = [f"facebook/tiny@{revision}" for revision in ("old", OTHER_COMMIT, "main")]
        found = [each["commit"] for each in ask(environment, *names)]
        assert found == [OTHER_COMMIT, OTHER_COMMIT, COMMIT]

    def test_pickles_are_downloaded_only_where_there_are_no_safetensors(
        self, hub, environment, model_directory, tmp_path
    ):
        for name, files in {
            "both": ("config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5"),
            "pickle": ("config.json", "pytorch_model.bin", "README.md"),
        }.items():
            (tmp_path / name).mkdir()
            for file in files:
                (tmp_path / name / file).write_bytes(b"content")
            hub.add(f"me/{name}", tmp_path / name)
        both, pickle = ask(environment, "me/both", "me/pickle")
        assert both["files"] == ["config.json", "model.safetensors"]
        assert pickle["files"] == ["config.json", "pytorch_model.bin"]

    def test_the_token_is_sent(self, hub, environment, model_directory):
        hub.add("facebook/tiny", model_directory)
        ask({**environment, "HF_TOKEN": "hf_secret"}, "facebook/tiny")
        assert "Bearer hf_secret" in hub.tokens

    def test_what_cannot_be_read_is_one_line_each(self, hub, environment, model_directory):
        hub.add("facebook/tiny", model_directory)
        hub.gated.add("me/gated")
        wrong, gated, revision = ask(
            environment, "facebook/tyni", "me/gated", "facebook/tiny@nothing"
        )
        offline = ask({**environment, "HF_HUB_OFFLINE": "1"}, "facebook/tiny")[0]
        silent = ask({**environment, "HF_ENDPOINT": NOWHERE}, "facebook/tiny")[0]
        for answer, parts in (
            (wrong, ["facebook/tyni is neither a path here nor a repository", "HF_TOKEN"]),
            (gated, ["me/gated is gated", f"{hub.address}/me/gated", "HF_TOKEN"]),
            (revision, ["facebook/tiny has no revision 'nothing'"]),
            (offline, ["HF_HUB_OFFLINE is set", "nor in the cache", "go online"]),
            (silent, [f"{NOWHERE} does not answer", "nor in the cache", "directory"]),
        ):
            assert [part for part in parts if part not in answer["error"]] == []
            assert "\n" not in answer["error"]
            assert (answer["stage"], answer["code"]) == ("checkpoint", 3)


@pytest.mark.slow
class TestUpload:
    """The server takes files in the commit itself; large files go another way, to storage."""

    def test_a_folder_is_uploaded_to_the_branch_of_a_private_repository(
        self, hub, environment, tmp_path
    ):
        folder = tmp_path / "export"
        folder.mkdir()
        files = {"model.onnx": b"graph", "README.md": b"card", "manifest.json": b"{}"}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        environment["HF_TOKEN"] = "hf_secret"
        (address,) = run(UPLOAD, environment, str(folder), "me/gestures", "v2")
        assert address == f"{hub.address}/me/gestures/commit/{COMMIT}"
        assert hub.uploaded == files
        assert hub.branches == ["v2"]
        assert [made["name"] for made in hub.made] == ["gestures"]
        assert "private" in json.dumps(hub.made)
        assert hub.tokens - {""} == {"Bearer hf_secret"}

    def test_a_refusal_is_one_line(self, hub, environment, tmp_path):
        hub.accepts_uploads = False
        (line,) = run(UPLOAD, environment, str(tmp_path), "me/gestures", "")
        assert line.startswith("hub: ")
        assert "HF_TOKEN" in line
        (line,) = run(UPLOAD, environment, str(tmp_path), "gestures", "")
        assert line == "usage: REPOSITORY: got 'gestures', expected organisation/name"


def test_the_command_uploads_an_unchanged_export_and_shows_its_address(
    tmp_path, monkeypatch, capsys
):
    def upload(*arguments, **options):
        asked.append((arguments, options))
        return "https://hub/me/x/commit/0"

    asked = []
    monkeypatch.setattr("exporter.files.hub.push", upload)
    assert main(["push", str(tmp_path), "me/x"]) == 3  # no export
    assert asked == []
    monkeypatch.setattr("exporter.files.manifest.read_manifest", lambda _directory: {})
    monkeypatch.setattr("exporter.target.model_card.write_model_card", lambda *_: True)
    assert main(["push", str(tmp_path), "me/x", "--private", "--revision", "v2"]) == 0
    assert asked == [((tmp_path, "me/x"), {"private": True, "revision": "v2"})]
    assert capsys.readouterr().out == "https://hub/me/x/commit/0\n"


def test_without_the_library_the_error_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match="needs huggingface_hub, which is not installed"):
        fetch(HubName("facebook/absent", None))


def test_the_library_has_the_arguments_that_are_used():
    assert {"revision", "allow_patterns", "library_name"} <= {
        *inspect.signature(snapshot_download).parameters
    }
    used = {"repo_id", "folder_path", "revision", "commit_message"}
    assert used <= {*inspect.signature(HfApi.upload_folder).parameters}


@pytest.mark.slow
def test_a_model_of_the_cache_is_exported_and_verified_and_its_commit_recorded(
    hub, environment, model_directory, tmp_path
):
    hub.add("facebook/tiny", model_directory)
    ask(environment, "facebook/tiny")  # fills the cache
    out = tmp_path / "export"
    export = ["export", "--checkpoint", "facebook/tiny", "--engine", "none", "-o", str(out)]
    verify = ["verify", str(out), "--checkpoint", "facebook/tiny"]
    quick = ["--for", "onnxruntime", "--bench-seconds", "0", "--quiet"]
    both = [[*export, *quick], verify]
    code = f"from exporter.cli import main; print([main(command) for command in {both!r}])"
    offline = {**environment, "HF_HUB_OFFLINE": "1"}
    assert run(code, offline)[-1] == "[0, 0]"
    spec = json.loads((out / "manifest.json").read_text())["spec"]
    assert spec["checkpoint"] == f"facebook/tiny@{COMMIT}"
    assert spec["checkpoint_commit"] == COMMIT
    assert spec["notes"][0] == f"checkpoint facebook/tiny@{COMMIT} of the hub"

"""A local server that speaks the protocol of the Hugging Face hub, as far as tsformer uses it."""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model import TimeSformerViT
from model.families.huggingface import _LAYER, _REST

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


@dataclass
class Hub:
    """The repositories of the server, and what was asked of it.

    `files` maps a repository to its files by commit; `main` is `COMMIT`.
    """

    address: str = ""
    files: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    made: list[dict] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    accepts_uploads: bool = True

    def add(self, name: str, folder: Path, commit: str = COMMIT) -> None:
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.files.setdefault(name, {})[commit] = files


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:  # noqa: C901  # one branch an address
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._get(body=False)

        def do_GET(self) -> None:
            self._get(body=True)

        def _get(self, *, body: bool) -> None:
            self._note()
            path = self.path.partition("?")[0]
            about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            match = about or file
            files = self._find(match[1]) if match else None
            if files is None:
                return
            commit = (about[3] if about else file[2]) or "main"
            commit = {"main": COMMIT, "old": OTHER_COMMIT}.get(commit, commit)
            if commit not in files:
                self._answer(404, {"error": "Revision not found"}, code="RevisionNotFound")
            elif about and about[2] == "tree":
                self._answer(200, [_entry(*item) for item in files[commit].items()])
            elif about:
                names = [{"rfilename": name} for name in files[commit]]
                self._answer(200, {"id": about[1], "sha": commit, "siblings": names})
            elif file[3] not in files[commit]:
                self._answer(404, {"error": "Entry not found"}, code="EntryNotFound")
            else:
                content = files[commit][file[3]]
                headers = {"X-Repo-Commit": commit, "ETag": f'"{_blob(content)}"'}
                self._send(200, content, headers, body=body)

        def do_POST(self) -> None:
            self._note()
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not hub.accepts_uploads:
                self._answer(403, {"error": "You don't have the rights"})
            elif self.path == "/api/repos/create":
                hub.made.append(json.loads(content))
                name = f"{hub.made[-1]['organization']}/{hub.made[-1]['name']}"
                self._answer(200, {"url": f"{hub.address}/{name}"})
            elif self.path == "/api/validate-yaml":  # of the model card
                self._answer(200, {"errors": [], "warnings": []})
            elif "/branch/" in self.path:
                hub.branches.append(self.path.rpartition("/")[2])
                self._answer(201, {})
            elif "/preupload/" in self.path:
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                files = [{"path": each["path"], **modes} for each in json.loads(content)["files"]]
                self._answer(200, {"files": files})
            elif "/commit/" in self.path:
                for line in content.decode().splitlines():
                    entry = json.loads(line)
                    if entry["key"] == "file":
                        value = entry["value"]
                        hub.uploaded[value["path"]] = base64.b64decode(value["content"])
                name = re.fullmatch(r"/api/models/(.+)/commit/.+", self.path.partition("?")[0])[1]
                address = f"{hub.address}/{name}/commit/{COMMIT}"
                self._answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": address})
            else:
                self._answer(404, {"error": "unknown"})

        def _note(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            hub.tokens.add(self.headers.get("Authorization") or "")

        def _find(self, name: str) -> dict[str, dict[str, bytes]] | None:
            if name in hub.gated:
                self._answer(403, {"error": "gated"}, code="GatedRepo")
                return None
            if name not in hub.files:  # as the hub answers who has no token
                self._answer(401, {"error": "Repository not found"}, code="RepoNotFound")
            return hub.files.get(name)

        def _answer(self, status: int, content: object, code: str = "") -> None:
            headers = {"Content-Type": "application/json"}
            if code:
                headers |= {"X-Error-Code": code, "X-Error-Message": str(content["error"])}
            self._send(status, json.dumps(content).encode(), headers, body=self.command != "HEAD")

        def _send(self, status: int, content: bytes, headers: dict, *, body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    return Handler


def _entry(name: str, content: bytes) -> dict:
    return {"type": "file", "path": name, "size": len(content), "oid": _blob(content)}


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as served:
        yield served


@pytest.fixture
def environment(hub, tmp_path) -> dict[str, str]:
    """What a process needs to ask the local server, with a cache of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return {**kept, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache")}


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory) -> Path:
    """A small model as transformers saves it."""
    path = tmp_path_factory.mktemp("hub") / "model"
    path.mkdir()
    torch.manual_seed(0)
    model = TimeSformerViT(2, 16, 16, 3, 16, 1, 2, 8)
    state = {_published(name): tensor for name, tensor in model.state_dict().items()}
    save_file(state, path / "model.safetensors")
    config = {
        "model_type": "timesformer", "image_size": 16, "patch_size": 8, "num_frames": 2,
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path


def _published(name: str) -> str:
    rest = {ours: theirs for theirs, ours in _REST.items()}
    for theirs, ours in _LAYER.items():
        start, end = f"blocks.0.{ours}", f"timesformer.encoder.layer.0.{theirs}"
        if name.startswith(f"{start}."):
            return name.replace(start, end)
    prefix = "" if name.startswith("head") else "timesformer."
    return prefix + rest[name]

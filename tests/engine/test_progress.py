"""Loading tells how far it is and can be stopped, from a folder and from a hub (a small one, served here)."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from workbench.engine import progress
from workbench.engine.loading import PRETRAINED, load

COMMIT = "a" * 40
DRAFT = PRETRAINED / "draft"


class Hub(BaseHTTPRequestHandler):
    """The few answers of a model hub that a download needs, for the files of `folder`."""

    folder: Path

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        files = {file.name: file.read_bytes() for file in sorted(self.folder.iterdir())}
        if "/tree/" in path:
            rows = [{"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                    for n, d in files.items()]  # fmt: skip
            self._send(json.dumps(rows).encode())
        elif path.startswith("/api/models/"):
            found = {"id": "some/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            self._send(json.dumps(found).encode())
        else:
            self._send(files[path.rsplit("/", 1)[1]])

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on this machine that has one model, `some/model`, which is the embedded draft."""
    from huggingface_hub import constants

    folder = tmp_path / "files"
    folder.mkdir()
    for file in (*DRAFT.iterdir(), *(PRETRAINED / "tokenizer").iterdir()):
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    template = f"{constants.ENDPOINT}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield folder
    server.shutdown()
    server.server_close()


def test_a_download_is_told_in_bytes_and_leaves_pickles_alone(hub):
    """Every byte fetched is counted once, and what is no weight, tokenizer or card stays where it is."""
    told = []
    folder = Path(progress.download("some/model", None, lambda done, total: told.append((done, total))))
    fetched = sum(file.stat().st_size for file in folder.iterdir())
    assert told[-1] == (fetched, fetched)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert not (folder / "pytorch_model.bin").exists() and (folder / "model.safetensors").exists()


def test_a_download_can_be_stopped(hub):
    """What `progress` raises ends the download, and comes out as it is."""

    def stop(done, total):
        raise progress.Cancelled("stopped")

    with pytest.raises(progress.Cancelled, match="stopped"):
        progress.download("some/model", None, stop)


def test_reading_is_told_and_can_be_stopped(tmp_path):
    """From nothing to all bytes of the weights; a stop in the middle leaves no model behind, and loading works after."""
    told = []

    def halfway(done, total):
        told.append((done, total))
        if 2 * done > total:
            raise progress.Cancelled("stopped")

    copy = tmp_path / "model"
    copy.mkdir()
    for file in (*DRAFT.iterdir(), *(PRETRAINED / "tokenizer").iterdir()):
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    size = (copy / "model.safetensors").stat().st_size
    with pytest.raises(progress.Cancelled, match="stopped"):
        load(copy, progress=halfway)
    assert told[0] == (0, size) and size / 2 < told[-1][0] < size
    told.clear()
    load(copy, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (size, size)

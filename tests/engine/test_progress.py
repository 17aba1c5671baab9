"""Loading tells how far it is and can be stopped, from a folder and from a hub (a small one, served here)."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from workbench.errors import Cancelled
from workbench.models import hub as hubs
from workbench.models.loading import PRETRAINED, load

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
            found = files.get(path.rsplit("/", 1)[1])
            self._send(found or b"", 404 if found is None else 200)

    def _send(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture(scope="module")
def server():
    """A server of its own for this module: the hub's library remembers the first address that it is given."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(server, monkeypatch, tmp_path):
    """The folder of a hub on this machine that has one model, `some/model`, which is the embedded draft."""
    from huggingface_hub import constants, hf_api

    folder = tmp_path / "files"
    folder.mkdir()
    for file in (*DRAFT.iterdir(), *(PRETRAINED / "tokenizer").iterdir()):
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    monkeypatch.setattr(Hub, "folder", folder, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", server)
    monkeypatch.setattr(hf_api.api, "endpoint", server)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hubs, "reachable", lambda: True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return folder


def test_a_download_is_told_in_bytes(hub):
    """Every byte of the weights is counted once while they are fetched, and again while they are read."""
    told = []
    lm = load("some/model", progress=lambda *now: told.append(now))
    size = (hub / "model.safetensors").stat().st_size
    fetched = [now for now in told if now[0] == "fetching"]
    assert fetched[-1] == ("fetching", size, size) and fetched == sorted(fetched) and len(fetched) < len(told)
    assert lm.vocab_size == load("embedded-draft").vocab_size


def test_a_download_of_several_files_is_told_as_one(hub):
    """The parts of a checkpoint count together, up to the size that its index names."""
    whole = load_file(hub / "model.safetensors")
    (hub / "model.safetensors").unlink()
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    names = sorted(whole)
    for file, part in zip(files, (names[:5], names[5:]), strict=True):
        save_file({name: whole[name] for name in part}, hub / file, {"format": "pt"})
    table = {name: files[number >= 5] for number, name in enumerate(names)}
    size = sum((hub / file).stat().st_size for file in files)
    (hub / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": table})
    )
    told = []
    load("some/model", progress=lambda *now: told.append(now))
    fetched = [now for now in told if now[0] == "fetching"]
    assert fetched[-1] == ("fetching", size, size) and {total for _, _, total in fetched} == {size}
    assert [done for _, done, _ in fetched] == sorted(done for _, done, _ in fetched)


def test_a_download_can_be_stopped(hub):
    """What `progress` raises ends the download, and comes out as it is."""

    def stop(step, done, total):
        raise Cancelled(f"stopped while {step}")

    with pytest.raises(Cancelled, match="stopped while fetching"):
        load("some/model", progress=stop)


def test_reading_is_told_and_can_be_stopped(tmp_path):
    """From nothing to all bytes of the weights; a stop in the middle leaves no model, and loading works after."""
    told = []

    def halfway(step, done, total):
        told.append((done, total))
        if 2 * done > total:
            raise Cancelled("stopped")

    copy = tmp_path / "model"
    copy.mkdir()
    for file in (*DRAFT.iterdir(), *(PRETRAINED / "tokenizer").iterdir()):
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    with pytest.raises(Cancelled, match="stopped"):
        load(copy, progress=halfway)
    size = told[0][1]
    assert told[0] == (0, size) and size / 2 < told[-1][0] < size
    told.clear()
    load(copy, progress=lambda step, done, total: told.append((done, total)))
    assert told[-1] == (size, size)

"""The app in process: visitors that press its buttons as a browser would, a served copy, and its pages in Chromium."""

import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.app.visitor import Visitor
from tests.conftest import PATIENCE
from workbench import declare


@pytest.fixture(scope="session")
def app():
    """The app, built once."""
    from workbench.dashboard import build_app

    return build_app()


@pytest.fixture
def visitor(app, request):
    """A page of its own."""
    return Visitor(app, request.node.name)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A package installed for one test that offers a decoder through the entry-point group; its name there."""
    (tmp_path / "throwaway_decoder.py").write_text(
        "from dataclasses import dataclass\n"
        "from workbench.declare import setting\n"
        "from workbench.decoders import Decoder\n"
        "@dataclass(frozen=True)\n"
        "class Always(Decoder):\n"
        "    '''Writes the same token for ever.'''\n"
        "    token: int = setting(7, ge=0, le=50, help='id of the token')\n"
        "    def guarantee(self, sampling): return 'lossy'\n"
        "    def decode_round(self, state, r):\n"
        "        dist = r.dist(r.advance('target').logits)\n"
        "        r.append(dist, [0], [self.token], ['target'])\n"
    )
    info = tmp_path / "throwaway_decoder-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: throwaway-decoder\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[decoding_workbench]\ndecoder.always = throwaway_decoder:Always\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(declare.plugins, "_loaded", False)
    yield "always"
    declare.registry.KNOWN["decoder"].pop("always", None)
    sys.modules.pop("throwaway_decoder", None)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def served():
    """The app on a free port of this machine; gives its address."""
    from workbench.dashboard import launch

    port = free_port()
    app = launch(port=port, browser=False, wait=False)
    yield f"http://127.0.0.1:{port}/"
    app.close()


class Mortal:
    """The app as a process of its own, to be killed; `again` serves it anew on the same port, from this process."""

    def __init__(self):
        self.port, self.process, self.app = free_port(), None, None

    def start(self) -> str:
        command = [sys.executable, "-m", "workbench", "app", "--no-browser", f"--port={self.port}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        said = self.process.stdout.readline()
        assert str(self.port) in said, said
        return f"http://127.0.0.1:{self.port}/"

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def again(self) -> None:
        from workbench.dashboard import launch

        self.app = launch(port=self.port, browser=False, wait=False)


@pytest.fixture
def mortal():
    """A server that a test may kill and bring back."""
    server = Mortal()
    yield server
    server.kill()
    if server.app is not None:
        server.app.close()


@pytest.fixture
def open_page(chromium, served):
    """Opens the app in a window of a given size, light or dark, `script` before all else; at the end no request may
    have left the machine, no script failed."""
    pages = []

    def open_(width: int = 1400, height: int = 900, at: str = served, scheme: str = "light", script: str = ""):
        size = {"width": width, "height": height}
        context = chromium.new_context(viewport=size, accept_downloads=True, color_scheme=scheme)
        page = context.new_page()
        page.add_init_script(f"localStorage.setItem('workbench-tour', 'seen'); {script}")
        page.set_default_timeout(PATIENCE)
        seen = SimpleNamespace(context=context, own=at, requests=[], errors=[])
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.goto(at)
        page.wait_for_selector(".wb-token", timeout=PATIENCE)
        pages.append(seen)
        return page

    yield open_
    for seen in pages:
        seen.context.close()
        assert not seen.errors
        strange = [url for url in seen.requests if not url.startswith((seen.own, "blob:", "data:"))]
        assert not strange

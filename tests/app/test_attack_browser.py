"""In a real browser: a page of another local port gets nowhere, and no visitor's file is ever read."""

import builtins
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.app.conftest import free_port
from tests.conftest import PATIENCE
from workbench.dashboard import serve
from workbench.dashboard.security import Rules
from workbench.dashboard.uploads import UPLOADS
from workbench.dashboard.visits import VISITS

from gradio.blocks import Blocks  # isort: skip

pytestmark = pytest.mark.browser
TOKEN = ".wb-token[role=option]"
EVENT = json.dumps({"fn_index": 2, "data": [], "session_hash": "attacker"})
ATTACK = """async ([app, event]) => {
  const tried = {}, attempt = async (name, what) => {
    try { const reply = await what(); tried[name] = reply.type === 'opaque' ? 'opaque' : await reply.text(); }
    catch { tried[name] = 'refused'; }
  };
  const json = {'Content-Type': 'application/json'}, form = new FormData();
  form.append('files', new Blob(['{}']), 'a.wb');
  await attempt('read', () => fetch(app + 'config', {credentials: 'include'}));
  await attempt('watch', () => fetch(app + 'live/attacker'));
  for (const path of ['gradio_api/queue/join', 'gradio_api/run/predict']) {
    await attempt('drive ' + path, () => fetch(app + path, {method: 'POST', headers: json, body: event}));
    await attempt('blind ' + path, () => fetch(app + path, {method: 'POST', mode: 'no-cors', body: event}));
  }
  await attempt('upload', () => fetch(app + 'gradio_api/upload', {method: 'POST', mode: 'no-cors', body: form}));
  await attempt('beat', () => fetch(app + 'gradio_api/heartbeat/attacker', {mode: 'no-cors'}));
  for (const [kind, path] of [['script', 'config'], ['img', 'live/attacker'], ['script', 'theme.css']]) {
    tried[kind + ' ' + path] = await new Promise((done) => {
      const one = document.createElement(kind);
      [one.onload, one.onerror] = [() => done('loaded'), () => done('refused')];
      one.src = app + path;
      document.body.append(one);
    });
  }
  const frame = document.createElement('iframe');
  frame.name = 'framed';
  const shown = new Promise((done) => { frame.onload = done; });
  frame.src = app;
  document.body.append(frame);
  await shown;
  return tried;
}"""


class Empty(BaseHTTPRequestHandler):
    """A page of somebody else."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>attacker</title><body></body>")

    def log_message(self, *values):
        pass


@pytest.fixture
def attacker():
    """The address of a page of another port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_a_page_of_another_port_can_neither_drive_nor_read_nor_frame_the_app(chromium, served, attacker, monkeypatch):
    """Such a page once read `/etc/passwd` through a run that it had started."""
    fired = []
    real = Blocks.process_api

    def process(self, fn, *values, **more):
        who = getattr(more.get("request"), "session_hash", None)
        if fn.api_name != "closed" or who == "attacker":  # the page of an earlier test may just have been closed
            fired.append((fn.api_name, who))
        return real(self, fn, *values, **more)

    monkeypatch.setattr(Blocks, "process_api", process)
    context = chromium.new_context()
    page = context.new_page()
    page.goto(attacker)
    tried = page.evaluate(ATTACK, [served, EVENT])
    framed = page.frame("framed")
    assert framed is not None and "workbench" not in framed.content() and framed.query_selector("gradio-app") is None
    context.close()
    assert {name: found for name, found in tried.items() if found not in ("refused", "opaque")} == {}
    assert len(tried) == 11 and fired == [] and "attacker" not in VISITS and UPLOADS._files == {}


FIRE = """async ([settings, path]) => {
  const config = window.gradio_config;
  const fired = (name) => config.dependencies.find((one) => one.api_name === name), event = fired('go');
  const named = (id) => config.components.find((one) => one.id === id);
  const values = fired('fill_go').inputs.map((id) => {
    const {label, info, value} = named(id).props;
    const asked = label in settings && (label !== 'corpus' || info.startsWith('a text file'));
    return asked ? settings[label] : value ?? null;
  });
  const data = [null, JSON.stringify({values, told: {}})];
  const hash = performance.getEntriesByType('resource').map((one) => one.name.match(/heartbeat\\/(\\w+)/)?.[1])
    .find(Boolean) ?? settings.hash;
  const reply = await fetch('gradio_api/queue/join', {method: 'POST', headers: {'Content-Type': 'application/json'},
    body: JSON.stringify({fn_index: event.id, data, session_hash: hash})});
  const told = await (await fetch('gradio_api/queue/data?session_hash=' + hash)).text();
  return [reply.status, told];
}"""


def test_a_visitor_s_file_never_reaches_the_disk_whatever_the_page_sends(chromium, tmp_path, monkeypatch):
    """The control may be off: a script can send what it likes. The owner's parameters are refused before anything."""
    secret, port, opened = tmp_path / "secret.txt", free_port(), []
    secret.write_text("root:x:0:0:")
    monkeypatch.setattr(serve, "rules_of", lambda *values: Rules(token="the-token", owner=False))
    app = serve.launch(port=port, browser=False, wait=False)
    try:
        context = chromium.new_context()
        page = context.new_page()
        assert page.goto(f"http://127.0.0.1:{port}/").status == 401
        page.goto(f"http://127.0.0.1:{port}/?token=the-token")
        page.wait_for_selector(TOKEN, timeout=PATIENCE)
        assert page.url.endswith(f":{port}/")  # the token has left the address
        for module, name in ((builtins, "open"), (os, "stat"), (os, "open"), (os, "scandir")):
            real = getattr(module, name)
            monkeypatch.setattr(
                module,
                name,
                lambda path, *rest, real=real, **more: (opened.append(str(path)), real(path, *rest, **more))[1],
            )
        hash = next(visit.name for visit in VISITS.values() if visit.client)
        settings = {"decoder": "speculative", "drafter": "suffix", "corpus": str(secret), "hash": hash}
        status, told = page.evaluate(FIRE, [settings, str(secret)])
        context.close()
        assert status == 200 and "drafter.corpus: only the owner of this app may set that" in told
        assert not [path for path in opened if "secret" in path]
    finally:
        app.close()

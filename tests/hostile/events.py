"""Hostile events of the app: wrong values in its controls, bodies that are no events, uploads that are none."""

import asyncio
import json
import threading
from contextlib import ExitStack
from functools import cache
from typing import Any
from unittest.mock import patch

import workbench.dashboard  # noqa: F401  (before gradio: it switches the analytics off)

import gradio as gr  # isort: skip
from gradio.state_holder import SessionState  # isort: skip
from hypothesis import strategies as st
from starlette.applications import Starlette

from workbench.dashboard import build_app, experiments, jobs, paying
from workbench.dashboard.limits import Pages
from workbench.dashboard.security import Gate, Rules
from workbench.dashboard.uploads import ROUTES, UPLOADS
from workbench.dashboard.visits import VISITS
from workbench.errors import BadInput

__all__ = ["CORPORA"]

EVENTS = (
    "start", "go", "step", "run", "pause", "tick", "pick", "lost", "preset", "reset", "adopt", "edited", "cancel",
    "choose", "forget", "fork", "resettle", "figures", "beside", "left", "right", "add", "compare", "stop", "beat",
    "measure", "enough", "pulse", "baseline", "paying", "verify", "open", "copy", "save", "capsule", "perfetto",
    "csv", "json", "failed",
)  # fmt: skip
META = {"_type": "gradio.FileData"}
texts = st.one_of(
    st.text(max_size=20),
    st.integers(10_000, 30_000).map("a".__mul__),
    st.sampled_from(["", "\x00", "\ud800", "entropy >", "index >= 1 and (", "</script>", "speculative", "h2o", "1e999",
                     "nan", "../../etc/passwd", "http://evil.example/x", "\u202e\u0301", "{{7*7}}"]),
)  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 600), st.integers(), st.floats(), texts,
    st.sampled_from([10**400, -(2**63), 1e308, 5e-324]),
)  # fmt: skip
files = st.fixed_dictionaries(
    {"path": st.one_of(scalars, st.just("/etc/hostname"))},
    optional={"url": texts, "meta": st.just(META), "size": scalars, "is_stream": st.booleans(), "orig_name": texts},
)
values = st.recursive(
    st.one_of(scalars, files),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
likely = {  # what the page says with its events, and what may stand there instead
    "by": ["phase", "round", "token"], "until": ["", "index >= 1", "entropy > 3"], "pace": [0, 0.1],
    "index": [0, 1], "token": [7, 300], "text": [" if", ""], "run": [0, 1], "name": ["cache cliff", "long context"],
}  # fmt: skip
told = st.one_of(
    st.none(),
    values,
    st.fixed_dictionaries({}, optional={name: st.sampled_from(usual) | values for name, usual in likely.items()}),
)
wrong = st.lists(st.tuples(st.integers(0, 800), values), min_size=1, max_size=3)


class Page:
    """A page of the app without a browser, over one loop of its own; it has run a round, and another is open."""

    def __init__(self):
        self.app = build_app(anything=False)
        self.session = SessionState(self.app)
        self.events = {fn.api_name: fn for fn in self.app.fns.values()}
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True, name="hostile events").start()
        small = {"max new tokens": 3, "decoder": "speculative"}
        self.usual = {
            number: small.get(getattr(block, "label", None), getattr(block, "value", None))
            for number, block in self.app.blocks.items()
        }
        self.form = [block._id for block in self.events["fill_go"].inputs]
        self.begin()

    def begin(self) -> None:
        for name, told in (("loaded", None), ("start", None), ("step", {}), ("step", {"by": "phase"})):
            self.fire(name, [], told)

    def fire(self, name: str, wrong: list, data: Any = None) -> None:
        """Fire an event; wrong: (place, value) of controls that do not hold what they usually do, also in the form, of
        which the page makes one text."""
        fn = self.events[name]
        inputs = [None if block.stateful else self.usual[block._id] for block in fn.inputs]
        held = [place for place, block in enumerate(fn.inputs) if block.elem_id == "filled"]
        form = [self.usual[number] for number in self.form]
        for place, value in wrong if inputs else ():
            part = form if held and place >= len(inputs) else inputs
            part[place % len(part)] = value
        for place in held:
            if inputs[place] == self.usual[fn.inputs[place]._id]:
                inputs[place] = json.dumps({"values": form, "told": data if data is not None else {}})
        told = {"request": gr.Request(session_hash="hostile"), "event_data": gr.EventData(None, data)}
        options = {"state": self.session, **told}
        work = self.app.process_api(fn, inputs, **options)
        asyncio.run_coroutine_threadsafe(work, self.loop).result()


@cache
def page() -> Page:
    return Page()


def fire(event: tuple[str, list, Any]) -> None:
    """Nothing decodes for long: workers, comparisons and measurements are made, and not started."""
    here, (name, wrong, data) = page(), event
    kinds = (jobs.Worker, experiments.Compared, experiments.Measured, paying.Plain)
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(patch.object(kind, "start"))
        try:
            here.fire(name, wrong, data)
        except gr.Error as error:
            assert "unexpected" not in error.message and "Traceback" not in error.message, error.message
            raise BadInput(error.message) from None
        finally:
            visit = VISITS["hostile"]
            visit.worker, visit.jobs = None, {}
            if not 0 < len(visit.branches) < 8:
                visit.close()
                here.session = SessionState(here.app)  # as Gradio forgets a page that is gone
                here.begin()


# -- requests ---------------------------------------------------------------------------------------------------------

API = "/gradio_api/"
PATHS = ("/", "/config", "/live/x", f"{API}queue/join", f"{API}run/predict", f"{API}queue/data", f"{API}heartbeat/x",
         f"{API}upload", f"{API}file=/etc/hostname", f"{API}cancel")  # fmt: skip
NAMES = ("host", "origin", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest", "cookie", "authorization",
         "content-type", "content-length", "forwarded", "x-forwarded-for")  # fmt: skip
LIKELY = ("127.0.0.1:7860", "http://127.0.0.1:7860", "null", "http://evil.example", "same-origin", "cross-site",
          "navigate", "iframe", "workbench-7860=x", "Bearer x", "multipart/form-data; boundary=x", "[::1", "http://[",
          "a,b;c=\"", "17")  # fmt: skip
event = st.fixed_dictionaries({}, optional={
    "fn_index": st.one_of(st.just(3), values), "data": st.one_of(st.lists(values, min_size=2, max_size=2), values),
    "session_hash": st.one_of(st.just("abc"), values), "trigger_id": values, "event_data": values, "event_id": values,
})  # fmt: skip
bodies = st.one_of(
    st.binary(max_size=60), st.one_of(event, values).map(lambda one: json.dumps(one).encode()),
    st.just(b"[" * 50_000), st.just(b'{"fn_index": 1' + b"0" * 5000 + b"}"),
)  # fmt: skip
headers = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.one_of(st.sampled_from(LIKELY), st.text(st.characters(max_codepoint=255), max_size=20)),
    ),
    max_size=4,
)
requests = st.tuples(
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT"]), st.one_of(st.sampled_from(PATHS), texts), headers,
    bodies,
    st.sampled_from(["", "token=x", "token=secret", "session_hash=abc", "%ff=%", "token=%ff&token"]),
)  # fmt: skip


async def _inner(scope: dict, receive: Any, send: Any) -> None:
    message = await receive()
    if scope["method"] == "POST":  # what goes on is an event, whole
        event = json.loads(message["body"])
        assert event["fn_index"] == 3 and len(event["data"]) == 2 and event["session_hash"].isascii()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


class Two:
    """An event of two controls."""

    inputs = (1, 2)


def ask(app: Any, method: str, path: str, headers: list, body: bytes, query: str = "") -> None:
    """Ask; a refusal is raised as BadInput, a server error or an answer of several lines is a fault."""
    given, answer = [{"type": "http.request", "body": body}], []
    told = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": b"", "query_string": query.encode(),
        "root_path": "", "headers": told, "client": ("10.0.0.1", 1),
        "server": ("127.0.0.1", 7860), "scheme": "http", "http_version": "1.1",
    }  # fmt: skip

    async def receive() -> dict:
        return given.pop() if given else {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        answer.append(message)

    asyncio.run_coroutine_threadsafe(app(scope, receive, send), page().loop).result()
    status, text = answer[0]["status"], b"".join(one.get("body", b"") for one in answer[1:]).decode()
    assert status < 500 and (status < 300 or "\n" not in text), (status, text)
    if status >= 400:
        raise BadInput(json.loads(text)["detail"] if text.startswith("{") else text or str(status))


def request(asked: tuple) -> None:
    method, path, headers, body, query = asked
    told = [("host", "127.0.0.1:7860"), *headers]
    for rules in (Rules("0.0.0.0", "secret", owner=False), Rules()):
        refused = None
        try:
            ask(Gate(_inner_for(path), rules, {3: Two}, Pages(True)), method, path, told, body, query)
        except BadInput as error:
            refused = error
    if refused is not None:
        raise refused


def _inner_for(path: str) -> Any:
    return Starlette(routes=ROUTES) if path == "/gradio_api/upload" else _inner


edge = b"--x\r\nContent-Disposition: form-data; name="
forms = st.one_of(
    st.binary(max_size=80),
    st.tuples(st.sampled_from([b'"files"', b'"other"', b"", b'"files"; filename="a.wb"', b'"files"; filename="../../x"',
                               b'"files"; filename="\xff"', b'"files"; filename=".."', b'"files"; filename="\x00"']),
              st.binary(max_size=30), st.sampled_from([b"\r\n--x--\r\n", b"", b"\r\n--x\r\n"])).map(
        lambda form: edge + form[0] + b"\r\n\r\n" + form[1] + form[2]),
)  # fmt: skip


def upload(form: bytes) -> None:
    """Whatever was sent, nothing stays on the disk for long."""
    kind = [("content-type", "multipart/form-data; boundary=x"), ("content-length", str(len(form)))]
    try:
        ask(Starlette(routes=ROUTES), "POST", "/gradio_api/upload", kind, form)
    finally:
        UPLOADS.forget(-1.0)
        assert UPLOADS._files == {}


CORPORA = {
    "events": (st.tuples(st.sampled_from(EVENTS), wrong, told), fire),
    "requests": (requests, request),
    "uploads": (forms, upload),
}

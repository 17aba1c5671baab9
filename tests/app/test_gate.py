"""The gate before the app: who is let in, what is served, and what browsers are told to do with it."""

import base64
import hashlib
import itertools
import json
import re
from types import SimpleNamespace

import pytest

import workbench.dashboard  # noqa: F401  (before gradio: it switches the analytics off)
from workbench.cli import main
from workbench.dashboard import limits
from workbench.dashboard.limits import Pages
from workbench.dashboard.security import INLINE, POLICY, Gate, Rules
from workbench.dashboard.serve import rules_of

from starlette.responses import HTMLResponse  # isort: skip
from starlette.testclient import TestClient  # isort: skip

OWNER = Rules()
HERE = "127.0.0.1:7860"
PAGE = b"<script>let a = 1;</script><script src='x.js'></script><script type='module'>\n b()</script>"
EVENT = {"fn_index": 3, "data": [1, 2], "session_hash": "abc", "event_data": None, "trigger_id": 5}
FOREIGN = (
    "http://127.0.0.1:9999",
    "http://localhost:7861",
    "https://evil.example",
    "null",
    "http://127.0.0.1:7860.evil.example",
)
PATHS = (
    "/",
    "/config",
    "/live/abc",
    "/assets/a.js",
    "/gradio_api/queue/join",
    "/gradio_api/upload",
    "/gradio_api/run/predict",
)


class Behind:
    """A gate before an app that notes what reaches it."""

    def __init__(self, rules: Rules = OWNER, limited: bool = False, client: str = "10.0.0.9"):
        self.reached: list[tuple[str, str, bytes]] = []

        async def app(scope, receive, send):
            body = (await receive()).get("body", b"")
            self.reached.append((scope["method"], scope["path"], body))
            headers = {"access-control-allow-origin": "*", "access-control-allow-credentials": "true"}
            await HTMLResponse(PAGE, headers=headers)(scope, receive, send)

        gate = Gate(app, rules, {3: SimpleNamespace(inputs=["a", "b"])}, Pages(limited))
        self.browser = TestClient(gate, base_url=f"http://{HERE}", client=(client, 5))

    def ask(self, method: str, path: str, headers: dict | None = None, **more):
        return self.browser.request(method, path, headers=headers or {}, **more)


def one_line(reply, status: int, says: str = "") -> None:
    assert reply.status_code == status, reply.text
    assert says in reply.json()["detail"] and "\n" not in reply.text


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_page_of_another_origin_reaches_nothing(origin):
    """A page of any other local port once read files through the app; beyond loopback every origin was reflected."""
    for rules in (Rules(), Rules("0.0.0.0", "secret", owner=False)):
        behind = Behind(rules)
        behind.browser.cookies.set("workbench-7860", "secret")
        for path, method in itertools.product(PATHS, ("GET", "POST", "PUT", "OPTIONS")):
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            reply = behind.ask(method, path, asked, content=json.dumps(EVENT))
            one_line(reply, 403, "another origin")
            assert not [name for name in reply.headers if name.startswith("access-control-")]
        assert behind.reached == []


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_a_browser_says_of_a_page_elsewhere_is_heeded_where_there_is_no_origin(site):
    """Pictures, scripts and frames of another page come without an Origin; the site alone leaves out the port."""
    behind = Behind()
    for path, mode, dest in (
        ("/live/a", "no-cors", "image"), ("/assets/a.js", "no-cors", "script"), ("/", "cors", "empty"),
        ("/", "navigate", "iframe"), ("/config", "navigate", "document"),
    ):  # fmt: skip
        told = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
        one_line(behind.ask("GET", path, told), 403, "another origin")
    one_line(behind.ask("POST", "/", {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}), 403)
    one_line(behind.ask("POST", "/gradio_api/queue/join", {"Sec-Fetch-Site": "none"}, json=EVENT), 403)
    assert behind.reached == []
    link = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert behind.ask("GET", "/", link).status_code == 200  # a link is followed
    framed = Behind(Rules(frames=("https://wiki.example",)))
    assert framed.ask("GET", "/", {**link, "Sec-Fetch-Dest": "iframe"}).status_code == 200


def test_the_page_itself_and_scripts_without_a_browser_are_let_in():
    behind = Behind()
    own = {"Origin": f"http://{HERE}", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    for headers in ({}, own):
        assert behind.ask("POST", "/gradio_api/queue/join", headers, json=EVENT).status_code == 200
        reply = behind.ask("GET", "/config", headers)
        assert reply.status_code == 200 and not [name for name in reply.headers if name.startswith("access-control-")]


def test_other_names_and_what_a_proxy_passes_on_are_refused_to_the_owner_s_app():
    """The owner's app has no token: a rebound name, or others led to this address by a proxy, would be the owner."""
    behind = Behind()
    for host in ("evil.example", "evil.example:7860", "127.0.0.1.evil.example", ""):
        one_line(behind.ask("GET", "/", {"Host": host}), 400, "name")
    for name in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        one_line(behind.ask("GET", "/", {name: "10.0.0.1"}), 403, "behind a proxy")
    assert behind.reached == []
    assert behind.ask("GET", "/", {"Host": "localhost:1"}).status_code == 200
    open_to_all = Behind(Rules("0.0.0.0", "", owner=False))
    assert open_to_all.ask("GET", "/", {"Host": "192.168.1.5:7860"}).status_code == 200
    one_line(open_to_all.ask("GET", "/", {"Host": "evil.example"}), 400)


def test_only_what_the_page_needs_is_served():
    """Gradio has some sixty routes, and every release brings new ones."""
    behind = Behind()
    closed = (
        "file=/etc/passwd", "file/x", "proxy=http://x", "component_server", "stream/1", "call/go", "call/v2/go", "runs",
        "process_recording", "vibe-edit", "deep_link", "openapi.json", "dev/reload", "run/go", "cancel",
    )  # fmt: skip
    for path in (*(f"/gradio_api/{name}" for name in closed), "/monitoring", "/login", "/docs", "/custom", "/live"):
        for method in ("GET", "POST"):
            one_line(behind.ask(method, path), 404, "nothing is served here")
    one_line(behind.ask("DELETE", "/"), 404)
    assert behind.reached == []


def test_a_token_opens_the_app_beyond_this_machine():
    behind = Behind(Rules("0.0.0.0", "right-one", owner=False))
    for path in ("/", "/config", "/assets/a.js", "/live/a"):
        one_line(behind.ask("GET", path), 401, "a token is needed")
    one_line(behind.ask("POST", "/gradio_api/queue/join", json=EVENT), 401)
    assert behind.reached == []
    assert behind.ask("GET", "/config", {"Authorization": "Bearer right-one"}).status_code == 200
    reply = behind.ask("GET", "/?token=right-one")
    assert reply.headers["set-cookie"] == "workbench-7860=right-one; Path=/; HttpOnly; SameSite=Strict"
    assert behind.ask("GET", "/config").status_code == 200  # the cookie is kept
    behind.browser.cookies.clear()
    for _ in range(10):
        one_line(behind.ask("GET", "/?token=wrong"), 401)
    one_line(behind.ask("GET", "/?token=right-on"), 429, "too many wrong tokens")
    assert behind.ask("GET", "/?token=right-one").status_code == 200


def test_who_is_alone_is_decided_by_the_address_and_where_others_are_led(monkeypatch):
    for host in ("127.0.0.1", "localhost", "::1"):
        assert rules_of(host).owner and rules_of(host).token == ""
    for host in ("0.0.0.0", "::", "192.168.1.5", "127.1"):
        rules = rules_of(host)
        assert not rules.owner and len(rules.token) >= 32 and rules.token != rules_of(host).token
    assert rules_of("0.0.0.0", "mine").token == "mine" and rules_of("0.0.0.0", "").token == ""
    monkeypatch.setenv("GRADIO_ROOT_PATH", "/proxied")
    assert not rules_of("127.0.0.1").owner and rules_of("127.0.0.1").token


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--allow-frame", "example.org"],
            "--allow-frame: expected an origin such as https://example.org, got 'example.org'",
        ),
        (["--allow-frame", "https://a.b/c"], "expected an origin"),
        (["--allow-frame", "*"], "expected an origin"),
        (["--token", "two words"], "--token: expected letters"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(capsys, words, line):
    assert main(["app", "--no-browser", *words]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


def test_every_answer_says_what_a_browser_may_do_with_it():
    """Inline scripts run by their hash alone; `'unsafe-inline'` and `'unsafe-eval'` stand where Gradio needs them."""
    loose = {name: re.findall(r"'unsafe-\w+'", value) for name, value in POLICY.items() if "unsafe" in value}
    assert loose == {"script-src": ["'unsafe-eval'"], "style-src": ["'unsafe-inline'"]}
    assert POLICY["default-src"] == "'self'" and not any("*" in value or "http" in value for value in POLICY.values())
    behind = Behind()
    hashes = [base64.b64encode(hashlib.sha256(one).digest()).decode() for one in (b"let a = 1;", b"\n b()")]
    for reply in (behind.ask("GET", "/"), behind.ask("GET", "/config"), behind.ask("GET", "/nothing")):
        policy = reply.headers["content-security-policy"]
        assert policy.endswith("frame-ancestors 'self'") and reply.headers["x-frame-options"] == "SAMEORIGIN"
        assert (
            reply.headers["x-content-type-options"] == "nosniff" and reply.headers["referrer-policy"] == "same-origin"
        )
        assert all((f"'sha256-{one}'" in policy) == (reply.url.path == "/") for one in hashes)
    framed = Behind(Rules(frames=("https://wiki.example",))).ask("GET", "/")
    assert framed.headers["content-security-policy"].endswith("frame-ancestors 'self' https://wiki.example")
    assert "x-frame-options" not in framed.headers


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"3", b'"text"', b"\xff", b"[" * 20_000, json.dumps({**EVENT, "fn_index": 99}).encode(),
        *(json.dumps({**EVENT, **wrong}).encode() for wrong in (
            {"fn_index": None}, {"fn_index": "3"}, {"fn_index": True}, {"fn_index": [3]}, {"data": None}, {"data": {}},
            {"data": [1]}, {"data": [1, 2, 3]}, {"session_hash": None}, {"session_hash": "../x"},
            {"session_hash": "a" * 65}, {"data": ["\ud800", 1]},
        )),
    ],
)  # fmt: skip
def test_a_body_that_is_no_event_is_refused_in_one_line(body):
    """Gradio answers such bodies with status 500 or with pydantic's lists."""
    behind = Behind()
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
        one_line(behind.ask("POST", path, content=body), 400)
    assert behind.reached == []


def test_of_an_event_only_what_the_page_sends_goes_on():
    behind = Behind()
    more = {"event_id": "x", "oauth_token": "y", "batched": True, "trigger_id": "text"}
    assert behind.ask("POST", "/gradio_api/queue/join", json={**EVENT, **more}).status_code == 200
    assert json.loads(behind.reached[0][2]) == {**EVENT, "trigger_id": None}


def test_large_and_many_requests_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "MOST_PAGES", 3)
    for limited in (True, False):
        behind = Behind(limited=limited)
        large = json.dumps({**EVENT, "data": ["x" * 1_000_000, 1]})
        one_line(behind.ask("POST", "/gradio_api/queue/join", content=large), 413)
        for name in "abc":
            assert behind.ask("POST", "/gradio_api/queue/join", json={**EVENT, "session_hash": name}).status_code == 200
        fourth = behind.ask("GET", "/gradio_api/heartbeat/d")
        one_line(fourth, 429, "close one") if limited else None
        rate = limits.Rate(2, 60.0)
        assert [rate.allows("a"), rate.allows("a"), rate.allows("a"), rate.allows("b")] == [True, True, False, True]
        behind.browser.app.pages._events = limits.Rate(1, 60.0)
        again = {**EVENT, "session_hash": "a"}
        replies = [behind.ask("POST", "/gradio_api/queue/join", json=again).status_code for _ in range(2)]
        assert replies == [200, 429 if limited else 200]


def test_what_nobody_expected_is_one_line_too(capsys):
    async def broken(scope, receive, send):
        raise RuntimeError("secret detail")

    browser = TestClient(Gate(broken, Rules(), {}, Pages(False)), base_url=f"http://{HERE}")
    reply = browser.get("/config")
    one_line(reply, 500, "reload the page")
    assert "secret" not in reply.text and "secret detail" in capsys.readouterr().err


def test_the_served_page_runs_each_of_its_inline_scripts_by_hash(served):
    """The whole of it, as Gradio makes it; no origin but its own is answered."""
    import httpx

    with httpx.Client(trust_env=False) as browser:
        page = browser.get(served)
        assert int(page.headers["content-length"]) < 100_000  # half a megabyte of settings, as it comes from Gradio
        scripts = INLINE.findall(page.content)
        assert len(scripts) >= 4 and b"gradio_config" in scripts[0]
        for one in scripts:
            assert base64.b64encode(hashlib.sha256(one).digest()).decode() in page.headers["content-security-policy"]
        asked = {"Origin": "http://127.0.0.1:9", "Access-Control-Request-Method": "POST"}
        for reply in (
            browser.options(f"{served}gradio_api/queue/join", headers=asked),
            browser.get(f"{served}config", headers=asked),
        ):
            one_line(reply, 403)
            assert not [name for name in reply.headers if name.startswith("access-control-")]

"""Who is let in: the one gate that every request to the app passes, and the headers of every answer.

Scripts of other pages must neither drive nor read nor frame the app; where others can reach it, a token is needed; and
what the page does not need is not served. A refusal is one line of JSON, under `detail` as Gradio's are.
"""

import base64
import gzip
import hashlib
import ipaddress
import json
import re
import secrets
import socket
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workbench.dashboard.limits import Pages, Rate, Refused, client_of
from workbench.errors import BadInput

__all__ = ["Gate", "Rules"]

LOOPBACK = ("localhost", "127.0.0.1", "::1")
API = "/gradio_api/"
READS = (
    "/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", f"{API}theme.css", f"{API}app_id",
    f"{API}info", f"{API}login_check", f"{API}queue/data", f"{API}startup-events",
)  # fmt: skip
READ_BELOW = ("/assets/", "/static/", "/svelte/", "/live/", f"{API}heartbeat/")
EVENTS, UPLOAD = (f"{API}queue/join", f"{API}run/predict"), f"{API}upload"
WRITES = (*EVENTS, UPLOAD)
PASSED_ON = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")  # what a proxy tells
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of a page
SENT = ("data", "event_data", "fn_index", "trigger_id", "session_hash")  # what Gradio's page sends of an event
MAX_BODY = 1_000_000  # bytes of an event
INLINE = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
POLICY = {  # beside it: the hash of every inline script, and who may frame the app
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-eval'",  # Gradio makes functions of `js` and `js_on_load`
    "style-src": "'self' 'unsafe-inline'",  # Gradio, Svelte and Plotly write style attributes and elements
    "img-src": "'self' data: blob:",  # Plotly's own pictures, and what it saves
    "font-src": "'self' data:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
STEADY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


@dataclass(frozen=True)
class Rules:
    """Whom an app serves. host: the address listened on; token: "" where none is needed; frames: origins that may frame
    it; owner: whether only this machine's own user can reach it."""

    host: str = "127.0.0.1"
    token: str = ""
    frames: tuple[str, ...] = ()
    owner: bool = True
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        for origin in self.frames:
            parts = urlsplit(origin)
            web = parts.scheme in ("http", "https") and bool(parts.netloc)
            if not web or origin != f"{parts.scheme}://{parts.netloc}":
                raise BadInput(f"--allow-frame: expected an origin such as https://example.org, got {origin!r}")
        if not re.fullmatch(r"[A-Za-z0-9._~-]*", self.token):
            raise BadInput("--token: expected letters, digits and . _ ~ - alone")
        object.__setattr__(self, "names", frozenset({*LOOPBACK, self.host.lower(), socket.gethostname().lower()}))

    def answers_to(self, host: str) -> bool:
        """Whether a Host header names this app; a name from elsewhere may be a rebound one."""
        name = (urlsplit(f"//{host}").hostname or "").lower()
        if self.owner:
            return name in LOOPBACK
        return name in self.names or bool(self.token) or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


class Gate:
    """ASGI middleware that enforces `Rules`, bounds what a visitor sends, and says what browsers may do with answers.

    fns: the app's events by their number. pages: who is there; limits per visitor are theirs.
    """

    def __init__(self, app: ASGIApp, rules: Rules, fns: Mapping[int, object], pages: Pages):
        self.app, self.rules, self.fns, self.pages = app, rules, fns, pages
        self.wrong = Rate(10, 60.0)  # wrong tokens of a visitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        began = False

        async def answer(message: Message) -> None:
            nonlocal began
            began = began or message["type"] == "http.response.start"
            await send(message)

        out = self._dressed(scope, answer)
        try:
            await self._serve(scope, receive, out)
        except Refused as no:
            await JSONResponse({"detail": no.why}, no.status)(scope, receive, out)
        except Exception:
            traceback.print_exc()
            if began:
                raise
            line = "the server met something unexpected and wrote it down; reload the page"
            await JSONResponse({"detail": line}, 500)(scope, receive, out)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        self._check_origin(scope["method"], path, headers)
        self._check_route(scope["method"], path)
        if path != f"{API}startup-events":  # Gradio asks for it itself, before it says that it serves
            send = self._check_token(scope, headers, send)
        if path in EVENTS:
            receive = _replay(self._event(await _body(receive), client_of(scope)), receive)
            send = _with_headers(send, {}, {500: 400})  # so Gradio answers what its page cannot have sent
        elif path == f"{API}queue/data":
            self._page(parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0])
        elif path.startswith(f"{API}heartbeat/"):
            with self.pages.beating(self._page(path.rpartition("/")[2]), client_of(scope)):
                return await self.app(scope, receive, send)
        await self.app(scope, receive, send)

    def _check_origin(self, method: str, path: str, headers: Headers) -> None:
        """Raise Refused for another name, a page of another origin, and what a proxy passes on to the owner's app."""
        host, site = headers.get("host", ""), headers.get("sec-fetch-site", "none")
        if not self.rules.answers_to(host):
            raise Refused(400, "this app does not go by that name; open the address that it printed")
        if self.rules.owner and any(name in headers for name in PASSED_ON):
            raise Refused(403, "this app serves this machine alone; behind a proxy start it with --host 0.0.0.0")
        if headers.get("origin", f"http://{host}").partition("://")[2].lower() != host.lower():
            raise Refused(403, "this app does not answer pages of another origin")
        if site == "same-origin" or (site == "none" and method in ("GET", "HEAD")) or "sec-fetch-site" not in headers:
            return
        framed = headers.get("sec-fetch-dest", "document") not in ("document", "empty") and not self.rules.frames
        if path != "/" or method != "GET" or headers.get("sec-fetch-mode") != "navigate" or framed:
            raise Refused(403, "this app does not answer pages of another origin")

    def _check_route(self, method: str, path: str) -> None:
        """Raise Refused for what the page does not need; whatever Gradio adds is not served until it is named here."""
        if method in ("GET", "HEAD") and (path in READS or path.startswith(READ_BELOW)):
            return
        if method != "POST" or path not in WRITES:
            raise Refused(404, "nothing is served here")

    def _check_token(self, scope: Scope, headers: Headers, send: Send) -> Send:
        """`send`, which keeps a token that came with the address as a cookie. Raises Refused without the right one."""
        if not self.rules.token:
            return send
        kept = f"workbench-{(scope.get('server') or ('', ''))[1]}"
        asked = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        given = (asked, headers.get("authorization", "").removeprefix("Bearer "), _cookie(headers, kept))
        if any([secrets.compare_digest(one.encode(), self.rules.token.encode()) for one in given]):
            site = "None; Secure" if self.rules.frames else "Strict"
            cookie = f"{kept}={self.rules.token}; Path=/; HttpOnly; SameSite={site}"
            return _with_headers(send, {"Set-Cookie": cookie}) if asked and scope["path"] == "/" else send
        if any(given) and not self.wrong.allows(client_of(scope)):
            raise Refused(429, "too many wrong tokens; try again in a minute")
        raise Refused(401, "a token is needed: open the address with ?token=… that the app printed when it started")

    def _event(self, body: bytes, client: str) -> bytes:
        """An event's body with what Gradio needs of it and nothing else. Raises Refused where it is none."""
        try:
            sent = json.loads(body)
        except (ValueError, RecursionError):
            sent = None
        if not isinstance(sent, dict):
            raise Refused(400, "expected a JSON object")
        event = {name: sent[name] for name in SENT if name in sent}
        number, data = event.get("fn_index"), event.get("data")
        if type(number) is not int or number not in self.fns:
            raise Refused(400, "fn_index: expected the number of an event of this app; reload the page")
        if not isinstance(data, list) or len(data) != len(self.fns[number].inputs):
            raise Refused(400, f"data: expected a list of {len(self.fns[number].inputs)} values; reload the page")
        if type(event.get("trigger_id")) is not int:
            event["trigger_id"] = None
        self.pages.hear(self._page(event.get("session_hash")), client)
        try:
            return json.dumps(event, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            raise Refused(400, "expected text that is valid Unicode") from None

    def _page(self, name: object) -> str:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise Refused(400, "session_hash: expected up to 64 letters and digits; reload the page")
        return name

    def _dressed(self, scope: Scope, send: Send) -> Send:
        """`send` with the steady headers; the page itself is packed, and has the hashes of its inline scripts."""
        if scope["path"] != "/":
            return _with_headers(send, {**STEADY, **self._policy(())})
        first: list[Message] = []
        page: list[bytes] = []

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                first.append(message)
                return
            page.append(message.get("body", b""))
            if not message.get("more_body"):
                whole = b"".join(page)
                more = {**STEADY, **self._policy(INLINE.findall(whole)), "Vary": "Accept-Encoding"}
                if whole and "gzip" in Headers(scope=scope).get("accept-encoding", ""):  # Gradio leaves it as it is
                    whole, more["Content-Encoding"] = gzip.compress(whole, 5, mtime=0), "gzip"
                    first[0]["headers"] = [one for one in first[0]["headers"] if one[0] != b"content-length"]
                    more["Content-Length"] = str(len(whole))
                await _with_headers(send, more)(first[0])
                await send({"type": "http.response.body", "body": whole})

        return dressed

    def _policy(self, scripts: Iterable[bytes]) -> dict[str, str]:
        hashes = [base64.b64encode(hashlib.sha256(one).digest()).decode() for one in scripts]
        parts = {**POLICY, "frame-ancestors": " ".join(("'self'", *self.rules.frames))}
        parts["script-src"] += "".join(f" 'sha256-{one}'" for one in dict.fromkeys(hashes))
        found = {"Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in parts.items())}
        return found if self.rules.frames else {**found, "X-Frame-Options": "SAMEORIGIN"}


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _with_headers(send: Send, more: Mapping[str, str], other: Mapping[int, int] = {}) -> Send:
    """`send` with these headers, without those with which Gradio would let other origins read, and another status."""

    async def out(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(name, value) for name, value in message["headers"] if not name.startswith(b"access-control-")]
            message["headers"] = kept + [(name.lower().encode(), value.encode()) for name, value in more.items()]
            message["status"] = other.get(message["status"], message["status"])
        await send(message)

    return out


async def _body(receive: Receive) -> bytes:
    """The whole body. Raises Refused where it is larger than an event can be."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > MAX_BODY:
            raise Refused(413, f"the request is larger than {MAX_BODY // 1_000_000} MB")
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives this body first."""
    waiting = [body]

    async def again() -> Message:
        return {"type": "http.request", "body": waiting.pop(), "more_body": False} if waiting else await receive()

    return again

"""Who is let in: the one gate that every request to the app passes, and the headers of every answer.

Scripts of other pages must neither drive nor read nor frame the app; where others can reach it, a token is needed; and
what the page does not need is not served. A refusal is one line of JSON, under `detail` as Gradio's are.
"""

import base64
import hashlib
import ipaddress
import json
import re
import secrets
import socket
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workbench.dashboard.limits import Pages, Rate, client_of
from workbench.errors import BadInput

LOOPBACK = ("localhost", "127.0.0.1", "::1")
API = "/gradio_api/"
READS = (
    "/", "/config", "/view.js", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", f"{API}theme.css",
    f"{API}app_id", f"{API}info", f"{API}login_check", f"{API}queue/data", f"{API}startup-events",
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

    def __post_init__(self) -> None:
        for origin in self.frames:
            if not re.fullmatch(r"https?://([^/?#\s\[\]]+|\[[0-9a-fA-F:.]+\](:\d+)?)", origin):
                raise BadInput(f"--allow-frame: expected an origin such as https://example.org, got {origin!r}")
        if not re.fullmatch(r"[A-Za-z0-9._~-]*", self.token):
            raise BadInput("--token: expected letters, digits and . _ ~ - alone")

    def answers_to(self, host: str) -> bool:
        """Whether a Host header names this app; a name from elsewhere may be a rebound one."""
        name = urlsplit(f"//{host}").hostname or ""
        if self.owner:
            return name in LOOPBACK
        if self.token or name in (*LOOPBACK, self.host.lower(), socket.gethostname().lower()):
            return True
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name))
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
        # Gradio packs all but the page itself
        answer = GZipMiddleware(self._answer, compresslevel=5) if scope["path"] == "/" else self._answer
        await answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request that is let in, or say in one line why it is not, or that something failed."""
        began = False

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        out = self._dressed(scope, noted)
        try:
            await self._serve(Request(scope), receive, out)
        except HTTPException as no:
            await JSONResponse({"detail": no.detail}, no.status_code)(scope, receive, out)
        except Exception:
            traceback.print_exc()
            if began:
                raise
            line = "the server met something unexpected and wrote it down; reload the page"
            await JSONResponse({"detail": line}, 500)(scope, receive, out)

    async def _serve(self, request: Request, receive: Receive, send: Send) -> None:
        scope, path = request.scope, request.scope["path"]
        self._check_origin(request)
        reads = request.method in ("GET", "HEAD") and (path in READS or path.startswith(READ_BELOW))
        if not reads and (request.method != "POST" or path not in WRITES):  # what Gradio adds too, until it is named
            raise HTTPException(404, "nothing is served here")
        if path != f"{API}startup-events":  # Gradio asks for it itself, before it says that it serves
            send = self._check_token(request, send)
        if path in EVENTS:
            event = [self._event(await _body(receive), client_of(scope))]
            send = _with_headers(send, {}, {500: 400})  # so Gradio answers what its page cannot have sent

            async def checked() -> Message:
                return {"type": "http.request", "body": event.pop()} if event else await receive()

            return await self.app(scope, checked, send)
        if path == f"{API}queue/data":
            self._page(request.query_params.get("session_hash"))
        elif path.startswith(f"{API}heartbeat/"):
            with self.pages.beating(self._page(path.rpartition("/")[2]), client_of(scope)):
                return await self.app(scope, receive, send)
        await self.app(scope, receive, send)

    def _check_origin(self, request: Request) -> None:
        """Raise HTTPException for another name, a page of another origin, and what a proxy passes on to the owner."""
        method, headers = request.method, request.headers
        host, site = headers.get("host", ""), headers.get("sec-fetch-site", "none")
        if not self.rules.answers_to(host):
            raise HTTPException(400, "this app does not go by that name; open the address that it printed")
        if self.rules.owner and any(name in headers for name in PASSED_ON):
            raise HTTPException(403, "this app serves this machine alone; behind a proxy start it with --host 0.0.0.0")
        if headers.get("origin", f"http://{host}").partition("://")[2].lower() != host.lower():
            raise HTTPException(403, "this app does not answer pages of another origin")
        if site == "same-origin" or (site == "none" and method in ("GET", "HEAD")) or "sec-fetch-site" not in headers:
            return
        framed = headers.get("sec-fetch-dest", "document") not in ("document", "empty") and not self.rules.frames
        if request.scope["path"] != "/" or method != "GET" or headers.get("sec-fetch-mode") != "navigate" or framed:
            raise HTTPException(403, "this app does not answer pages of another origin")

    def _check_token(self, request: Request, send: Send) -> Send:
        """`send`, which keeps a token that came with the address as a cookie. HTTPException without a right one."""
        if not self.rules.token:
            return send
        kept = f"workbench-{(request.scope.get('server') or ('', ''))[1]}"
        asked, bearer = request.query_params.get("token", ""), request.headers.get("authorization", "")
        given = (asked, bearer.removeprefix("Bearer "), request.cookies.get(kept, ""))
        if any([secrets.compare_digest(one.encode(), self.rules.token.encode()) for one in given]):
            site = "None; Secure" if self.rules.frames else "Strict"
            cookie = f"{kept}={self.rules.token}; Path=/; HttpOnly; SameSite={site}"
            return _with_headers(send, {"Set-Cookie": cookie}) if asked and request.scope["path"] == "/" else send
        if any(given) and not self.wrong.allows(client_of(request.scope)):
            raise HTTPException(429, "too many wrong tokens; try again in a minute")
        line = "a token is needed: open the address with ?token=… that the app printed when it started"
        raise HTTPException(401, line)

    def _event(self, body: bytes, client: str) -> bytes:
        """An event's body with what Gradio needs of it and nothing else. Raises HTTPException where it is none."""
        try:
            sent = json.loads(body)
        except (ValueError, RecursionError):
            sent = None
        if not isinstance(sent, dict):
            raise HTTPException(400, "expected a JSON object")
        event = {name: sent[name] for name in SENT if name in sent}
        number, data = event.get("fn_index"), event.get("data")
        if type(number) is not int or number not in self.fns:
            raise HTTPException(400, "fn_index: expected the number of an event of this app; reload the page")
        if not isinstance(data, list) or len(data) != len(self.fns[number].inputs):
            raise HTTPException(400, f"data: expected a list of {len(self.fns[number].inputs)} values; reload the page")
        if type(event.get("trigger_id")) is not int:
            event["trigger_id"] = None
        self.pages.hear(self._page(event.get("session_hash")), client)
        try:
            return json.dumps(event, ensure_ascii=False).encode()
        except (UnicodeEncodeError, RecursionError):
            raise HTTPException(400, "expected text that is valid Unicode") from None

    def _page(self, name: object) -> str:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise HTTPException(400, "session_hash: expected up to 64 letters and digits; reload the page")
        return name

    def _dressed(self, scope: Scope, send: Send) -> Send:
        """`send` with the steady headers; the page itself has the hashes of its inline scripts."""
        if scope["path"] != "/":
            return _with_headers(send, {**STEADY, **self._policy(())})
        held: list[Message] = []

        async def dressed(message: Message) -> None:
            held.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                whole = b"".join(one.get("body", b"") for one in held)
                await _with_headers(send, {**STEADY, **self._policy(INLINE.findall(whole))})(held[0])
                await send({"type": "http.response.body", "body": whole})

        return dressed

    def _policy(self, scripts: Iterable[bytes]) -> dict[str, str]:
        hashes = [base64.b64encode(hashlib.sha256(one).digest()).decode() for one in scripts]
        parts = {**POLICY, "frame-ancestors": " ".join(("'self'", *self.rules.frames))}
        parts["script-src"] += "".join(f" 'sha256-{one}'" for one in dict.fromkeys(hashes))
        found = {"Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in parts.items())}
        return found if self.rules.frames else {**found, "X-Frame-Options": "SAMEORIGIN"}


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
    """The whole body. Raises HTTPException where it is larger than an event can be."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"the request is larger than {MAX_BODY // 1_000_000} MB")
    return body

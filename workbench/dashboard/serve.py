"""Serving the app: to this machine alone, with nothing sent elsewhere."""

import os
import secrets
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import gradio as gr
from gradio.route_utils import CustomCORSMiddleware
from gradio.state_holder import StateHolder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from workbench.dashboard import screen, uploads
from workbench.dashboard.app import build_app
from workbench.dashboard.limits import Pages
from workbench.dashboard.opening import open_file
from workbench.dashboard.security import LOOPBACK, Gate, Rules
from workbench.dashboard.visits import VISITS, Visit, forget_idle, forget_left, leave, trim
from workbench.errors import BadInput
from workbench.models.loading import load, resolve_device, resolve_dtype
from workbench.session import Session
from workbench.web import page_css, script

SWEEP_S = 30.0  # between two looks for idle pages
CLOSED_S = 60.0  # after the last word from a page that nothing holds open
SESSIONS = 512  # pages of which Gradio remembers the settings, more than a megabyte each
NOTHING, REST = "{}", '{"rest":true}'  # answers to a page that watches a run
PASSED_ON = ("SPACE_ID", "GRADIO_ROOT_PATH")  # variables that say that others are led here, whatever the address
HUES = {"primary_hue": "blue", "secondary_hue": "blue", "neutral_hue": "slate"}
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "Menlo", "Consolas", "monospace"]}
THEME = gr.themes.Default(**HUES, **FONTS, spacing_size="sm", text_size="sm")


def launch(
    host: str = "127.0.0.1",
    port: int = 7860,
    models: Sequence[str] = (),
    browser: bool | None = None,
    wait: bool = True,
    token: str | None = None,
    allow_frame: Sequence[str] = (),
    device: str | None = None,
    dtype: str | None = None,
    trace: str | Session | None = None,
) -> gr.Blocks:
    """Serve the app, to this machine alone unless `host` says otherwise, until Ctrl-C (or at once, without `wait`).

    port: 0 for any that is free.

    token: what a visitor has to know; by default a random one where others can reach the app, "" for none. Visitors
    choose among the models that are offered, and set nothing that names a file. allow_frame: origins whose pages may
    show the app in a frame. device, dtype: as for `workbench.load`, where the form does not say otherwise. trace: a
    file, or a session, that every page opens on, in place of the run that ships.

    Raises BadTrace where the trace cannot be shown, BadInput where the port is taken, or the token, an origin, device
    or dtype cannot be one.
    """
    resolve_dtype(dtype, resolve_device(device))
    rules = rules_of(host, token, allow_frame)
    live = isinstance(trace, Session)
    if live:
        first = (trace.decoder.declared_name, trace)
    else:
        first = None if trace is None else (Path(trace).name, open_file(Path(trace)))
    port = _checked_port(host, port)
    for name in ("NO_PROXY", "no_proxy"):  # the server's check of itself must not go through a proxy
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "localhost", "127.0.0.1"]))
    app, pages = build_app(models, rules.owner, device or "cpu", dtype or "auto", first), Pages(limited=not rules.owner)
    app.queue(max_size=128, default_concurrency_limit=4, api_open=False)
    gate = Middleware(Gate, rules=rules, fns=app.fns, pages=pages)
    inside = {"routes": [*OWN, *uploads.ROUTES], "middleware": [gate], "lifespan": _no_foreign_origins}
    _, url, _ = app.launch(
        server_name=host, server_port=port, inbrowser=False, share=False, inline=False,
        quiet=True, prevent_thread_lock=True, show_error=True, footer_links=[], run_history=False, ssr_mode=False,
        enable_monitoring=False, max_file_size=uploads.MAX_TRACE, theme=THEME, head=f"<style>{page_css()}</style>",
        js=script("page.js"), state_session_capacity=SESSIONS, app_kwargs=inside,
        _frontend=False,  # no self-check, which waits 3 s at most
    )  # fmt: skip
    address = f"{url}?token={rules.token}" if rules.token else url
    threading.Thread(target=_sweep, args=(app, pages), daemon=True, name="idle pages").start()
    if not models and not live:  # one of the user's own may be large: it is loaded when it is asked for
        threading.Thread(target=load, args=("embedded",), daemon=True, name="first model").start()
    app.address = address
    print(f"decoding workbench: {address}  (Ctrl-C stops it)", flush=True)
    if not rules.owner:
        who = "anyone with this token" if rules.token else "anyone"
        print(f"{who} who can reach this machine can use it", file=sys.stderr)
    screened = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if screened if browser is None else browser:
        webbrowser.open(address)
    if wait:
        app.block_thread()
    return app


def rules_of(host: str, token: str | None = None, allow_frame: Sequence[str] = ()) -> Rules:
    """Whom an app at that address serves: its owner, where nobody else is led to it, else visitors with a token."""
    owner = host in LOOPBACK and not any(os.environ.get(name) for name in PASSED_ON)
    needed = ("" if owner else secrets.token_urlsafe(24)) if token is None else token
    return Rules(host, needed, tuple(allow_frame), owner)


@asynccontextmanager
async def _no_foreign_origins(server: Starlette) -> AsyncIterator[None]:
    """Take away, before the first request, with what Gradio answers other origins."""
    server.user_middleware = [one for one in server.user_middleware if one.cls is not CustomCORSMiddleware]
    server.middleware_stack = server.build_middleware_stack()
    yield


def _sweep(app: gr.Blocks, pages: Pages) -> None:
    """Let go of the runs of idle pages, and of all that closed ones left, for as long as the app is served."""
    while app.is_running:
        time.sleep(SWEEP_S)
        forget_idle()
        forget_left()
        forget_gone(pages, app.state_holder, CLOSED_S)
        uploads.UPLOADS.forget(uploads.WAITING_S)
        trim()


def forget_gone(pages: Pages, holder: StateHolder, older: float) -> None:
    """Drop the runs of pages that nothing has held open for `older` seconds, and what Gradio keeps of them.

    That is the settings of every component, more than a megabyte a page, and without this for good.
    """
    for name in pages.gone(older):
        leave(name)
        holder.session_data.pop(name, None)
        holder.time_last_used.pop(name, None)


def _checked_port(host: str, port: int) -> int:
    """The port. Raises BadInput, before anything is built, where the app could not listen."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot listen on {host}:{port} ({reason}); choose another with --port") from None


def answer(visit: Visit | None, run: str, rounds: int, cursor: int, at: str = "") -> str:
    """The JSON text for a page that has drawn this run up to that many rounds, the cursor there.

    `NOTHING` where there is nothing new, or the visit is busy; `REST` where the page should fire its `rest` event: the
    run is no longer decoded. Else what the trace view draws. at: the round that its
    cursor is in or behind, "null" at the start, "" where the page does not say.
    """
    if visit is None:
        return REST
    if not visit.lock.acquire(blocking=False):  # this is the server's one event loop
        return NOTHING
    try:
        visit.hear()
        if visit.worker is None or not visit.worker.is_alive():
            return REST
        branch = visit.branch
        mine = branch.run.trace.id == run
        here = "null" if branch.round is None else str(branch.round)
        if mine and rounds >= branch.run.rounds and branch.run.cursor == cursor and at in ("", here):
            return NOTHING
        return screen.view(visit, rounds if mine else 0)
    finally:
        visit.lock.release()


async def _live(request: Request) -> Response:
    """Beside Gradio's routes, since an event of Gradio costs some 10 ms of processor time whatever it carries."""
    asked = request.query_params
    try:
        rounds, cursor = int(asked.get("rounds", 0)), int(asked.get("cursor", -1))
    except ValueError:
        return Response("rounds and cursor: expected whole numbers", status_code=400)
    visit = VISITS.get(request.path_params["page"])
    run, at = asked.get("run", ""), asked.get("at", "")
    text = answer(visit, run, max(rounds, 0), cursor, at)
    return Response(text, media_type="application/json", headers={"Cache-Control": "no-store"})


async def _view(request: Request) -> Response:
    """The module of the view, beside the page: within the page's settings it would be sent as text in text."""
    return Response(screen.module(), media_type="text/javascript", headers={"Cache-Control": "no-cache"})


OWN = [Route("/live/{page}", _live), Route("/view.js", _view)]

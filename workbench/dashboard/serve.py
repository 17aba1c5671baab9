"""Serving the app: to this machine alone, with nothing sent elsewhere."""

import os
import socket
import sys
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta

import gradio as gr
from gradio.state_holder import StateHolder
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from workbench.dashboard import live
from workbench.dashboard.app import build_app
from workbench.dashboard.share import MAX_TRACE
from workbench.dashboard.strip import WEB
from workbench.dashboard.visit import forget_idle
from workbench.engine.loading import load
from workbench.errors import BadInput

__all__ = ["launch"]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
SWEEP_S = 60.0  # between two looks for idle pages
CLOSED_S = 300.0  # after the last word from a page that was closed
KEYS = """() => {
  const press = (id) => document.querySelector(`#${id}:not([disabled])`)?.click();
  const by = (name) => document.querySelector(`#by input[value=${name}]`)?.click();
  const keys = {
    n: () => press('step'), b: () => press('back'), r: () => press('play'), p: () => press('pause'),
    1: () => by('phase'), 2: () => by('round'), 3: () => by('token'),
  };
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const typing = 'input:not([type=radio]):not([type=checkbox]), textarea, select, [contenteditable]';
    if (event.target.closest(typing)) return;
    keys[event.key.toLowerCase()]?.();
  });
}"""
THEME = gr.themes.Default(
    primary_hue="blue",
    secondary_hue="blue",
    neutral_hue="slate",
    spacing_size="sm",
    text_size="sm",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
)


def launch(
    host: str = "127.0.0.1",
    port: int = 7860,
    models: Sequence[str] = (),
    browser: bool | None = None,
    wait: bool = True,
) -> gr.Blocks:
    """Serve the app, to this machine alone unless `host` says otherwise, until Ctrl-C (or at once, without `wait`).

    Where others can reach it, only the models that are offered may be chosen. Raises BadInput where the port is taken.
    """
    _check_port(host, port)
    own = {name: os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")}
    for name, value in own.items():  # the server's check of itself must not go through a proxy
        os.environ[name] = ",".join(filter(None, [value, "localhost", "127.0.0.1"]))
    everywhere = host in ("0.0.0.0", "::")
    hosts = ["*"] if everywhere else [*LOOPBACK, host]
    app = build_app(models, anything=host in ("localhost", "127.0.0.1", "::1"))
    app.queue(max_size=128, default_concurrency_limit=4)
    _, url, _ = app.launch(
        server_name=host, server_port=port, inbrowser=_display() if browser is None else browser, share=False,
        quiet=True, prevent_thread_lock=True, show_error=True, footer_links=[], run_history=False, ssr_mode=False,
        enable_monitoring=False, max_file_size=MAX_TRACE, theme=THEME, css_paths=[WEB / "app.css"], js=KEYS,
        app_kwargs={"routes": live.ROUTES, "middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]},
    )  # fmt: skip
    threading.Thread(target=_sweep, args=(app,), daemon=True, name="idle pages").start()
    if not models:  # one of the user's own may be large: it is loaded when it is asked for
        threading.Thread(target=load, args=("embedded",), daemon=True, name="first model").start()
    print(f"decoding workbench: {url}  (Ctrl-C stops it)", flush=True)
    if everywhere:
        print("anyone who can reach this machine can use it", file=sys.stderr)
    if wait:
        app.block_thread()
    return app


def _sweep(app: gr.Blocks) -> None:
    """Let go of the runs of idle pages for as long as the app is served."""
    pause = threading.Event()
    while app.is_running:
        pause.wait(SWEEP_S)
        forget_idle()
        forget_closed(app.state_holder, CLOSED_S)


def forget_closed(holder: StateHolder, older: float) -> None:
    """Drop what Gradio keeps of closed pages not heard of for `older` seconds: the settings of every component, more
    than a megabyte a page, and without this for good."""
    latest = datetime.now() - timedelta(seconds=older)
    for name, page in list(holder.session_data.items()):
        if page.is_closed and holder.time_last_used.get(name, latest) <= latest:
            holder.session_data.pop(name, None)
            holder.time_last_used.pop(name, None)


def _check_port(host: str, port: int) -> None:
    """Raise BadInput, before anything is built, where the app could not listen."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            if os.name == "posix":
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"cannot listen on {host}:{port} ({reason}); choose another with --port") from None


def _display() -> bool:
    """Whether there is a screen to open a browser on."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))

"""The app: layout, wiring, launch."""

import os
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from workbench.dashboard import handlers
from workbench.dashboard.form import Form
from workbench.dashboard.strip import WEB, token_strip
from workbench.errors import BadInput
from workbench.pretrained.prompts import held_out_prompts

__all__ = ["build_app", "launch"]

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
EXAMPLES = ("def fibonacci(n):", 'class Stack:\n    """A last-in, first-out collection."""\n\n    def __init__')
BUTTONS = {
    "back": "◀ Back", "step": "Step ▶", "step_token": "Step token", "play": "Run ▶▶", "pause": "Pause",
    "save": "Save trace",
}  # fmt: skip
SHORT = 700  # characters of the longest held-out prompt offered
SAVE = """(text) => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/x-ndjson'}));
  link.download = (JSON.parse(text.split('\\n')[0]).id || 'run') + '.wb';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}"""
STATUS = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"
STILL = {"padding": False, "apply_default_css": False, "js_on_load": None}
THEME = gr.themes.Default(
    primary_hue="blue",
    secondary_hue="blue",
    neutral_hue="slate",
    spacing_size="sm",
    text_size="sm",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
)


def examples() -> list[tuple[str, str]]:
    """(label, prompt) to choose from: two short ones, and held-out prompts that are not long."""
    short = [(text.splitlines()[0], text) for text in EXAMPLES]
    held_out = [(row["id"], row["prompt"]) for row in held_out_prompts() if len(row["prompt"]) <= SHORT]
    return short + held_out[:12]


def build_app(models: Sequence[str] = ()) -> gr.Blocks:
    """The app as Blocks, not yet served. `models` are offered first, beside the embedded and registered ones."""
    page = {"title": "decoding workbench", "fill_width": True, "delete_cache": (3600, 3600)}
    with gr.Blocks(analytics_enabled=False, **page) as app:
        visit, parts, save = gr.State(None), {}, gr.Textbox(visible="hidden", elem_id="saved", container=False)
        gr.HTML("<h1>decoding workbench</h1><p>adaptive decoding, token by token</p>", elem_id="head", padding=False)
        with gr.Row(elem_id="page"):
            with gr.Column(scale=4, min_width=320, elem_id="main"):
                prompt, chosen = _prompt(parts)
                _transport(parts)
                parts["strip"] = token_strip()
                parts["figures"] = gr.HTML("", elem_id="figures", **STILL)
                with gr.Row(elem_id="below"):
                    with gr.Column(scale=5, min_width=320):
                        parts["signals"] = gr.Plot(label="the four signals", elem_id="signals")
                        figures = list(handlers.DETAILS)
                        parts["detail"] = gr.Dropdown(figures, value=figures[0], label="figure", elem_id="detail")
                        parts["plot"] = gr.Plot(show_label=False, elem_id="plot")
                    with gr.Column(scale=4, min_width=320):
                        _under_the_glass(parts)
            with gr.Column(scale=1, min_width=290, elem_id="settings"):
                form = Form(prompt, models)
                form.draw()
                opened = gr.UploadButton("Open a trace (.wb)", file_types=[".wb"], size="sm", elem_id="open")
        _wire(app, visit, parts, form, save, chosen, opened)
    return app


def _prompt(parts: dict[str, Any]) -> tuple[gr.Textbox, gr.Dropdown]:
    with gr.Row(elem_id="prompt-row"):
        prompt = gr.Textbox(EXAMPLES[0], label="prompt", lines=2, max_lines=6, scale=5, min_width=280, elem_id="prompt")
        with gr.Column(scale=2, min_width=200):
            chosen = gr.Dropdown(examples(), value=EXAMPLES[0], label="examples", elem_id="examples")
            parts["start"] = gr.Button("Start", variant="primary", interactive=False, elem_id="start")
    return prompt, chosen


def _transport(parts: dict[str, Any]) -> None:
    """The row of buttons, the scrubber, and the status line."""
    with gr.Row(elem_id="transport"):
        for name, label in BUTTONS.items():
            variant = "primary" if name in ("step", "play") else "secondary"
            place = {"size": "sm", "min_width": 92, "scale": 1, "elem_id": name.replace("_", "-")}
            parts[name] = gr.Button(label, interactive=False, variant=variant, **place)
    with gr.Row(elem_id="play-options"):
        parts["scrub"] = gr.Slider(
            0, 1, 0, step=1, label="token", interactive=False, scale=3, min_width=200, buttons=[], elem_id="scrub"
        )
        small = {"scale": 1, "min_width": 150}
        parts["pace"] = gr.Dropdown(list(handlers.PACES), value="by round", label="pace", **small)
        parts["until"] = gr.Textbox("", label="run until", placeholder="entropy > 3", max_lines=1, **small)
    parts["branches"] = gr.Dropdown([], label="branch", visible=False, elem_id="branches")
    parts["status"] = gr.HTML("", js_on_load=STATUS, apply_default_css=False, padding=False, elem_id="status")
    parts["timer"] = gr.Timer(0.3, active=False)


def _under_the_glass(parts: dict[str, Any]) -> None:
    """The inspector, and the controls of a fork."""
    parts["inspector"] = gr.HTML("", elem_id="inspector", **STILL)
    with gr.Accordion("Fork before this token", open=True, elem_id="forking"):
        with gr.Row():
            parts["candidates"] = gr.Dropdown([], label="take a candidate", min_width=160, scale=2, elem_id="candidate")
            parts["typed"] = gr.Textbox("", label="or type one token", min_width=110, scale=1, elem_id="typed")
        with gr.Row():
            settled = "with the settings as they are now"
            parts["resettle"] = gr.Checkbox(False, label=settled, scale=2, min_width=160)
            parts["fork"] = gr.Button("Fork here", size="sm", interactive=False, scale=1, min_width=110, elem_id="fork")


def _wire(app, visit, parts, form: Form, save, chosen, opened) -> None:
    panel = [parts[name] for name in handlers.PANEL]
    common = {"concurrency_limit": 4, "show_progress": "hidden", "api_visibility": "private"}

    def on(event, handler, inputs=(), outputs=panel, **more):
        """Wire an event to a handler of the visit; after an error, say so in the status line."""
        done = event(handler, [visit, *inputs], outputs, **{**common, **more})
        done.failure(handlers.failed, visit, [parts["status"], parts["timer"], parts["pause"]], **common)
        return done

    app.load(handlers.loaded, None, [visit, parts["start"], *panel], **common)
    app.unload(handlers.closed)
    chosen.change(str, chosen, form.prompt, queue=False, **common)
    pace = [parts["pace"], parts["until"]]
    on(parts["start"].click, partial(_with_form, handlers.start, form), form.components, api_name="start")
    on(parts["step"].click, handlers.step, api_name="step")
    on(parts["step_token"].click, partial(handlers.step, by="token"), api_name="step_token")
    on(parts["back"].click, handlers.back, api_name="back")
    on(parts["play"].click, handlers.play, pace, api_name="play")
    on(parts["pause"].click, handlers.pause, api_name="pause")
    on(parts["timer"].tick, handlers.tick, pace, api_name="tick")
    on(parts["scrub"].input, handlers.jump, [parts["scrub"]], trigger_mode="always_last", api_name="jump")
    on(parts["strip"].pick, handlers.pick, trigger_mode="always_last", api_name="pick")
    on(parts["branches"].input, handlers.branch, [parts["branches"]], api_name="branch")
    on(parts["detail"].input, handlers.detail, [parts["detail"]], parts["plot"], api_name="detail")
    forking = [parts["candidates"], parts["typed"], parts["resettle"], *form.components]
    on(parts["fork"].click, partial(_with_form, handlers.fork, form), forking, api_name="fork")
    on(opened.upload, handlers.open_trace, [opened], api_name="open")
    saved = on(parts["save"].click, handlers.save, outputs=[save, parts["status"]], api_name="save")
    saved.success(None, save, None, js=SAVE, **common)


def _with_form(handler, form: Form, visit, *values):
    return handler(visit, form, *values)


def launch(
    host: str = "127.0.0.1",
    port: int = 7860,
    models: Sequence[str] = (),
    browser: bool | None = None,
    wait: bool = True,
) -> gr.Blocks:
    """Serve the app, to this machine alone unless `host` says otherwise, until Ctrl-C (or at once, without `wait`).

    Raises BadInput where the port is taken.
    """
    _check_port(host, port)
    own = {name: os.environ.get(name, "") for name in ("NO_PROXY", "no_proxy")}
    for name, value in own.items():  # the server's check of itself must not go through a proxy
        os.environ[name] = ",".join(filter(None, [value, "localhost", "127.0.0.1"]))
    everywhere = host in ("0.0.0.0", "::")
    hosts = ["*"] if everywhere else [*LOOPBACK, host]
    app = build_app(models)
    app.queue(max_size=64, default_concurrency_limit=4)
    _, url, _ = app.launch(
        server_name=host, server_port=port, inbrowser=_display() if browser is None else browser, share=False,
        quiet=True, prevent_thread_lock=True, show_error=True, footer_links=[], run_history=False, ssr_mode=False,
        enable_monitoring=False, max_file_size=handlers.MAX_TRACE, theme=THEME, css_paths=[WEB / "app.css"],
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]},
    )  # fmt: skip
    print(f"decoding workbench: {url}  (Ctrl-C stops it)", flush=True)
    if everywhere:
        print("anyone who can reach this machine can use it", file=sys.stderr)
    if wait:
        app.block_thread()
    return app


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

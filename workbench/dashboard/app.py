"""The app: layout and wiring."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from workbench import held_out_prompts
from workbench.dashboard import branches, experiments, figures, loading, share, transport, visits
from workbench.dashboard import screen as page
from workbench.dashboard.form import KINDS, Form
from workbench.dashboard.html import block, button, inert
from workbench.dashboard.limits import client_of
from workbench.dashboard.presets import presets
from workbench.dashboard.uploads import Blocks
from workbench.dashboard.visits import VISITS, Visit

__all__ = ["build_app"]

EXAMPLES = ("def fibonacci(n):", 'class Stack:\n    """A last-in, first-out collection."""\n\n    def __init__')
SHORT = 1500  # characters of the longest held-out prompt offered
COMMON = {"show_progress": "hidden", "api_visibility": "private"}
FEW, MANY = {"concurrency_limit": 4}, {"concurrency_limit": 16}
THEME_OF_PAGE = "() => document.body.classList.contains('dark') ? 'dark' : 'light'"


def build_app(models: Sequence[str] = (), anything: bool = True, device: str = "cpu", dtype: str = "auto") -> gr.Blocks:
    """The app as Blocks, not yet served.

    models: offered first, beside the embedded and registered ones; `anything`: the owner alone sits there. device,
    dtype: where models run, and in what, unless the form says otherwise.
    """
    title = {"title": "decoding workbench", "fill_width": True, "delete_cache": (3600, 3600)}
    with Blocks(analytics_enabled=False, **title) as app:
        for hidden in ("saved", "theme"):
            gr.Textbox(visible="hidden", elem_id=hidden, container=False)
        gr.HTML("<h1>decoding workbench</h1><p>adaptive decoding, token by token</p>", elem_id="head", padding=False)
        with gr.Row(elem_id="page"):
            with gr.Column(scale=4, min_width=320, elem_id="main"):
                prompt, kind = _prompt()
                with gr.Tabs(overflow_behavior="wrap", elem_id="tabs"):
                    for name, draw in TABS.items():
                        with gr.Tab(name, render_children=True):
                            draw()
            with gr.Column(scale=1, min_width=290, elem_id="settings"):
                form = Form(prompt, kind, models, anything, device, dtype)
        _wire(app, form)
    return app


def _prompt() -> tuple[gr.Textbox, gr.Radio]:
    """The prompt and what it is given as; beside it what to begin from, and the buttons that do."""
    with gr.Row(elem_id="prompt-row"):
        with gr.Column(scale=5, min_width=280):
            prompt = gr.Textbox(EXAMPLES[0], label="prompt", lines=3, max_lines=7, elem_id="prompt")
            kind = gr.Radio(list(KINDS), value=KINDS[0], label="given as", show_label=False, elem_id="kind")
        with gr.Column(scale=2, min_width=220):
            gr.Dropdown([*presets()], value=None, label="preset: a run that teaches", elem_id="preset")
            short = [(text.splitlines()[0], text) for text in EXAMPLES]
            held_out = [(row["id"], row["prompt"]) for row in held_out_prompts() if len(row["prompt"]) <= SHORT]
            gr.Dropdown(short + held_out[:12], value=EXAMPLES[0], label="or a prompt", elem_id="examples")
            with gr.Row():
                button("go", "Run", 90, interactive=False, size="md", variant="primary")
                button("start", "Start paused", 90, interactive=False, size="md")
            loading.panel()
    block("look")
    return prompt, kind


def _decode() -> None:
    transport.panel()
    page.trace_view()
    block("figures")
    with gr.Accordion("The round, phase by phase", open=True, elem_id="round"):
        block("phases")
    with gr.Row(elem_id="below"):
        with gr.Column(scale=4, min_width=300):
            branches.panel()
        with gr.Column(scale=5, min_width=320):
            figures.panel({})


TABS = {
    "Decode": _decode,
    "Side by side": branches.sides,
    "Compare": experiments.comparing,
    "Lossless?": experiments.measuring,
    "Share": share.panel,
}


def opened(form: Form, theme: str | None, request: gr.Request) -> tuple:
    """A page was opened: a visit of its own, with limits where its visitor shares the app with others."""
    client = "" if form.anything else client_of(getattr(request.request, "scope", {}))
    theme = theme if theme in ("light", "dark") else None
    visit = Visit(request.session_hash or "", client, form=form, theme=theme)
    VISITS[visit.name] = visit
    ready = gr.update(interactive=True)
    return visit, ready, ready, *page.panel(visit)


def closed(request: gr.Request) -> None:
    """A page was closed: let go of its runs."""
    visits.leave(request.session_hash or "")


def preset(form: Form, name: str | None) -> list[Any]:
    """What to look at, and the form's values."""
    chosen = presets().get(name or "")
    if chosen is None:
        return [""] + [gr.skip()] * len(form.components)
    values = form.values(chosen.prompt, chosen.decoder, chosen.cache, chosen.settings)
    return [f'<p class="wb-look"><b>{inert(name)}.</b> {inert(chosen.look)}</p>', *values]


def _wire(app: gr.Blocks, form: Form) -> None:
    """Join the parts of the page, each known by its element id, to the handlers of a visit."""
    visit = gr.State(None)
    parts = {one.elem_id: one for one in app.blocks.values() if one.elem_id}
    settings, pace = form.components, ["by", "speed", "until"]
    latest = {**MANY, "trigger_mode": "always_last"}

    def named(some):
        return [parts[one] if isinstance(one, str) else one for one in some]

    def on(name, handler, inputs=(), outputs=page.PANEL, status="status", event=None, **more):
        """Wire an event, by default the press of the button of that name; after an error, say so in a status line."""
        inputs, outputs = map(named, ([visit, *inputs], outputs))
        more = {**COMMON, **FEW, "api_name": name, **more}
        done = (event or parts[name].click)(handler, inputs, outputs, **more)
        done.failure(visits.failed, visit, parts[status], queue=False, **COMMON)
        return done

    def decodes(name, handler, given=(), status="status", **more):
        """Wire a button whose run needs the form's models: they are loaded first."""
        waited = {"outputs": ["loading", "cancel"], "status": status, "trigger_mode": "once", **MANY}
        loaded = on(f"load_{name}", partial(loading.wait), settings, **waited, event=parts[name].click)
        on(name, handler, [*given, *settings], status=status, event=loaded.success, **more)

    def begin(theme: str | None, request: gr.Request) -> tuple:
        return opened(form, theme, request)

    load = {"js": THEME_OF_PAGE, "api_name": "loaded", **COMMON, **MANY}
    app.load(begin, parts["theme"], named([visit, "go", "start", *page.PANEL]), **load)
    app.unload(closed)
    parts["examples"].change(str, parts["examples"], form.prompt, queue=False, **COMMON)
    chosen = partial(preset, form)
    parts["preset"].input(chosen, parts["preset"], [parts["look"], *settings], api_name="preset", **COMMON)
    parts["cancel"].click(loading.stop, visit, None, queue=False, api_name="cancel", **COMMON)

    decodes("start", transport.start)
    decodes("go", transport.go, pace)
    on("step", transport.step, ["by"])
    on("back", partial(transport.step, forward=False), ["by"])
    on("play", transport.play, pace)
    on("pause", transport.pause, **MANY)
    view = parts["view"]
    on("tick", transport.tick, event=view.rest, **latest)
    on("pick", transport.pick, event=view.pick, **latest)
    on("lost", transport.lost, outputs=[view], event=view.lost, **latest)
    on("figure", figures.choose, ["figure"], ["plot", "plot2", "words"], event=parts["figure"].input)

    on("branch", branches.choose, ["branches"], event=parts["branches"].input)
    on("forget", branches.forget)
    on("fork", branches.fork, ["candidate", "typed"])
    on("resettle", branches.resettle, settings)
    on("beside", branches.side_by_side, ["left", "right"], ["both", "diff", "diff-words"])

    on("add", experiments.add, ["arms", *settings], ["arms"])
    kinds = (("compare", ["arms", "prompts"], "stop", "beat"), ("measure", ["counted"], "enough", "pulse"))
    for kind, given, stop, beat in kinds:
        timer = gr.Timer(experiments.BEAT_S, active=False)
        shown = {"outputs": [*experiments.OUTPUTS[kind], timer], "status": experiments.OUTPUTS[kind][0]}
        decodes(kind, partial(experiments.start, kind=kind), given, **shown)
        on(stop, partial(experiments.stop, kind=kind), **shown, **MANY)
        on(beat, partial(experiments.tick, kind=kind), event=timer.tick, **shown, **MANY)

    on("open", share.open_upload, ["open"], event=parts["open"].upload, preprocess=False)
    on("copy", share.copy, settings, ["code"])
    files = {name: (partial(share.download, kind=name), ["saved", "status"]) for name in share.KINDS}
    files |= {name: (partial(experiments.export, kind=name), ["saved"]) for name in ("csv", "json")}
    for name, (handler, outputs) in files.items():
        made = on(name, handler, outputs=outputs)
        made.success(None, parts["saved"], None, js=share.DOWNLOAD, **COMMON)

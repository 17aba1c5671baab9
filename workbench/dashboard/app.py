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


def examples() -> list[tuple[str, str]]:
    """(label, prompt) to choose from: two short ones, and held-out prompts that are not long."""
    short = [(text.splitlines()[0], text) for text in EXAMPLES]
    held_out = [(row["id"], row["prompt"]) for row in held_out_prompts() if len(row["prompt"]) <= SHORT]
    return short + held_out[:12]


def build_app(models: Sequence[str] = (), anything: bool = True, device: str = "cpu", dtype: str = "auto") -> gr.Blocks:
    """The app as Blocks, not yet served.

    models: offered first, beside the embedded and registered ones; `anything`: the owner alone sits there. device,
    dtype: where models run, and in what, unless the form says otherwise.
    """
    title = {"title": "decoding workbench", "fill_width": True, "delete_cache": (3600, 3600)}
    with Blocks(analytics_enabled=False, **title) as app:
        visit, parts = gr.State(None), {}
        parts["saved"] = gr.Textbox(visible="hidden", elem_id="saved", container=False)
        parts["theme"] = gr.Textbox(visible="hidden", elem_id="theme", container=False)
        gr.HTML("<h1>decoding workbench</h1><p>adaptive decoding, token by token</p>", elem_id="head", padding=False)
        with gr.Row(elem_id="page"):
            with gr.Column(scale=4, min_width=320, elem_id="main"):
                form = _prompt(parts, models, anything, device, dtype)
                with gr.Tabs(overflow_behavior="wrap", elem_id="tabs"):
                    for name, draw in TABS.items():
                        with gr.Tab(name, render_children=True):
                            draw(parts)
            with gr.Column(scale=1, min_width=290, elem_id="settings"):
                form.draw()
        _wire(app, visit, parts, form)
    return app


def _prompt(parts: dict[str, Any], *options: Any) -> Form:
    with gr.Row(elem_id="prompt-row"):
        with gr.Column(scale=5, min_width=280):
            prompt = gr.Textbox(EXAMPLES[0], label="prompt", lines=3, max_lines=7, elem_id="prompt")
            kind = gr.Radio(list(KINDS), value=KINDS[0], label="given as", show_label=False, elem_id="kind")
        with gr.Column(scale=2, min_width=220):
            label = "preset: a run that teaches"
            parts["preset"] = gr.Dropdown([*presets()], value=None, label=label, elem_id="preset")
            parts["examples"] = gr.Dropdown(examples(), value=EXAMPLES[0], label="or a prompt", elem_id="examples")
            with gr.Row():
                button(parts, "go", "Run", 90, interactive=False, size="md", variant="primary")
                button(parts, "start", "Start paused", 90, interactive=False, size="md")
            loading.panel(parts)
    parts["look"] = block("look")
    return Form(prompt, kind, *options)


def _decode(parts: dict[str, Any]) -> None:
    transport.panel(parts)
    parts["view"] = page.trace_view()
    parts["figures"] = block("figures")
    with gr.Accordion("The round, phase by phase", open=True, elem_id="round"):
        parts["phases"] = block("phases")
    with gr.Row(elem_id="below"):
        with gr.Column(scale=4, min_width=300):
            branches.panel(parts)
        with gr.Column(scale=5, min_width=320):
            figures.panel(parts)


TABS = {
    "Decode": _decode,
    "Side by side": branches.sides,
    "Compare": experiments.comparing,
    "Lossless?": experiments.measuring,
    "Share": share.panel,
}


def opened(limited: bool, theme: str | None, request: gr.Request) -> tuple:
    """A page was opened: a visit of its own. limited: its visitor shares the app with others."""
    client = client_of(getattr(request.request, "scope", {})) if limited else ""
    visit = Visit(request.session_hash or "", client, theme=theme if theme in ("light", "dark") else None)
    VISITS[visit.name] = visit
    ready = gr.update(interactive=True)
    return visit, ready, ready, *page.panel(visit)


def closed(request: gr.Request) -> None:
    """A page was closed: let go of its runs."""
    visit = VISITS.pop(request.session_hash or "", None)
    if visit is not None:
        visit.close()


def preset(form: Form, name: str | None) -> list[Any]:
    """What to look at, and the form's values."""
    chosen = presets().get(name or "")
    if chosen is None:
        return [""] + [gr.skip()] * len(form.components)
    values = form.values(chosen.prompt, chosen.decoder, chosen.cache, chosen.settings)
    return [f'<p class="wb-look"><b>{inert(name)}.</b> {inert(chosen.look)}</p>', *values]


def _wire(app: gr.Blocks, visit: gr.State, parts: dict[str, Any], form: Form) -> None:
    panel = [parts[name] for name in page.PANEL]
    settings, pace = form.components, ["by", "speed", "until"]
    latest = {**MANY, "trigger_mode": "always_last"}

    def on(name, event, handler, inputs=(), outputs=panel, status="status", **more):
        """Wire an event of the app to a handler of the visit; after an error, say so in a status line."""
        named = [parts[one] if isinstance(one, str) else one for one in inputs]
        done = event(handler, [visit, *named], outputs, **{**COMMON, **FEW, "api_name": name, **more})
        done.failure(visits.failed, visit, parts[status], queue=False, **COMMON)
        return done

    def press(name, handler, inputs=(), **more):
        """Wire a button, or a timer, of that name."""
        part = parts[name]
        return on(name, part.tick if isinstance(part, gr.Timer) else part.click, handler, inputs, **more)

    def formed(handler, *given):
        """A handler that takes the form before the values of its controls, and its inputs; `given` come before it."""
        place = len(given)
        return lambda visit, *values: handler(visit, *values[:place], form, *values[place:]), [*given, *settings]

    def decodes(name, handler, *given, status="status", **more):
        """Wire a button whose run needs the form's models: they are loaded first."""

        def wait(visit, *values):
            yield from loading.wait(visit, form, *values)

        waited = {"outputs": loading.outputs(parts), "status": status, "trigger_mode": "once", **MANY}
        loaded = on(f"load_{name}", parts[name].click, wait, settings, **waited)
        on(name, loaded.success, *formed(handler, *given), status=status, **more)

    ready, limited = [parts["go"], parts["start"]], not form.anything
    load = {"js": THEME_OF_PAGE, "api_name": "loaded", **COMMON, **MANY}

    def loaded(theme: str | None, request: gr.Request) -> tuple:
        return opened(limited, theme, request)

    app.load(loaded, parts["theme"], [visit, *ready, *panel], **load)
    app.unload(closed)
    parts["examples"].change(str, parts["examples"], form.prompt, queue=False, **COMMON)
    chosen = partial(preset, form)
    parts["preset"].input(chosen, parts["preset"], [parts["look"], *settings], api_name="preset", **COMMON)
    parts["cancel"].click(loading.stop, visit, None, queue=False, api_name="cancel", **COMMON)

    decodes("start", transport.start)
    decodes("go", transport.go, *pace)
    press("step", transport.step, ["by"])
    press("back", partial(transport.step, forward=False), ["by"])
    press("play", transport.play, pace)
    press("pause", transport.pause, **MANY)
    on("tick", parts["view"].rest, transport.tick, **latest)
    on("pick", parts["view"].pick, transport.pick, **latest)
    on("lost", parts["view"].lost, transport.lost, outputs=parts["view"], **latest)
    plots = [parts["plot"], parts["plot2"], parts["words"]]
    on("figure", parts["figure"].input, figures.choose, ["figure"], plots)

    on("branch", parts["branches"].input, branches.choose, ["branches"])
    press("forget", branches.forget)
    press("fork", branches.fork, ["candidates", "typed"])
    press("resettle", *formed(branches.resettle))
    both = [parts["both"], parts["diff"], parts["diff_words"]]
    press("beside", branches.side_by_side, ["left", "right"], outputs=both)

    press("add", *formed(experiments.add, "arms"), outputs=parts["arms"])
    for kind, start, given in (
        ("compare", experiments.compare, ["arms", "prompts"]),
        ("measure", experiments.measure, ["counted"]),
    ):
        said, *_, stop, timer = experiments.OUTPUTS[kind]
        shown = {"outputs": experiments.outputs(parts, kind), "status": said}
        decodes(kind, start, *given, **shown)
        press(stop, partial(experiments.stop, kind=kind), **shown, **MANY)
        press(timer, partial(experiments.tick, kind=kind), **shown, **MANY)

    on("open", parts["open"].upload, share.open_upload, ["open"], preprocess=False)
    press("copy", *formed(share.copy), outputs=parts["code"])
    files = {name: (partial(share.download, kind=name), [parts["saved"], parts["status"]]) for name in share.KINDS}
    files |= {name: (partial(experiments.export, kind=name), parts["saved"]) for name in ("csv", "json")}
    for name, (handler, outputs) in files.items():
        made = press(name, handler, outputs=outputs)
        made.success(None, parts["saved"], None, js=share.DOWNLOAD, **COMMON)

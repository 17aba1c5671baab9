"""The app: layout and wiring."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from workbench.dashboard import branches, comparing, figures, guard, loading, meter, page_load, share, sides, transport
from workbench.dashboard import panel as page
from workbench.dashboard.form import KINDS, Form
from workbench.dashboard.intake import Blocks
from workbench.dashboard.presets import presets
from workbench.dashboard.token_view import trace_view
from workbench.training.prompts import held_out_prompts

__all__ = ["build_app"]

EXAMPLES = ("def fibonacci(n):", 'class Stack:\n    """A last-in, first-out collection."""\n\n    def __init__')
SHORT = 1500  # characters of the longest held-out prompt offered
STILL = {"padding": False, "apply_default_css": False, "js_on_load": None}
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
                    with gr.Tab("Decode", render_children=True):
                        _decode(parts)
                    with gr.Tab("Side by side", render_children=True):
                        sides.panel(parts)
                    with gr.Tab("Compare", render_children=True):
                        comparing.panel(parts)
                    with gr.Tab("Lossless?", render_children=True):
                        meter.panel(parts)
                    with gr.Tab("Share", render_children=True):
                        share.panel(parts)
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
            parts["preset"] = gr.Dropdown(
                [*presets()], value=None, label="preset: a run that teaches", elem_id="preset"
            )
            parts["examples"] = gr.Dropdown(examples(), value=EXAMPLES[0], label="or a prompt", elem_id="examples")
            with gr.Row():
                small = {"min_width": 90, "interactive": False, "size": "md"}
                parts["go"] = gr.Button("Run", variant="primary", elem_id="go", **small)
                parts["start"] = gr.Button("Start paused", elem_id="start", **small)
            loading.panel(parts)
    parts["look"] = gr.HTML("", elem_id="look", **STILL)
    return Form(prompt, kind, *options)


def _decode(parts: dict[str, Any]) -> None:
    transport.panel(parts)
    parts["view"] = trace_view()
    parts["figures"] = gr.HTML("", elem_id="figures", **STILL)
    with gr.Accordion("The round, phase by phase", open=True, elem_id="round"):
        parts["phases"] = gr.HTML("", elem_id="phases", **STILL)
    with gr.Row(elem_id="below"):
        with gr.Column(scale=4, min_width=300):
            branches.panel(parts)
        with gr.Column(scale=5, min_width=320):
            figures.panel(parts)


def _wire(app: gr.Blocks, visit: gr.State, parts: dict[str, Any], form: Form) -> None:
    panel = [parts[name] for name in page.PANEL]

    def on(event, handler, inputs=(), outputs=panel, limit=FEW, status="status", **more):
        """Wire an event to a handler of the visit; after an error, say so in a status line."""
        names = [parts[one] if isinstance(one, str) else one for one in inputs]
        done = event(handler, [visit, *names], outputs, **{**COMMON, **limit, **more})
        done.failure(guard.failed, visit, parts[status], queue=False, **COMMON)
        return done

    def with_form(handler, given: int = 0):
        """The handler with the form before the values of its controls."""
        return lambda visit, *values: handler(visit, *_place(values, given, form))

    ready = [parts["go"], parts["start"]]
    load = {"js": THEME_OF_PAGE, **COMMON, **MANY}
    app.load(page_load.loader(not form.anything), parts["theme"], [visit, *ready, *panel], **load)
    app.unload(page_load.closed)
    parts["examples"].change(str, parts["examples"], form.prompt, queue=False, **COMMON)
    chosen = partial(page_load.preset, form)
    parts["preset"].input(chosen, parts["preset"], [parts["look"], *form.components], api_name="preset", **COMMON)

    pace, settings = ["by", "speed", "until"], form.components

    def loaded(name: str, status: str = "status"):
        """The event of a button whose run needs the form's models, once they are in memory."""

        def wait(visit, *values):
            yield from loading.wait(visit, form, *values)

        waited = {"outputs": loading.outputs(parts), "status": status, "limit": MANY, "trigger_mode": "once"}
        return on(parts[name].click, wait, settings, api_name=f"load_{name}", **waited).success

    on(loaded("start"), with_form(transport.start), settings, api_name="start")
    on(loaded("go"), with_form(transport.go, 3), [*pace, *settings], api_name="go")
    parts["cancel"].click(loading.stop, visit, None, queue=False, api_name="cancel", **COMMON)
    on(parts["step"].click, transport.step, ["by"], api_name="step")
    on(parts["back"].click, transport.back, ["by"], api_name="back")
    on(parts["play"].click, transport.play, pace, api_name="play")
    on(parts["pause"].click, transport.pause, limit=MANY, api_name="pause")
    on(parts["view"].rest, transport.tick, limit=MANY, trigger_mode="always_last", api_name="tick")
    on(parts["view"].pick, transport.pick, limit=MANY, trigger_mode="always_last", api_name="pick")
    on(
        parts["view"].lost,
        transport.lost,
        outputs=parts["view"],
        limit=MANY,
        trigger_mode="always_last",
        api_name="lost",
    )
    figure = [parts["plot"], parts["plot2"], parts["words"]]
    on(parts["figure"].input, figures.choose, ["figure"], figure, api_name="figure")

    on(parts["branches"].input, branches.choose, ["branches"], api_name="branch")
    on(parts["forget"].click, branches.forget, api_name="forget")
    on(parts["fork"].click, branches.fork, ["candidates", "typed"], api_name="fork")
    on(parts["resettle"].click, with_form(branches.resettle), settings, api_name="resettle")
    both = [parts["both"], parts["diff"], parts["diff_words"]]
    on(parts["beside"].click, sides.show, ["left", "right"], both, api_name="beside")

    compared = {"outputs": comparing.outputs(parts), "status": "progress"}
    on(parts["add"].click, with_form(comparing.add, 1), ["arms", *settings], parts["arms"], api_name="add")
    arms = ["arms", "prompts", *settings]
    on(loaded("compare", "progress"), with_form(comparing.start, 2), arms, api_name="compare", **compared)
    on(parts["stop"].click, comparing.stop, limit=MANY, api_name="stop", **compared)
    on(parts["beat"].tick, comparing.tick, limit=MANY, api_name="beat", **compared)

    measured = {"outputs": meter.outputs(parts), "status": "verdict"}
    on(loaded("measure", "verdict"), with_form(meter.start, 1), ["counted", *settings], api_name="measure", **measured)
    on(parts["enough"].click, meter.stop, limit=MANY, api_name="enough", **measured)
    on(parts["pulse"].tick, meter.tick, limit=MANY, api_name="pulse", **measured)

    on(parts["open"].upload, share.open_upload, ["open"], preprocess=False, api_name="open")
    on(parts["copy"].click, with_form(share.copy), settings, parts["code"], api_name="copy")
    files = {name: (partial(share.download, kind=name), [parts["saved"], parts["status"]]) for name in share.KINDS}
    files |= {name: (partial(comparing.export, kind=name), parts["saved"]) for name in ("csv", "json")}
    for name, (handler, outputs) in files.items():
        made = on(parts[name].click, handler, outputs=outputs, api_name=name)
        made.success(None, parts["saved"], None, js=share.DOWNLOAD, **COMMON)


def _place(values: tuple, given: int, form: Form) -> tuple:
    return (*values[:given], form, *values[given:])

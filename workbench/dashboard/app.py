"""The app: layout and wiring."""

import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import gradio as gr

from workbench import held_out_prompts, web
from workbench.cursor import Replay
from workbench.dashboard import branches, experiments, figures, loading, setup, share, transport, visits
from workbench.dashboard import screen as page
from workbench.dashboard.bundled import bundled
from workbench.dashboard.form import GATHER, KINDS, SPREAD, Form, spread
from workbench.dashboard.html import block, button, inert
from workbench.dashboard.limits import client_of
from workbench.dashboard.presets import presets
from workbench.dashboard.uploads import Blocks
from workbench.dashboard.visits import VISITS, Visit, come_back, guarded, told
from workbench.errors import BadInput
from workbench.session import Session
from workbench.trace import Trace

EXAMPLES = ("def fibonacci(n):", 'class Stack:\n    """A last-in, first-out collection."""\n\n    def __init__')
SHORT = 1500  # characters of the longest held-out prompt offered
COMMON = {"show_progress": "hidden", "api_visibility": "private"}
FEW, MANY = {"concurrency_limit": 4}, {"concurrency_limit": 16}
OF_PAGE = web.script("opened.js")  # its theme, and the key of its tab
First = tuple[str, Trace | Session] | None
KEY = re.compile(r"[\w-]{16,64}")
TABS = {
    "Run": page.trace_view,
    "Figures": figures.panel,
    "Side by side": branches.sides,
    "Compare": experiments.comparing,
    "Verify": experiments.measuring,
}


def build_app(
    models: Sequence[str] = (),
    anything: bool = True,
    device: str = "cpu",
    dtype: str = "auto",
    first: First = None,
) -> gr.Blocks:
    """The app as Blocks, not yet served.

    models: offered first, beside the embedded and registered ones; `anything`: the owner alone sits there. device,
    dtype: where models run, and in what, unless the form says otherwise. first: name of the run that a page opens
    on, and its trace or session; by default one that ships with the package.
    """
    title = {"title": "decoding workbench", "fill_width": True, "delete_cache": (3600, 3600)}
    with Blocks(analytics_enabled=False, **title) as app:
        for hidden in ("saved", "theme", "key", "kept", "filled", "chosen"):
            gr.Textbox(visible="hidden", elem_id=hidden, container=False)
        gr.HTML("<h1>decoding workbench</h1>", elem_id="head", padding=False)
        setup.row()
        block("status", live=True)
        loading.panel()
        with gr.Tabs(overflow_behavior="wrap", elem_id="tabs"):
            for name, draw in TABS.items():
                with gr.Tab(name, render_children=True, elem_id=f"tab-{name.split()[0].lower()}"):
                    draw()
        with gr.Column(elem_id="share", min_width=0):
            share.panel()
        with gr.Column(elem_id="drawer", min_width=0):  # the last: the page looks for a part among all before it
            with gr.Row():
                button("adopt", "As in the run shown", 140)
                button("reset", "Reset", 80)
            form = Form(*_prompt(), models, anything, device, dtype)
            form.begin(_values(form, next(iter(presets()))))
        _wire(app, form, first)
    return app


def _prompt() -> tuple[gr.Textbox, gr.Radio]:
    """The prompt, what it is given as, and some to begin from."""
    with gr.Accordion("Prompt", open=True, elem_id="of-prompt"):
        prompt = gr.Textbox(EXAMPLES[0], label="prompt", lines=5, max_lines=12, elem_id="prompt")
        kind = gr.Radio(list(KINDS), value=KINDS[0], label="given as", show_label=False, elem_id="kind")
        short = [(text.splitlines()[0], text) for text in EXAMPLES]
        held_out = [(row["id"], row["prompt"]) for row in held_out_prompts() if len(row["prompt"]) <= SHORT]
        gr.Dropdown(short + held_out[:12], value=EXAMPLES[0], label="or one of these", elem_id="examples")
    return prompt, kind


def opened(
    form: Form, theme: str | None, key: str | None, kept: str | None, request: gr.Request, first: First = None
) -> tuple:
    """A page was opened: the visit that its tab had, else one of its own, on a run that teaches.

    There are limits where visitors share the app. kept: the form as the browser has kept it.
    """
    client = "" if form.anything else client_of(getattr(request.request, "scope", {}))
    theme = theme if theme in ("light", "dark") else None
    name, key = request.session_hash or "", key if key and KEY.fullmatch(key) else ""
    if (visit := come_back(key, name, client)) is not None:
        with visit.lock:
            visit.theme = theme
            return visit, *_begun(visit, kept)
    visit = Visit(name, client, key, form=form, theme=theme)
    VISITS[visit.name] = visit
    with visit.lock:
        if first is None:
            _show_bundled(visit, next(iter(presets())))
        else:
            _show(visit, *first)
        return visit, *_begun(visit, kept)


def _begun(visit: Visit, kept: str | None) -> list[Any]:
    """The page as it opens, with what the browser kept of the form, else the first preset's."""
    values, name = visit.form.kept(kept), next(iter(presets()))
    setup.chips(visit.form, visit, values or _values(visit.form, name))
    visit.preset = "" if values else name
    return [*page.panel(visit), spread(values) if values else ""]


@guarded
def reset(visit: Visit) -> list[Any]:
    """The form as it is at first."""
    return _filled(visit, _values(visit.form, next(iter(presets()))))


@guarded
def adopt(visit: Visit) -> list[Any]:
    """The form as it was for the run shown."""
    values, left = visit.form.of_run(visit.branch.run.trace.run)
    visit.message = f"The form is as in the run shown, without {left}." if left else "The form is as in the run shown."
    return [*_filled(visit, values), inert(visit.message)]


def _filled(visit: Visit, values: list[Any]) -> list[Any]:
    return [setup.chips(visit.form, visit, values), spread(values)]


def _values(form: Form, name: str) -> list[Any]:
    """The form's values of a preset."""
    chosen = presets()[name]
    return form.values(chosen.prompt, chosen.decoder, chosen.cache, chosen.settings)


def _show_bundled(visit: Visit, name: str) -> bool:
    """Show the recorded run of a preset; whether there is one."""
    if name not in bundled():
        return False
    trace, at = bundled()[name]
    there = [place for place, one in enumerate(visit.branches) if one.run.trace is trace]
    if there:
        visit.current = there[0]
    else:
        _show(visit, name, trace)
    visit.selected, visit.branch.look = at, presets()[name].look
    return True


def _show(visit: Visit, name: str, run: Trace | Session) -> None:
    """Look at a recorded run, or at one that goes on."""
    if isinstance(run, Trace):
        run = Replay(run)
        run.jump(run.length, run.rounds)
    visit.add(name, run)


def closed(request: gr.Request) -> None:
    """A page was closed: let go of its runs."""
    visits.leave(request.session_hash or "")


@guarded
def preset(visit: Visit, event: gr.EventData) -> list[Any]:
    """A preset: its recorded run at once, and its settings in the form."""
    name = told(event).get("name")
    if not isinstance(name, str) or name not in presets():
        raise BadInput(f"there is no such preset; choose one of {', '.join(presets())}")
    visit.halt()
    if not _show_bundled(visit, name):
        visit.message = presets()[name].look
    values = _values(visit.form, name)
    setup.chips(visit.form, visit, values)
    visit.preset = name
    return [*page.panel(visit), spread(values)]


def _wire(app: gr.Blocks, form: Form, first: First) -> None:
    """Join the parts of the page, each known by its element id, to the handlers of a visit."""
    visit = gr.State(None)
    parts = {one.elem_id: one for one in app.blocks.values() if one.elem_id}
    settings, view, row = form.components, parts["view"], parts["setup"]
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

    def filled(name, event=None):
        """What comes after an event, by default the press of the button of that name, once the form is gathered."""
        gather = {"js": form.script(GATHER), "api_name": f"fill_{name}", **COMMON}
        return (event or parts[name].click)(None, settings, parts["filled"], **gather).success

    def decodes(name, handler, given=(), status="status", event=None, **more):
        """Wire a button whose run needs the form's models: they are loaded first."""
        waited = {"outputs": ["loading"], "status": status, "trigger_mode": "once", **MANY}
        loaded = on(f"load_{name}", partial(loading.wait), ["filled"], **waited, event=filled(name, event))
        on(name, handler, [*given, "filled"], status=status, event=loaded.success, **more)

    def begin(theme: str | None, key: str | None, kept: str | None, request: gr.Request) -> tuple:
        return opened(form, theme, key, kept, request, first)

    load = {"js": OF_PAGE, "api_name": "loaded", **COMMON, **MANY}
    app.load(begin, named(["theme", "key", "kept"]), named([visit, *page.PANEL, "chosen"]), **load)
    app.unload(closed)
    parts["examples"].change(str, parts["examples"], form.prompt, queue=False, **COMMON)
    edited = {"queue": False, "trigger_mode": "always_last", "api_name": "edited", **COMMON}
    filled("edited", row.edited)(partial(setup.chips, form), [visit, parts["filled"]], row, **edited)
    on("preset", preset, outputs=[*page.PANEL, "chosen"], event=row.preset)
    on("reset", reset, outputs=["setup", "chosen"])
    on("adopt", adopt, outputs=["setup", "chosen", "status"])
    parts["chosen"].change(None, parts["chosen"], settings, js=form.script(SPREAD), **COMMON)
    row.stop(loading.stop, visit, None, queue=False, api_name="cancel", **COMMON)
    decodes("start", transport.start, event=row.start)
    decodes("go", transport.go, event=row.go)
    on("step", transport.step, event=view.step, trigger_mode="multiple")  # the next may come while one is being drawn
    on("run", transport.run, event=view.run)
    on("pause", transport.pause, event=view.pause, **MANY)
    on("tick", transport.tick, event=view.rest, **latest)
    on("pick", transport.pick, event=view.pick, **latest)
    on("lost", transport.lost, outputs=[view], event=view.lost, **latest)
    on("choose", branches.choose, event=view.choose)
    on("forget", branches.forget, event=view.forget)
    on("fork", branches.fork, event=view.fork)
    on("resettle", branches.resettle, ["filled"], event=filled("resettle", view.resettle))
    on("figures", figures.drawn, outputs=figures.OUTPUTS, event=parts["tab-figures"].select)
    pairs = {"beside": parts["tab-side"].select, "left": parts["left"].input, "right": parts["right"].input}
    for name, event in pairs.items():
        on(name, branches.side_by_side, ["left", "right"], ["both"], event=event)

    on("add", experiments.add, ["arms", "filled"], ["arms"], event=filled("add"))
    kinds = (("compare", ["arms", "prompts"], "stop", "beat"), ("measure", ["counted"], "enough", "pulse"))
    for kind, given, stop, beat in kinds:
        timer = gr.Timer(experiments.BEAT_S, active=False)
        shown = {"outputs": [*experiments.OUTPUTS[kind], timer], "status": experiments.OUTPUTS[kind][0]}
        decodes(kind, partial(experiments.start, kind=kind), given, **shown)
        on(stop, partial(experiments.stop, kind=kind), **shown, **MANY)
        on(beat, partial(experiments.tick, kind=kind), event=timer.tick, **shown, **MANY)

    timer = gr.Timer(experiments.BEAT_S, active=False)
    shown = {"outputs": [*experiments.OUTPUTS["baseline"], timer], "status": "plainly"}
    on("baseline", experiments.baseline, **shown)
    on("paying", experiments.paying, event=timer.tick, **shown, **MANY)
    on("verify", experiments.paying, event=parts["tab-verify"].select, **shown, **MANY)

    on("open", share.open_upload, ["open"], event=parts["open"].upload, preprocess=False)
    on("copy", share.copy, ["filled"], ["code"], event=filled("copy"))
    for name, act in share.IN_BROWSER.items():
        parts[name].click(None, js=act, **COMMON)
    files = {name: (partial(share.download, kind=name), ["saved", "status"]) for name in share.KINDS}
    files |= {name: (partial(experiments.export, kind=name), ["saved"]) for name in ("csv", "json")}
    for name, (handler, outputs) in files.items():
        made = on(name, handler, outputs=outputs)
        made.success(None, parts["saved"], None, js=share.DOWNLOAD, **COMMON)

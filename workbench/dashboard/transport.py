"""Forward and back: the row of buttons, and what they do."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from workbench import conditions
from workbench.dashboard import screen as page
from workbench.dashboard.html import block, button
from workbench.dashboard.jobs import Worker
from workbench.dashboard.visits import BY, Visit, guarded
from workbench.errors import BadInput
from workbench.session import Session
from workbench.values import one_of, whole

__all__ = ["SPEEDS", "go", "lost", "panel", "pause", "pick", "play", "set_to_work", "start", "step", "tick"]

SPEEDS = {"1 step / s": 1.0, "3 steps / s": 0.33, "10 steps / s": 0.1, "full speed": 0.0}  # seconds a step
BUTTONS = {"back": "◀ Back", "step": "Step ▶", "play": "Run on ▶▶", "pause": "❚❚ Pause"}
KEYS = "Keys: N step, B back, R run on, P pause, 1 2 3 by phase, round, token; arrows in the text move the cursor"


def panel() -> None:
    """The row of buttons, how they step, and the status line."""
    with gr.Row(elem_id="transport"):
        for name, label in BUTTONS.items():
            variant = "primary" if name in ("step", "play") else "secondary"
            button(name, label, 76, scale=1, interactive=False, variant=variant)
        small = {"scale": 1, "min_width": 130}
        gr.Radio(list(BY), value="round", label="step by", min_width=270, scale=3, elem_id="by")
        gr.Dropdown(list(SPEEDS), value="full speed", label="speed", elem_id="speed", **small)
        gr.Textbox("", label="stop where", placeholder="entropy > 3", max_lines=1, elem_id="until", **small)
    block("status", live=True)
    block("keys", f"<p>{KEYS}</p>")


@guarded
def start(visit: Visit, *values: Any) -> tuple:
    """Open a run with what the form says; nothing is decoded yet."""
    _open(visit, values)
    return page.panel(visit)


@guarded
def go(visit: Visit, by: str, speed: str, until: str, *values: Any) -> tuple:
    """Open a run with what the form says, and decode it."""
    return _play(visit, by, speed, until, lambda: _open(visit, values))


def _open(visit: Visit, values: tuple) -> None:
    visit.check_limit()
    wanted = visit.form.read(values)
    session = Session(wanted.load(), wanted.prompt, wanted.decoder, **wanted.settings)
    name = session.decoder.declared_name
    visit.add(name, session)
    guarantee = session.decoder.guarantee(session.settings.sampling)
    visit.message = f"Ready: {len(session.prompt_ids)} prompt tokens, {name} (guarantee: {guarantee})."


@guarded
def step(visit: Visit, by: str, forward: bool = True) -> tuple:
    """One phase, round or token on, or back, from where the reader looks; nothing recorded is lost."""
    one_of("step by", by, *BY)
    visit.settle()
    (visit.branch.advance if forward else visit.branch.retreat)(by)
    page.say(visit)
    return page.panel(visit)


@guarded
def play(visit: Visit, by: str, speed: str, until: str) -> tuple:
    """Decode on from where the reader looks, until the end, the condition or a pause."""
    return _play(visit, by, speed, until, visit.settle)


def _play(visit: Visit, by: str, speed: str, until: str, ready: Callable[[], None]) -> tuple:
    condition = conditions.parse(until) if (until or "").strip() else None
    one_of("step by", by, *BY)
    one_of("speed", speed, *SPEEDS)
    ready()
    visit.message = "Running. Pause stops it."
    return set_to_work(visit, Worker(visit.branch, by, SPEEDS[speed], condition, visit.client))


def set_to_work(visit: Visit, worker: Worker) -> tuple:
    """The page as the worker finds it, and the worker begun."""
    visit.worker = worker
    shown = page.panel(visit)
    try:
        worker.start()
    except BadInput:
        visit.worker = None
        raise
    return shown


@guarded
def tick(visit: Visit) -> tuple:
    """Show what the worker has done: little while it is at it, the whole page once it is not."""
    if visit.worker is not None and visit.worker.is_alive():
        return page.beat(visit)
    if visit.worker is not None:
        _rest(visit)
    return page.panel(visit)


def _rest(visit: Visit, text: str = "") -> None:
    """Say how the worker ended."""
    worker = visit.halt()
    if worker is not None and worker.error:
        visit.message = worker.error
    else:
        page.say(visit, f"Stopped where {worker.until}." if worker is not None and worker.found else text)


@guarded
def pause(visit: Visit) -> tuple:
    """Stop after the step under way, and show where the run really is."""
    if visit.branches:
        _rest(visit, "Paused.")
    return page.panel(visit)


@guarded
def pick(visit: Visit, event: gr.EventData) -> tuple:
    """The cursor came to rest on a token: what the server draws follows it."""
    told = getattr(event, "_data", None)
    index = whole(told.get("index")) if isinstance(told, dict) else None
    if visit.branches and index is not None and 0 <= index < visit.branch.run.length:
        visit.selected = index
        visit.branch.phase = None if visit.worker is None else visit.branch.phase
    if visit.worker is not None:
        return tuple([gr.skip()] * len(page.PANEL))
    return (gr.skip(), *page.panel(visit)[1:])  # the page has moved its cursor in the view already


@guarded
def lost(visit: Visit) -> Any:
    """The page misses rounds: send all of them."""
    return page.view(visit, since=0) if visit.branches else ""

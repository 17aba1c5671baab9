"""Decoding on: what the transport of the view asks for."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from workbench import conditions
from workbench.dashboard import screen as page
from workbench.dashboard.form import told_beside
from workbench.dashboard.jobs import Worker
from workbench.dashboard.visits import BY, Visit, guarded, told
from workbench.errors import BadInput
from workbench.session import Session
from workbench.values import one_of, whole

SLOWEST_S = 5.0  # seconds a step


@guarded
def start(visit: Visit, filled: str) -> tuple:
    """Open a run with what the form says; nothing is decoded yet."""
    _open(visit, filled)
    return page.panel(visit)


@guarded
def go(visit: Visit, filled: str) -> tuple:
    """Open a run with what the form says, and decode it."""
    return _run(visit, told_beside(filled), lambda: _open(visit, filled))


def _open(visit: Visit, filled: str) -> None:
    visit.check_limit()
    wanted = visit.form.read(filled)
    session = Session(wanted.load(), wanted.prompt, wanted.decoder, **wanted.settings)
    visit.add(session.decoder.declared_name.replace("_", " "), session)
    visit.message = f"{len(session.prompt_ids)} tokens of prompt."


@guarded
def step(visit: Visit, event: gr.EventData) -> tuple:
    """One phase, round or token on, from the end of the record."""
    by = told(event).get("by", "round")
    one_of("step by", by, *BY)
    visit.settle()
    visit.branch.advance("phase" if by == "phase" else "round")
    page.say(visit)
    return page.panel(visit)


@guarded
def run(visit: Visit, event: gr.EventData) -> tuple:
    """Decode on from the end of the record, until the end, the condition or a pause."""
    return _run(visit, told(event), visit.settle)


def _run(visit: Visit, asked: dict[str, Any], ready: Callable[[], None]) -> tuple:
    until, pace = asked.get("until") or "", asked.get("pace") or 0
    if not isinstance(until, str) or type(pace) not in (int, float) or not 0 <= pace <= SLOWEST_S:
        raise BadInput(f"until is a condition, and pace 0 to {SLOWEST_S:g} seconds a step")
    condition = conditions.parse(until) if until.strip() else None
    before, current = len(visit.branches), visit.current
    ready()
    visit.branch.phase = None
    visit.message = ""
    try:
        return set_to_work(visit, Worker(visit.branch, "round", float(pace), condition, visit.client))
    except BadInput:  # no turn is free: as if it had not been asked for
        if len(visit.branches) > before:
            del visit.branches[before:]
            visit.current, visit.sent = current, (None, 0)
        raise


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
    index = whole(told(event).get("index"))
    if visit.branches and index is not None and 0 <= index < visit.branch.run.length:
        visit.selected = index
    if visit.worker is not None:
        return tuple([gr.skip()] * len(page.PANEL))
    return (gr.skip(), *page.panel(visit)[1:])  # the page has moved its cursor in the view already


@guarded
def lost(visit: Visit) -> Any:
    """The page misses rounds: send all of them."""
    return page.view(visit, since=0) if visit.branches else ""

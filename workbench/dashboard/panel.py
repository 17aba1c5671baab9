"""What the page shows of a visit: one update per part, in the order of `PANEL`."""

from typing import Any

import gradio as gr

from workbench.dashboard import figures, inspector, python, token_view
from workbench.dashboard.phases import NOTHING, phases
from workbench.dashboard.run import PHASES
from workbench.dashboard.visit import Visit

__all__ = ["PANEL", "beat", "panel", "say", "view"]

PANEL = (
    "view", "status", "figures", "phases", "candidates", "plot", "plot2", "words", "branches", "left", "right", "code",
    "step", "back", "play", "pause", "fork", "resettle", "forget", "save", "capsule", "perfetto",
)  # fmt: skip


def panel(visit: Visit) -> tuple:
    """All updates. The view is sent what the page does not hold yet."""
    parts = _filled(visit) if visit.branches else _empty(visit)
    return tuple(parts[name] for name in PANEL)


def beat(visit: Visit) -> tuple:
    """The updates while a worker decodes: little, since they come often."""
    branch = visit.branch
    parts = {"view": view(visit)}
    if branch.phase is not None:
        parts["phases"] = phases(branch.run.trace, visit.round, branch.phase)
    return tuple(parts.get(name, gr.skip()) for name in PANEL)


def view(visit: Visit, since: int | None = None) -> str:
    """The JSON text for the trace view: the rounds from `since` on, by default those that the page lacks.

    Given, `since` is what the page has asked for, and all that it is known to hold until it is heard of again.
    """
    branch, run = visit.branch, visit.branch.run
    mine, sent = visit.sent
    rounds = run.rounds if since is None else since  # before the payload: what a worker adds by then is sent twice
    if since is None:
        since = sent if mine is run else 0
    place = {
        "cursor": branch.reached,
        "selected": visit.focus,
        "follow": visit.selected is None,
        "phase": branch.phase,
        "live": visit.name if visit.playing else None,
    }
    text = token_view.payload(run.trace, place, since, visit.reader)
    visit.sent = (run, rounds)
    return text


def say(visit: Visit, text: str = "") -> None:
    """Put what just happened, and the place, into the status line."""
    run = visit.branch.run
    over = f" Ended: {run.ended}." if visit.branch.done else ""
    behind = f" of {run.length} recorded" if run.cursor < run.length else ""
    branch = visit.branch
    phase = "" if branch.phase is None else f" Round {branch.round}, {PHASES[branch.phase]}."
    visit.message = f"{text} Token {branch.reached}{behind}.{phase}{over}".strip()


def _empty(visit: Visit) -> dict[str, Any]:
    idle, none = gr.update(interactive=False), gr.update(choices=[], value=None)
    buttons = ("step", "back", "play", "pause", "fork", "resettle", "forget", "save", "capsule", "perfetto")
    visit.sent = (None, 0)
    blank = {"view": "", "figures": "", "phases": NOTHING, "code": ""}
    plots = zip(("plot", "plot2", "words"), figures.drawn(visit), strict=True)
    shown = {"status": inspector.inert(visit.message)}
    lists = dict.fromkeys(("candidates", "branches", "left", "right"), none)
    return {**dict.fromkeys(buttons, idle), **blank, **dict(plots), **lists, **shown}


def _filled(visit: Visit) -> dict[str, Any]:
    branch, run, playing = visit.branch, visit.branch.run, visit.playing
    trace = branch.trace
    labels = [(one.label, number) for number, one in enumerate(visit.branches)]
    last = len(labels) - 1
    plots = zip(("plot", "plot2", "words"), figures.drawn(visit), strict=True)
    ready = gr.update(interactive=bool(run.length) and not playing)
    return {
        "view": view(visit),
        "status": inspector.inert(visit.message),
        "figures": inspector.figures(trace),
        "phases": phases(trace, visit.round, branch.phase),
        "candidates": _candidates(visit),
        **dict(plots),
        "branches": gr.update(choices=labels, value=visit.current),
        "left": gr.update(choices=labels, value=_kept(visit, 0, last)),
        "right": gr.update(choices=labels, value=_kept(visit, 1, last)),
        "code": python.of_session(run) if branch.live else "# an opened trace: see its settings in the capsule",
        "step": gr.update(interactive=not branch.done and not playing),
        "back": gr.update(interactive=run.cursor > 0 and not playing),
        "play": gr.update(interactive=not branch.done and not playing),
        "pause": gr.update(interactive=playing),
        "fork": gr.update(interactive=branch.live and run.length > 0),
        "resettle": gr.update(interactive=branch.live),
        "forget": gr.update(interactive=not playing),
        "save": gr.update(interactive=True),
        "capsule": ready,
        "perfetto": ready,
    }


def _kept(visit: Visit, side: int, last: int) -> int:
    """Which run a side of the comparison shows: the first, and the one looked at or the newest."""
    return 0 if side == 0 else visit.current or last


def _candidates(visit: Visit) -> Any:
    if visit.focus is None:
        return gr.update(choices=[], value=None)
    return gr.update(choices=inspector.candidates(visit.branch.trace, visit.focus, visit.text_of), value=None)

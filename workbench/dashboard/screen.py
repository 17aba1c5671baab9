"""What the page shows of a visit: one update per part, in the order of `PANEL`; and the view of its trace."""

import json
from functools import cache
from itertools import count
from typing import Any

import gradio as gr

from workbench import web
from workbench.dashboard import figures, html, python
from workbench.dashboard.html import PHASES, phases
from workbench.dashboard.visits import Visit

__all__ = ["PANEL", "beat", "panel", "say", "script", "trace_view", "view"]

PANEL = (
    "view", "status", "figures", "phases", "candidate", "plot", "plot2", "words", "branches", "left", "right", "code",
    "step", "back", "play", "pause", "fork", "resettle", "forget", "save", "capsule", "perfetto",
)  # fmt: skip
VIEW = {
    "parts": ("transport", "tokens", "timeline", "inspector", "table"),
    "settled": 150,  # ms that the cursor rests on a token before the server hears of it
    "beat": 150,  # ms between two looks at a run that is being decoded
    "away": 1000,  # where the server did not answer
}

_turns = count()


@cache
def script() -> str:
    """The module of `workbench.web` and what joins it to the page, as the body of a function."""
    options = json.dumps({**VIEW, "css": web.css()})
    code = web.module(export=False) + web.script("app.js")
    return f"{code}connect({{ element, props, trigger, watch }}, {options});\n"


def trace_view() -> gr.HTML:
    """The component; its value is what `view` returns. Its `pick` event carries the index of a token."""
    return gr.HTML("", elem_id="view", apply_default_css=False, padding=False, html_template="", js_on_load=script())


def panel(visit: Visit) -> tuple:
    """All updates. The view is sent what the page does not hold yet."""
    parts = _filled(visit) if visit.branches else _empty(visit)
    parts |= dict(zip(("plot", "plot2", "words"), figures.drawn(visit), strict=True))
    return tuple(parts[name] for name in PANEL)


def beat(visit: Visit) -> tuple:
    """The updates while a worker decodes: little, since they come often."""
    parts, phase = {"view": view(visit)}, visit.branch.phase
    if phase is not None:
        parts["phases"] = phases(visit.branch.run.trace, visit.round, phase)
    return tuple(parts.get(name, gr.skip()) for name in PANEL)


def view(visit: Visit, since: int | None = None) -> str:
    """The JSON text for the trace view: `workbench.web.payload` from round `since` on, by default what the page lacks.

    Given, `since` is what the page has asked for, and all that it is known to hold until it is heard of again. Beside
    it, where the visitor is: `cursor`, tokens before the run's; `place`, rounds too; `selected`, the token inspected;
    `follow`, scroll to it; `phase`, the one shown; `live`, the page's name while its run is decoded. Every text is
    another one (`turn`), so that the page, whose cursor may have moved since, takes notice of it.
    """
    branch, run = visit.branch, visit.branch.run
    mine, sent = visit.sent
    rounds = run.rounds if since is None else since  # before the payload: what a worker adds by then is sent twice
    since = (sent if mine is run else 0) if since is None else since
    place = {
        "cursor": branch.reached,
        "place": {**run.place._asdict(), "at": branch.round, "tip": run.at_tip},
        "selected": visit.focus,
        "follow": visit.selected is None,
        "phase": branch.phase,
        "live": visit.name if visit.worker is not None else None,
        "turn": next(_turns),
    }
    text = web.to_json({**web.payload(run.trace, since, visit.reader), **place})
    visit.sent = (run, rounds)
    return text


def say(visit: Visit, text: str = "") -> None:
    """Put what just happened, and the place, into the status line."""
    branch, run = visit.branch, visit.branch.run
    over = f" Ended: {run.ended}." if branch.done else ""
    behind = f" of {run.length} recorded" if run.cursor < run.length else ""
    phase = "" if branch.phase is None else f", {PHASES[branch.phase]}"
    round = "" if branch.round is None else f" Round {branch.round}{phase}."
    visit.message = f"{text} Token {branch.reached}{behind}.{round}{over}".strip()


def _empty(visit: Visit) -> dict[str, Any]:
    visit.sent = (None, 0)
    parts = dict.fromkeys(PANEL, gr.update(interactive=False)) | dict.fromkeys(("view", "figures", "code"), "")
    parts |= dict.fromkeys(("candidate", "branches", "left", "right"), gr.update(choices=[], value=None))
    return parts | {"phases": phases(None, None, None), "status": html.inert(visit.message)}


def _filled(visit: Visit) -> dict[str, Any]:
    branch, run, playing = visit.branch, visit.branch.run, visit.worker is not None
    trace, live = branch.trace, branch.live
    labels = [(one.label, number) for number, one in enumerate(visit.branches)]
    taken = [] if visit.focus is None else html.candidates(trace, visit.focus, visit.reader)
    ready = {"save": True, "pause": playing, "resettle": live, "fork": live and run.length > 0}
    rested = {"forget": True, "back": run.round is not None, **dict.fromkeys(("step", "play"), not branch.done)}
    rested |= dict.fromkeys(("capsule", "perfetto"), run.length > 0)
    ready |= {name: may and not playing for name, may in rested.items()}
    return {
        "view": view(visit),
        "status": html.inert(visit.message),
        "figures": html.figures(trace),
        "phases": phases(trace, visit.round, branch.phase),
        "candidate": gr.update(choices=taken, value=None),
        "branches": gr.update(choices=labels, value=visit.current),
        "left": gr.update(choices=labels, value=0),
        "right": gr.update(choices=labels, value=visit.current or len(labels) - 1),
        "code": python.of_session(run) if live else "# an opened trace: see its settings in the capsule",
        **{name: gr.update(interactive=may) for name, may in ready.items()},
    }

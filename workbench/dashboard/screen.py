"""What the page shows of a visit: one update per part, in the order of `PANEL`; and the view of its trace."""

import json
from collections.abc import Sequence
from functools import cache
from itertools import count
from typing import Any

import gradio as gr

from workbench import web
from workbench.dashboard import html, python, setup
from workbench.dashboard.visits import VISITS, Visit
from workbench.report.headline import badge, run_line
from workbench.session import Session

PANEL = (
    "view", "setup", "status", "left", "right", "code", "save", "capsule", "perfetto",
)  # fmt: skip
EVENTS = ("step", "run", "pause", "rest", "pick", "lost", "choose", "forget", "fork", "resettle")  # of the view
VIEW = {
    "settled": 150,  # ms that the cursor rests on a token before the server hears of it
    "away": 1000,  # where the server did not answer
}
FAST, SLOW, ALONE = 80, 150, 2  # ms from one look at a run to the next; the second where more than that many watch

_turns = count()


@cache
def module() -> str:
    """The view, and what joins it and its parts to the page, as a module: `connect`, `beside`."""
    words = f"const GLOSSARY = {json.dumps(web.glossary())};\n"
    parts = map(web.script, ("tour.js", "picture.js", "app.js", "beside.js"))
    return "".join([web.module(export=False), words, *parts, "export { connect, beside };\n"])


def trace_view() -> gr.HTML:
    """The component; its value is what `view` returns. Its events are what the reader asks for: see `web/app.js`."""
    return from_module("view", "connect", {**VIEW, "css": web.css()}, EVENTS)


def from_module(elem_id: str, name: str, options: dict[str, Any], events: Sequence[str] = ()) -> gr.HTML:
    """A component whose value is drawn by what the page's module calls `name`."""
    script = f"""const events = {json.dumps(events)}, host = {{ element, props, trigger, watch }};
import(new URL("view.js", document.baseURI)).then((found) => found.{name}(host, {json.dumps(options)}));
"""
    return gr.HTML("", elem_id=elem_id, apply_default_css=False, padding=False, html_template="", js_on_load=script)


def panel(visit: Visit) -> tuple:
    """All updates. The view is sent what the page does not hold yet."""
    parts = _filled(visit) if visit.branches else _empty(visit)
    return tuple(parts[name] for name in PANEL)


def beat(visit: Visit) -> tuple:
    """The updates while a worker decodes: little, since they come often."""
    return tuple(view(visit) if name == "view" else gr.skip() for name in PANEL)


def view(visit: Visit, since: int | None = None) -> str:
    """The JSON text for the trace view: `workbench.web.payload` from round `since` on, by default what the page lacks.

    Given, `since` is what the page has asked for, and all that it is known to hold until it is heard of again. Beside
    it, where the visitor is: `cursor`, tokens before the run's; `place`, rounds too; `selected`, the token inspected;
    `follow`, scroll to it; `live`, the page's name while its run is decoded, and `beat`, ms from one look at it to the
    next; `runs`, `badge`, `line` and `status`, what stands above the text; `can`, whether it can be decoded on. Every
    text is another one (`turn`), so that the page, whose cursor may have moved since, takes notice of it.
    """
    branch, run = visit.branch, visit.branch.run
    mine, sent = visit.sent
    rounds = run.rounds if since is None else since  # before the payload: what a worker adds by then is sent twice
    since = (sent if mine is run else 0) if since is None else since
    working = visit.worker is not None
    upto = (branch.round, branch.phase) if branch.open and branch.round is not None else None
    where = {
        "place": {**run.place._asdict(), "at": branch.round, "tip": run.at_tip},
        "selected": visit.focus,
        "follow": visit.selected is None,
        "live": visit.name if working else None,
        "beat": FAST if sum(one.worker is not None for one in list(VISITS.values())) <= ALONE else SLOW,
        "status": {"running": working, "message": ""},
        "can": isinstance(run, Session),
        "turn": next(_turns),
    }
    if not working or not since:
        said = {} if upto else run_line(branch.trace) if run.rounds else {"badge": badge(branch.trace), "line": ""}
        where |= {"runs": _runs(visit), **said, "line": " ".join(filter(None, (branch.look, said.get("line"))))}
    data = web.payload(run.trace, since, branch.reader, upto)
    where["cursor"] = where["place"]["token"] = min(run.cursor, data["length"])  # no more than is shown
    text = web.to_json({**data, **where})
    visit.sent = (run, rounds - 1 if upto and rounds else rounds)  # an open round is sent again
    return text


def _runs(visit: Visit) -> list[dict[str, Any]]:
    """The runs as chips A, B, C."""
    return [
        {"run": place, "name": name_of(visit, place), "on": place == visit.current}
        for place in range(len(visit.branches))
    ]


def name_of(visit: Visit, place: int) -> str:
    """What a run is called on the page: `B · from 40`."""
    return f"{chr(65 + place)} · {visit.branches[place].label.partition(': ')[2]}"


def say(visit: Visit, text: str = "") -> None:
    """Put what just happened into the status line, and how the run ended."""
    over = f" Ended: {visit.branch.run.ended}." if visit.branch.done else ""
    visit.message = f"{text}{over}".strip()


def _empty(visit: Visit) -> dict[str, Any]:
    visit.sent = (None, 0)
    parts = dict.fromkeys(PANEL, gr.update(interactive=False)) | dict.fromkeys(("view", "code"), "")
    parts |= dict.fromkeys(("left", "right"), gr.update(choices=[], value=None))
    return parts | {"setup": setup.shown(visit), "status": html.inert(visit.message)}


def _filled(visit: Visit) -> dict[str, Any]:
    branch, run, playing = visit.branch, visit.branch.run, visit.worker is not None
    labels = [(run["name"], run["run"]) for run in _runs(visit)]
    ready = {"save": True, **dict.fromkeys(("capsule", "perfetto"), run.length > 0 and not playing)}
    return {
        "view": view(visit),
        "setup": setup.shown(visit),
        "status": html.inert(visit.message),
        "left": gr.update(choices=labels, value=max(0, len(labels) - 2)),
        "right": gr.update(choices=labels, value=len(labels) - 1),
        "code": python.of_session(run) if branch.live else python.of_run(run.trace),
        **{name: gr.update(interactive=may) for name, may in ready.items()},
    }

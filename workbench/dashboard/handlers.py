"""What happens when something is pressed. Every handler takes the visit, changes it, and returns the panel.

The panel is a tuple of updates in the order of `PANEL`. Errors made on purpose become one line in a toast and in the
status line; the run they came from stays as it was.
"""

import tempfile
import time
import weakref
from functools import partial, wraps
from pathlib import Path
from typing import Any

import gradio as gr

from workbench import conditions, views
from workbench.dashboard import inspector, strip
from workbench.dashboard.form import Form
from workbench.dashboard.visit import Branch, Replay, Visit
from workbench.errors import BadInput, WorkbenchError
from workbench.session import Session
from workbench.trace import Trace

__all__ = [
    "DETAILS", "PANEL", "back", "branch", "closed", "detail", "failed", "fork", "jump", "loaded", "open_trace", "pause",
    "pick", "play", "save", "start", "step", "tick",
]  # fmt: skip

PANEL = (
    "strip", "status", "figures", "signals", "inspector", "candidates", "scrub", "plot", "branches", "step",
    "step_token", "back", "play", "pause", "fork", "save", "timer",
)  # fmt: skip
DETAILS = {
    "draft tree": lambda trace, round: views.draft_tree(trace, round),
    "acceptance by depth": lambda trace, round: views.acceptance(trace),
    "cache by layer": lambda trace, round: views.cache_footprint(trace),
    "bits by position": lambda trace, round: views.bit_map(trace),
    "forward passes": lambda trace, round: views.forwards_timeline(trace),
    "entropy and surprisal": lambda trace, round: views.entropy(trace),
}
PACES = {"by token": 0.35, "by round": 0.35, "fast": 0.15}  # seconds between ticks
BURST = 0.2  # seconds of decoding in one tick at the fast pace
MAX_TRACE = 16_000_000  # bytes of a trace file that may be opened

_visits: weakref.WeakValueDictionary[str, Visit] = weakref.WeakValueDictionary()


def guarded(handler):
    """Hold the visit's lock; turn errors made on purpose, and a full memory, into one line."""

    @wraps(handler)
    def guard(visit: Visit | None, *values, **named):
        if visit is None:
            raise gr.Error("the page is still loading; try again in a moment", print_exception=False)
        with visit.lock:
            try:
                return handler(visit, *values, **named)
            except (WorkbenchError, MemoryError, RuntimeError) as error:
                full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
                if not full and not isinstance(error, WorkbenchError):
                    raise
                line = "out of memory; use fewer tokens or a smaller model" if full else " ".join(str(error).split())
                visit.playing, visit.message = False, line
                raise gr.Error(inspector.inert(line), print_exception=False) from error

    return guard


# -- the panel ----------------------------------------------------------------------------------------------------


def panel(visit: Visit, light: bool = False) -> tuple:
    """All updates, in the order of `PANEL`; `light` leaves out what need not follow a playing run."""
    parts = _empty(visit) if not visit.branches else _filled(visit, light)
    return tuple(parts[name] for name in PANEL)


def _empty(visit: Visit) -> dict[str, Any]:
    idle = gr.update(interactive=False)
    buttons = ("step", "step_token", "back", "play", "pause", "fork", "save")
    blank = {"strip": "", "figures": "", "inspector": inspector.inspect(None, None, str), "signals": None, "plot": None}
    return {
        **dict.fromkeys(buttons, idle), **blank, "status": inspector.inert(visit.message),
        "candidates": gr.update(choices=[], value=None), "scrub": gr.update(maximum=1, value=0, interactive=False),
        "branches": gr.update(choices=[], value=None, visible=False), "timer": gr.Timer(active=False),
    }  # fmt: skip


def _filled(visit: Visit, light: bool) -> dict[str, Any]:
    branch, run = visit.branch, visit.branch.run
    trace, focus, playing = run.trace, visit.focus, visit.playing
    done = bool(run.ended) and run.cursor >= run.length
    skip = gr.skip()
    labels = [(one.label, number) for number, one in enumerate(visit.branches)]
    can = partial(gr.update)
    return {
        "strip": strip.payload(trace, run.cursor, focus, follow=visit.selected is None),
        "status": inspector.inert(visit.message),
        "figures": inspector.figures(trace),
        "signals": views.signals(trace, focus).update_layout(height=600),
        "inspector": inspector.inspect(trace, focus, visit.text_of),
        "candidates": skip if light else _candidates(visit),
        "scrub": can(maximum=max(run.length, 1), value=run.cursor, interactive=run.length > 0 and not playing),
        "plot": skip if light else _plot(visit),
        "branches": skip if light else can(choices=labels, value=visit.current, visible=len(labels) > 1),
        "step": can(interactive=not done and not playing),
        "step_token": can(interactive=not done and not playing),
        "back": can(interactive=run.cursor > 0 and not playing),
        "play": can(interactive=not done and not playing),
        "pause": can(interactive=playing),
        "fork": can(interactive=branch.live and run.length > 0 and not playing),
        "save": can(interactive=True),
        "timer": gr.Timer(active=playing),
    }


def _candidates(visit: Visit) -> Any:
    if visit.focus is None:
        return gr.update(choices=[], value=None)
    return gr.update(choices=inspector.candidates(visit.branch.run.trace, visit.focus, visit.text_of), value=None)


def _plot(visit: Visit) -> Any:
    trace, focus = visit.branch.run.trace, visit.focus
    if not len(trace.rounds):
        return None
    round = int(trace.tokens["round"].iloc[focus]) if focus is not None else 0
    return DETAILS[visit.detail](trace, round).update_layout(height=360)


def _say(visit: Visit, text: str = "") -> None:
    """Put the place, and what just happened, into the status line."""
    run = visit.branch.run
    over = f" Ended: {run.ended}." if run.ended and run.cursor >= run.length else ""
    behind = f" of {run.length} recorded" if run.cursor < run.length else ""
    visit.message = f"{text} Token {run.cursor}{behind}.{over}".strip()


# -- the page -----------------------------------------------------------------------------------------------------


def loaded(request: gr.Request) -> tuple:
    """A page was opened: a visit of its own."""
    visit = Visit()
    _visits[request.session_hash or ""] = visit
    return visit, gr.update(interactive=True), *panel(visit)


def closed(request: gr.Request) -> None:
    """A page was closed: let go of its runs."""
    visit = _visits.pop(request.session_hash or "", None)
    if visit is not None:
        visit.close()


def failed(visit: Visit | None) -> tuple:
    """After an error: the status line says it, and nothing plays on."""
    message = visit.message if visit else "the page is still loading; try again in a moment"
    return inspector.inert(message), gr.Timer(active=False), gr.update(interactive=False)


# -- forward and back ---------------------------------------------------------------------------------------------


@guarded
def start(visit: Visit, form: Form, *values: Any) -> tuple:
    """Begin a run with what the form says."""
    wanted = form.read(values)
    session = Session(wanted.load(), wanted.prompt, wanted.decoder, **wanted.settings)
    visit.begin(Branch("main", session))
    claim = session.decoder.claim(session.settings.sampling)
    visit.message = f"Ready: {len(session.prompt_ids)} prompt tokens, {session.decoder.declared_name} (claim: {claim})."
    return panel(visit)


@guarded
def step(visit: Visit, by: str = "round") -> tuple:
    """One round or one token forward."""
    visit.selected = None
    visit.branch.run.step(by)
    _say(visit)
    return panel(visit)


@guarded
def back(visit: Visit) -> tuple:
    """One round back; nothing recorded is lost."""
    visit.selected = None
    visit.branch.run.back()
    _say(visit)
    return panel(visit)


@guarded
def jump(visit: Visit, to: float) -> tuple:
    """Put the cursor behind the first `to` tokens."""
    visit.selected = None
    run = visit.branch.run
    run.jump(min(max(int(to), 0), run.length))
    _say(visit)
    return panel(visit)


@guarded
def play(visit: Visit, pace: str, until: str) -> tuple:
    """Let the timer step."""
    if (until or "").strip():
        conditions.parse(until)
    visit.branch  # noqa: B018  (raises where there is nothing to play)
    visit.playing, visit.selected, visit.message = True, None, "Running …"
    parts = list(panel(visit))
    parts[PANEL.index("timer")] = gr.Timer(PACES[pace], active=True)
    return tuple(parts)


@guarded
def tick(visit: Visit, pace: str, until: str) -> tuple:
    """A beat of the timer: a token, a round, or as many rounds as fit a moment."""
    if not visit.playing:
        return (*[gr.skip()] * (len(PANEL) - 1), gr.Timer(active=False))
    run, holds = visit.branch.run, conditions.parse(until) if (until or "").strip() else None
    start, found, more = time.perf_counter(), None, True
    while more:
        if pace == "by token" or isinstance(run, Replay):
            moved = run.step("token" if pace == "by token" else "round") is not None
            found = _here(run, holds)
        else:
            before = run.cursor
            found = run.run(until=holds, rounds=1)
            moved = run.cursor > before
        visit.playing = moved and found is None and not (run.ended and run.cursor >= run.length)
        more = visit.playing and pace == "fast" and time.perf_counter() - start < BURST
    _say(visit, "Running." if visit.playing else f"Stopped where {until}." if found else "")
    return panel(visit, light=visit.playing)


def _here(run: Session | Replay, holds: Any) -> Any:
    """The row of the token before the cursor, if it fulfils the condition."""
    if holds is None or not run.cursor:
        return None
    tokens = run.trace.tokens.merge(run.trace.rounds, on="round", suffixes=("", "_of_round"))
    row = tokens.iloc[run.cursor - 1].to_dict()
    return row if holds(row) else None


@guarded
def pause(visit: Visit) -> tuple:
    """Stop the timer, and show where the run really is."""
    visit.playing = False
    if visit.branches:
        _say(visit, "Paused.")
    return panel(visit)


# -- looking ------------------------------------------------------------------------------------------------------


@guarded
def _pick(visit: Visit, index: int) -> tuple:
    if 0 <= index < visit.branch.run.length:
        visit.selected = index
    return panel(visit)


def pick(visit: Visit, event: gr.EventData) -> tuple:
    """A token of the strip was chosen."""
    return _pick(visit, int(event.index))


@guarded
def detail(visit: Visit, name: str) -> Any:
    """Another figure beside the inspector."""
    visit.detail = name if name in DETAILS else "draft tree"
    return _plot(visit) if visit.branches else None


@guarded
def branch(visit: Visit, number: int) -> tuple:
    """Look at another branch."""
    if isinstance(number, int) and 0 <= number < len(visit.branches):
        visit.current, visit.selected, visit.playing = number, None, False
        _say(visit, f"Looking at {visit.branch.label}.")
    return panel(visit)


# -- sideways, out and in -----------------------------------------------------------------------------------------


@guarded
def fork(visit: Visit, form: Form, candidate: int | None, typed: str, resettle: bool, *values: Any) -> tuple:
    """Branch off before the inspected token: with another token there, with the form's settings, or both."""
    run, at = visit.branch.run, visit.focus
    if isinstance(run, Replay):
        raise BadInput("an opened trace has no model behind it; press Start to run and fork")
    if at is None:
        raise BadInput("choose a token first: click one in the strip")
    token = typed if typed else candidate
    changes = {}
    if resettle:
        wanted = form.read(values)
        changes = {"decoder": wanted.decoder, **wanted.settings}
    elif token is None:
        raise BadInput("choose a candidate, type one token, or tick the settings box: a branch needs something new")
    made = run.fork(at=at, token=token, **changes)
    what = f" with {visit.text_of(token) if isinstance(token, int) else token!r}" if token is not None else ""
    number = len(visit.branches)
    visit.add(Branch(f"branch {number}: from token {at}{what}{', new settings' if resettle else ''}", made))
    made.step()
    _say(visit, f"Branched off before token {at}.")
    return panel(visit)


@guarded
def save(visit: Visit) -> tuple[str, str]:
    """The trace as text, for the browser to keep as a file; and the status line."""
    trace = visit.branch.run.trace
    with tempfile.TemporaryDirectory() as folder:
        trace.save(Path(folder) / "run.wb")
        text = (Path(folder) / "run.wb").read_text(encoding="utf-8")
    visit.message = f"Saved {trace.id or 'run'}.wb: {len(trace.token_ids)} tokens."
    return text, inspector.inert(visit.message)


@guarded
def open_trace(visit: Visit, path: str | None) -> tuple:
    """Show a trace file; no model is needed."""
    if not path:
        raise BadInput("choose a trace file such as run.wb")
    if Path(path).stat().st_size > MAX_TRACE:
        raise BadInput(f"the file is larger than {MAX_TRACE // 1_000_000} MB; read it with workbench.Trace.load")
    try:
        trace = Trace.load(path)
    except WorkbenchError as error:
        raise type(error)(str(error).replace(str(path), Path(path).name)) from None
    visit.begin(Branch(Path(path).name, replay := Replay(trace)))
    replay.jump(replay.length)
    lost = f" Dropped: {'; '.join(trace.dropped)}." if trace.dropped else ""
    _say(visit, f"Opened {Path(path).name}: {replay.length} tokens.{lost}")
    return panel(visit)

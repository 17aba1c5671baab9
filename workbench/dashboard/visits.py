"""What one visitor holds: runs, branches and opened traces, where they look, and what is at work for them."""

import ctypes
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from itertools import count
from typing import Any

import gradio as gr

from workbench.cursor import Replay
from workbench.dashboard.html import inert
from workbench.errors import BadInput, WorkbenchError
from workbench.session import Session
from workbench.trace import Trace
from workbench.web import data
from workbench.web.data import PHASES

BY = ("phase", "round", "token")
LAST = len(PHASES) - 1
MAX_BRANCHES = 12
MOST_LEFT = 2  # tabs of one client that may come back
LEFT_S = 600.0  # seconds for which a tab may come back to its runs
IDLE_S = 1800.0  # seconds without a word from the page after which its runs are let go
_turns = count()
LOADING = "the page is not ready; try again in a moment, or reload it if it was left for long"
Holds = Callable[[Any], bool]


@dataclass(eq=False)
class Branch:
    """A run under a name. phase: index into `PHASES` while its round is looked at phase by phase, else None."""

    label: str
    run: Session | Replay
    phase: int | None = None
    look: str = ""  # what there is to see in it
    decoding: bool = False  # by a worker, just now

    @property
    def live(self) -> bool:
        return isinstance(self.run, Session)

    @property
    def trace(self) -> Trace:
        """The trace, or where a worker adds to it, what it holds now."""
        trace = self.run.trace
        return Trace(list(trace.log), trace.dropped) if self.decoding else trace

    @property
    def reader(self) -> Callable[[int], str]:
        """What gives the text of a token id: the run's tokenizer, or what the trace knows about it."""
        return (self.run.reader if self.live else None) or data.reader(self.run.trace)

    @property
    def done(self) -> bool:
        """Whether nothing lies ahead of the cursor."""
        return bool(self.run.ended) and self.run.at_tip and self.phase in (None, LAST)

    @property
    def round(self) -> int | None:
        """The number of the round that the cursor is in or right behind; None at the start."""
        return None if self.run.round is None else self.run.trace.index.event(self.run.round)["round"]

    @property
    def open(self) -> bool:
        """Whether its last round is shown in part."""
        return self.phase is not None and self.phase < LAST

    def advance(self, by: str, holds: Holds | None = None) -> tuple[bool, bool]:
        """One phase, round or token on; an open round is shown whole first, or by phases its next one.

        Returns (whether it moved, whether `holds` stopped it).
        """
        if self.open:
            self.phase = self.phase + 1 if by == "phase" else None
            return True, False
        number, row = self.run.advance("token" if by == "token" else "round", holds, rounds=1)
        if number is None:
            return False, False
        self.phase = 0 if by == "phase" else None
        return True, row is not None

    def jump(self, to: int) -> None:
        """Put the cursor behind the first `to` tokens."""
        self.phase = None
        self.run.jump(to)


@dataclass(eq=False)
class Visit:
    """One visitor's runs. Every handler holds `lock` while it touches them.

    name: of the page, as the server knows it. key: what the tab knows, also after a reload; "" where it keeps none.
    client: the visitor as far as limits go, "" for the owner. form: what reads the page's controls. selected: the token
    inspected; None follows the cursor. worker: None once it has finished and was collected. message: the status line's
    text. sent: the run and the number of its rounds that the page holds. chips: what the form says, by group; trouble:
    why it cannot be run; refused: choices that do not fit the rest; preset: the one chosen last. seen: when the page
    was last heard of.
    """

    name: str = ""
    client: str = ""
    key: str = ""
    form: Any = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    branches: list[Branch] = field(default_factory=list)
    current: int = 0
    selected: int | None = None
    worker: Any = None
    message: str = ""
    theme: str | None = None
    sent: tuple[Any, int] = (None, 0)
    chips: dict[str, str] | None = None
    preset: str = ""
    refused: dict[str, dict[str, str]] = field(default_factory=dict)
    trouble: str = ""
    jobs: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, Any] = field(default_factory=dict)
    runs: int = 0
    seen: float = field(default_factory=time.monotonic)

    def __deepcopy__(self, memo) -> "Visit":
        return self  # a visit is where it is

    @property
    def branch(self) -> Branch:
        """The branch looked at. Raises BadInput before anything was started or opened."""
        if not self.branches:
            raise BadInput("nothing to step through yet; press Run, or open a trace")
        return self.branches[self.current]

    @property
    def focus(self) -> int | None:
        """The token looked at: the one picked, else the last before the cursor."""
        if not self.branches:
            return None
        run = self.branch.run
        picked = self.selected is not None and self.selected < run.length
        return self.selected if picked else run.cursor - 1 if run.cursor else None

    @property
    def round(self) -> int | None:
        """The round looked at."""
        return self.branch.round if self.selected is None else self.branch.run.round_at(self.focus)

    def hear(self) -> None:
        """Note that the page is there."""
        self.seen = time.monotonic()
        _left.pop(self.key, None)

    def halt(self) -> Any:
        """Stop the worker after its step; returns it."""
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.stop()
        return worker

    def settle(self) -> None:
        """Stop, and go to the end of what is recorded, from where decoding goes on."""
        self.halt()
        branch, self.selected = self.branch, None
        if not branch.run.at_tip:
            branch.jump(branch.run.length)
            branch.run.jump(branch.run.length, branch.run.rounds)

    def add(self, name: str, run: Session | Replay) -> None:
        """Look at a further run or branch, numbered. Raises BadInput where there are too many."""
        self.check_limit()
        self.halt()
        self.runs += 1
        self.branches.append(Branch(f"{self.runs}: {name}", run))
        self.current, self.selected = len(self.branches) - 1, None

    def check_limit(self) -> None:
        """Raises BadInput where no further run may be opened."""
        if len(self.branches) >= MAX_BRANCHES:
            raise BadInput(f"{MAX_BRANCHES} runs and branches are open, the most there can be; press Forget on one")

    def close(self) -> None:
        """Let go of all runs and their caches."""
        for job in list(self.jobs.values()):
            job.stop()
        with self.lock:
            self.halt()
            self.branches, self.current, self.selected = [], 0, None
            self.jobs = {}
        trim()


def trim() -> None:
    """Give back what threads have freed and glibc keeps, run after run."""
    found = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if found is not None:
        found(0)


VISITS: weakref.WeakValueDictionary[str, Visit] = weakref.WeakValueDictionary()


_left: dict[str, tuple[Visit, float]] = {}  # of tabs that may come back, by key; since when


def leave(name: str) -> None:
    """The page of that name is no more: let go of its runs, for good unless its tab may come back."""
    visit = VISITS.pop(name, None)
    if visit is not None and visit.key and (visit.branches or visit.jobs):
        _left[visit.key] = (visit, time.monotonic())
        same = [key for key, (one, _) in _left.items() if one.client == visit.client]
        for key in same[:-MOST_LEFT]:
            _left.pop(key)[0].close()
    elif visit is not None:
        visit.close()


def come_back(key: str, name: str, client: str) -> Visit | None:
    """The visit of the tab with that key, now that its page is called `name`; None where there is none of that client.

    Its old page may not have been heard to leave yet.
    """
    here = next((one for one in list(VISITS.values()) if key and one.key == key), None)
    visit = here or _left.get(key, (None, 0.0))[0]
    if visit is None or visit.client != client:
        return None
    _left.pop(key, None)
    VISITS.pop(visit.name, None)
    with visit.lock:
        visit.name, visit.sent = name, (None, 0)
        visit.hear()
    VISITS[name] = visit
    return visit


def forget_left(older: float = LEFT_S, decoding: float = IDLE_S) -> None:
    """Let go of the runs of tabs that have not come back for `older` seconds; `decoding` where one is at work."""
    for key, (visit, since) in list(_left.items()):
        working = visit.worker is not None and visit.worker.is_alive()
        if time.monotonic() - since > (decoding if working else older):
            _left.pop(key, None)
            visit.close()


def forget_idle(older: float = IDLE_S) -> int:
    """Let go of the runs of pages that were not heard of for `older` seconds; returns how many pages."""
    now = time.monotonic()
    idle = [one for one in list(VISITS.values()) if (one.branches or one.jobs) and now - one.seen > older]
    for visit in idle:
        visit.close()
        visit.message = "This page was idle for long, and its runs were let go. Press Run to begin anew."
    return len(idle)


def guarded(handler):
    """Hold the visit's lock; turn whatever goes wrong into one line. Only what nobody expected is printed in full."""

    @wraps(handler)
    def guard(visit: Visit | None, *values, **named):
        if visit is None:
            raise gr.Error(LOADING, print_exception=False)
        with visit.lock:
            visit.hear()
            try:
                return handler(visit, *values, **named)
            except gr.Error:
                raise
            except Exception as error:
                if not isinstance(error, (WorkbenchError, MemoryError)):
                    traceback.print_exc()
                visit.message = one_line(error)
                unseen = {"print_exception": False, "visible": False}  # the line that `failed` gives is enough
                raise gr.Error(inert(visit.message), **unseen) from error

    return guard


def told(event: gr.EventData) -> dict[str, Any]:
    """What the page says with an event; nothing where it is not as the page says it."""
    data = getattr(event, "_data", None)
    return data if isinstance(data, dict) else {}


def failed(visit: Visit | None) -> Any:
    """After an error: the status line says it."""
    line = inert(visit.message if visit else LOADING)
    turn = next(_turns)  # the same error twice is said twice
    return f'<span class="wb-error" title="{line}" data-turn="{turn}">{line}</span>'


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; use fewer tokens or a smaller model"
    text = " ".join(str(error).split())
    return text if isinstance(error, WorkbenchError) else f"unexpected {type(error).__name__}: {text}"

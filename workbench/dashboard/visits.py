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
from typing import Any

import gradio as gr

from workbench.cursor import Replay
from workbench.dashboard.html import PHASES, inert
from workbench.errors import BadInput, WorkbenchError
from workbench.session import Session
from workbench.trace import Trace
from workbench.web import data

__all__ = ["BY", "VISITS", "Branch", "Holds", "Visit", "failed", "forget_idle", "guarded", "one_line"]

BY = ("phase", "round", "token")
COMMIT, LAST = PHASES.index("commit"), len(PHASES) - 1
MAX_BRANCHES = 12
IDLE_S = 1800.0  # seconds without a word from the page after which its runs are let go
LOADING = "the page is not ready; try again in a moment, or reload it if it was left for long"
Holds = Callable[[Any], bool]


@dataclass(eq=False)
class Branch:
    """A run under a name. phase: index into `PHASES` while its round is looked at phase by phase, else None."""

    label: str
    run: Session | Replay
    phase: int | None = None
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
    def done(self) -> bool:
        """Whether nothing lies ahead of the cursor."""
        return bool(self.run.ended) and self.run.at_tip and self.phase in (None, LAST)

    @property
    def round(self) -> int | None:
        """The number of the round that the cursor is in or right behind; None at the start."""
        return None if self.run.round is None else self.run.trace.index.event(self.run.round)["round"]

    @property
    def reached(self) -> int:
        """Tokens committed as far as the phases shown go."""
        if self.phase is None or self.phase >= COMMIT:
            return self.run.cursor
        return self.run.trace.index.start(self.run.round) if self.run.round is not None else 0

    def advance(self, by: str, holds: Holds | None = None) -> tuple[bool, bool]:
        """One phase, round or token on. Returns (whether it moved, whether `holds` stopped it)."""
        if by == "phase" and self.phase is not None and self.phase < LAST:
            self.phase += 1
            return True, False
        number, row = self.run.advance("token" if by == "token" else "round", holds, rounds=1)
        if number is None:
            return False, False
        self.phase = 0 if by == "phase" else None
        return True, row is not None

    def retreat(self, by: str) -> None:
        """One phase, round or token back; nothing recorded is lost."""
        if by == "phase" and self.phase != 0:
            if self.run.round is not None:
                self.phase = (len(PHASES) if self.phase is None else self.phase) - 1
            return
        self.run.back(by="round" if by == "phase" else by)
        self.phase = LAST if by == "phase" and self.run.round is not None else None

    def jump(self, to: int) -> None:
        """Put the cursor behind the first `to` tokens."""
        self.phase = None
        self.run.jump(to)


@dataclass(eq=False)
class Visit:
    """One visitor's runs. Every handler holds `lock` while it touches them.

    name: of the page, as the browser knows it. client: the visitor as far as limits go, "" for the owner. form: what
    reads the page's controls. selected: the token inspected; None follows the cursor. worker: None once it has finished
    and was collected. message: the status line's text. sent: the run and the number of its rounds that the page holds.
    drawn: what the figures on the page show. seen: when the page was last heard of.
    """

    name: str = ""
    client: str = ""
    form: Any = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    branches: list[Branch] = field(default_factory=list)
    current: int = 0
    selected: int | None = None
    worker: Any = None
    message: str = "Choose a prompt or a preset, and press Run."
    figure: str = "draft tree"
    theme: str | None = None
    sent: tuple[Any, int] = (None, 0)
    drawn: Any = None
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
            raise BadInput("nothing to step through yet; press Start, or open a trace")
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

    def halt(self) -> Any:
        """Stop the worker after its step; returns it."""
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.stop()
        return worker

    def settle(self) -> None:
        """Stop, and put the cursor where the reader looks: the next step goes on from there."""
        self.halt()
        if self.selected is not None and self.selected < self.branch.run.length:
            self.branch.jump(self.selected + 1)
        self.selected = None

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
            self.branches, self.current, self.selected, self.drawn = [], 0, None, None
            self.jobs = {}
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
        if trim is not None:  # glibc keeps what threads have freed, run after run
            trim(0)

    @property
    def reader(self) -> Callable[[int], str]:
        """What gives the text of a token id: the run's tokenizer, or what the trace knows about it."""
        run = self.branch.run
        return (run.reader if self.branch.live else None) or data.reader(run.trace)


VISITS: weakref.WeakValueDictionary[str, Visit] = weakref.WeakValueDictionary()


def leave(name: str) -> None:
    """Let go of the runs of the page of that name, which is no more."""
    visit = VISITS.pop(name, None)
    if visit is not None:
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
                raise gr.Error(inert(visit.message), print_exception=False) from error

    return guard


def failed(visit: Visit | None) -> Any:
    """After an error: the status line says it."""
    return inert(visit.message if visit else LOADING)


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; use fewer tokens or a smaller model"
    text = " ".join(str(error).split())
    return text if isinstance(error, WorkbenchError) else f"unexpected {type(error).__name__}: {text}"

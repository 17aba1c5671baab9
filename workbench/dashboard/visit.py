"""What one visitor holds: runs, branches and opened traces, where they look, and their comparison."""

import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workbench.dashboard.run import Branch, Replay, Worker
from workbench.engine.text import token_text
from workbench.errors import BadInput
from workbench.models.loading import EMBEDDED

__all__ = ["VISITS", "Branch", "Replay", "Visit", "forget_idle"]

MAX_BRANCHES = 12
IDLE_S = 1800.0  # seconds without a word from the page after which its runs are let go


@dataclass(eq=False)
class Visit:
    """One visitor's runs. Every handler holds `lock` while it touches them.

    name: of the page, as the browser knows it. selected: the token inspected; None follows the cursor. message: the
    status line's text. client: the visitor as far as limits go, "" for the owner. sent: the run and the number of
    its rounds that the page holds. drawn: what the figures on the page show. seen: when the page was last heard of.
    """

    name: str = ""
    client: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)
    branches: list[Branch] = field(default_factory=list)
    current: int = 0
    selected: int | None = None
    worker: Worker | None = None
    message: str = "Choose a prompt or a preset, and press Run."
    figure: str = "draft tree"
    theme: str | None = None
    sent: tuple[Any, int] = (None, 0)
    drawn: Any = None
    trial: Any = None
    meter: Any = None
    loading: Any = None
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
    def playing(self) -> bool:
        """Whether a worker is at it, or has ended and was not yet taken notice of."""
        return self.worker is not None

    @property
    def focus(self) -> int | None:
        """The token looked at: the one picked, else the last before the cursor."""
        if not self.branches:
            return None
        run = self.branch.run
        if self.selected is not None and self.selected < run.length:
            return self.selected
        return run.cursor - 1 if run.cursor else None

    @property
    def round(self) -> int | None:
        """The round looked at."""
        if self.selected is None:
            return self.branch.round
        return self.branch.run.round_at(self.focus)

    def hear(self) -> None:
        """Note that the page is there."""
        self.seen = time.monotonic()

    def halt(self) -> Worker | None:
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

    def add(self, branch: Branch) -> None:
        """Look at a further run or branch. Raises BadInput where there are too many."""
        self.check_limit()
        self.halt()
        self.branches.append(branch)
        self.look(len(self.branches) - 1)

    def check_limit(self) -> None:
        """Raise BadInput where no further run may be opened."""
        if len(self.branches) >= MAX_BRANCHES:
            raise BadInput(f"{MAX_BRANCHES} runs and branches are open, the most there can be; press Forget on one")

    def look(self, number: int) -> None:
        """Look at another branch."""
        self.current, self.selected = number, None

    def close(self) -> None:
        """Let go of all runs and their caches."""
        for thread in (self.trial, self.meter, self.loading):
            if thread is not None:
                thread.stop()
        with self.lock:
            self.halt()
            self.branches, self.current, self.selected, self.drawn = [], 0, None, None
            self.trial = self.meter = None
        _give_back()

    @property
    def reader(self) -> Callable[[int], str] | None:
        """What reads token ids for the view; None where the view knows the tokenizer, or nobody does."""
        branch = self.branch
        return self.text_of if branch.live and branch.run.lm.name not in EMBEDDED else None

    def text_of(self, token: int) -> str:
        """The text of a token id: the tokenizer's, or what an opened trace knows about it."""
        branch = self.branch
        if branch.live and branch.run.lm.tokenizer is not None:
            return token_text(branch.run.lm.tokenizer, token)
        for table in (branch.run.trace.tokens, branch.run.trace.drafts):
            found = table.loc[table["token_id"] == token, "text"]
            if len(found) and found.iloc[0]:
                return found.iloc[0]
        return f"id {token}"


def _give_back() -> None:
    """Return freed memory to the system: glibc keeps what threads have freed, run after run."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


VISITS: weakref.WeakValueDictionary[str, Visit] = weakref.WeakValueDictionary()


def forget_idle(older: float = IDLE_S) -> int:
    """Let go of the runs of pages that were not heard of for `older` seconds; returns how many pages."""
    now = time.monotonic()
    idle = [one for one in list(VISITS.values()) if (one.branches or one.trial or one.meter) and now - one.seen > older]
    for visit in idle:
        visit.close()
        visit.message = "This page was idle for long, and its runs were let go. Press Run to begin anew."
    return len(idle)

"""What one visitor holds: branches of a run, or an opened trace, and where they look."""

import threading
from dataclasses import dataclass, field

from workbench.errors import BadInput
from workbench.session import Session
from workbench.trace import Trace

__all__ = ["Branch", "Replay", "Visit"]

MAX_BRANCHES = 12


class Replay:
    """An opened trace under a cursor: the part of `Session` that needs no model."""

    def __init__(self, trace: Trace):
        self.trace = trace
        self.cursor = 0
        self._ends = [0]
        for event in trace.steps():
            self._ends.append(self._ends[-1] + event["emitted"])

    @property
    def length(self) -> int:
        return self._ends[-1]

    @property
    def ended(self) -> str | None:
        return "replayed" if self.cursor >= self.length else None

    def step(self, by: str = "round") -> int | None:
        later = [end for end in self._ends if end > self.cursor]
        if not later:
            return None
        self.cursor = self.cursor + 1 if by == "token" else later[0]
        return self.cursor

    def back(self, by: str = "round") -> int:
        earlier = [end for end in self._ends if end < self.cursor]
        self.cursor = max(self.cursor - 1, 0) if by == "token" else max(earlier, default=0)
        return self.cursor

    def jump(self, to: int) -> int:
        self.cursor = min(max(to, 0), self.length)
        return self.cursor


@dataclass
class Branch:
    """A run under a name."""

    label: str
    run: Session | Replay

    @property
    def live(self) -> bool:
        return isinstance(self.run, Session)


@dataclass(eq=False)
class Visit:
    """One visitor's runs. Every handler holds `lock` while it touches them.

    selected: the token inspected; None follows the cursor. playing: the timer steps. message: the status line's text.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    branches: list[Branch] = field(default_factory=list)
    current: int = 0
    selected: int | None = None
    playing: bool = False
    message: str = "Choose a prompt and press Start."
    detail: str = "draft tree"

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
        """The token the inspector shows: the one picked, else the last before the cursor."""
        if not self.branches:
            return None
        run = self.branch.run
        if self.selected is not None and self.selected < run.length:
            return self.selected
        return run.cursor - 1 if run.cursor else None

    def begin(self, branch: Branch) -> None:
        """Put away what was there, and look at this."""
        self.branches, self.current, self.selected, self.playing = [branch], 0, None, False

    def add(self, branch: Branch) -> None:
        """Look at a further branch. Raises BadInput where there are too many."""
        if len(self.branches) >= MAX_BRANCHES:
            raise BadInput(f"{MAX_BRANCHES} branches are open, the most there can be; press Start to begin anew")
        self.branches.append(branch)
        self.current, self.selected, self.playing = len(self.branches) - 1, None, False

    def close(self) -> None:
        """Let go of all runs and their caches."""
        with self.lock:
            self.branches, self.current, self.selected, self.playing = [], 0, None, False

    def text_of(self, token: int) -> str:
        """The text of a token id: the tokenizer's, or what an opened trace knows about it."""
        branch = self.branch
        if branch.live and branch.run.lm.tokenizer is not None:
            return branch.run.lm.tokenizer.decode([token])
        for table in (branch.run.trace.tokens, branch.run.trace.drafts):
            found = table.loc[table["token_id"] == token, "text"]
            if len(found) and found.iloc[0]:
                return found.iloc[0]
        return f"id {token}"

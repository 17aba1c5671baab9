"""A run under a cursor that moves by phase, by round or by token; and the worker that moves it."""

import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.errors import BadInput, WorkbenchError
from workbench.session import Session
from workbench.trace import Trace

__all__ = ["BY", "PHASES", "Branch", "Replay", "Worker", "give_turn", "one_line", "take_turn"]

BY = ("phase", "round", "token")
PHASES = ("draft", "verify", "accept", "commit", "cache")  # views of one recorded round, in the order of its work
COMMIT = PHASES.index("commit")
MOST = 16  # runs decoded at once in this process
Holds = Callable[[Any], bool]

_turns = threading.BoundedSemaphore(MOST)


def take_turn() -> None:
    """One more run is going to be decoded. Raises BadInput where that is too many."""
    if not _turns.acquire(blocking=False):
        raise BadInput(f"{MOST} runs are being decoded, the most at once; try again in a moment")


def give_turn() -> None:
    """A run is no longer being decoded."""
    _turns.release()


class Replay:
    """An opened trace under a cursor: the part of `Session` that needs no model."""

    def __init__(self, trace: Trace):
        self.trace = trace
        self.cursor = 0
        self._ends, self._numbers = [0], []
        for event in trace.log:
            if event["type"] == "round":
                self._ends.append(self._ends[-1] + event.get("emitted", 0))
                self._numbers.append(event["round"])  # a damaged file may lack some

    @property
    def length(self) -> int:
        return self._ends[-1]

    @property
    def rounds(self) -> int:
        return len(self._ends) - 1

    @property
    def ended(self) -> str | None:
        return "replayed" if self.cursor >= self.length else None

    def round_at(self, index: int) -> int:
        """The round that holds a token; behind the last one, the number that would be next."""
        place = bisect_right(self._ends, index)
        later = self._numbers[-1] + 1 if self._numbers else 0
        return self._numbers[place - 1] if 0 < place <= self.rounds else later

    def step(self, by: str = "round") -> int | None:
        later = [end for end in self._ends if end > self.cursor]
        if not later:
            return None
        self.cursor = self.cursor + 1 if by == "token" else later[0]
        return self.cursor

    def back(self, steps: int = 1, by: str = "round") -> int:
        earlier = [end for end in self._ends if end < self.cursor]
        self.cursor = max(self.cursor - 1, 0) if by == "token" else max(earlier, default=0)
        return self.cursor

    def jump(self, to: int) -> int:
        self.cursor = min(max(to, 0), self.length)
        return self.cursor


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
        run = self.run
        return bool(run.ended) and run.cursor >= run.length and self.phase in (None, len(PHASES) - 1)

    @property
    def round(self) -> int | None:
        """The round of the last token before the cursor."""
        return self.run.round_at(self.run.cursor - 1) if self.run.cursor else None

    @property
    def reached(self) -> int:
        """Tokens committed as far as the phases shown go."""
        if self.phase is None or self.phase >= COMMIT:
            return self.run.cursor
        round = self.round
        steps = (event for event in reversed(self.run.trace.log) if event["type"] == "round")
        return next((event["index"] for event in steps if event["round"] == round), 0)

    def advance(self, by: str, holds: Holds | None = None) -> tuple[bool, bool]:
        """One phase, round or token on. Returns (whether it moved, whether `holds` stopped it at a token)."""
        if by == "phase" and self.phase is not None and self.phase < len(PHASES) - 1:
            self.phase += 1
            return True, False
        before = self.run.cursor
        if self.run.step("token" if by == "token" else "round") is None:
            return False, False
        self.phase = 0 if by == "phase" else None
        for index in range(before, self.run.cursor) if holds is not None else ():
            if holds(self._row(index)):
                self.run.jump(index + 1)
                return True, True
        return True, False

    def retreat(self, by: str) -> None:
        """One phase, round or token back; nothing recorded is lost."""
        if by != "phase":
            self.run.back(by=by)
            self.phase = None
        elif self.phase == 0:
            self.run.back()
            self.phase = len(PHASES) - 1 if self.run.cursor else None
        elif self.run.cursor:
            self.phase = (len(PHASES) if self.phase is None else self.phase) - 1

    def jump(self, to: int) -> None:
        """Put the cursor behind the first `to` tokens."""
        self.phase = None
        if to != self.run.cursor:
            self.run.jump(min(max(to, 0), self.run.length))

    def _row(self, index: int) -> dict[str, Any]:
        """A token with the columns of its round."""
        trace = self.run.trace
        newest = trace.last_rows()
        if newest and newest[0]["index"] <= index:
            return newest[index - newest[0]["index"]]
        token = trace.tokens.iloc[index].to_dict()
        rounds = trace.rounds
        return {**rounds[rounds["round"] == token["round"]].iloc[0].to_dict(), **token}


class Worker(threading.Thread):
    """Moves one branch on until it ends, a condition holds or it is stopped; whoever watches it only reads.

    pace: seconds between two steps. until: the condition as text. found: it held.
    error: the line to show where it failed.
    """

    def __init__(self, branch: Branch, by: str, pace: float, holds: Holds | None = None):
        super().__init__(daemon=True, name=f"decoding {branch.label}")
        self.branch, self.by, self.pace, self.holds = branch, by, pace, holds
        self.until = getattr(holds, "text", "")
        self.found, self.error = False, ""
        self._halt = threading.Event()

    def start(self) -> None:
        """Begin. Raises BadInput where too many runs are being decoded already."""
        take_turn()
        self.branch.decoding = True
        super().start()

    def stop(self) -> None:
        """End after the step under way, and wait for that."""
        self._halt.set()
        if self.is_alive() and threading.current_thread() is not self:
            self.join()

    def run(self) -> None:
        try:
            while not self._halt.is_set():
                moved, self.found = self.branch.advance(self.by, self.holds)
                if not moved or self.found or self.branch.done:
                    break
                self._halt.wait(self.pace)
        except Exception as error:  # noqa: BLE001  (a run that fails is shown, and harms nothing else)
            self.error = one_line(error)
        finally:
            self.branch.decoding = False
            give_turn()


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; use fewer tokens or a smaller model"
    text = " ".join(str(error).split())
    return text if isinstance(error, WorkbenchError) else f"unexpected {type(error).__name__}: {text}"

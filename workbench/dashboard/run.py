"""A run under a cursor that moves by phase, by round or by token; and the worker that moves it."""

import threading
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.errors import BadInput, WorkbenchError
from workbench.session import Session
from workbench.trace import Trace

__all__ = ["BY", "PHASES", "Branch", "Replay", "Turn", "Worker", "give_turn", "one_line", "take_turn"]

BY = ("phase", "round", "token")
PHASES = ("draft", "verify", "accept", "commit", "cache")  # views of one recorded round, in the order of its work
COMMIT = PHASES.index("commit")
MOST, EACH = 16, 4  # runs decoded at once in this process, and of one visitor
RUN_S = 600.0  # seconds that one run of a visitor may be decoded without another press
VISITOR_S, WINDOW_S = 1800.0, 3600.0  # seconds that all runs of a visitor may be decoded, in any so many
RETRY_S = 0.1  # between two tries to have a turn again
LONG = f"stopped after {RUN_S / 60:g} minutes of decoding; what was recorded is kept"
Holds = Callable[[Any], bool]

_turns = threading.BoundedSemaphore(MOST)
_lock = threading.Lock()
_held: Counter[str] = Counter()  # of each visitor
_spent: defaultdict[str, Counter[int]] = defaultdict(Counter)  # seconds that each visitor's runs took, by the minute


def take_turn(who: str = "") -> None:
    """One more run is going to be decoded. Raises BadInput where that is too many, or too many of one visitor's.

    who: the visitor; "" is the owner, who shares with nobody.
    """
    with _lock:
        if who and _held[who] >= EACH:
            raise BadInput(f"{EACH} runs of yours are being decoded, the most at once; pause one")
        if who and _total(who) > VISITOR_S:
            raise BadInput(f"your runs took {VISITOR_S / 60:g} minutes of the last {WINDOW_S / 60:g}; try again later")
        if not _turns.acquire(blocking=False):
            raise BadInput(f"{MOST} runs are being decoded, the most at once; try again in a moment")
        _held[who] += 1


def give_turn(who: str = "", seconds: float = 0.0) -> None:
    """A run is no longer being decoded; it took so long."""
    with _lock:
        _turns.release()
        _held[who] -= 1
        if who:
            _spent[who][int(time.monotonic() / 60)] += seconds


def _total(who: str) -> float:
    """Seconds that the visitor's runs took within the window."""
    oldest = (time.monotonic() - WINDOW_S) / 60
    _spent[who] = Counter({minute: seconds for minute, seconds in _spent[who].items() if minute >= oldest})
    return _spent[who].total()


class Turn:
    """A run's place among those that are decoded at once: taken, given back while it rests, and timed."""

    def __init__(self, who: str = ""):
        self.who = who
        self._since: float | None = None  # when it was taken; None where it is not
        self._used = 0.0

    def take(self) -> None:
        """Raises BadInput where too many runs are being decoded already."""
        take_turn(self.who)
        self._since = time.monotonic()

    def give(self) -> None:
        """Let others have it."""
        if self._since is not None:
            seconds, self._since = time.monotonic() - self._since, None
            self._used += seconds
            give_turn(self.who, seconds)

    def rest(self, seconds: float, halt: threading.Event) -> None:
        """Give it back for so long, or until `halt` is set, and take it again as soon as there is one."""
        self.give()
        halt.wait(seconds)
        while not halt.is_set():
            try:
                return self.take()
            except BadInput:
                halt.wait(RETRY_S)

    @property
    def over(self) -> bool:
        """Whether the run has been decoded for as long as a visitor's may be."""
        now = time.monotonic() - self._since if self._since is not None else 0.0
        return bool(self.who) and self._used + now > RUN_S


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
        return self.run.trace.index.start(self.round) if self.run.cursor else 0

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
        number = trace.index.at(index)
        return trace.rows_of(number)[index - trace.index.start(number)]


class Worker(threading.Thread):
    """Moves one branch on until it ends, a condition holds or it is stopped; whoever watches it only reads.

    pace: seconds between two steps, in which others have its turn. until: the condition as text. found: it held.
    who: the visitor whose it is.
    error: the line to show where it failed.
    """

    def __init__(self, branch: Branch, by: str, pace: float, holds: Holds | None = None, who: str = ""):
        super().__init__(daemon=True, name=f"decoding {branch.label}")
        self.branch, self.by, self.pace, self.holds = branch, by, pace, holds
        self.until = getattr(holds, "text", "")
        self.found, self.error = False, ""
        self.turn = Turn(who)
        self._halt = threading.Event()

    def start(self) -> None:
        """Begin. Raises BadInput where too many runs are being decoded already."""
        self.turn.take()
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
                if self.turn.over:
                    self.error = LONG
                    break
                if self.pace:
                    self.turn.rest(self.pace, self._halt)
        except Exception as error:  # noqa: BLE001  (a run that fails is shown, and harms nothing else)
            self.error = one_line(error)
        finally:
            self.branch.decoding = False
            self.turn.give()


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory; use fewer tokens or a smaller model"
    text = " ".join(str(error).split())
    return text if isinstance(error, WorkbenchError) else f"unexpected {type(error).__name__}: {text}"

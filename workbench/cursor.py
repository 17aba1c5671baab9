"""A place in the record of a run, which moves by round or by token; nothing is computed."""

import threading
from typing import Any

from workbench.trace import Trace
from workbench.trace.tables import expand, final
from workbench.values import bounded, one_of

__all__ = ["Cursor", "Replay"]


class Cursor:
    """What `Session` and `Replay` share: where the reader is in a trace that may grow."""

    trace: Trace

    def __init__(self) -> None:
        self._cursor = 0
        self._lock = threading.RLock()

    @property
    def cursor(self) -> int:
        """How many new tokens lie before the cursor."""
        return self._cursor

    @property
    def length(self) -> int:
        """New tokens recorded."""
        return self.trace.index.last.tokens

    @property
    def rounds(self) -> int:
        """Rounds recorded, the prefill included."""
        return len(self.trace.index)

    def round_at(self, index: int) -> int:
        """The round that produced (or, at the tip, will produce) new token `index`."""
        return self.trace.index.at(bounded("round_at", index, 0, what="a token number"))

    def step(self, by: str = "round") -> dict[str, Any] | None:
        """One round (or one token) forward; returns the round's event, or None at the end of the run."""
        one_of("by", by, "round", "token")
        with self._lock:
            number = self._ahead()
            if number is None:
                return None
            self._cursor = self._cursor + 1 if by == "token" else self.trace.index[number].tokens
            return expand(self.trace.index.event(number), final(self.trace.log))

    def _ahead(self) -> int | None:
        """The round that holds the token at the cursor; None at the end of the run."""
        return self.trace.index.at(self._cursor) if self._cursor < self.length else None

    def back(self, steps: int = 1, by: str = "round") -> int:
        """Move the cursor back by rounds or tokens; returns the new cursor. Nothing recorded is lost."""
        one_of("by", by, "round", "token")
        steps = bounded("back", steps, 0, what="a number of steps")
        with self._lock:
            target = self._cursor
            if by == "token":
                return self.jump(max(target - steps, 0))
            while steps and target:
                target = self.trace.index.start(self.trace.index.at(target - 1))
                steps -= 1
            return self.jump(target)

    def jump(self, to: int) -> int:
        """Put the cursor behind the first `to` new tokens (0 to `length`); returns it."""
        with self._lock:
            to = bounded("jump", to, 0, self.length, "a token number")
            if to != self._cursor:
                self._moved(to)
                self._cursor = to
            return to

    def _moved(self, to: int) -> None:
        """Note that the reader moved."""


class Replay(Cursor):
    """A recorded run under a cursor, without its model."""

    def __init__(self, trace: Trace):
        super().__init__()
        self.trace = trace

    @property
    def ended(self) -> str | None:
        return "replayed" if self.cursor >= self.length else None

    def round_at(self, index: int) -> int:
        """The round that holds a token, by the number in its event, as a damaged file may lack some."""
        number, rounds = super().round_at(index), self.rounds
        if number < rounds or not rounds:
            return self.trace.index.event(number)["round"] if rounds else 0
        return self.trace.index.event(rounds - 1)["round"] + 1

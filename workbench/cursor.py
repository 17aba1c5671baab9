"""A place in the record of a run, which moves by round or by token; nothing is computed."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from workbench.trace import Trace
from workbench.trace.tables import expand, final
from workbench.values import bounded, one_of

Row = Mapping[str, Any]
MANY = 2**62


class Place(NamedTuple):
    """Where a cursor can be: how many recorded rounds lie wholly before it, and how many new tokens.

    The end of every round is a place, also of one without tokens. A prefill alone is passed over with the next round.
    """

    round: int
    token: int


class Cursor:
    """What `Session` and `Replay` share: where the reader is in a trace that may grow."""

    trace: Trace

    def __init__(self) -> None:
        self._place = Place(0, 0)
        self._lock = threading.RLock()

    @property
    def place(self) -> Place:
        """Where the cursor is: rounds and new tokens before it."""
        return self._place

    @property
    def cursor(self) -> int:
        """How many new tokens lie before the cursor."""
        return self._place.token

    @property
    def round(self) -> int | None:
        """The recorded round that the cursor is in or right behind; None at the start."""
        return self._round_of(self._place)

    @property
    def at_tip(self) -> bool:
        """Whether nothing that is recorded lies ahead of the cursor."""
        return Cursor._ahead(self) is None

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
        """One round on, also one without tokens, or on to the next token; its event, or None at the end of the run."""
        one_of("by", by, "round", "token")
        with self._lock:
            number, _ = self.advance(by)
            return None if number is None else expand(self.trace.index.event(number), final(self.trace.log))

    def advance(
        self, by: str, holds: Callable[[Row], bool] | None = None, rounds: int = MANY
    ) -> tuple[int | None, Row | None]:
        """A step that stops right behind the first row that `holds`: a token, or a round without any; and after
        `rounds` rounds without a token.

        Returns the round, None at the end of the run, and the row, None where there was no such.
        """
        with self._lock:
            index = self.trace.index
            while (number := self._ahead()) is not None:
                before, place = self._place.token, Place(number + 1, index[number].tokens)
                if by == "token" and place.token > before:
                    place = self._behind(before + 1)
                rows = () if holds is None else self.trace.rows_of(number, empty=True)
                passed = range(before, max(place.token, before + 1))
                for token, row in enumerate(rows, index.start(number)):
                    if token in passed and holds(row):
                        self._place = place if token + 1 >= place.token else self._behind(token + 1)
                        return number, row
                self._place = place
                rounds -= 1
                if by == "round" or place.token > before or not rounds:
                    return number, None
            return None, None

    def _ahead(self) -> int | None:
        """The round that the next step goes on in; None at the end of the run."""
        number = self._passing(self._place.round)
        return number if number < self.rounds else None

    def back(self, steps: int = 1, by: str = "round") -> int:
        """Move back by rounds, those without tokens too, or by tokens; returns the new cursor. Nothing is lost."""
        one_of("by", by, "round", "token")
        steps = bounded("back", steps, 0, what="a number of steps")
        with self._lock:
            place = self._place
            if by == "token" and steps:
                place = self._behind(max(place.token - steps, 0))
            while by == "round" and steps and (number := self._round_of(place)) is not None:
                place, steps = self._before(number), steps - 1
            return self.jump(place.token, place.round)

    def jump(self, to: int, round: int | None = None) -> int:
        """Put the cursor behind the first `to` new tokens (0 to `length`); returns that number.

        round: rounds before the place, where several places have that many tokens; by default the first of them.
        """
        with self._lock:
            to = bounded("jump", to, 0, self.length, "a token number")
            place = self._behind(to)
            if round is not None:
                most = self.trace.index.at(to)
                round = bounded("jump", round, place.round, most, f"for token {to} a number of rounds")
                place = place if round == place.round else self._before(round)
            if place != self._place:
                self._moved(place)
                self._place = place
            return to

    def _behind(self, token: int) -> Place:
        """The first place with that many new tokens before it."""
        if not token:
            return Place(0, 0)
        number = self.trace.index.at(token - 1)
        return Place(number + (self.trace.index[number].tokens == token), token)

    def _before(self, number: int) -> Place:
        """The place before a round."""
        while number and not self.trace.index.is_place(number - 1):
            number -= 1
        return Place(number, self.trace.index.start(number))

    def _passing(self, number: int) -> int:
        """A round, or where it is a prefill, the next."""
        while number < self.rounds and not self.trace.index.is_place(number):
            number += 1
        return number

    def _round_of(self, place: Place) -> int | None:
        """The round that a place is in or right behind."""
        number = place.round - (place.token == self.trace.index.start(place.round))
        return None if number < 0 else number

    def _moved(self, place: Place) -> None:
        """Note that the reader moves there."""


class Replay(Cursor):
    """A recorded run under a cursor, without its model."""

    def __init__(self, trace: Trace):
        super().__init__()
        self.trace = trace

    @property
    def ended(self) -> str | None:
        return "replayed" if self.at_tip else None

    def round_at(self, index: int) -> int:
        """The round that holds a token, by the number in its event, as a damaged file may lack some."""
        number, rounds = super().round_at(index), self.rounds
        if number < rounds or not rounds:
            return self.trace.index.event(number)["round"] if rounds else 0
        return self.trace.index.event(rounds - 1)["round"] + 1

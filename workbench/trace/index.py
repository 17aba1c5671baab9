"""The rounds of a growing log, each looked at once: where they lie, and what has added up by their end.

What follows a run asks here, so that a round costs the same however many there are.
"""

from bisect import bisect_right
from typing import Any, NamedTuple

from workbench.trace.tables import cache_bytes

Event = dict[str, Any]
SEARCHES = ("branch", "search", "diffusion")  # modes whose rounds look beyond the text


class Reached(NamedTuple):
    """The totals by the end of a round; `place` is where its event lies in the log, `reach` the new tokens of the
    longest hypothesis so far."""

    place: int
    tokens: int
    drafted: int
    accepted: int
    ms: float
    reach: float = 0


class RoundIndex:
    """The rounds of a log, by their number in it; `index[r]` is what was reached by the end of round r.

    Several threads may ask, and an interrupt may fall anywhere: what is noted of a round follows from the log and the
    round before it, so that noting it twice changes nothing.
    """

    def __init__(self, log: list[Event]):
        self._log = log
        self._reached: dict[int, Reached] = {}
        self._peaks: dict[int, int] = {}
        self._seen = (0, 1)  # after this many rounds no further one lies before this place

    def __len__(self) -> int:
        log, known = self._log, len(self._reached)
        rounds, place = self._seen
        if rounds != known:
            place = self._reached[known - 1].place + 1 if known else 1
        end = len(log)
        for here in range(place, end):
            if log[here]["type"] == "round":
                self._reached[known] = _after(self._before(known), here, log[here])
                known += 1
        self._seen = known, end
        return known

    def __getitem__(self, number: int) -> Reached:
        if number not in self._reached and not 0 <= number < len(self):
            raise IndexError(f"round {number}: expected one in [0, {len(self)})")
        return self._reached[number]

    @property
    def last(self) -> Reached:
        """What the whole log has reached."""
        return self._before(len(self))

    def after(self, event: Event) -> Reached:
        """What the log will have reached once this round is added to it."""
        return _after(self.last, len(self._log), event)

    def _before(self, number: int) -> Reached:
        return self._reached[number - 1] if number else Reached(0, 0, 0, 0, 0.0)

    def start(self, number: int) -> int:
        """The new tokens before a round, which may be the next one."""
        return self[number - 1].tokens if number else 0

    def at(self, token: int) -> int:
        """The round that holds new token `token`; the next round where none does yet."""
        return bisect_right(range(len(self)), token, key=lambda number: self._reached[number].tokens)

    def event(self, number: int) -> Event:
        """The event of a round."""
        return self._log[self[number].place]

    def events(self, number: int) -> list[Event]:
        """The event of a round and those after it, up to the next round."""
        start = self[number].place
        end = self._reached[number + 1].place if number + 1 < len(self) else None
        return self._log[start:end]

    def is_place(self, number: int) -> bool:
        """Whether a cursor can stand behind a round: not behind a prefill, which is passed over with the next round."""
        return self.event(number).get("mode") != "prefill" or self[number].tokens > self.start(number)

    def reach(self, number: int) -> float:
        """The new tokens of the longest hypothesis in the rounds before a round, which may be the next one.

        Infinite behind a round of a search that does not say how far it looked, as at level `off`.
        """
        return self[number - 1].reach if number else 0

    def ids(self, start: int, stop: int) -> list[int]:
        """The ids of the new tokens from `start` up to `stop`, as far as there are any."""
        first = self.at(start)
        events = map(self.event, range(first, min(self.at(stop - 1) + 1, len(self))))
        found = [token for event in events for token in event.get("tokens", {}).get("token_id", ())]
        return found[start - self.start(first) : stop - self.start(first)]

    def peak(self, rounds: int) -> int:
        """The most bytes that the caches took in the first `rounds` rounds."""
        for number in range(min(len(self._peaks), rounds), rounds):
            size = cache_bytes(self._log[0], self.event(number))
            self._peaks[number] = max(self._peaks.get(number - 1, 0), size)
        return self._peaks.get(rounds - 1, 0)


def _after(before: Reached, place: int, event: Event) -> Reached:
    counts = (*map(event.get, ("emitted", "drafted", "accepted")), event.get("ms", {}).get("total"))
    numbers = (count if isinstance(count, (int, float)) else 0 for count in counts)  # 0 for what is damaged
    totals = map(sum, zip(before[1:5], numbers, strict=True))
    return Reached(place, *totals, max(before.reach, _looked(event)))


def _looked(event: Event) -> float:
    """The new tokens of the longest hypothesis that a round leaves behind."""
    if event.get("mode") not in SEARCHES:
        return 0
    depths = event.get("hypotheses", {}).get("depth", ())
    return max((depth for depth in depths if isinstance(depth, int)), default=float("inf"))

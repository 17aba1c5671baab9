"""What each visitor may open, ask for and have decoded at once. Times are monotonic."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException

from workbench.errors import BadInput

MOST_PAGES = 24  # open pages of a visitor
EVENTS, EVENTS_S = 200, 10.0  # events of a visitor in so many seconds
MOST, EACH = 16, 4  # runs decoded at once in this process, and of one visitor
RUN_S = 600.0  # seconds that one run of a visitor may be decoded without another press
VISITOR_S, WINDOW_S = 1800.0, 3600.0  # seconds that all runs of a visitor may be decoded, in any so many
RETRY_S = 0.1  # between two tries to have a turn again
LONG = f"stopped after {RUN_S / 60:g} minutes of decoding; what was recorded is kept"

_turns = threading.BoundedSemaphore(MOST)
_lock = threading.Lock()
_held: Counter[str] = Counter()  # of each visitor
_spent: defaultdict[str, Counter[int]] = defaultdict(Counter)  # seconds that each visitor's runs took, by the minute


def client_of(scope: Mapping[str, Any]) -> str:
    """Who asks, as far as limits go: the address, of an IPv6 address its network."""
    host = str((scope.get("client") or ("",))[0])
    return ":".join(host.split(":")[:4]) if ":" in host else host or "somebody"


class Rate:
    """At most `most` of something in any `window` seconds, for each who asks."""

    def __init__(self, most: int, window: float):
        self.most, self.window = most, window
        self._times: dict[str, list[float]] = {}

    def allows(self, who: str) -> bool:
        """Whether one more is allowed; it is counted then."""
        now = time.monotonic()
        if len(self._times) > 10_000:  # of many addresses, those that asked lately are enough
            self._times = {one: seen for one, seen in self._times.items() if now - seen[-1] < self.window}
        lately = [at for at in self._times.get(who, ()) if now - at <= self.window]
        allowed = len(lately) < self.most
        self._times[who] = lately + [now] * allowed
        return allowed


@dataclass
class Page:
    """An open page. client: whose; beats: connections that hold it open; heard: when it was last heard of."""

    client: str
    beats: int = 0
    heard: float = field(default_factory=time.monotonic)


class Pages:
    """The open pages by their names. limited: whether visitors share this app, so that each has limits."""

    def __init__(self, limited: bool):
        self.limited = limited
        self._pages: dict[str, Page] = {}
        self._events = Rate(EVENTS, EVENTS_S)

    def hear(self, name: str, client: str) -> None:
        """Note an event of a page. Raises HTTPException where its visitor sends too many."""
        if self.limited and not self._events.allows(client):
            raise HTTPException(429, "too many events at once; try again in a few seconds")
        self._of(name, client).heard = time.monotonic()

    @contextmanager
    def beating(self, name: str, client: str) -> Iterator[None]:
        """While it lasts, the page is open."""
        page = self._of(name, client)
        page.beats += 1
        try:
            yield
        finally:
            page.beats -= 1
            page.heard = time.monotonic()

    def gone(self, older: float) -> list[str]:
        """Pages that nothing holds open and that were not heard of for `older` seconds; they are forgotten."""
        now = time.monotonic()
        names = [name for name, page in self._pages.items() if not page.beats and now - page.heard > older]
        for name in names:
            del self._pages[name]
        return names

    def __len__(self) -> int:
        return len(self._pages)

    def _of(self, name: str, client: str) -> Page:
        if name not in self._pages:
            if self.limited and Counter(page.client for page in self._pages.values())[client] >= MOST_PAGES:
                raise HTTPException(429, f"{MOST_PAGES} pages are open from here, the most there can be; close one")
            self._pages[name] = Page(client)
        return self._pages[name]


class Turn:
    """A run's place among those that are decoded at once: taken, given back while it rests, and timed.

    who: the visitor; "" is the owner, who shares with nobody.
    """

    def __init__(self, who: str = ""):
        self.who = who
        self._since: float | None = None  # when it was taken; None where it is not
        self._used = 0.0

    def take(self) -> None:
        """Raises BadInput where too many runs are being decoded already, or too many of this visitor's."""
        who, now = self.who, time.monotonic()
        with _lock:
            recent = {minute: spent for minute, spent in _spent[who].items() if minute >= (now - WINDOW_S) / 60}
            _spent[who] = Counter(recent)
            if who and _held[who] >= EACH:
                raise BadInput(f"{EACH} runs of yours are being decoded, the most at once; pause one")
            if who and _spent[who].total() > VISITOR_S:
                long = f"{VISITOR_S / 60:g} minutes of the last {WINDOW_S / 60:g}"
                raise BadInput(f"your runs took {long}; try again later")
            if not _turns.acquire(blocking=False):
                raise BadInput(f"{MOST} runs are being decoded, the most at once; try again in a moment")
            _held[who] += 1
        self._since = now

    def give(self) -> None:
        """Let others have it."""
        if self._since is None:
            return
        now = time.monotonic()
        seconds, self._since = now - self._since, None
        self._used += seconds
        with _lock:
            _turns.release()
            _held[self.who] -= 1
            _spent[self.who][int(now / 60)] += seconds

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

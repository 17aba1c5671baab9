"""Who is there: the pages that are open, and how much each visitor may open and ask for. Times are monotonic."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Pages", "Rate", "Refused", "client_of"]

MOST_PAGES = 24  # open pages of a visitor
EVENTS, EVENTS_S = 200, 10.0  # events of a visitor in so many seconds


class Refused(Exception):
    """A request that is not let in: its HTTP status and the line that says why."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status, self.why = status, why


def client_of(scope: Mapping[str, Any]) -> str:
    """Who asks, as far as limits go: the address, of an IPv6 address its network."""
    host = str((scope.get("client") or ("",))[0])
    return ":".join(host.split(":")[:4]) if ":" in host else host or "somebody"


class Rate:
    """At most `most` of something in any `window` seconds, for each who asks."""

    def __init__(self, most: int, window: float):
        self.most, self.window = most, window
        self._times: dict[str, deque[float]] = defaultdict(deque)

    def allows(self, who: str) -> bool:
        """Whether one more is allowed; it is counted then."""
        now = time.monotonic()
        if len(self._times) > 10_000:  # of many addresses, those that asked lately are enough
            self._times = defaultdict(
                deque, {one: seen for one, seen in self._times.items() if now - seen[-1] < self.window}
            )
        seen = self._times[who]
        while seen and now - seen[0] > self.window:
            seen.popleft()
        if len(seen) >= self.most:
            return False
        seen.append(now)
        return True


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
        """Note an event of a page. Raises Refused where its visitor sends too many."""
        if self.limited and not self._events.allows(client):
            raise Refused(429, "too many events at once; try again in a few seconds")
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
                raise Refused(429, f"{MOST_PAGES} pages are open from here, the most there can be; close one")
            self._pages[name] = Page(client)
        return self._pages[name]

"""Pages: where quantized tokens of one layer lie, shared between forks.

An `Arena` is one tensor of pages of one format. A `Page` in it is never written again; it lives as long as some
`PageTable` names it (Python's reference count is the page's), then its place returns to the free list. A `PageTable` is
the page table of a layer, a list of pages per KV head; it too never changes: maintenance makes another one, which keeps
the pages that did not change. So a fork shares page tables, and writing to one copies just the pages that differ.
"""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.cache.store import Segment
from workbench_kernels.pages import ALIGN, SLOTS, PageFormat, ledger, unpack
from workbench_kernels.pages.layout import HEADER

__all__ = ["Arena", "Page", "PageTable", "PagedSegment", "PendingPage", "page_out", "with_live"]

LIVE_MASK = 4  # bytes at the start of a page
FACTS = HEADER + 4 * SLOTS  # bytes of the header and the positions


class Arena:
    """Room for `capacity` pages of one format, uint8 [capacity, form.bytes], with a free list; `host`: in the host's
    memory. It never grows: whoever finds too little room takes its pages along to a larger one."""

    def __init__(self, form: PageFormat, device: torch.device, capacity: int, host: bool = False):
        self.form, self.host = form, host
        self.data = torch.zeros(capacity, form.bytes, dtype=torch.uint8, device="cpu" if host else device)
        self.free = list(range(capacity - 1, -1, -1))
        self._lock = threading.Lock()

    def take(self, count: int) -> list[int] | None:
        """Free places, now taken; None where there are too few."""
        with self._lock:  # branches may run in threads
            return [self.free.pop() for _ in range(count)] if count <= len(self.free) else None


class Page:
    """A place in an arena, and what is known of it without reading: live slots, slots ever used, newest position."""

    __slots__ = ("arena", "live", "newest", "place", "used")

    def __init__(self, arena: Arena, place: int, live: int, used: int, newest: int):
        self.arena, self.place, self.live, self.used, self.newest = arena, place, live, used, newest

    def __del__(self) -> None:
        self.arena.free.append(self.place)

    @property
    def row(self) -> torch.Tensor:
        return self.arena.data[self.place]


@dataclass(slots=True)
class PendingPage:
    """A page that has no place yet; fields as of `Page`, row: uint8 [form.bytes]."""

    row: torch.Tensor
    live: int
    used: int
    newest: int


class PageTable:
    """The pages of one layer: `pages[head]`, and for the kernels `table` int32 [Hk, P] (offsets in an arena in units of
    ALIGN bytes) and `count` int32 [Hk]. Heads may have different numbers of pages and of live slots."""

    def __init__(self, pages: Sequence[Sequence[Page]], form: PageFormat, device: torch.device):
        self.pages, self.form = [list(row) for row in pages], form
        width, unit = max(map(len, self.pages)), form.bytes // ALIGN
        padded = [[page.place * unit for page in row] + [0] * (width - len(row)) for row in self.pages]
        self.table = torch.tensor(padded, dtype=torch.int32, device=device).view(len(self.pages), width)
        self.count = torch.tensor([len(row) for row in self.pages], dtype=torch.int32, device=device)
        flat = [page for row in self.pages for page in row]
        self.arenas = list({id(page.arena): page.arena for page in flat}.values())
        self.bytes = len(flat) * form.bytes
        self.slots = width * SLOTS  # per KV head, dead and missing ones included
        self.live = [sum([page.live for page in row]) for row in self.pages]  # per KV head
        self.dense = len(self.arenas) == 1 and len(flat) == width * len(self.pages)  # all in one place, none missing
        self.whole = sum(self.live) == self.slots * len(self.pages)
        self.offloaded = sum([page.arena.host for page in flat])  # pages on the host
        self.host_bytes = sum(arena.data.nbytes for arena in self.arenas if arena.host)
        self._uses = Counter([(page.live, page.used) for page in flat])

    def rows(self, pages: torch.Tensor | None = None, size: int | None = None) -> torch.Tensor:
        """The first `size` bytes of pages, uint8 [n, size], on the device; zeros for a missing page.

        pages: int64 [n], numbered head by head; where None all of them, [Hk, P, size].
        """
        if pages is None:
            pages = torch.arange(self.table.numel(), device=self.table.device)
            return self.rows(pages, size).view(*self.table.shape, -1)
        device, width = self.table.device, self.table.shape[1]
        places = self.table.flatten().long() * ALIGN // self.form.bytes
        if self.dense:
            data, places = self.arenas[0].data[:, :size], places[pages]
            return data[places.to(data.device)].to(device)
        numbers = pages.tolist()
        found = torch.zeros(len(numbers), size or self.form.bytes, dtype=torch.uint8, device=device)
        homes = [self._arena(number, width) for number in numbers]
        for arena in self.arenas:
            inside = [i for i, home in enumerate(homes) if home is arena]
            here = places[[numbers[i] for i in inside]].to(arena.data.device)
            found[inside] = arena.data[here, :size].to(device)
        return found

    def _arena(self, number: int, width: int) -> Arena | None:
        row, at = self.pages[number // width], number % width
        return row[at].arena if at < len(row) else None

    def decode(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """k [Hk, slots, D], v [Hk, slots, Dv], positions int64 [Hk, slots], live bool [Hk, slots]."""
        arena = (self.arenas[0].data.view(-1), self.form, self.table.flatten())
        parts = unpack(*arena) if self.dense and not self.offloaded else unpack(self.rows().flatten(0, 1), self.form)
        return tuple(part.view(len(self.pages), self.slots, *part.shape[2:]) for part in parts)

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions int64 [Hk, slots] and live bool [Hk, slots], without decoding anything."""
        facts = self.rows(size=FACTS).flatten(0, 1)
        bits = facts[:, :LIVE_MASK, None] >> torch.arange(8, device=facts.device, dtype=torch.uint8) & 1
        where = facts[:, HEADER:].contiguous().view(torch.int32).long()
        return where.view(len(self.pages), -1), bits.bool().view(len(self.pages), -1)

    def read(self, head: torch.Tensor, slot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [..., D] and values [..., Dv] of single slots; head, slot: int64 [...]. Only their pages are decoded."""
        page, entry = (head * self.table.shape[1] + slot // SLOTS).unique(return_inverse=True)
        k, v, _, _ = unpack(self.rows(page), self.form)
        return k[entry, slot % SLOTS], v[entry, slot % SLOTS]

    def ledger(self) -> dict[str, int]:
        """Bytes by kind, arenas included: what this page table does not name in them is `pad`."""
        kinds = Counter(table=self.table.nbytes + self.count.nbytes)
        for (live, used), times in self._uses.items():
            kinds.update({kind: times * size for kind, size in ledger(self.form, live, used).items()})
        kinds["pad"] += sum(arena.data.nbytes for arena in self.arenas) - self.bytes
        return dict(kinds)


@dataclass(slots=True)
class PagedSegment:
    """The pages of a layer as a segment; `dense` decodes them. queries: positions of the rows; window: in tokens."""

    page_table: PageTable
    queries: Sequence[int]
    window: int | None = None

    def dense(self, dtype: torch.dtype) -> Segment:
        k, v, positions, live = self.page_table.decode()
        mask = None
        if not self.page_table.whole or self.window is not None:
            mask = live[:, None].expand(-1, len(self.queries), -1)
        if self.window is not None:
            rows = torch.tensor(list(self.queries), device=k.device)[:, None]
            mask = mask & (rows - positions[:, None] < self.window)
        return Segment(k.to(dtype), v.to(dtype), mask)


def page_out(
    entries: Sequence[Sequence[Page | PendingPage]],
    form: PageFormat,
    device: torch.device,
    arenas: Sequence[Arena],
    before: int = 0,
) -> PageTable:
    """A page table of these pages per KV head. Pages whose newest position is below `before` lie on the host.

    Pages that are where they should be stay; the others go to free places of `arenas` (one per tier at most), or, where
    there are too few, all of that tier to a new arena. Nothing that exists is changed.
    """
    settled: list[list[Page]] = [list(row) for row in entries]
    for host in (False, True):
        mine = [(h, i) for h, row in enumerate(entries) for i, e in enumerate(row) if (e.newest < before) == host]
        arena = next((arena for arena in arenas if arena.host == host), None)
        fresh = [(h, i) for h, i in mine if not (isinstance(entries[h][i], Page) and entries[h][i].arena is arena)]
        if not fresh:
            continue
        places = arena.take(len(fresh)) if arena else None
        if places is None:
            capacity = len(arena.data) if arena else 0
            capacity = capacity if len(mine) <= capacity else max(len(mine), capacity * 5 // 4)
            arena, fresh = Arena(form, device, capacity, host), mine
            places = arena.take(len(fresh))
        moved = [entries[h][i] for h, i in fresh]
        for (h, i), place, e in zip(fresh, places, moved, strict=True):
            settled[h][i] = Page(arena, place, e.live, e.used, e.newest)
        rows = torch.stack([e.row.to(arena.data.device) for e in moved])
        arena.data[torch.tensor(places, device=arena.data.device)] = rows
    return PageTable(settled, form, device)


def with_live(rows: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Copies of pages [n, bytes] whose live mask is `live` bool [n, SLOTS]."""
    rows = rows.clone()
    weights = 1 << torch.arange(8, device=rows.device)
    rows[:, :LIVE_MASK] = (live.unflatten(-1, (LIVE_MASK, 8)) * weights).sum(-1).to(torch.uint8)
    return rows

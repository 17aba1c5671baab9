"""Pages: where quantized tokens of one layer lie, shared between forks.

An `Arena` is one tensor of pages of one codec. A `Page` in it is never written again; it lives as long as some
`PageTable` names it (Python's reference count is the page's), then its place returns to the free list. A `PageTable` is
the page table of a layer, a list of pages per KV head; it too never changes: maintenance makes another one, which keeps
the pages that did not change. So a fork shares page tables, and writing to one copies just the pages that differ.
"""

import threading
import time
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

import torch

from workbench.cache.codec import Codec
from workbench.cache.places import index
from workbench.cache.protocol import Segment
from workbench.cache.scratch import mapped, release
from workbench_kernels.pages import ALIGN, GAINS, gather, unpack
from workbench_kernels.pages.layout import HEADER
from workbench_kernels.pages.reference import live_bits
from workbench_kernels.pages.reference import unpack as unpack_into


class Arena:
    """Room for `capacity` pages of one codec, uint8 [capacity, codec.bytes], with a free list. It never grows: whoever
    finds too little room takes its pages along to a larger one.

    host: in the tier below the device: the host's memory for a GPU, a scratch file for a CPU. tier: "device" or "host",
    or "same memory" where a CPU can have no such file.
    """

    def __init__(self, codec: Codec, device: torch.device, capacity: int, host: bool = False):
        self.codec, self.host, self._spent = codec, host, 0.0
        file = mapped(capacity * codec.bytes) if host and device.type == "cpu" else None
        self._file = file is not None
        self.tier = "device" if not host else "same memory" if device.type == "cpu" and not self._file else "host"
        if self._file:
            self.data = file.view(capacity, codec.bytes)
        else:
            self.data = torch.zeros(capacity, codec.bytes, dtype=torch.uint8, device="cpu" if host else device)
        self.notes: torch.Tensor | None = None  # [capacity, …], a reader's, on the device; made with the first page's
        self.free = list(range(capacity - 1, -1, -1))
        self._lock = threading.Lock()

    def take(self, count: int) -> list[int] | None:
        """Free places, now taken; None where there are too few."""
        with self._lock:  # branches may run in threads
            return [self.free.pop() for _ in range(count)] if count <= len(self.free) else None

    def put(self, places: torch.Tensor, rows: torch.Tensor, notes: torch.Tensor | None) -> None:
        """Write pages and their notes to places that were taken."""
        self.data.index_copy_(0, places.to(self.data.device), rows.to(self.data.device))
        self._rest()
        if notes is not None:
            if self.notes is None:
                self.notes = notes.new_zeros(len(self.data), *notes.shape[1:])
            self.notes.index_copy_(0, places.to(notes.device), notes)

    def take_out(self, places: torch.Tensor, device: torch.device, size: int | None = None) -> torch.Tensor:
        """Copies of pages, or of their first `size` bytes, on a device."""
        start = time.perf_counter()
        rows = self.data.index_select(0, places.to(self.data.device))[:, :size].to(device)
        if self.host:
            self._rest()
            self._spent += (time.perf_counter() - start) * 1000
        return rows

    def spent(self) -> float:
        """What reading from the tier below took since this was asked last, in ms."""
        spent, self._spent = self._spent, 0.0
        return spent

    def _rest(self) -> None:
        if self._file:
            release(self.data)

    @property
    def note_bytes(self) -> int:
        """Of a page."""
        return 0 if self.notes is None else self.notes[0].nbytes


class Page:
    """A place in an arena, and what is known of it without reading: live slots, slots ever used, newest position."""

    __slots__ = ("arena", "live", "newest", "place", "used")

    def __init__(self, arena: Arena, place: int, live: int, used: int, newest: int):
        self.arena, self.place, self.live, self.used, self.newest = arena, place, live, used, newest

    def __del__(self) -> None:
        self.arena.free.append(self.place)

    @property
    def codec(self) -> Codec:
        return self.arena.codec

    @property
    def row(self) -> torch.Tensor:
        return self.arena.data[self.place]

    @property
    def source(self) -> tuple[Arena, torch.Tensor | None, int]:
        return self.arena, self.arena.notes, self.place


@dataclass(slots=True)
class PendingPage:
    """A page that has no place yet: number `index` of `rows` uint8 [n, codec.bytes], and of `notes` [n, …] where there
    is a reader; other fields as of `Page`."""

    codec: Codec
    rows: torch.Tensor
    index: int
    live: int
    used: int
    newest: int
    notes: torch.Tensor | None = None

    @property
    def source(self) -> tuple[torch.Tensor, torch.Tensor | None, int]:
        return self.rows, self.notes, self.index


class PageTable:
    """The pages of one layer: `pages[head]`, and for the kernels `table` int32 [Hk, P] (offsets in an arena in units of
    ALIGN bytes) and `count` int32 [Hk]. Heads may have different numbers of pages, pages different codecs of one
    `page_size`, in slots."""

    def __init__(self, pages: Sequence[Sequence[Page]], device: torch.device):
        self.pages = [list(row) for row in pages]
        flat = [page for row in self.pages for page in row]
        self.arenas = list({id(page.arena): page.arena for page in flat}.values())
        units = {id(arena): arena.codec.bytes // ALIGN for arena in self.arenas}
        width = max(map(len, self.pages))
        padded = [[page.place * units[id(page.arena)] for page in row] + [0] * (width - len(row)) for row in self.pages]
        self.table = torch.tensor(padded, dtype=torch.int32, device=device).view(len(self.pages), width)
        self.count = torch.tensor([len(row) for row in self.pages], dtype=torch.int32, device=device)
        self.page_size = flat[0].codec.slots
        self.slots = width * self.page_size  # per KV head, dead and missing ones included
        self.live = [sum([page.live for page in row]) for row in self.pages]  # per KV head
        self.dense = len(self.arenas) == 1 and len(flat) == width * len(self.pages)  # all in one place, none missing
        self.whole = sum(self.live) == self.slots * len(self.pages)
        self._uses = Counter([(id(page.arena), page.live, page.used) for page in flat])
        sizes = [(arena, sum([page.arena is arena for page in flat]) * arena.codec.bytes) for arena in self.arenas]
        self.bytes = sum(size for _, size in sizes)
        self.offloaded = sum(size for arena, size in sizes if arena.host)  # bytes of pages on the host
        self.offloaded_slots = sum([page.arena.host for page in flat]) * self.page_size
        self.newest: torch.Tensor | None = None  # int32 [Hk, P] positions, −1 for no page; for a reader
        if self.arenas[0].notes is not None:
            last = [[page.newest for page in row] + [-1] * (width - len(row)) for row in self.pages]
            self.newest = torch.tensor(last, dtype=torch.int32, device=device)

    def _parts(self, pages: torch.Tensor | None, size: int | None = None) -> Iterator[tuple]:
        """Arena by arena: which of the pages lie there, their first `size` bytes on the device, and their codec.

        pages: int64 [n], numbered head by head; all Hk · P of them where None.
        """
        device, found = self.table.device, self.named(None if pages is None else pages.tolist())
        for arena in self.arenas:
            inside = [i for i, page in enumerate(found) if page is not None and page.arena is arena]
            if not inside:
                continue
            rows = arena.take_out(torch.tensor([found[i].place for i in inside]), device, size)
            yield torch.tensor(inside, dtype=torch.long, device=device), rows, arena.codec

    def named(self, pages: Sequence[int] | None = None) -> list[Page | None]:
        """The pages of numbers as in `_parts`; None for one that is missing."""
        width = self.table.shape[1]
        numbers = range(self.table.numel()) if pages is None else pages
        return [row[number % width] if number % width < len(row) else None
                for number in numbers for row in (self.pages[number // width],)]  # fmt: skip

    def _unpacked(self, pages: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """k [n, slots, D], v [n, slots, Dv], positions int64 [n, slots], live bool [n, slots] of pages as in `_parts`;
        a missing page has nothing live."""
        if self.dense and not self.offloaded:
            (arena,), offsets = self.arenas, self.table.flatten()
            offsets = offsets if pages is None else offsets[pages]
            if arena.codec.kernel:
                return unpack(arena.data.view(-1), arena.codec.kernel, offsets)
            return arena.codec.unpack(arena.data.index_select(0, offsets // (arena.codec.bytes // ALIGN)))
        found, count = None, self.table.numel() if pages is None else len(pages)
        for inside, rows, codec in self._parts(pages):
            parts = codec.unpack(rows)
            if found is None:
                found = [part.new_zeros(count, *part.shape[1:]) for part in parts]
            for whole, part in zip(found, parts, strict=True):
                whole[inside] = part
        return tuple(found)

    def decode(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """k [Hk, slots, D], v [Hk, slots, Dv], positions int64 [Hk, slots], live bool [Hk, slots]."""
        return tuple(part.reshape(len(self.pages), self.slots, *part.shape[2:]) for part in self._unpacked())

    def decoded_before(self, run: Segment) -> tuple[torch.Tensor, torch.Tensor] | None:
        """k [Hk, slots + n, D] and v of these pages with a run's behind, without another copy; None where that cannot
        be: elsewhere than on a CPU, in parts, or of other widths than codes of a float32 model."""
        codec = self.arenas[0].codec
        coded = codec.kernel and {codec.kernel.bits_k, codec.kernel.bits_v} <= GAINS.keys()
        if not (self.dense and coded and run.k.is_cpu and run.k.dtype == torch.float32) or self.offloaded:
            return None
        both = [x.new_empty(len(x), self.slots + x.shape[1], x.shape[2]) for x in (run.k, run.v)]
        rows = self.arenas[0].data.index_select(0, self.table.flatten() // (codec.bytes // ALIGN))
        unpack_into(rows, codec.kernel, [x[:, : self.slots].unflatten(1, (-1, self.page_size)) for x in both])
        for x, new in zip(both, (run.k, run.v), strict=True):
            x[:, self.slots :] = new
        return both[0], both[1]

    def notes(self) -> torch.Tensor:
        """Of each page, [Hk, P, …]; 0 for one that is missing."""
        if self.dense:
            (arena,) = self.arenas
            places = self.table.flatten() // (arena.codec.bytes // ALIGN)
            return arena.notes.index_select(0, places).unflatten(0, self.table.shape)
        notes = self.arenas[0].notes
        found, pages = notes.new_zeros(self.table.numel(), *notes.shape[1:]), self.named()
        for arena in self.arenas:
            inside = [i for i, page in enumerate(pages) if page is not None and page.arena is arena]
            at, places = (torch.tensor(x, device=found.device) for x in (inside, [pages[i].place for i in inside]))
            found[at] = arena.notes[places]
        return found.unflatten(0, self.table.shape)

    def there(self) -> torch.Tensor:
        """Which pages there are, bool [Hk, P]."""
        return torch.arange(self.table.shape[1], device=self.count.device) < self.count[:, None]

    def gathered(self, chosen: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What `decode` gives of the pages bool [Hk, P], head by head side by side, and which pages these are, int64
        [Hk, m]; a head with fewer ends in pages with nothing live."""
        width = int(chosen.sum(-1).max())
        order = (~chosen).byte().argsort(dim=1, stable=True)[:, :width]
        there = chosen.gather(1, order)
        head = torch.arange(len(order), device=order.device)[:, None] * self.table.shape[1]
        inside = there.flatten().nonzero()[:, 0]
        parts = self._unpacked((head + order).flatten()[inside])
        if len(inside) < there.numel():
            whole = [part.new_zeros(there.numel(), *part.shape[1:]) for part in parts]
            parts = [x.index_copy_(0, inside, part) for x, part in zip(whole, parts, strict=True)]
        return *(part.reshape(len(order), width * self.page_size, *part.shape[2:]) for part in parts), order

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions int64 [Hk, slots] and live bool [Hk, slots], without decoding anything."""
        size = HEADER + 4 * self.page_size
        facts = torch.zeros(self.table.numel(), size, dtype=torch.uint8, device=self.table.device)
        for inside, rows, _ in self._parts(None, size):
            facts[inside] = rows
        where = facts[:, HEADER:].contiguous().view(torch.int32).long()
        live = live_bits(facts[:, : self.page_size // 8])
        return where.view(len(self.pages), -1), live.view(len(self.pages), -1)

    def read(self, head: torch.Tensor, slot: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [..., D] and values [..., Dv] of single slots; head, slot: int64 [...]. Only their pages are decoded."""
        if self.dense and not self.offloaded and self.arenas[0].codec.kernel:
            places = self.table[head, slot // self.page_size], slot % self.page_size
            return gather(self.arenas[0].data.view(-1), self.arenas[0].codec.kernel, *places)[:2]
        page, entry = (head * self.table.shape[1] + slot // self.page_size).unique(return_inverse=True)
        k, v, _, _ = self._unpacked(page)
        return k[entry, slot % self.page_size], v[entry, slot % self.page_size]

    def ledger(self, counted: dict[int, int] | None = None) -> dict[str, int]:
        """Bytes by kind, arenas included: what this page table does not name in them is `pad`. counted: as in
        `Layer`."""
        uses, arenas, table = self._uses, self.arenas, self.table.nbytes + self.count.nbytes
        table += 0 if self.newest is None else self.newest.nbytes
        if counted is not None:
            pages = [page for row in self.pages for page in row if id(page) not in counted]
            uses = Counter([(id(page.arena), page.live, page.used) for page in pages])
            arenas = [arena for arena in arenas if id(arena) not in counted]
            table = 0 if id(self) in counted else table
            counted.update(dict.fromkeys(map(id, (self, *pages, *arenas)), 1))
        kinds, known = Counter(table=table), {id(arena): arena for arena in self.arenas}
        for (arena, live, used), times in uses.items():
            codec, note = known[arena].codec, known[arena].note_bytes
            kinds.update({kind: times * size for kind, size in codec.ledger(live, used).items()})
            kinds.update({"index": times * note, "pad": -times * (codec.bytes + note)})
        kinds["pad"] += sum(arena.data.nbytes + arena.note_bytes * len(arena.data) for arena in arenas)
        return dict(kinds)


@dataclass(slots=True)
class PagedSegment:
    """The pages of a layer as a segment; `dense` decodes them. queries: positions of the rows; window: in tokens; bias:
    as of a `Segment`."""

    page_table: PageTable
    queries: Sequence[int]
    window: int | None = None
    bias: torch.Tensor | None = None
    dress = None

    @property
    def plain(self) -> bool:
        """Whether every row sees all slots, as they are."""
        return self.page_table.whole and self.window is None and self.bias is None

    def dense(self, dtype: torch.dtype) -> Segment:
        k, v, positions, live = self.page_table.decode()
        mask = None
        if not self.page_table.whole or self.window is not None:
            mask = live[:, None].expand(-1, len(self.queries), -1)
        if self.window is not None:
            rows = index(self.queries, k.device)[:, None]
            mask = mask & (rows - positions[:, None] < self.window)
        return Segment(k.to(dtype), v.to(dtype), mask, bias=self.bias)

    def only(
        self, chosen: torch.Tensor, dtype: torch.dtype, hidden: torch.Tensor | None = None
    ) -> tuple[Segment, list[list[Page]], torch.Tensor]:
        """What rows see that read these pages only, bool [Hk, R, P], but for `hidden` slots [Hk, slots]: no page is
        decoded that no row of its KV head reads. Also those pages, and int64 [Hk, m], the columns of their slots."""
        table, wanted = self.page_table, chosen.any(1)
        k, v, where, live, order = table.gathered(wanted)
        size = table.page_size
        columns = (order[..., None] * size + torch.arange(size, device=k.device)).flatten(1)
        seen = chosen.gather(2, order[:, None].expand(-1, chosen.shape[1], -1)).repeat_interleave(size, -1)
        mask = seen & live[:, None]
        if self.window is not None:
            mask &= index(self.queries, k.device)[:, None] - where[:, None] < self.window
        if hidden is not None:
            mask &= ~hidden.gather(1, columns)[:, None]
        bias = None if self.bias is None else self.bias.gather(1, columns)
        segment = Segment(k.to(dtype), v.to(dtype), None if mask.all() else mask, bias=bias)
        taken = [[row[i] for i in mine] for row, mine in zip(table.pages, _numbers(wanted), strict=True)]
        return segment, taken, columns


def _numbers(wanted: torch.Tensor) -> list[list[int]]:
    """Of each row the columns that are wanted."""
    return [[i for i, is_wanted in enumerate(row) if is_wanted] for row in wanted.tolist()]


def page_out(
    entries: Sequence[Sequence[Page | PendingPage]],
    device: torch.device,
    arenas: Sequence[Arena],
    before: int = 0,
    cold: Container[tuple[int, int]] = (),
) -> PageTable:
    """A page table of these pages per KV head. Pages whose newest position is below `before` lie on the host, and those
    whose head and number are `cold`.

    Pages that are where they should be stay; the others go to free places of `arenas` (one per codec and tier at
    most), or, where there are too few, all of that kind to a new arena. Nothing that exists is changed.
    """
    settled: list[list[Page]] = [list(row) for row in entries]
    kinds: dict[tuple[Codec, bool], list[tuple[int, int]]] = {}
    for h, row in enumerate(entries):
        for i, e in enumerate(row):
            kinds.setdefault((e.codec, e.newest < before or (h, i) in cold), []).append((h, i))
    for (codec, host), mine in kinds.items():
        arena = next((arena for arena in arenas if (arena.codec, arena.host) == (codec, host)), None)
        fresh = [(h, i) for h, i in mine if not (isinstance(entries[h][i], Page) and entries[h][i].arena is arena)]
        if not fresh:
            continue
        places = arena.take(len(fresh)) if arena else None
        if places is None:
            capacity = len(arena.data) if arena else 0
            capacity = capacity if len(mine) <= capacity else max(len(mine), capacity * 5 // 4)
            arena, fresh = Arena(codec, device, capacity, host), mine
            places = arena.take(len(fresh))
        batches: dict[int, tuple[Arena | torch.Tensor, torch.Tensor | None, list[int], list[int]]] = {}
        for (h, i), place in zip(fresh, places, strict=True):
            e = entries[h][i]
            settled[h][i] = Page(arena, place, e.live, e.used, e.newest)
            rows, notes, at = e.source
            batch = batches.setdefault(id(rows), (rows, notes, [], []))
            batch[2].append(at)
            batch[3].append(place)
        for rows, notes, at, to in batches.values():
            at = torch.tensor(at)
            rows = rows.take_out(at, arena.data.device) if isinstance(rows, Arena) else rows[at.to(rows.device)]
            arena.put(torch.tensor(to), rows, None if notes is None else notes[at.to(notes.device)])
    return PageTable(settled, device)

"""A cache under a stack: tokens are dropped and quantized at fixed committed lengths, and at no other time.

Newest tokens lie in one rectangular run [Hk, n, D] per layer, as in the plain store. A policy alone leaves it at
that: what stays is gathered into a shorter run, the positions of kept slots beside it. A quantizer moves older slots
from the run to pages (`pages.py`). `rows_left` says how many rows the next forward may hold; `begin` refuses more,
since rows behind a maintenance must see the cache as it is after it.

Scores are those of committed rows: the attention mass of rows in flight is kept row by row until `commit` names the
rows that stay. Every tensor here is replaced, never written in place, but for free slots of the run; so forks share.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from workbench.cache.apply import maintain
from workbench.cache.codec import Codec
from workbench.cache.events import tier_events
from workbench.cache.layer import Layer
from workbench.cache.pages import PagedSegment, page_out
from workbench.cache.places import index
from workbench.cache.protocol import MANY, Dress, Segment
from workbench.cache.quantize import packed
from workbench.cache.readers.base import CacheReader, Reading
from workbench.cache.reads import Read
from workbench.cache.store import PlainStore

if TYPE_CHECKING:
    from workbench.cache.rotation import Rotation
    from workbench.cache.stack import Stack


class ManagedStore(PlainStore):
    """The store of a `Stack`. prompt: tokens of the prompt; where a member asks for it, rotation: how keys turn with
    position, and marks: of every token whether it is marked."""

    def __init__(
        self, layers: int, stack: "Stack", prompt: int, rotation: "Rotation | None" = None, marks: bytes | None = None
    ):
        super().__init__(layers)
        self.stack, self.prompt, self.rotation, self.marks = stack, prompt, rotation, marks
        self.marked: torch.Tensor | None = None  # bool [length], of committed tokens
        self._tokens: list[int] = []  # of the rows in flight, −1 where unknown
        self._queries: list[dict[int, torch.Tensor]] = [{} for _ in range(layers)]  # rows before them -> [Hk, rows, D]
        self._by_slot = stack.policy is not None and "slot_positions" in stack.policy.needs
        self._codecs: dict[int, list[Codec]] = {}
        self._layers = [Layer() for _ in range(layers)]
        self._next = stack.next(0, prompt)  # committed length of the next maintenance
        self._mass: list[list[tuple[list[int], torch.Tensor]]] = [[] for _ in range(layers)]
        self._ahead: dict[int, tuple] = {}  # layer -> pages of the run's first slots, and the same decoded
        self._events: list[dict[str, Any]] = []
        self._bits: dict[str, list] = {}
        self._evicted, self._merged = [0] * layers, [0] * layers  # slots per KV head since the last `drain`
        self._read: dict[int, Read] = {}  # layer -> what the last forward read of its pages
        self._total: dict[int, Read] = {}  # the same, summed since the last `drain`
        self._picked: tuple[int, Segment, torch.Tensor] | None = None  # layer, pages that were chosen, their columns

    def rows_left(self, length: int) -> int:
        at = self.stack.limit(length, self.prompt)
        return MANY if at is None else at - length

    def begin(
        self,
        positions: Sequence[int],
        visible: torch.Tensor | None = None,
        layers: Sequence[int] | None = None,
        tokens: Sequence[int] | torch.Tensor | None = None,
    ) -> None:
        if self._next is not None:
            if self.length >= self._next:
                self._maintain()  # the last commit ran out of memory before it could
            limit = self._next if visible is not None else self.stack.limit(self.length, self.prompt)
            if limit is not None and len(positions) and max(positions) >= limit:
                raise RuntimeError(
                    f"a row at position {max(positions)} would pass the cache's maintenance at {limit} tokens;"
                    " ask rows_left() before a forward"
                )
        known = len(self._positions)
        super().begin(positions, visible, layers)
        self._read = {}
        if self.marks is not None:
            ids = [-1] * len(positions) if tokens is None else [int(token) for token in tokens]
            self._tokens[known:] = ids[known - self.behind :]
        if self._scored:
            self.watched = [row for row, at in enumerate(positions) if self.stack.watches(at, self.prompt)]

    def codecs(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> list[Codec]:
        """How the pages of a layer with keys like k and values like v are coded, class by class."""
        if layer not in self._codecs:
            self._codecs[layer] = self.stack.storage.codecs(layer, k.shape[2], v.shape[2], k.dtype, self.rotation)
        return self._codecs[layer]

    @property
    def _scored(self) -> bool:
        """Whether a member will read the attention that slots received again."""
        policy, quantizer = self.stack.policy, self.stack.quantizer
        if quantizer is not None and "mass" in quantizer.needs:
            return True
        again = policy is not None and "mass" in policy.needs
        return again and self.stack.policy_next(self.length, self.prompt) is not None

    def end(self) -> None:
        super().end()
        self._picked = None
        for layer, read in self._read.items():
            self._total[layer] = self._total.get(layer, Read()) + read

    def segments(self, layer: int, window: int | None = None, query: torch.Tensor | None = None) -> list[Segment]:
        if self._picked is not None and self._picked[0] != layer:
            self._picked = None
        found = super().segments(layer, window)
        if query is not None and self.stack.policy is not None and "queries" in self.stack.policy.needs:
            self._queries[layer][self.behind] = query[0].unflatten(0, (len(found[-1].k), -1)).mean(1)
        if self._by_slot:
            found = self._placed(found[0])
        if self._next is not None and self._rows and self._seen[-1] >= self._next:
            found = self._quantized_ahead(layer, found[0], window)
        page_table, slots = self._layers[layer].page_table, self._layers[layer].slots
        bias = self._layers[layer].wide("bias", slots + found[-1].k.shape[1])
        if bias is not None:
            found[-1] = replace(found[-1], bias=bias[:, slots:])
        if page_table is not None:
            seen = self._seen
            rows = seen[-self._rows :] if self._rows else []
            near = window is None or max(seen, default=0) < window
            pages = None if bias is None else bias[:, :slots]
            pages = PagedSegment(page_table, rows, None if near else window, pages)
            found.insert(0, self._picked_from(layer, pages, query, found[-1].k.dtype))
        return found

    def _placed(self, run: Segment) -> list[Segment]:
        """The run with its sinks read from where the policy wants them: turned to just before the window, so that
        distances are those of cache slots; or by queries turned so far that none is larger than the budget."""
        policy, dropped = self.stack.policy, self.length - self.held
        sinks, last = policy.sinks, max(self._seen, default=0)
        if policy.positions == "slot" and dropped:
            rotated = self.rotation.rotation(run.k[:, :sinks], dropped)
            return [replace(run, k=torch.cat([rotated, run.k[:, sinks:]], 1))]
        if policy.positions == "slot" or last <= policy.budget or not sinks:
            return [run]
        device, mask = run.k.device, run.mask
        turn = (index(self._seen[-self._rows :], device) - policy.budget).clamp_min(0)
        far = Segment(run.k[:, :sinks], run.v[:, :sinks], dress=Dress(turn=turn, rotation=self.rotation))
        near = replace(run, k=run.k[:, sinks:], v=run.v[:, sinks:])
        if mask is not None:
            far, near = replace(far, mask=mask[..., :sinks]), replace(near, mask=mask[..., sinks:])
        return [far, near]

    def _picked_from(
        self, layer: int, pages: PagedSegment, query: torch.Tensor | None, dtype: torch.dtype
    ) -> Segment | PagedSegment:
        """The pages as these rows read them: what a reader or a plan leaves out is not touched."""
        table, unread, reader = pages.page_table, self._layers[layer].unread, self.stack.reader
        if unread is not None:
            hidden = unread[:, : table.slots]
            some = ~hidden.unflatten(1, (-1, table.page_size)).all(-1)
            chosen = (some & table.there())[:, None].expand(-1, len(pages.queries), -1)
        elif reader is not None and query is not None and pages.queries[-1] >= self.prompt:
            hidden, chosen = None, self._chosen(layer, pages, query[0], reader)
        else:
            self._read[layer] = Read.whole(table)
            return pages
        if self._picked is None:
            segment, taken, columns = pages.only(chosen, dtype, hidden)
            self._read[layer] = Read.chosen(table, taken, None if hidden is None else int(hidden.sum()))
            self._picked = layer, segment, columns
        return self._picked[1]

    def _chosen(self, layer: int, pages: PagedSegment, queries: torch.Tensor, reader: CacheReader) -> torch.Tensor:
        """The pages that each row reads, bool [Hk, R, P]; rows of the prompt read all."""
        table, rows = pages.page_table, index(pages.queries, queries.device)
        there = table.there()[:, None].expand(-1, len(rows), -1)
        if pages.window is not None:
            there = there & (rows[:, None] - table.newest[:, None] < pages.window)
        reading = Reading(layer, queries, table.notes(), table.newest, there, table.page_size)
        return torch.where((rows >= self.prompt)[:, None], reader.selected(reading), there)

    def _quantized_ahead(self, layer: int, run: Segment, window: int | None) -> list[Segment]:
        """The run in two versions, for rows of a prompt that pass boundaries: each row reads quantized what is in pages
        by then, the rest as it is."""
        first, device = self.length - self.held, run.k.device
        rows = index(self._seen[-self._rows :], device)
        interval, kept, end = self.stack.storage.interval, self.stack.storage.residual, self._seen[-1] + 1
        coded = rows - rows % interval - kept - first  # slots of the run that each row reads quantized
        count = end - end % interval - kept - first  # what will be in pages once all are committed
        if count <= 0:
            return [run]
        window = None if window is None or max(self._seen) < window else window
        key = (window, first, count)  # alike in all layers, as nothing was evicted
        if key not in self._masks:
            mask = self._mask(window, device, layer)
            old = torch.arange(mask.shape[-1], device=device) < coded[:, None]
            self._masks[key] = (mask & old)[..., :count], mask & ~old
        far, near = self._masks[key]
        (codec,) = self.codecs(layer, run.k, run.v)
        k, v = (x[:, :count].unflatten(1, (-1, codec.slots)).flatten(0, 1) for x in (run.k, run.v))
        where = torch.arange(first, first + count, device=device).view(-1, codec.slots).repeat(len(run.k), 1)
        pages = packed(layer, k, v, where, torch.full((len(k),), codec.slots, device=device), codec)
        self._ahead[layer] = pages, codec.unpack(pages)
        k, v = (x.unflatten(0, (len(run.k), -1)).flatten(1, 2).to(run.k.dtype) for x in self._ahead[layer][1][:2])
        return [Segment(k, v, far), Segment(run.k, run.v, near)]

    def _mask(self, window: int | None, device: torch.device, layer: int) -> torch.Tensor:
        kept = self._layers[layer].kept
        if window is None or kept is None or self._by_slot:
            return super()._mask(window, device, layer)
        key = (window, layer)
        if key not in self._masks:
            seen = super()._mask(None, device, layer)
            rows = index(self._seen[-self._rows :], device)[:, None]
            staged = index(self._seen, device).expand(len(kept), -1)
            where = torch.cat([self._layers[layer].positions(self.held, self.length, device), staged], 1)
            self._masks[key] = seen & (rows - where[:, None] < window)
        return self._masks[key]

    def add_mass(self, layer: int, mass: torch.Tensor) -> None:
        expected = [len(self.watched), len(self._run.k[layer])]
        if mass.ndim != 3 or list(mass.shape[:2]) != expected:
            raise RuntimeError(f"layer {layer}: attention mass {list(mass.shape)}, expected {[*expected, 'slots']}")
        if self._picked is not None:
            mass = self._spread(mass, self._picked[2], self._layers[layer].slots)
        self._mass[layer].append(([self.behind + row for row in self.watched], mass))

    @staticmethod
    def _spread(mass: torch.Tensor, columns: torch.Tensor, slots: int) -> torch.Tensor:
        """Mass over chosen pages, whose slots are these columns, and a run, as mass over all pages and the run."""
        inside, run = mass.split([columns.shape[1], mass.shape[2] - columns.shape[1]], -1)
        whole = mass.new_zeros(*mass.shape[:2], slots)
        return torch.cat([whole.scatter_(2, columns.expand_as(inside), inside), run], -1)

    def commit(self, rows: Sequence[int]) -> None:
        rows = list(rows)
        self._refuse_partial(rows)
        limit = self.stack.limit(self.length, self.prompt)
        if limit is not None and self.length + len(rows) > limit:
            raise RuntimeError(f"{len(rows)} rows committed at length {self.length} pass the maintenance at {limit}")
        scores: list[torch.Tensor] = []  # computed first, so that running out of memory changes nothing
        if self._scored and rows:
            facts = zip(self._layers, self._mass, self._run.k, strict=True)
            scores = [state.folded(seen, rows, self.held, k) for state, seen, k in facts]
        queries = self._newest_queries(rows) if rows else []
        ids = [self._tokens[row] for row in rows] if self.marks is not None else []
        ahead = self._ahead if rows == list(range(len(rows))) else {}
        super().commit(rows)
        for state, new in zip(self._layers, scores, strict=False):
            state.mass = new
        for state, new in zip(self._layers, queries, strict=False):
            state.queries = new
        if ids:
            found = [token >= 0 and bool(self.marks[token]) for token in ids]
            new = torch.tensor(found, device=self._run.k[0].device)
            self.marked = new if self.marked is None else torch.cat([self.marked, new])
        if self._next is not None and self.length >= self._next:
            self._maintain(ahead)

    def _newest_queries(self, rows: list[int]) -> list[torch.Tensor]:
        """Layer by layer, the queries of the newest tokens once these rows are committed; nothing where nobody asks."""
        policy, found = self.stack.policy, []
        if policy is None or "queries" not in policy.needs:
            return found
        at = index(rows, self._run.k[0].device)
        for state, parts in zip(self._layers, self._queries, strict=True):
            new = torch.cat([parts[before] for before in sorted(parts)], 1)[:, at]
            both = new if state.queries is None else torch.cat([state.queries, new], 1)
            found.append(both[:, -policy.newest :].clone())
        return found

    def discard(self) -> None:
        super().discard()
        self._ahead, self._tokens, self._read = {}, [], {}
        self.watched = ()
        self._queries = [{} for _ in self._layers]
        self._mass = [[] for _ in self._layers]

    @torch.inference_mode()
    def _maintain(self, ahead: Mapping[int, tuple] = MappingProxyType({})) -> None:
        """Bring every layer to what the stack wants at this length; all of them, or, where memory runs out, none."""
        start = time.perf_counter()
        done = maintain(self, ahead)
        self._run, self._layers, self.held = done.run, done.layers, done.held
        self._next = self.stack.next(self.length, self.prompt)
        if not self._scored:
            for state in self._layers:
                state.mass = None
        self._events += done.events
        for name, values in done.bits.items():
            self._bits.setdefault(name, []).extend(values)
        self._evicted = [a + b for a, b in zip(self._evicted, done.evicted, strict=True)]
        self._merged = [a + b for a, b in zip(self._merged, done.merged, strict=True)]
        self.maintained_ms += (time.perf_counter() - start) * 1000

    def retier(self, before: int) -> None:
        """Move pages between the tiers: those whose newest position is below `before` to the host, others from it.

        Changes no result: what lies on the host is fetched whenever it is read. Later pages follow the same rule.
        """
        for layer, state in enumerate(self._layers):
            state.before = before
            if state.page_table is not None:
                old, device = state.page_table, self._run.k[layer].device
                state.page_table = page_out(old.pages, device, old.arenas, before, state.cold_pages())
                self._events += tier_events(layer, old, state.page_table)

    def fork(self) -> "ManagedStore":
        new = super().fork()
        new._events = []
        new._layers, new._codecs, new._next = [state.fork() for state in self._layers], self._codecs, self._next
        new.marked = self.marked
        return new

    def _empty(self) -> "ManagedStore":
        return ManagedStore(len(self._layers), self.stack, self.prompt, self.rotation, self.marks)

    def share(self) -> None:
        """Nothing: pages are shared as they are, and the run beside them is short."""

    def read_stats(self) -> tuple[int, int, int]:
        tables = {layer: state.page_table for layer, state in enumerate(self._layers) if state.page_table is not None}
        reads = [self._read.get(layer) or Read.whole(table) for layer, table in tables.items()]
        return self.held, max((read.slots for read in reads), default=0), sum(read.bytes for read in reads)

    def drain(self) -> tuple[list[dict[str, Any]], dict[str, list], dict[str, list]]:
        chosen: dict[str, list] = {}
        for layer, read in sorted(self._total.items()):
            if read.fetched:
                table = self._layers[layer].page_table
                spent = sum(arena.spent() for arena in table.arenas) if table else None
                fetch = {"layer": layer, "op": "fetch", "destination": "device", "bytes": read.fetched, "ms": spent}
                self._events.append(fetch)
            if read.unit:
                row = {"layer": layer, "unit": read.unit, "held": read.held, "read": read.read,
                       "bytes_read": read.bytes, "bytes_fetched": read.fetched}  # fmt: skip
                for name, value in row.items():
                    chosen.setdefault(name, []).append(value)
        found = self._events, self._bits, chosen
        self._events, self._bits = [], {}
        self._evicted, self._merged = [0] * len(self._layers), [0] * len(self._layers)
        self._total = {}
        return found

    @property
    def acts(self) -> dict[str, list[int]]:
        fetched = [self._total.get(layer, Read()).fetched_slots for layer in range(len(self._layers))]
        return {"evicted": self._evicted, "merged": self._merged, "fetched": fetched}

    def ledger(self, counted: dict[int, int] | None = None) -> dict[str, list]:
        columns = super().ledger(counted)
        n = len(self._layers)
        kinds = ("scale", "zero", "position", "header", "table", "index", "note", "score", "bias", "dead")
        columns |= {kind: [0] * n for kind in kinds}
        columns |= {"host_bytes": [0] * n} | {name: list(column) for name, column in self.acts.items()}
        for layer, state in enumerate(self._layers):
            if (table := state.page_table) is not None:
                seen, live = counted or {}, table.live
                if counted:
                    live = [sum(page.live for page in row if id(page) not in seen) for row in table.pages]
                columns["live_slots"][layer] += round(sum(live) / len(live))
                arenas = (arena for arena in table.arenas if arena.tier == "host" and id(arena) not in seen)
                columns["host_bytes"][layer] = sum(arena.data.nbytes for arena in arenas)
            for kind, size in state.ledger(counted).items():
                columns[kind][layer] += size
        if self.marked is not None and (counted is None or self.marked.data_ptr() not in counted):
            columns["note"][0] += self.marked.nbytes
            if counted is not None:
                counted[self.marked.data_ptr()] = 1
        if self.stack.storage:
            facts = zip(self._run.k, self._run.v, range(n), strict=True)
            columns["bits_nominal"] = [
                None if k is None else self.stack.storage.nominal(self.codecs(layer, k, v), k.shape[2], v.shape[2])
                for k, v, layer in facts
            ]
        return columns

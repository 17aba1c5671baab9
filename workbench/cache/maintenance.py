"""One maintenance of a managed store: first the policy chooses what stays, then what is old enough is quantized.

Everything is computed beside the present state and handed back whole, so that running out of memory changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from workbench.cache.pages import Page, PageTable, PendingPage, page_out, with_live
from workbench.cache.store import _Run
from workbench.errors import NumericalError
from workbench_kernels.pages import SLOTS, PageFormat, pack, unpack

if TYPE_CHECKING:
    from workbench.cache.managed import ManagedStore

__all__ = ["Layer", "Outcome", "maintain", "tier_events"]

SPARSE = SLOTS // 2  # pages with at most this many live slots are packed anew with others
CHUNK = 32  # capacity of a run, in slots, is a multiple of this


class Layer:
    """What a managed store knows of one layer beside its run: columns are the slots of pages, then those of the run.

    kept: int32 [Hk, m] positions of the first m slots of the run (tokens behind them follow on), None where nothing was
    evicted; scores: float64 [Hk, columns] or None; page_table: the pages or None; before: pages of tokens before that
    position lie on the host.
    """

    __slots__ = ("before", "kept", "scores", "page_table")

    def __init__(self, kept=None, scores=None, page_table: PageTable | None = None, before: int = 0):
        self.kept, self.scores, self.page_table, self.before = kept, scores, page_table, before

    def fork(self) -> "Layer":
        return Layer(self.kept, self.scores, self.page_table, self.before)

    def positions(self, held: int, length: int, device: torch.device) -> torch.Tensor:
        """Of the run's slots: [Hk, held], or [1, held] where heads are alike."""
        if self.kept is None:
            return torch.arange(length - held, length, device=device)[None]
        tail = torch.arange(length - held + self.kept.shape[1], length, device=device)
        return torch.cat([self.kept, tail.expand(len(self.kept), -1)], 1)

    def scored(
        self, seen: Sequence[tuple[list[int], torch.Tensor]], rows: list[int], held: int, k: torch.Tensor
    ) -> torch.Tensor:
        """The scores with the attention mass of the committed rows added, and a column for each of them behind.

        seen: row numbers and mass [rows, Hk, n] of every forward of the round.
        """
        base = held + (self.page_table.slots if self.page_table else 0)
        width = max([base + max(rows) + 1, *(mass.shape[2] for _, mass in seen)])
        added = torch.zeros(len(k), width, dtype=torch.float64, device=k.device)
        for numbers, mass in seen:
            inside = [i for i, number in enumerate(numbers) if number in rows]
            added[:, : mass.shape[2]] += mass[inside].double().sum(0)
        old = added[:, :base] if self.scores is None else added[:, :base] + self.scores
        return torch.cat([old, added[:, [base + row for row in rows]]], 1)

    def ledger(self) -> dict[str, int]:
        kinds = self.page_table.ledger() if self.page_table else {}
        for kind, tensor in (("position", self.kept), ("score", self.scores)):
            kinds[kind] = kinds.get(kind, 0) + (0 if tensor is None else tensor.nbytes)
        return kinds


@dataclass
class Outcome:
    """The state after a maintenance, and what was done: `cache` events, rows of the bits table, evicted slots."""

    run: _Run
    layers: list[Layer]
    held: int
    events: list[dict[str, Any]] = field(default_factory=list)
    bits: dict[str, list] = field(default_factory=dict)
    evicted: list[int] = field(default_factory=list)


def maintain(store: "ManagedStore") -> Outcome:
    """The state of a store whose committed length is a boundary of its stack."""
    policy, quantizer = store.stack.policy, store.stack.quantizer
    if policy is not None and policy.next(store.length - 1, store.prompt) != store.length:
        policy = None  # another member's turn
    out = Outcome(store._run, [], store.held)
    keys, values = [], []
    for layer, state in enumerate(store._layers):
        k, v = (x[layer][:, : store.held] for x in (store._run.k, store._run.v))
        work = _Work(layer, state, k, v, store.length, out)
        if policy is not None:
            work.evict(policy)
        if quantizer is not None:
            work.quantize(quantizer)
        elif work.gone is not None:
            work.thin()
        keys.append(work.k)
        values.append(work.v)
        out.layers.append(work.state)
        out.evicted.append(0 if work.gone is None else int(work.gone[0].sum()))
    out.events = _together(_together(out.events, "head", work.heads), "layer", len(out.layers))
    if keys[0].shape[1] != store.held:
        out.held = keys[0].shape[1]
        room = min(store.rows_left(store.length), CHUNK)
        out.run = _Run.of(keys, values, -(-(out.held + room) // CHUNK) * CHUNK)
    return out


class _Work:
    """One layer under maintenance."""

    def __init__(self, layer: int, state: Layer, k: torch.Tensor, v: torch.Tensor, length: int, out: Outcome):
        self.layer, self.state, self.k, self.v, self.length, self.out = layer, state.fork(), k, v, length, out
        self.heads, self.held = k.shape[:2]
        self.where = state.positions(self.held, length, k.device).expand(self.heads, -1)
        self.live = torch.ones_like(self.where, dtype=torch.bool)
        self.quantized = None
        if state.page_table is not None:
            self.quantized = state.page_table.decode()
            self.where = torch.cat([self.quantized[2], self.where], 1)
            self.live = torch.cat([self.quantized[3], self.live], 1)
        self.stay = self.live
        self.gone: torch.Tensor | None = None  # columns evicted now, None for none

    def evict(self, policy: Any) -> None:
        """Let the policy choose among the live columns, in the order of their positions."""
        n = self.held + (self.state.page_table.live if self.state.page_table else 0)
        order = self.where.masked_fill(~self.live, 2**31 - 1).argsort(-1)[:, :n]
        scores = self.state.scores
        chosen = policy.kept(self.where.gather(1, order), None if scores is None else scores.gather(1, order))
        if chosen is None:
            return
        self.stay = torch.zeros_like(self.live).scatter(1, order.gather(1, chosen), True)
        self.gone = self.live & ~self.stay
        freed = 0 if self.state.page_table else self.k[0, 0].nbytes + self.v[0, 0].nbytes
        places = [row[gone].sort().values.tolist() for row, gone in zip(self.where, self.gone, strict=True)]
        self.out.events += [
            {"layer": self.layer, "head": head, "op": "evict", "positions": runs_of(gone), "bytes": freed * len(gone),
             "reason": policy.declared_name}
            for head, gone in enumerate(places)
        ]  # fmt: skip

    def thin(self) -> None:
        """Without a quantizer: gather what stays into a shorter run."""
        index = self.stay.nonzero()[:, 1].view(self.heads, -1)
        self.k, self.v = (x.gather(1, index[..., None].expand(-1, -1, x.shape[2])) for x in (self.k, self.v))
        self.state.kept = self.where.gather(1, index).int()
        if self.state.scores is not None:
            self.state.scores = self.state.scores.gather(1, index)

    def quantize(self, quantizer: Any) -> None:
        """Move what is older than the residual window to pages, and clear evicted slots there."""
        raw = min(quantizer.residual, self.held)
        fresh = self.held - raw
        before = self.state.before
        if quantizer.on_device is not None:
            before = max(before, self.length - quantizer.on_device)
        if not fresh and self.gone is None and before == self.state.before:
            return
        form = quantizer.page(self.layer, self.k.shape[2], self.v.shape[2], self.k.dtype)
        page_table = self.state.page_table
        slots = page_table.slots if page_table else 0
        entries: list[list[Page | PendingPage]] = [[] for _ in range(self.heads)]
        columns: list[list[int]] = [[] for _ in range(self.heads)]  # what the slots of the new pages held before
        groups: list[tuple[int, list[int]]] = []
        for head in range(self.heads):
            loose = [slots + i for i in self.stay[head, slots : slots + fresh].nonzero()[:, 0].tolist()]
            loose += self._old_pages(head, len(loose), entries[head], columns[head])
            loose.sort(key=self.where[head].tolist().__getitem__)
            groups += [(head, loose[i : i + SLOTS]) for i in range(0, len(loose), SLOTS)]
        for (head, group), draft in zip(groups, self._pack(groups, form, slots), strict=True):
            entries[head].append(draft)
            columns[head] += group + [-1] * (SLOTS - len(group))
        arenas = page_table.arenas if page_table else []
        self.state.before = before
        self.state.page_table = page_out(entries, form, self.k.device, arenas, before) if any(entries) else None
        self.out.events += tier_events(self.layer, page_table, self.state.page_table)
        self._reorder_scores(columns, slots + fresh)
        self.k, self.v = self.k[:, fresh:], self.v[:, fresh:]

    def _old_pages(self, head: int, loose: int, entries: list, columns: list[int]) -> list[int]:
        """Add the pages of one head that stay, and their slots' columns. Returns the columns to be packed anew: those
        of sparse pages, where that saves a page."""
        if self.quantized is None:
            return []
        pages = self.state.page_table.pages[head]
        stay = self.stay[head, : len(pages) * SLOTS].view(-1, SLOTS)
        left = stay.sum(-1).tolist()
        sparse = [p for p, count in enumerate(left) if 0 < count <= SPARSE]
        together = -(-(loose + sum(left[p] for p in sparse)) // SLOTS)
        if together >= len(sparse) + -(-loose // SLOTS):
            sparse = []
        for p, page in enumerate(pages):
            if not left[p] or p in sparse:
                continue
            if left[p] < page.live:
                newest = int(self.where[head, p * SLOTS : (p + 1) * SLOTS][stay[p]].max())
                page = PendingPage(
                    with_live(page.row[None].to(stay.device), stay[p : p + 1])[0], left[p], page.used, newest
                )
            entries.append(page)
            columns += range(p * SLOTS, (p + 1) * SLOTS)
        return [p * SLOTS + i for p in sparse for i in stay[p].nonzero()[:, 0].tolist()]

    def _pack(self, groups: list[tuple[int, list[int]]], form: PageFormat, slots: int) -> list[PendingPage]:
        """New pages from columns of one head each; `slots`: columns that lie in pages already."""
        if not groups:
            return []
        device = self.k.device
        head = torch.tensor([h for h, _ in groups], device=device)[:, None]
        used = torch.tensor([len(group) for _, group in groups], device=device)
        index = torch.tensor([group + group[:1] * (SLOTS - len(group)) for _, group in groups], device=device)
        wide = torch.promote_types(self.k.dtype, torch.float32)
        whole = [
            x.to(wide) if self.quantized is None else torch.cat([old.to(wide), x.to(wide)], 1)
            for x, old in zip((self.k, self.v), (self.quantized or (None, None))[:2], strict=True)
        ]
        k, v = (x[head, index] for x in whole)
        where = self.where[head, index]
        try:
            rows = pack(k, v, where, used, form, birth=self.length)
        except ValueError as error:
            raise NumericalError(f"layer {self.layer} cannot be quantized: {error}") from None
        self._log_quantize(groups, form, slots, k, v, unpack(rows, form))
        newest = where[torch.arange(len(groups), device=device), used - 1].tolist()
        return [PendingPage(row, len(g), len(g), top) for row, (_, g), top in zip(rows, groups, newest, strict=True)]

    def _log_quantize(self, groups, form: PageFormat, slots: int, k, v, found) -> None:
        widths = form.stored(form.bits_k), form.stored(form.bits_v)
        live = found[3][..., None]
        errors = [
            (((x - y) * live).double().square().sum((1, 2)) / (live.sum((1, 2)) * x.shape[2])).sqrt().tolist()
            for x, y in zip((k, v), found[:2], strict=True)
        ]
        names = (
            "model",
            "layer",
            "head",
            "start",
            "length",
            "bits_k",
            "bits_v",
            "codec",
            "reason",
            "err_rms_k",
            "err_rms_v",
        )
        touched: dict[tuple[str, int], list[int]] = {}
        for (head, group), *errs in zip(groups, *errors, strict=True):
            new = [column for column in group if column >= slots]
            for op, part in (("quantize", new), ("requantize", [column for column in group if column < slots])):
                touched.setdefault((op, head), []).extend(int(at) for at in self.where[head, part])
            for start, count in runs_of([int(at) for at in self.where[head, new]]):  # the others keep their width
                facts = (None, self.layer, head, start, count, *widths, "page", "quantize", *errs)
                for name, value in zip(names, facts, strict=True):
                    self.out.bits.setdefault(name, []).append(value)
        self.out.events += [
            {"layer": self.layer, "head": head, "op": op, "positions": runs_of(sorted(places)), "bits": sum(widths) / 2,
             "bytes": len(places) * form.bytes // SLOTS}
            for (op, head), places in touched.items() if places
        ]  # fmt: skip

    def _reorder_scores(self, columns: list[list[int]], start: int) -> None:
        if self.state.scores is None:
            return
        width = max(map(len, columns))
        index = torch.tensor(
            [row + [-1] * (width - len(row)) for row in columns], dtype=torch.long, device=self.k.device
        )
        moved = self.state.scores.gather(1, index.clamp_min(0)).masked_fill(index < 0, 0)
        self.state.scores = torch.cat([moved, self.state.scores[:, start:]], 1)


def tier_events(layer: int, old: PageTable | None, new: PageTable | None) -> list[dict[str, Any]]:
    """An `offload` or `fetch` event per KV head and tier that positions moved to; bytes: a share of their pages."""
    events: list[dict[str, Any]] = []
    if new is None or not (new.offloaded or (old is not None and old.offloaded)):
        return events
    for head in range(len(new.pages)):
        was, now = ({} if page_table is None else homes_of(page_table, head) for page_table in (old, new))
        for op, tier, host in (("offload", "host", True), ("fetch", "device", False)):
            moved = sorted(at for at, home in now.items() if home == host and was.get(at, False) != host)
            if moved:
                size = len(moved) * new.form.bytes // SLOTS
                events.append({"layer": layer, "head": head, "op": op, "destination": tier,
                               "positions": runs_of(moved), "bytes": size})  # fmt: skip
    return events


def homes_of(page_table: PageTable, head: int) -> dict[int, bool]:
    """Whether a head's positions lie on the host."""
    _, _, where, live = (part[head].unflatten(0, (-1, SLOTS)) for part in page_table.decode())
    return {at: page.arena.host for i, page in enumerate(page_table.pages[head]) for at in where[i][live[i]].tolist()}


def runs_of(places: Sequence[int]) -> list[list[int]]:
    """Increasing positions as runs [start, length]."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == sum(runs[-1]):
            runs[-1][1] += 1
        else:
            runs.append([place, 1])
    return runs


def _together(events: list[dict[str, Any]], name: str, count: int) -> list[dict[str, Any]]:
    """Where `count` events differ only in `name` (head or layer) and in bytes: one without it, bytes added up."""
    alike: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        key = repr({k: v for k, v in event.items() if k not in (name, "bytes")}) if name in event else repr(event)
        alike.setdefault(key, []).append(event)
    joined = []
    for group in alike.values():
        if name in group[0] and len(group) == count:
            total = sum(event["bytes"] for event in group)
            group = [{k: v for k, v in group[0].items() if k != name} | {"bytes": total}]
        joined += group
    return joined

"""One maintenance of a managed store: plans are asked for and checked, then done, and what was done is logged.

First the method's plans are carried out (slots dropped, merged), then what is old enough is quantized. Everything is
computed beside the present state and handed back whole, so that running out of memory changes nothing. The cost follows
what is done: pages that no plan names are neither read nor decoded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from workbench.cache.events import runs_of, tier_events, together
from workbench.cache.layer import Layer
from workbench.cache.pages import Page, PendingPage, page_out, with_live
from workbench.cache.plan import CacheMethod, LayerView, Merge, Plan
from workbench.cache.store import _Run
from workbench.errors import BadInput, NumericalError
from workbench_kernels.pages import GAINS, SLOTS, PageFormat, pack, unpack

if TYPE_CHECKING:
    from workbench.cache.managed import ManagedStore
    from workbench.cache.stack import Stack

__all__ = ["Outcome", "maintain", "packed"]

SPARSE = SLOTS // 2  # pages with at most this many live slots are packed anew with others
CHUNK = 32  # capacity of a run, in slots, is a multiple of this
NOWHERE = 2**31 - 1  # position of what holds nothing, behind all others


@dataclass
class Outcome:
    """The state after a maintenance, and what was done: `cache` events, rows of the bits table, counts per layer."""

    run: _Run
    layers: list[Layer]
    held: int
    events: list[dict[str, Any]] = field(default_factory=list)
    bits: dict[str, list] = field(default_factory=dict)
    evicted: list[int] = field(default_factory=list)
    merged: list[int] = field(default_factory=list)


def maintain(store: "ManagedStore", ahead: Mapping[int, tuple]) -> Outcome:
    """The state of a store whose committed length is a boundary of its stack, or behind one.

    ahead: layer -> pages uint8 [Hk · P, bytes] of the run's first slots, and the same unpacked, where rows read them.
    """
    stack, length, run = store.stack, store.length, store._run
    out = Outcome(run, [], store.held)
    work = []
    for layer, state in enumerate(store._layers):
        k, v = (x[layer][:, : store.held] for x in (run.k, run.v))
        work.append(_Work(layer, state, k, v, length, out))
        work[-1].ahead, work[-1].layers, work[-1].prompt = ahead.get(layer), len(store._layers), store.prompt
    if stack.acts(length, store.prompt):
        views = [each.view() for each in work]
        plans = stack.policy.plans(views)
        for each, plan in zip(work, plans, strict=True):
            if plan is not None:
                each.do(plan, stack.policy)
    fresh = _leaving(stack, store, work) if stack.storage is not None else 0
    for each in work:
        if stack.storage is not None:
            each.quantize(stack, fresh)
        elif each.gone is not None:
            each.thin()
        out.layers.append(each.state)
        out.evicted.append(0 if each.gone is None else round(int(each.gone.sum()) / each.heads) - each.merged)
        out.merged.append(each.merged)
        out.events += each.events
    out.events = together(together(out.events, "head", work[0].heads), "layer", len(work))
    if any(each.changed for each in work):
        keys, values = [each.k for each in work], [each.v for each in work]
        out.held = keys[0].shape[1]
        room = min(store.rows_left(length), CHUNK)
        out.run = _Run.of(keys, values, -(-(out.held + room) // CHUNK) * CHUNK)
    return out


def _leaving(stack: "Stack", store: "ManagedStore", work: list["_Work"]) -> int:
    """How many of the run's oldest slots go to pages, the same in all layers."""
    fresh = store.held - min(stack.residual(store.length), store.held)
    if stack.policy is None or stack.storage.interval == SLOTS or stack.quantizes(store.length, store.prompt):
        return fresh
    dropped = (each.gone[:, each.slots : each.slots + fresh].any() for each in work if each.gone is not None)
    return fresh if any(dropped) else 0  # the policy's turn alone, unless it leaves gaps in the run


class _Work:
    """One layer under maintenance. Columns: the slots of its pages, then those of its run."""

    def __init__(self, layer: int, state: Layer, k: torch.Tensor, v: torch.Tensor, length: int, out: Outcome):
        self.layer, self.state, self.k, self.v, self.length, self.out = layer, state.fork(), k, v, length, out
        self.heads, self.held = k.shape[:2]
        self.old, self.slots = state.page_table, state.slots
        self.events: list[dict[str, Any]] = []
        self.changed = False  # the run is another one
        self.where = self.live = None  # positions and what lives, [Hk, columns]; read once a plan needs them
        self.gone: torch.Tensor | None = None  # columns evicted now, None for none
        self.loose: torch.Tensor | None = None  # columns of pages that merging changed
        self.ahead: tuple | None = None  # pages of the first slots of the run, already packed
        self.merged = 0  # slots added to others, per KV head
        self._new: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None  # column of a head, merged k and v

    def look(self) -> None:
        """Find out where the slots are."""
        if self.where is not None:
            return
        self.where = self.state.positions(self.held, self.length, self.k.device).expand(self.heads, -1).long()
        self.live = torch.ones_like(self.where, dtype=torch.bool)
        if self.old is not None:
            where, live = self.old.places()
            self.where, self.live = torch.cat([where, self.where], 1), torch.cat([live, self.live], 1)

    def view(self) -> LayerView:
        """The live slots in order of their positions, for a method to look at."""
        self.look()
        n = int(self.live.sum(-1).max())
        order = self.where.masked_fill(~self.live, -1).argsort(dim=-1, stable=True)[:, self.live.shape[1] - n :]
        live = self.live.gather(1, order)
        stats = {}
        if self.state.mass is not None:
            stats["mass"] = self.state.mass.gather(1, order).masked_fill(~live, 0)
        self.order = order
        bias = self.state.biases(self.slots + self.held)
        bias = torch.zeros(live.shape, device=live.device) if bias is None else bias.gather(1, order)
        positions = self.where.gather(1, order).masked_fill(~live, -1)
        head = torch.arange(self.heads, device=order.device)[:, None]

        def read(slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.read(head.expand_as(slots), order.gather(1, slots))

        return LayerView(self.layer, self.layers, self.length, self.prompt, positions, live, stats, bias, read)

    def read(self, head: torch.Tensor, column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys [..., D] and values [..., Dv] of columns, in float32 (float64 for float64), what is merged as merged."""
        wide = torch.promote_types(self.k.dtype, torch.float32)
        at = (column - self.slots).clamp_min(0)
        k, v = (x[head, at].to(wide) if self.held else x.new_empty(*at.shape, x.shape[2], dtype=wide)
                for x in (self.k, self.v))  # fmt: skip
        if self.old is not None and (coded := column < self.slots).any():
            k[coded], v[coded] = (x.to(wide) for x in self.old.read(head[coded], column[coded]))
        if self._new is not None:
            names, new_k, new_v = self._new
            name = head * (self.slots + self.held) + column
            at = torch.searchsorted(names, name).clamp_max(len(names) - 1)
            new = names[at] == name
            k[new], v[new] = new_k[at[new]], new_v[at[new]]
        return k, v

    # -- a plan ---------------------------------------------------------------------------------------------------

    def do(self, plan: Plan, method: CacheMethod) -> None:
        """Note what a checked plan drops, and merge."""
        gone = torch.zeros_like(self.live)
        if plan.keep is not None:
            gone = self.live & ~gone.scatter(1, self.order, plan.keep)
        self.gone = gone if gone.any() else None
        freed = 0 if self.old is not None else self.k[0, 0].nbytes + self.v[0, 0].nbytes
        away = torch.zeros_like(gone)
        if plan.merge is not None:
            away = self.merge(plan.merge, gone, freed, method.declared_name)
        self.merged = round(int(away.sum()) / self.heads)
        if plan.bias is not None:
            bias = torch.zeros(self.live.shape, device=gone.device).scatter(1, self.order, plan.bias)
            self.state.bias = bias.masked_fill(gone, 0) if bias.any() else None
        for head, (places, dropped) in enumerate(zip(self.where, gone & ~away, strict=True)):
            if len(dropped := places[dropped].sort().values):
                self._event("evict", head, dropped, bytes=freed * len(dropped), reason=method.declared_name)

    def merge(self, merge: Merge, gone: torch.Tensor, freed: int, reason: str) -> torch.Tensor:
        """Compute the merged slots; those of the run are written to a copy of it, those of pages leave their pages.

        gone: bool [Hk, columns], what the plan drops; freed: bytes of a slot. Returns which of it was added to others.
        """
        head, pair = (merge.source >= 0).nonzero(as_tuple=True)
        added = torch.zeros_like(self.live)
        if not len(head):
            return added
        source, target = (self.order[head, x[head, pair]] for x in (merge.source, merge.target))
        columns = self.slots + self.held
        names, into = (head * columns + target).unique(return_inverse=True)
        at_head, at = names // columns, names % columns
        itself, other = source == target, source != target
        mixed = []
        sources, targets = self.read(head[other], source[other]), self.read(at_head, at)
        for x, y, weight in zip(sources, targets, (merge.weight_k, merge.weight_v), strict=True):
            weight = weight[head, pair].to(x.dtype)
            own = torch.ones(len(names), dtype=x.dtype, device=x.device)
            own[into[itself]] = weight[itself]
            parts = (own[:, None] * y, into[other], weight[other, None] * x)
            total, at_pair, more = (part.cpu() for part in parts)  # where sums have one order
            mixed.append(total.index_add(0, at_pair, more).to(x.device))
        if self.state.mass is not None:
            mass = self.state.mass.clone().flatten()
            mass.scatter_reduce_(0, names[into[other]], mass[(head * columns + source)[other]], "amax")
            self.state.mass = mass.view(self.heads, columns)
        in_run = at >= self.slots
        if in_run.any():
            self.k, self.v, self.changed = self.k.clone(), self.v.clone(), True
            for x, new in zip((self.k, self.v), mixed, strict=True):
                x[at_head[in_run], at[in_run] - self.slots] = new[in_run].to(x.dtype)
        self._new = (names, *mixed)
        self.loose = torch.zeros_like(self.live)
        self.loose[at_head[~in_run], at[~in_run]] = True
        added[head[other], source[other]] = True
        added &= gone
        for number in head[other].unique().tolist():
            mine = other & (head == number)
            dropped = self.where[number, added[number]].sort().values
            self.events.append({"layer": self.layer, "head": number, "op": "merge", "positions": runs_of(dropped),
                                "destination": runs_of(self.where[number, target[mine]].unique()),
                                "bytes": freed * len(dropped), "reason": reason})  # fmt: skip
        return added

    def thin(self) -> None:
        """Without pages: gather what stays into a shorter run."""
        index = (self.live & ~self.gone).nonzero()[:, 1].view(self.heads, -1)
        self.k, self.v = (x.gather(1, index[..., None].expand(-1, -1, x.shape[2])) for x in (self.k, self.v))
        self.state.kept = self.where.gather(1, index).int()
        self.changed = True
        self._reorder(lambda facts: facts.gather(1, index))

    # -- pages ------------------------------------------------------------------------------------------------------

    def quantize(self, stack: "Stack", fresh: int) -> None:
        """Move the run's `fresh` oldest slots to pages, and clear evicted slots there."""
        codec, before = stack.storage, self.state.before
        if codec.on_device is not None:
            before = max(before, self.length - codec.on_device)
        if not fresh and self.gone is None and self.loose is None and before == self.state.before:
            return
        forms = codec.formats(self.layer, self.k.shape[2], self.v.shape[2], self.k.dtype)
        coded = any({form.bits_k, form.bits_v} & GAINS.keys() for form in forms)
        kept, stayed, again = self._old_pages(fresh, not coded or (stack.requantize == "sparse" and len(forms) == 1))
        entries, groups = [list(row) for row in kept], []
        for form, chosen in zip(forms, self._chosen(fresh, again, codec, len(forms)), strict=True):
            head, columns, used = self._groups(fresh, chosen)
            for number, page in zip(head.tolist(), self._pack(head, columns, used, form), strict=True):
                entries[number].append(page)
            groups.append((head, columns, used))
        arenas = self.old.arenas if self.old else []
        self.state.before = before
        self.state.page_table = page_out(entries, self.k.device, arenas, before) if any(entries) else None
        self.events += tier_events(self.layer, self.old, self.state.page_table)
        if self.state.mass is not None or self.state.bias is not None:
            self._into_pages(stayed, *map(torch.cat, zip(*groups, strict=True)), fresh)
        if fresh:
            self.k, self.v, self.changed = self.k[:, fresh:], self.v[:, fresh:], True

    def _old_pages(
        self, fresh: int, sparse: bool
    ) -> tuple[list[list[Page | PendingPage]], list[list[int]], list[list[int]]]:
        """By head: the pages that stay, their numbers, and those of the pages whose slots are packed anew (`sparse`
        ones, where that saves a page)."""
        kept: list[list[Page | PendingPage]] = [[] for _ in range(self.heads)]
        stayed: list[list[int]] = [[] for _ in range(self.heads)]
        again: list[list[int]] = [[] for _ in range(self.heads)]
        leaving = [fresh] * self.heads
        if self.gone is not None or self.loose is not None:
            stay = self.live if self.gone is None else self.live & ~self.gone
            leaving = stay[:, self.slots : self.slots + fresh].sum(-1).tolist()
            stay = stay[:, : self.slots]
            if self.loose is not None:
                loose = self.loose[:, : self.slots] & stay
                leaving = [a + b for a, b in zip(leaving, loose.sum(-1).tolist(), strict=True)]
                stay = stay & ~loose
            stay = stay.unflatten(-1, (-1, SLOTS))
            counts, newest = stay.sum(-1).tolist(), None
        for head in range(self.heads if self.old is not None else 0):
            pages = self.old.pages[head]
            touched = self.gone is not None or self.loose is not None
            left = counts[head][: len(pages)] if touched else [page.live for page in pages]
            few = [p for p, count in enumerate(left) if 0 < count <= SPARSE] if sparse else []
            together = -(-(leaving[head] + sum(left[p] for p in few)) // SLOTS)
            if together < len(few) + -(-leaving[head] // SLOTS):
                again[head] = few
            for p, page in enumerate(pages):
                if not left[p] or p in again[head]:
                    continue
                if left[p] < page.live:
                    if newest is None:
                        newest = self.where[:, : self.slots].view_as(stay).masked_fill(~stay, -1).amax(-1).tolist()
                    row = with_live(page.row[None].to(stay.device), stay[head, p : p + 1])[0]
                    page = PendingPage(page.form, row, left[p], page.used, newest[head][p])
                kept[head].append(page)
                stayed[head].append(p)
        return kept, stayed, again

    def _chosen(self, fresh: int, again: list[list[int]], codec: Any, classes: int) -> list[torch.Tensor | None]:
        """Class by class, the columns that go into new pages, bool [Hk, columns]; None for the run's oldest alone."""
        if self.gone is None and self.loose is None and not any(again) and classes == 1:
            return [None]
        self.look()
        chosen = torch.zeros_like(self.live)
        chosen[:, self.slots : self.slots + fresh] = True
        for head, pages in enumerate(again):
            for page in pages:
                chosen[head, page * SLOTS : (page + 1) * SLOTS] = True
        if self.loose is not None:
            chosen |= self.loose
        chosen &= self.live if self.gone is None else self.live & ~self.gone
        if classes == 1:
            return [chosen]
        view = self.view()
        answer = codec.classes(view, chosen.gather(1, self.order))
        fits = answer.shape == view.live.shape and answer.dtype == torch.int64
        if not fits or answer.min() < 0 or answer.max() >= classes:
            raise BadInput(f"quantizer {codec.declared_name}: classes() answered {answer.dtype} {list(answer.shape)}; "
                           f"expected int64 {list(view.live.shape)} below {classes}")  # fmt: skip
        of = torch.zeros_like(self.where).scatter(1, self.order, answer)
        return [chosen & (of == number) for number in range(classes)]

    def _groups(self, fresh: int, chosen: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What goes into new pages: their heads [G], columns [G, SLOTS] in order of positions, and used slots [G]."""
        device = self.k.device
        if chosen is None:
            whole = -(-fresh // SLOTS)
            at = (torch.arange(whole * SLOTS, device=device) + self.slots).clamp_max(self.slots + fresh - 1)
            used = torch.full((whole,), SLOTS, device=device)
            used[-1:] = fresh - (whole - 1) * SLOTS
            head = torch.arange(self.heads, device=device).repeat_interleave(whole)
            columns = at.view(-1, SLOTS).repeat(self.heads, 1)
            first = torch.arange(SLOTS, device=device) < used.repeat(self.heads)[:, None]
            return head, torch.where(first, columns, columns[:, :1]), used.repeat(self.heads)
        counts = chosen.sum(-1)
        width = -(-int(counts.max()) // SLOTS) * SLOTS
        order = self.where.masked_fill(~chosen, NOWHERE).argsort(dim=-1, stable=True)
        order = F.pad(order, (0, max(0, width - order.shape[1])))[:, :width]
        order = order.unflatten(-1, (-1, SLOTS))
        used = (counts[:, None] - torch.arange(0, width, SLOTS, device=device)).clamp(0, SLOTS)
        head, group = (used > 0).nonzero(as_tuple=True)
        columns, used = order[head, group], used[head, group]
        first = torch.arange(SLOTS, device=device) < used[:, None]
        return head, torch.where(first, columns, columns[:, :1]), used

    def _pack(self, head: torch.Tensor, columns: torch.Tensor, used: torch.Tensor, form: PageFormat) -> list:
        """New pages of columns [G, SLOTS]."""
        if not len(head):
            return []
        k, v = self.read(head[:, None].expand_as(columns), columns)
        where = self._places(head, columns)
        if self.ahead is not None:  # nothing but the run's oldest slots goes into pages, as they were read
            first = len(head) // self.heads
            rows, *found = (x.unflatten(0, (self.heads, -1))[:, :first].flatten(0, 1)
                            for x in (self.ahead[0], *self.ahead[1]))  # fmt: skip
        else:
            rows = packed(self.layer, k, v, where, used, form)
            found = unpack(rows, form)
        self._log_quantize(head, columns, used, where, form, k, v, found)
        counts, newest = used.tolist(), where.amax(-1).tolist()
        return [PendingPage(form, row, n, n, top) for row, n, top in zip(rows, counts, newest, strict=True)]

    def _places(self, head: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Positions of columns; those of a plain run follow from the length."""
        if self.where is None and self.state.kept is None:
            return columns - self.slots + self.length - self.held
        self.look()
        return self.where[head[:, None], columns]

    def _log_quantize(self, head, columns, used, where, form: PageFormat, k, v, found) -> None:
        """Errors per page, an event per head for what became or stayed coded, and the widths of what is new."""
        widths = form.stored(form.bits_k), form.stored(form.bits_v)
        errors = []
        for x, y in zip((k, v), found[:2], strict=True):
            gap = (x - y).square_().mul_(found[3][..., None])
            errors.append((gap.sum((1, 2), dtype=torch.float64) / (used * x.shape[2])).sqrt().tolist())
        there = found[3]
        again = there & (columns < self.slots)
        if self.loose is not None:
            again &= ~self.loose[head[:, None], columns]  # a merged slot is a new one
        new = there & ~again
        for number in dict.fromkeys(head.tolist()):
            mine = head == number
            for op, part in (("quantize", new), ("requantize", again)):
                if len(places := where[mine][part[mine]].sort().values):
                    size = len(places) * form.bytes // SLOTS
                    self._event(op, number, places, bits=sum(widths) / 2, bytes=size)
        first, counts = where[:, 0].tolist(), used.tolist()
        joined = ((where.amax(-1) - where[:, 0] + 1 == used) & (new.sum(-1) == used)).tolist()  # new, without gaps
        for group, (number, *errs) in enumerate(zip(head.tolist(), *errors, strict=True)):
            runs = [[first[group], counts[group]]] if joined[group] else runs_of(where[group][new[group]])
            for start, count in runs:  # the others keep their width
                row = {"model": None, "layer": self.layer, "head": number, "start": start, "length": count,
                       "bits_k": widths[0], "bits_v": widths[1], "codec": "page", "reason": "quantize",
                       "err_rms_k": errs[0], "err_rms_v": errs[1]}  # fmt: skip
                for name, value in row.items():
                    self.out.bits.setdefault(name, []).append(value)

    def _into_pages(self, stayed: list[list[int]], head, columns, used, fresh: int) -> None:
        """What is known of slots, in the order of the new pages and the shorter run."""
        table, start = self.state.page_table, self.slots + fresh
        if table is None:
            self._reorder(lambda facts: facts[:, start:])
            return
        device = self.k.device
        inside = torch.arange(SLOTS, device=device)
        source = torch.full((self.heads, table.slots // SLOTS, SLOTS), -1, dtype=torch.long, device=device)
        for number, pages in enumerate(stayed):
            source[number, : len(pages)] = (
                torch.tensor(pages, dtype=torch.long, device=device)[:, None] * SLOTS + inside
            )
            mine = torch.where(inside < used[:, None], columns, -1)[head == number]
            source[number, len(pages) : len(pages) + len(mine)] = mine
        source = source.view(self.heads, -1)
        self._reorder(
            lambda facts: torch.cat(
                [facts.gather(1, source.clamp_min(0)).masked_fill(source < 0, 0), facts[:, start:]], 1
            )
        )

    def _reorder(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Do the same to all that is known of slots by column."""
        if self.state.mass is not None:
            self.state.mass = act(self.state.mass)
        if self.state.bias is not None:
            self.state.bias = act(self.state.biases(self.slots + self.held))

    def _event(self, op: str, head: int, places: torch.Tensor, **facts: Any) -> None:
        self.events.append({"layer": self.layer, "head": head, "op": op, "positions": runs_of(places), **facts})


def packed(layer: int, k, v, where: torch.Tensor, used: torch.Tensor, form: PageFormat) -> torch.Tensor:
    """Pages uint8 [n, form.bytes] of k [n, SLOTS, D] and v. Raises NumericalError where they cannot hold the values."""
    try:
        return pack(k, v, where, used, form)
    except ValueError as error:
        raise NumericalError(f"layer {layer} cannot be quantized: {error}") from None

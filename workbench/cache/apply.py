"""One maintenance of a managed store: plans are asked for and checked, then done, and what was done is logged.

First the method's plans are carried out (slots dropped, merged), then what is old enough is quantized. Everything is
computed beside the present state and handed back whole, so that running out of memory changes nothing. The cost follows
what is done: pages that no plan names are neither read nor decoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from workbench.cache.events import runs_of, together
from workbench.cache.layer import Layer
from workbench.cache.plan import CacheMethod, Merge, Plan
from workbench.cache.quantize import quantize
from workbench.cache.store import _Run
from workbench.cache.work import LayerWork

if TYPE_CHECKING:
    from workbench.cache.managed import ManagedStore
    from workbench.cache.stack import Stack

CHUNK = 32  # capacity of a run, in slots, is a multiple of this


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
    work = [LayerWork(store, layer, ahead.get(layer)) for layer in range(len(store._layers))]
    if stack.acts(length, store.prompt):
        views = [each.view() for each in work]
        plans = stack.policy.plans(views)
        for each, plan in zip(work, plans, strict=True):
            if plan is not None:
                carry_out(each, plan, stack.policy)
    fresh = _leaving(stack, store, work) if stack.storage is not None else 0
    for each in work:
        if stack.storage is not None:
            quantize(each, stack.storage, stack.requantize, fresh)
        elif each.gone is not None:
            _thin(each)
        out.layers.append(each.state)
        out.evicted.append(0 if each.gone is None else round(int(each.gone.sum()) / each.heads) - each.merged)
        out.merged.append(each.merged)
        out.events += each.events
        for name, values in each.bits.items():
            out.bits.setdefault(name, []).extend(values)
    out.events = together(together(out.events, "head", work[0].heads), "layer", len(work))
    if any(each.changed for each in work):
        keys, values = [each.k for each in work], [each.v for each in work]
        out.held = keys[0].shape[1]
        room = min(store.rows_left(length), CHUNK)
        out.run = _Run.of(keys, values, out.held, -(-(out.held + room) // CHUNK) * CHUNK)
    return out


def _leaving(stack: "Stack", store: "ManagedStore", work: list[LayerWork]) -> int:
    """How many of the run's oldest slots go to pages, the same in all layers."""
    fresh = store.held - min(stack.residual(store.length), store.held)
    storage = stack.storage
    if stack.policy is None or storage.interval == storage.page_size or stack.quantizes(store.length, store.prompt):
        return fresh
    dropped = (each.gone[:, each.slots : each.slots + fresh].any() for each in work if each.gone is not None)
    return fresh if any(dropped) else 0  # the policy's turn alone, unless it leaves gaps in the run


def carry_out(work: LayerWork, plan: Plan, method: CacheMethod) -> None:
    """Note what a checked plan drops, and merge."""
    gone = torch.zeros_like(work.live)
    if plan.keep is not None:
        gone = work.live & ~gone.scatter(1, work.order, plan.keep)
    work.gone = gone if gone.any() else None
    freed = 0 if work.old is not None else work.k[0, 0].nbytes + work.v[0, 0].nbytes
    away = torch.zeros_like(gone)
    if plan.merge is not None:
        away = _merge(work, plan.merge, gone, freed, method.declared_name)
    work.merged = round(int(away.sum()) / work.heads)
    if plan.bias is not None:
        bias = torch.zeros(work.live.shape, device=gone.device).scatter(1, work.order, plan.bias)
        work.state.bias = bias.masked_fill(gone, 0) if bias.any() else None
    for name in ("unread", "cold"):
        if (slots := getattr(plan, name)) is not None:
            slots = torch.zeros_like(gone).scatter(1, work.order, slots)
        elif getattr(work.state, name) is not None:
            slots = work.state.wide(name, gone.shape[1]) & ~gone
        if slots is not None:
            setattr(work.state, name, slots if slots.any() else None)
    work.moved = plan.cold is not None
    if plan.memory is not None:
        work.state.memory = dict(plan.memory)
    for head, (places, dropped) in enumerate(zip(work.where, gone & ~away, strict=True)):
        if len(dropped := places[dropped].sort().values):
            work.event("evict", head, dropped, bytes=freed * len(dropped), reason=method.declared_name)


def _merge(work: LayerWork, merge: Merge, gone: torch.Tensor, freed: int, reason: str) -> torch.Tensor:
    """Compute the merged slots; those of the run are written to a copy of it, those of pages leave their pages.

    gone: bool [Hk, columns], what the plan drops; freed: bytes of a slot. Returns which of it was added to others.
    """
    head, pair = (merge.source >= 0).nonzero(as_tuple=True)
    added = torch.zeros_like(work.live)
    if not len(head):
        return added
    source, target = (work.order[head, x[head, pair]] for x in (merge.source, merge.target))
    columns = work.slots + work.held
    names, into = (head * columns + target).unique(return_inverse=True)
    at_head, at = names // columns, names % columns
    itself, other = source == target, source != target
    mixed = []
    sources, targets = work.read(head[other], source[other]), work.read(at_head, at)
    for x, y, weight in zip(sources, targets, (merge.weight_k, merge.weight_v), strict=True):
        weight = weight[head, pair].to(x.dtype)
        own = torch.ones(len(names), dtype=x.dtype, device=x.device)
        own[into[itself]] = weight[itself]
        parts = (own[:, None] * y, into[other], weight[other, None] * x)
        total, at_pair, more = (part.cpu() for part in parts)  # where sums have one order
        mixed.append(total.index_add(0, at_pair, more).to(x.device))
    if work.state.mass is not None:
        mass = work.state.mass.clone().flatten()
        mass.scatter_reduce_(0, names[into[other]], mass[(head * columns + source)[other]], "amax")
        work.state.mass = mass.view(work.heads, columns)
    in_run = at >= work.slots
    if in_run.any():
        work.k, work.v, work.changed = work.k.clone(), work.v.clone(), True
        for x, new in zip((work.k, work.v), mixed, strict=True):
            x[at_head[in_run], at[in_run] - work.slots] = new[in_run].to(x.dtype)
    work.mixed = (names, *mixed)
    work.loose = torch.zeros_like(work.live)
    work.loose[at_head[~in_run], at[~in_run]] = True
    added[head[other], source[other]] = True
    added &= gone
    for number in head[other].unique().tolist():
        mine = other & (head == number)
        dropped = work.where[number, added[number]].sort().values
        work.events.append({"layer": work.layer, "head": number, "op": "merge", "positions": runs_of(dropped),
                            "destination": runs_of(work.where[number, target[mine]].unique()),
                            "bytes": freed * len(dropped), "reason": reason})  # fmt: skip
    return added


def _thin(work: LayerWork) -> None:
    """Without pages: gather what stays into a shorter run."""
    index = (work.live & ~work.gone).nonzero()[:, 1].view(work.heads, -1)
    work.k, work.v = (x.gather(1, index[..., None].expand(-1, -1, x.shape[2])) for x in (work.k, work.v))
    work.state.kept = work.where.gather(1, index).int()
    work.changed = True
    work.reorder(lambda facts: facts.gather(1, index))

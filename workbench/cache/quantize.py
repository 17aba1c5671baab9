"""Moving a layer's older slots from its run to pages, and what eviction and merging leave to do there.

Pages never change: one that loses slots is copied without them, one that lost half of them is packed anew with others.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from workbench.cache.codec import Codec
from workbench.cache.codecs.base import Quantizer
from workbench.cache.events import runs_of, tier_events
from workbench.cache.pages import Page, PendingPage, page_out
from workbench.cache.work import LayerWork
from workbench.errors import BadInput, NumericalError
from workbench_kernels.pages import ALIGN, evict

NOWHERE = 2**31 - 1  # position of what holds nothing, behind all others
Groups = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # heads [G], columns [G, slots] and used slots [G] of pages


def quantize(work: LayerWork, storage: Quantizer, requantize: str, fresh: int) -> None:
    """Move the run's `fresh` oldest slots to pages, and clear evicted slots there; requantize: as of a stack."""
    state = work.state
    before = state.before
    if storage.on_device is not None:
        before = max(before, work.length - storage.on_device)
    if not fresh and work.gone is None and work.loose is None and before == state.before and not work.moved:
        return
    codecs = work.codecs
    sparse = requantize == "sparse" and len(codecs) == 1
    kept, stayed, again = _old_pages(work, fresh, sparse or not any(codec.rounds for codec in codecs))
    entries, groups = [list(row) for row in kept], []
    for codec, chosen in zip(codecs, _chosen(work, fresh, again, storage), strict=True):
        head, columns, used = _groups(work, fresh, chosen)
        for number, page in zip(head.tolist(), _pack(work, head, columns, used, codec), strict=True):
            entries[number].append(page)
        groups.append((head, columns, used))
    arenas = work.old.arenas if work.old else []
    state.before, device = before, work.k.device
    below = {(head, number) for head, row in enumerate(entries) for number, page in enumerate(row)
             if isinstance(page, Page) and page.arena.host and state.cold is not None}  # fmt: skip
    state.page_table = page_out(entries, device, arenas, before, below) if any(entries) else None
    if any(getattr(state, name) is not None for name in ("mass", "bias", "unread", "cold")):
        _reorder(work, stayed, *map(torch.cat, zip(*groups, strict=True)), fresh)
    if (cold := state.cold_pages()) != below and state.page_table is not None:
        state.page_table = page_out(state.page_table.pages, device, state.page_table.arenas, before, cold)
    work.events += tier_events(work.layer, work.old, state.page_table)
    if fresh:
        work.k, work.v, work.changed = work.k[:, fresh:], work.v[:, fresh:], True


def packed(layer: int, k, v, where: torch.Tensor, used: torch.Tensor, codec: Codec) -> torch.Tensor:
    """What `codec.pack` gives; its error names the layer."""
    try:
        return codec.pack(k, v, where, used)
    except NumericalError as error:
        raise NumericalError(f"layer {layer} cannot be quantized: {error}") from None


def _old_pages(
    work: LayerWork, fresh: int, sparse: bool
) -> tuple[list[list[Page | PendingPage]], list[list[int]], list[list[int]]]:
    """By head: the pages that stay, their numbers, and those of the pages whose slots are packed anew (`sparse` ones,
    where that saves a page)."""
    heads, size = range(work.heads), work.page_size
    kept: list[list[Page | PendingPage]] = [[] for _ in heads]
    stayed: list[list[int]] = [[] for _ in heads]
    again: list[list[int]] = [[] for _ in heads]
    if work.old is None:
        return kept, stayed, again
    leaving, stay = [fresh] * work.heads, None
    if work.gone is not None or work.loose is not None:
        stay = work.live if work.gone is None else work.live & ~work.gone
        leaving = stay[:, work.slots : work.slots + fresh].sum(-1).tolist()
        stay = stay[:, : work.slots]
        if work.loose is not None:
            loose = work.loose[:, : work.slots] & stay
            leaving = [a + b for a, b in zip(leaving, loose.sum(-1).tolist(), strict=True)]
            stay = stay & ~loose
        stay = stay.unflatten(-1, (-1, size))
        counts = stay.sum(-1).tolist()
    thinned: dict[Codec, list[tuple[int, int, int]]] = {}  # head, page, its number among those that stay
    for head, pages in enumerate(work.old.pages):
        left = [page.live for page in pages] if stay is None else counts[head][: len(pages)]
        few = [p for p, count in enumerate(left) if 0 < count <= size // 2] if sparse else []
        together = -(-(leaving[head] + sum(left[p] for p in few)) // size)
        if together < len(few) + -(-leaving[head] // size):
            again[head] = few
        for p, page in enumerate(pages):
            if not left[p] or p in again[head]:
                continue
            if left[p] < page.live:
                thinned.setdefault(page.codec, []).append((head, p, len(kept[head])))
            kept[head].append(page)
            stayed[head].append(p)
    for codec, mine in thinned.items():
        head, p, _ = torch.tensor(mine, device=stay.device).T
        rows = torch.stack([work.old.pages[h][q].row.to(stay.device) for h, q, _ in mine])
        page, slot = (~stay[head, p]).nonzero(as_tuple=True)
        evict(rows.view(-1), page * (codec.bytes // ALIGN), slot)
        where = work.where[:, : work.slots].unflatten(-1, (-1, size))[head, p]
        newest = where.masked_fill(~stay[head, p], -1).amax(-1).tolist()
        notes = work.notes(codec.unpack(rows)) if work.reader else None
        for i, (h, q, place) in enumerate(mine):
            kept[h][place] = PendingPage(codec, rows, i, counts[h][q], work.old.pages[h][q].used, newest[i], notes)
    return kept, stayed, again


def _chosen(work: LayerWork, fresh: int, again: list[list[int]], storage: Quantizer) -> list[torch.Tensor | None]:
    """Class by class, the columns that go into new pages, bool [Hk, columns]; None for the run's oldest alone."""
    classes, size = len(work.codecs), work.page_size
    if work.gone is None and work.loose is None and not any(again) and classes == 1:
        return [None]
    work.look()
    chosen = torch.zeros_like(work.live)
    chosen[:, work.slots : work.slots + fresh] = True
    for head, pages in enumerate(again):
        for page in pages:
            chosen[head, page * size : (page + 1) * size] = True
    if work.loose is not None:
        chosen |= work.loose
    chosen &= work.live if work.gone is None else work.live & ~work.gone
    if classes == 1:
        return [chosen]
    view = work.view()
    answer = storage.classes(view, chosen.gather(1, work.order))
    fits = answer.shape == view.live.shape and answer.dtype == torch.int64
    if not fits or answer.min() < 0 or answer.max() >= classes:
        raise BadInput(f"quantizer {storage.declared_name}: classes() answered {answer.dtype} {list(answer.shape)}; "
                       f"expected int64 {list(view.live.shape)} below {classes}")  # fmt: skip
    of = torch.zeros_like(work.where).scatter(1, work.order, answer)
    return [chosen & (of == number) for number in range(classes)]


def _groups(work: LayerWork, fresh: int, chosen: torch.Tensor | None) -> Groups:
    """What goes into new pages, in order of positions."""
    device, size = work.k.device, work.page_size
    inside = torch.arange(size, device=device)
    if chosen is None:
        whole = -(-fresh // size)
        at = (torch.arange(whole * size, device=device) + work.slots).clamp_max(work.slots + fresh - 1)
        used = torch.full((whole,), size, device=device)
        used[-1:] = fresh - (whole - 1) * size
        head = torch.arange(work.heads, device=device).repeat_interleave(whole)
        columns, used = at.view(-1, size).repeat(work.heads, 1), used.repeat(work.heads)
    else:
        counts = chosen.sum(-1)
        width = -(-int(counts.max()) // size) * size
        order = work.where.masked_fill(~chosen, NOWHERE).argsort(dim=-1, stable=True)
        order = F.pad(order, (0, max(0, width - order.shape[1])))[:, :width].unflatten(-1, (-1, size))
        used = (counts[:, None] - torch.arange(0, width, size, device=device)).clamp(0, size)
        head, group = (used > 0).nonzero(as_tuple=True)
        columns, used = order[head, group], used[head, group]
    return head, torch.where(inside < used[:, None], columns, columns[:, :1]), used


def _pack(work: LayerWork, head: torch.Tensor, columns: torch.Tensor, used: torch.Tensor, codec: Codec) -> list:
    """New pages of columns [G, slots]."""
    if not len(head):
        return []
    k, v = work.read(head[:, None].expand_as(columns), columns)
    where = work.places(head, columns)
    if work.ahead is not None:  # nothing but the run's oldest slots goes into pages, as they were read
        first = len(head) // work.heads
        rows, *found = (x.unflatten(0, (work.heads, -1))[:, :first].flatten(0, 1)
                        for x in (work.ahead[0], *work.ahead[1]))  # fmt: skip
    else:
        rows = packed(work.layer, k, v, where, used, codec)
        found = codec.unpack(rows)
    _log(work, head, columns, used, where, codec, (k, v), found)
    counts, newest, notes = used.tolist(), where.amax(-1).tolist(), work.notes(found)
    facts = zip(counts, newest, strict=True)
    return [PendingPage(codec, rows, i, n, n, top, notes) for i, (n, top) in enumerate(facts)]


def _log(work: LayerWork, head, columns, used, where, codec: Codec, given: Sequence[torch.Tensor], found) -> None:
    """Errors per page, an event per head for what became or stayed coded, and the widths of what is new."""
    *read, _, there = found
    errors = []
    for x, y in zip(given, read, strict=True):
        gap = (x - y).square_().mul_(there[..., None])
        errors.append((gap.sum((1, 2), dtype=torch.float64) / (used * x.shape[2])).sqrt().tolist())
    again = there & (columns < work.slots)
    if work.loose is not None:
        again &= ~work.loose[head[:, None], columns]  # a merged slot is a new one
    new = there & ~again
    heads = head.tolist()
    kinds = [(op, part) for op, part in (("quantize", new), ("requantize", again)) if part.any()]
    for number in dict.fromkeys(heads):
        mine = head == number
        for op, part in kinds:
            if len(places := where[mine][part[mine]].sort().values):
                size = len(places) * codec.bytes // codec.slots
                work.event(op, number, places, bits=sum(codec.bits) / 2, bytes=size)
    first, counts = where[:, 0].tolist(), used.tolist()
    joined = ((where.amax(-1) - where[:, 0] + 1 == used) & (new.sum(-1) == used)).tolist()  # new, without gaps
    runs = [(group, *run) for group, whole in enumerate(joined)  # the others keep their width
            for run in ([(first[group], counts[group])] if whole else runs_of(where[group][new[group]]))]  # fmt: skip
    if not runs:
        return
    group, start, count = zip(*runs, strict=True)
    columns_of = {"model": None, "layer": work.layer, "head": [heads[g] for g in group], "start": start,
                  "length": count, "bits_k": codec.bits[0], "bits_v": codec.bits[1], "codec": "page",
                  "reason": "quantize", "err_rms_k": [errors[0][g] for g in group],
                  "err_rms_v": [errors[1][g] for g in group]}  # fmt: skip
    for name, values in columns_of.items():
        more = values if isinstance(values, list | tuple) else [values] * len(runs)
        work.bits.setdefault(name, []).extend(more)


def _reorder(work: LayerWork, stayed: list[list[int]], head, columns, used, fresh: int) -> None:
    """What is known of slots, in the order of the new pages and the shorter run."""
    table, start = work.state.page_table, work.slots + fresh
    if table is None:
        work.reorder(lambda facts: facts[:, start:])
        return
    device, size = work.k.device, work.page_size
    inside = torch.arange(size, device=device)
    source = torch.full((work.heads, table.slots // size, size), -1, dtype=torch.long, device=device)
    for number, pages in enumerate(stayed):
        kept = torch.tensor(pages, dtype=torch.long, device=device)[:, None] * size + inside
        for left in (work.gone, work.loose):  # slots that are there no more
            kept = kept if left is None else torch.where(left[number][kept.clamp_min(0)], -1, kept)
        source[number, : len(pages)] = kept
        mine = torch.where(inside < used[:, None], columns, -1)[head == number]
        source[number, len(pages) : len(pages) + len(mine)] = mine
    source = source.view(work.heads, -1)

    def moved(facts: torch.Tensor) -> torch.Tensor:
        inside = facts.gather(1, source.clamp_min(0)).masked_fill(source < 0, 0)
        return torch.cat([inside, facts[:, start:]], 1)

    work.reorder(moved)

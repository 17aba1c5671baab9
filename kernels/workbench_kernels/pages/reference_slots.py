"""What acting on single slots means, in plain torch.

A slot is named by its page's offset in the arena, in units of ALIGN bytes, and its number in the page; an offset below
0 names none, and the entry does nothing.
"""

import torch

from workbench_kernels.pages.layout import ALIGN, GAINS, HEADER, SLOTS, PageFormat
from workbench_kernels.pages.reference import unplanar

__all__ = ["evict", "gather", "merge", "move", "regroup", "scatter"]

USED = 9  # byte of the header


def at(offsets: torch.Tensor, slots: torch.Tensor, start: int, row: int) -> torch.Tensor:
    """Byte indices [..., row] of each slot's row in the section that begins at `start`."""
    return (offsets.long() * ALIGN + start + slots.long() * row)[..., None] + torch.arange(row, device=offsets.device)


def read(arena: torch.Tensor, index: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return arena[index].view(dtype)


def write(arena: torch.Tensor, index: torch.Tensor, values: torch.Tensor) -> None:
    arena[index] = values.contiguous().view(torch.uint8)


def set_live(arena: torch.Tensor, offsets: torch.Tensor, slots: torch.Tensor, live: bool) -> None:
    """Set or clear live bits; what is set was used."""
    keep = offsets >= 0
    page, entry = offsets[keep].long().unique(return_inverse=True)
    named = torch.zeros(len(page), SLOTS, dtype=torch.bool, device=arena.device)
    named[entry, slots[keep].long()] = True
    slot = torch.arange(SLOTS, device=arena.device)
    mask = (named.long() << slot).sum(-1).to(torch.int32)
    words = arena.view(torch.int32)
    words[page * 4] = words[page * 4] | mask if live else words[page * 4] & ~mask
    if live:
        used = ((slot + 1) * named).amax(-1).to(torch.uint8)
        arena[page * ALIGN + USED] = arena[page * ALIGN + USED].maximum(used)


def gather(arena: torch.Tensor, offsets: torch.Tensor, slots: torch.Tensor, form: PageFormat):
    """k [..., D], v [..., Dv] in float32 (float64 for RAW float64), positions int64 [...], live bool [...]."""
    there = offsets >= 0
    page, slot = offsets.clamp_min(0), slots.clamp(0, SLOTS - 1)
    zeroth = torch.zeros_like(slot)
    out = []
    for bits, scales, start, row, group in (
        (form.bits_k, form.scale_k, form.codes_k, form.row_k, 0),
        (form.bits_v, form.scale_v, form.codes_v, form.row_v, form.group),
    ):
        x = read(arena, at(page, slot, start, row), form.element(bits))
        if bits in GAINS:
            codes = unplanar(x, bits).float() * GAINS[bits]
            if group:
                size = 2 * (form.value_dim // group)
                places = at(page, slot, scales, size), at(page, slot, scales + SLOTS * size, size)
            else:
                size = 2 * form.head_dim
                places = at(page, zeroth, scales, size), at(page, zeroth, scales + size, size)
            step, zero = (read(arena, index, torch.float16).float() for index in places)
            if group:
                step, zero = (t.repeat_interleave(group, -1) for t in (step, zero))
            x = codes * step + zero
        x = x if x.dtype == torch.float64 else x.float()
        out.append(torch.where(there[..., None], x, 0))
    positions = read(arena, at(page, slot, HEADER, 4), torch.int32)[..., 0].long()
    bits = read(arena, at(page, zeroth, 0, 4), torch.int32)[..., 0] >> slot & 1
    return out[0], out[1], torch.where(there, positions, 0), there & (bits == 1)


def scatter(arena, k, v, rows, positions, offsets, slots, form: PageFormat) -> None:
    """k [Hk, S, D], v [Hk, S, Dv], rows [A], positions [A] -> slots named by offsets and slots [Hk, A]."""
    keep = (rows >= 0) & (offsets >= 0)
    head, entry = keep.nonzero(as_tuple=True)
    page, slot = offsets[keep], slots[keep]
    for x, bits, start, row in ((k, form.bits_k, form.codes_k, form.row_k), (v, form.bits_v, form.codes_v, form.row_v)):
        write(arena, at(page, slot, start, row), x[head, rows[entry].long()].to(form.element(bits)))
    write(arena, at(page, slot, HEADER, 4), positions[entry].to(torch.int32)[:, None])
    set_live(arena, page, slot, True)


def move(arena, offsets, slots, to_offsets, to_slots, form: PageFormat, sides, numbers, to_numbers) -> None:
    """Entries of any shape; sides: float32 [pages, SLOTS] tensors, numbers and to_numbers: their rows, like offsets."""
    keep = (offsets >= 0) & (to_offsets >= 0) & ((offsets != to_offsets) | (slots != to_slots))
    here, slot, there, to_slot = offsets[keep], slots[keep], to_offsets[keep], to_slots[keep]
    for start, row in ((HEADER, 4), (form.codes_k, form.row_k), (form.codes_v, form.row_v)):
        write(arena, at(there, to_slot, start, row), arena[at(here, slot, start, row)])
    for side in sides:
        side[to_numbers[keep].long(), to_slot.long()] = side[numbers[keep].long(), slot.long()]
    set_live(arena, here, slot, False)
    set_live(arena, there, to_slot, True)


def merge(arena, offsets, slots, weights, to_offsets, to_slots, own, form: PageFormat) -> None:
    """offsets, slots, weights [M, L] -> to_offsets, to_slots, own [M]; float32 inside, float64 kept."""
    there = to_offsets >= 0
    page, slot = to_offsets.clamp_min(0), to_slots.clamp(0, SLOTS - 1)
    weights = torch.where(offsets >= 0, weights, 0)
    sources, target = gather(arena, offsets, slots, form), gather(arena, page, slot, form)
    for x, y, bits, start, row in (
        (sources[0], target[0], form.bits_k, form.codes_k, form.row_k),
        (sources[1], target[1], form.bits_v, form.codes_v, form.row_v),
    ):
        mixed = y * own[:, None].to(y.dtype)
        for i in range(offsets.shape[1]):
            mixed = mixed + x[:, i] * weights[:, i, None].to(y.dtype)
        write(arena, at(page, slot, start, row)[there], mixed[there].to(form.element(bits)))
    evict(arena, torch.where(there[:, None], offsets, -1), slots)


def evict(arena: torch.Tensor, offsets: torch.Tensor, slots: torch.Tensor) -> None:
    """Clear live bits; entries of any shape."""
    set_live(arena, offsets, slots, False)


def regroup(arena, offsets, slots, used, form: PageFormat, fresh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pages uint8 [n, form.bytes] of the slots named by offsets and slots [n, SLOTS], and bool [n]: keys coded anew.

    fresh: the same slots unpacked and packed again. A slot's values carry their own steps, so their codes are copied
    always; the codes of keys where all slots of a page come from pages with the same key steps, else `fresh` stands.
    """
    n = len(offsets)
    live = torch.arange(SLOTS, device=arena.device) < used[:, None]
    offsets = torch.where(live, offsets, offsets[:, :1]).clamp_min(0)
    out = fresh.clone()

    def copy(start: int, row: int, keep: torch.Tensor) -> None:
        end = start + SLOTS * row
        rows = (arena[at(offsets, slots.clamp(0, SLOTS - 1), start, row)] * live[..., None]).flatten(1)
        out[:, start:end] = torch.where(keep[:, None], rows, out[:, start:end])

    always = torch.ones(n, dtype=torch.bool, device=arena.device)
    copy(form.codes_v, form.row_v, always)
    if form.bits_v in GAINS:
        size = 2 * (form.value_dim // form.group)
        steps = slice(form.scale_v, form.scale_v + SLOTS * size)
        absent = out[:, steps].clone()  # slots that hold nothing keep the steps that packing gives them
        copy(form.scale_v, size, always)
        copy(form.scale_v + SLOTS * size, size, always)
        alive = live.repeat_interleave(size, 1)
        out[:, steps] = torch.where(alive, out[:, steps], absent)
    shared = always
    if form.bits_k in GAINS:
        steps = arena[at(offsets, torch.zeros_like(slots), form.scale_k, 4 * form.head_dim)]  # [n, SLOTS, 4 D]
        shared = (steps == steps[:, :1]).all(-1).all(-1)
        end = form.scale_k + 4 * form.head_dim
        out[:, form.scale_k : end] = torch.where(shared[:, None], steps[:, 0], out[:, form.scale_k : end])
    copy(form.codes_k, form.row_k, shared)
    return out, ~shared

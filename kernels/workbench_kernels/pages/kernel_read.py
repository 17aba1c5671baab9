"""Reading packed slots and rounding pages to smaller widths, in Triton: a program takes as many rows as a page has."""

import torch
import triton
import triton.language as tl

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.pages.kernel_common import copy, row_at, sides, views, warps
from workbench_kernels.pages.layout import PageFormat


@triton.jit
def read_rows(out_ptr, rows_ptr, halves_ptr, offset, slot, row, inside, side: tl.constexpr):
    """Rows [slots, channels] in the dtype of out, 0 where the offset is below 0."""
    PARTS: tl.constexpr = 8 // side.bits if side.gain else 1
    STEPS: tl.constexpr = side.slots * (side.size // side.group) if side.group else side.size
    offset, slot = offset[:, None], slot[:, None]
    column = tl.arange(0, side.block)[None, :]
    wanted = inside[:, None] & (column < side.row)
    there = wanted & (offset >= 0)
    raw = tl.load(row_at(rows_ptr, offset, slot, side) + column, mask=there, other=0)
    for part in tl.static_range(PARTS):
        channel = part * side.row + column
        if side.gain:
            code = (raw.to(tl.int32) >> (part * side.bits)) & ((1 << side.bits) - 1)
            at = halves_ptr + offset * 8 + side.scale
            if side.group:
                at += slot * (side.size // side.group) + channel // side.group
            else:
                at += channel
            step = tl.load(at, mask=(column < side.row) & (offset >= 0), other=0.0).to(tl.float32)
            zero = tl.load(at + STEPS, mask=(column < side.row) & (offset >= 0), other=0.0).to(tl.float32)
            x = (code * side.gain).to(tl.float32) * step + zero
        else:
            x = raw.to(tl.float32)
        tl.store(out_ptr + row[:, None] * side.size + channel, tl.where(there, x, 0.0), mask=wanted)


@triton.jit(do_not_specialize=["n_rows"])
def read_kernel(
    k_ptr, v_ptr, positions_ptr, live_ptr, arena, offsets_ptr, slots_ptr, n_rows, K: tl.constexpr, V: tl.constexpr
):
    """Rows out: k [n_rows, D], v [n_rows, Dv], positions int64 and live uint8 [n_rows].

    offsets: [n_pages] with slots None, or [n_rows] with slots [n_rows]; rows of an offset below 0 are zeros.
    """
    program = tl.program_id(0).to(tl.int64)
    row = program * K.slots + tl.arange(0, K.slots)
    inside = row < n_rows
    if slots_ptr is None:  # one offset for all rows: the steps of the keys are read once
        offset = tl.load(offsets_ptr + program + tl.arange(0, 1)).to(tl.int64)
        slot = tl.arange(0, K.slots)
    else:
        offset = tl.load(offsets_ptr + row, mask=inside, other=-1).to(tl.int64)
        slot = tl.load(slots_ptr + row, mask=inside, other=0).to(tl.int32)
    if tl.program_id(1) == 0:
        there = inside & (offset >= 0)
        position = tl.load(arena.words + offset * 4 + 4 + slot, mask=there, other=0).to(tl.int64)
        tl.store(positions_ptr + row, position, mask=inside)
        bits = tl.load(arena.words + offset * 4 + slot // 32, mask=there, other=0)
        tl.store(live_ptr + row, ((bits >> (slot % 32)) & 1).to(tl.uint8), mask=inside)
        read_rows(k_ptr, arena.k, arena.halves, offset, slot, row, inside, K)
    else:
        read_rows(v_ptr, arena.v, arena.halves, offset, slot, row, inside, V)


@triton.jit
def demote_rows(out_words_ptr, out_ptr, words_ptr, rows_ptr, side: tl.constexpr, to: tl.constexpr):
    """Rows of a page copied, or their codes rounded to a smaller width; the ratio of the gains is odd: no ties."""
    if side.bits == to.bits:
        copy(out_words_ptr + to.word, words_ptr + side.word, 0, side.end - side.word)
    else:
        PARTS: tl.constexpr = 8 // to.bits
        RATIO: tl.constexpr = to.gain // side.gain
        BLOCK: tl.constexpr = to.block
        SLOTS: tl.constexpr = side.slots
        slot = tl.arange(0, side.slots)[:, None]
        column = tl.arange(0, BLOCK)[None, :]
        inside = column < to.row
        packed = tl.zeros([SLOTS, BLOCK], tl.int32)
        for part in tl.static_range(PARTS):
            channel = part * to.row + column
            at = rows_ptr + side.start + slot * side.row + channel % side.row
            code = tl.load(at, mask=inside, other=0).to(tl.int32)
            code = (code >> (side.bits * (channel // side.row))) & ((1 << side.bits) - 1)
            packed |= ((code + RATIO // 2) // RATIO) << (part * to.bits)
        tl.store(out_ptr + to.start + slot * to.row + column, packed.to(tl.uint8), mask=inside)


@triton.jit
def demote_kernel(
    out, arena, out_offsets_ptr, offsets_ptr, K: tl.constexpr, V: tl.constexpr, TO_K: tl.constexpr, TO_V: tl.constexpr
):
    """offsets: [n_pages] in units of 16 bytes; out: the `Arena` of the smaller pages."""
    page = tl.program_id(0).to(tl.int64)
    out_offset = tl.load(out_offsets_ptr + page).to(tl.int64)
    offset = tl.load(offsets_ptr + page).to(tl.int64)
    out_words_ptr = out.words + out_offset * 4
    words_ptr = arena.words + offset * 4
    if tl.program_id(1) == 0:
        word = tl.arange(0, 4)
        kinds = TO_K.bits + (TO_K.gain << 8) + (TO_V.bits << 16) + (TO_V.gain << 24)
        tl.store(out_words_ptr + word, tl.where(word == 2, kinds, tl.load(words_ptr + word)))
        copy(out_words_ptr, words_ptr, 4, TO_K.word)  # positions and every step: the same places
        out_ptr = out.k + out_offset * TO_K.unit
        demote_rows(out_words_ptr, out_ptr, words_ptr, arena.k + offset * K.unit, K, TO_K)
    else:
        out_ptr = out.v + out_offset * TO_V.unit
        demote_rows(out_words_ptr, out_ptr, words_ptr, arena.v + offset * V.unit, V, TO_V)


@on_its_device
def read(arena, form: PageFormat, offsets, slots, dtype: torch.dtype):
    """k [..., D], v [..., Dv], positions int64 [...], live bool [...] of slots anywhere; [n, slots] of whole pages."""
    shape = (len(offsets), form.slots) if slots is None else offsets.shape
    slots = None if slots is None else slots.contiguous()
    k, v = (torch.empty(*shape, size, dtype=dtype, device=arena.device) for size in (form.head_dim, form.value_dim))
    positions = torch.empty(shape, dtype=torch.int64, device=arena.device)
    live = torch.empty(shape, dtype=torch.bool, device=arena.device)
    if rows := positions.numel():
        out = (k, v, positions, live.view(torch.uint8))
        names = (offsets.contiguous(), slots, rows)
        constants = {**sides(form), "num_warps": warps(form)}
        read_kernel[(triton.cdiv(rows, form.slots), 2)](*out, views(arena, form, floats=True), *names, **constants)
    return k, v, positions, live


@on_its_device
def demote(arena, form: PageFormat, to: PageFormat, offsets, out, out_offsets) -> None:
    """See the public function; two programs a page."""
    if len(offsets):
        names = (out_offsets.contiguous(), offsets.contiguous())
        constants = sides(form) | {f"TO_{name}": side for name, side in sides(to).items()} | {"num_warps": warps(form)}
        demote_kernel[(len(offsets), 2)](views(out, to), views(arena, form), *names, **constants)

"""Acting on single slots in Triton: scatter, move, merge, evict. A program takes a block of entries.

Entries of one page lie in several programs, so headers change by atomic operations. An offset below 0 names no slot.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.pages.kernel_common import SLOT_COUNT, copy_rows, integers, row_at, sides, views
from workbench_kernels.pages.layout import PageFormat

ENTRIES = tl.constexpr(16)  # of a program that copies rows
EVICTED = tl.constexpr(256)  # entries of a program that clears bits


@triton.jit
def named(offsets_ptr, slots_ptr, entry, inside):
    """Offsets int64 and slots int32 of entries; -1 and 0 outside."""
    offset = tl.load(offsets_ptr + entry, mask=inside, other=-1).to(tl.int64)
    return offset, tl.load(slots_ptr + entry, mask=inside, other=0).to(tl.int32)


@triton.jit
def set_live(words_ptr, offset, slot, there):
    """Set live bits; the count of used slots, in the header's third word above the flags, only grows."""
    one = tl.full(slot.shape, 1, tl.int32)
    tl.atomic_or(words_ptr + offset * 4, one << slot, mask=there)
    flags = tl.load(words_ptr + offset * 4 + 2, mask=there, other=0) & 255
    tl.atomic_max(words_ptr + offset * 4 + 2, ((slot + 1) << 8) | flags, mask=there)


@triton.jit
def clear_live(words_ptr, offset, slot, there):
    one = tl.full(slot.shape, 1, tl.int32)
    tl.atomic_and(words_ptr + offset * 4, ~(one << slot), mask=there)


@triton.jit
def scatter_kernel(
    arena, k, v, rows_ptr, positions_ptr, offsets_ptr, slots_ptr, n_entries, K: tl.constexpr, V: tl.constexpr
):
    """k [Hk, S, D], v [Hk, S, Dv]: `Rows`; rows, positions: [n_entries]; offsets, slots: [Hk, n_entries]."""
    head = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < n_entries
    row = tl.load(rows_ptr + entry, mask=inside, other=-1).to(tl.int64)
    position = tl.load(positions_ptr + entry, mask=inside, other=0).to(tl.int32)
    offset, slot = named(offsets_ptr, slots_ptr, head * n_entries + entry, inside)
    there = (row >= 0) & (offset >= 0)
    copy_rows(row_at(arena.k, offset, slot, K), k.data + head * k.outer + row * k.inner, there, K)
    copy_rows(row_at(arena.v, offset, slot, V), v.data + head * v.outer + row * v.inner, there, V)
    tl.store(arena.words + offset * 4 + 4 + slot, position, mask=there)
    set_live(arena.words, offset, slot, there)


@triton.jit
def move_kernel(arena, source, target, sides, numbers_ptr, to_numbers_ptr, n_entries, K: tl.constexpr, V: tl.constexpr):
    """source, target: offsets and slots [n_entries]; sides: up to two float32 [n_pages, SLOTS]; numbers [n_entries]."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    inside = entry < n_entries
    offset, slot = named(source[0], source[1], entry, inside)
    to_offset, to_slot = named(target[0], target[1], entry, inside)
    there = (offset >= 0) & (to_offset >= 0) & ((offset != to_offset) | (slot != to_slot))
    copy_rows(row_at(arena.k, to_offset, to_slot, K), row_at(arena.k, offset, slot, K), there, K)
    copy_rows(row_at(arena.v, to_offset, to_slot, V), row_at(arena.v, offset, slot, V), there, V)
    position = tl.load(arena.words + offset * 4 + 4 + slot, mask=there, other=0)
    tl.store(arena.words + to_offset * 4 + 4 + to_slot, position, mask=there)
    for i in tl.static_range(len(sides)):
        number = tl.load(numbers_ptr + entry, mask=there, other=0).to(tl.int64) * SLOT_COUNT + slot
        to_number = tl.load(to_numbers_ptr + entry, mask=there, other=0).to(tl.int64) * SLOT_COUNT + to_slot
        tl.store(sides[i] + to_number, tl.load(sides[i] + number, mask=there, other=0.0), mask=there)
    clear_live(arena.words, offset, slot, there)
    set_live(arena.words, to_offset, to_slot, there)


@triton.jit
def merge_rows(rows_ptr, target, slot, own, offsets_ptr, slots_ptr, weights_ptr, n_sources, side: tl.constexpr):
    channel = tl.arange(0, side.block)
    inside = channel < side.row
    out_ptr = row_at(rows_ptr, target, slot, side) + channel
    mixed = own * tl.load(out_ptr, mask=inside, other=0.0).to(tl.float32)
    for source in range(n_sources):
        offset = tl.load(offsets_ptr + source).to(tl.int64)
        at = row_at(rows_ptr, offset, tl.load(slots_ptr + source).to(tl.int32), side) + channel
        x = tl.load(at, mask=inside & (offset >= 0), other=0.0).to(tl.float32)
        mixed += tl.load(weights_ptr + source).to(tl.float32) * x
    tl.store(out_ptr, mixed.to(rows_ptr.dtype.element_ty), mask=inside)


@triton.jit
def merge_kernel(arena, sources, targets, n_sources, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr):
    """sources: offsets, slots, weights [n_targets, n_sources], BLOCK of them at once; targets: the same [n_targets]."""
    program = tl.program_id(0).to(tl.int64)
    target = tl.load(targets[0] + program).to(tl.int64)
    if target >= 0:
        slot = tl.load(targets[1] + program).to(tl.int32)
        own = tl.load(targets[2] + program).to(tl.float32)
        first = program * n_sources
        offsets_ptr, slots_ptr, weights_ptr = sources[0] + first, sources[1] + first, sources[2] + first
        if tl.program_id(1) == 0:
            merge_rows(arena.k, target, slot, own, offsets_ptr, slots_ptr, weights_ptr, n_sources, K)
            for start in range(0, n_sources, BLOCK):
                source = start + tl.arange(0, BLOCK)
                offset, gone = named(offsets_ptr, slots_ptr, source, source < n_sources)
                clear_live(arena.words, offset, gone, offset >= 0)
        else:
            merge_rows(arena.v, target, slot, own, offsets_ptr, slots_ptr, weights_ptr, n_sources, V)


@triton.jit
def evict_kernel(words_ptr, offsets_ptr, slots_ptr, n_entries):
    """words_ptr: int32 view of the arena; offsets, slots: [n_entries]."""
    entry = tl.program_id(0).to(tl.int64) * EVICTED + tl.arange(0, EVICTED)
    offset, slot = named(offsets_ptr, slots_ptr, entry, entry < n_entries)
    clear_live(words_ptr, offset, slot, offset >= 0)


@on_its_device
def scatter(arena, k, v, rows, positions, offsets, slots, form: PageFormat) -> None:
    """See the public function; grid (heads, blocks of entries)."""
    heads, entries = offsets.shape
    if heads and entries:
        staged = integers(k, form, form.bits_k), integers(v, form, form.bits_v)
        lists = (t.contiguous() for t in (rows, positions, offsets, slots))
        grid = (heads, triton.cdiv(entries, ENTRIES.value))
        scatter_kernel[grid](views(arena, form), *staged, *lists, entries, **sides(form))


@on_its_device
def move(arena, offsets, slots, to_offsets, to_slots, form: PageFormat, beside, numbers, to_numbers) -> None:
    """See the public function (its sides are `beside`); one program for each block of entries."""
    if entries := offsets.numel():
        source, target = (tuple(t.contiguous() for t in p) for p in ((offsets, slots), (to_offsets, to_slots)))
        rows = (t if t is None else t.contiguous() for t in (numbers, to_numbers))
        grid = (triton.cdiv(entries, ENTRIES.value),)
        move_kernel[grid](views(arena, form), source, target, tuple(beside), *rows, entries, **sides(form))


@on_its_device
def merge(arena, offsets, slots, weights, to_offsets, to_slots, own, form: PageFormat) -> None:
    """See the public function; two programs for each target, its keys and its values."""
    targets, sources = offsets.shape
    if targets:
        lists = ((offsets, slots, weights), (to_offsets, to_slots, own))
        lists = (tuple(t.contiguous() for t in part) for part in lists)
        block = max(triton.next_power_of_2(min(sources, 128)), 1)
        constants = {**sides(form), "BLOCK": block, "num_warps": 1}
        merge_kernel[(targets, 2)](views(arena, form, floats=True), *lists, sources, **constants)


@on_its_device
def evict(arena: Tensor, offsets: Tensor, slots: Tensor) -> None:
    """See the public function; one program for 256 entries."""
    if entries := offsets.numel():
        lists = (offsets.contiguous(), slots.contiguous())
        evict_kernel[(triton.cdiv(entries, EVICTED.value),)](arena.view(torch.int32), *lists, entries)

"""Acting on single slots in Triton: scatter, move, merge, evict. A program takes a block of entries.

Entries of one page lie in several programs, so headers change by atomic operations. An offset below 0 names no slot.
"""

import torch
import triton
import triton.language as tl

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.pages.kernel_common import copy_rows, facts, integers, pattern
from workbench_kernels.pages.layout import SLOTS, PageFormat

__all__ = ["evict", "merge", "move", "scatter"]

BLOCK_ENTRIES = 16
SIDE_SLOTS = tl.constexpr(SLOTS)


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
def row_at(rows_ptr, offset, slot, CHANNELS: tl.constexpr, START: tl.constexpr, UNITS: tl.constexpr):
    return rows_ptr + offset * UNITS + START + slot * CHANNELS


@triton.jit
def scatter_kernel(
    words_ptr, k_rows_ptr, v_rows_ptr,  # views of the arena: int32, and integers as wide as the elements
    k_ptr,  # [n_heads, n_staged, D]
    v_ptr,  # [n_heads, n_staged, Dv]
    rows_ptr,  # [n_entries]
    positions_ptr,  # [n_entries]
    offsets_ptr, slots_ptr,  # [n_heads, n_entries]
    k_head_stride, k_row_stride, v_head_stride, v_row_stride, n_entries,
    D: tl.constexpr, START_K: tl.constexpr, UNITS_K: tl.constexpr, BLOCK_K: tl.constexpr,
    DV: tl.constexpr, START_V: tl.constexpr, UNITS_V: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_ENTRIES: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0).to(tl.int64)
    entry = tl.program_id(1).to(tl.int64) * BLOCK_ENTRIES + tl.arange(0, BLOCK_ENTRIES)
    inside = entry < n_entries
    row = tl.load(rows_ptr + entry, mask=inside, other=-1).to(tl.int64)
    position = tl.load(positions_ptr + entry, mask=inside, other=0).to(tl.int32)
    offset = tl.load(offsets_ptr + head * n_entries + entry, mask=inside, other=-1).to(tl.int64)
    slot = tl.load(slots_ptr + head * n_entries + entry, mask=inside, other=0).to(tl.int32)
    there = (row >= 0) & (offset >= 0)
    k_ptr += head * k_head_stride
    v_ptr += head * v_head_stride
    copy_rows(row_at(k_rows_ptr, offset, slot, D, START_K, UNITS_K), k_ptr + row * k_row_stride, there, D, BLOCK_K)
    copy_rows(row_at(v_rows_ptr, offset, slot, DV, START_V, UNITS_V), v_ptr + row * v_row_stride, there, DV, BLOCK_V)
    tl.store(words_ptr + offset * 4 + 4 + slot, position, mask=there)
    set_live(words_ptr, offset, slot, there)


@triton.jit
def move_kernel(
    words_ptr, k_rows_ptr, v_rows_ptr,  # views of the arena: int32, and integers as wide as the elements
    offsets_ptr, slots_ptr, to_offsets_ptr, to_slots_ptr,  # [n_entries]
    first_ptr, second_ptr,  # [n_pages, SLOTS] float32 side arrays
    numbers_ptr, to_numbers_ptr,  # [n_entries]
    n_entries,
    D: tl.constexpr, START_K: tl.constexpr, UNITS_K: tl.constexpr, BLOCK_K: tl.constexpr,
    DV: tl.constexpr, START_V: tl.constexpr, UNITS_V: tl.constexpr, BLOCK_V: tl.constexpr,
    SIDES: tl.constexpr, BLOCK_ENTRIES: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64) * BLOCK_ENTRIES + tl.arange(0, BLOCK_ENTRIES)
    inside = entry < n_entries
    offset = tl.load(offsets_ptr + entry, mask=inside, other=-1).to(tl.int64)
    slot = tl.load(slots_ptr + entry, mask=inside, other=0).to(tl.int32)
    to_offset = tl.load(to_offsets_ptr + entry, mask=inside, other=-1).to(tl.int64)
    to_slot = tl.load(to_slots_ptr + entry, mask=inside, other=0).to(tl.int32)
    there = (offset >= 0) & (to_offset >= 0) & ((offset != to_offset) | (slot != to_slot))
    source = row_at(k_rows_ptr, offset, slot, D, START_K, UNITS_K)
    copy_rows(row_at(k_rows_ptr, to_offset, to_slot, D, START_K, UNITS_K), source, there, D, BLOCK_K)
    source = row_at(v_rows_ptr, offset, slot, DV, START_V, UNITS_V)
    copy_rows(row_at(v_rows_ptr, to_offset, to_slot, DV, START_V, UNITS_V), source, there, DV, BLOCK_V)
    position = tl.load(words_ptr + offset * 4 + 4 + slot, mask=there, other=0)
    tl.store(words_ptr + to_offset * 4 + 4 + to_slot, position, mask=there)
    if SIDES > 0:
        number = tl.load(numbers_ptr + entry, mask=there, other=0).to(tl.int64) * SIDE_SLOTS + slot
        to_number = tl.load(to_numbers_ptr + entry, mask=there, other=0).to(tl.int64) * SIDE_SLOTS + to_slot
        tl.store(first_ptr + to_number, tl.load(first_ptr + number, mask=there, other=0.0), mask=there)
        if SIDES > 1:
            tl.store(second_ptr + to_number, tl.load(second_ptr + number, mask=there, other=0.0), mask=there)
    clear_live(words_ptr, offset, slot, there)
    set_live(words_ptr, to_offset, to_slot, there)


@triton.jit
def merge_rows(
    rows_ptr, target, slot, own, offsets_ptr, slots_ptr, weights_ptr, n_sources, CHANNELS: tl.constexpr,
    START: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    out_ptr = row_at(rows_ptr, target, slot, CHANNELS, START, UNITS) + channel
    mixed = own * tl.load(out_ptr, mask=inside, other=0.0).to(tl.float32)
    for source in range(n_sources):
        offset = tl.load(offsets_ptr + source).to(tl.int64)
        at = row_at(rows_ptr, offset, tl.load(slots_ptr + source).to(tl.int32), CHANNELS, START, UNITS) + channel
        x = tl.load(at, mask=inside & (offset >= 0), other=0.0).to(tl.float32)
        mixed += tl.load(weights_ptr + source).to(tl.float32) * x
    tl.store(out_ptr, mixed.to(rows_ptr.dtype.element_ty), mask=inside)


@triton.jit
def merge_kernel(
    words_ptr, k_rows_ptr, v_rows_ptr,  # views of the arena: int32, and the elements
    offsets_ptr, slots_ptr, weights_ptr,  # [n_targets, n_sources]
    to_offsets_ptr, to_slots_ptr, own_ptr,  # [n_targets]
    n_sources,
    D: tl.constexpr, START_K: tl.constexpr, UNITS_K: tl.constexpr, BLOCK_K: tl.constexpr,
    DV: tl.constexpr, START_V: tl.constexpr, UNITS_V: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_SOURCES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    target = tl.load(to_offsets_ptr + program).to(tl.int64)
    if target >= 0:
        slot = tl.load(to_slots_ptr + program).to(tl.int32)
        own = tl.load(own_ptr + program).to(tl.float32)
        offsets_ptr += program * n_sources
        slots_ptr += program * n_sources
        weights_ptr += program * n_sources
        if tl.program_id(1) == 0:
            merge_rows(
                k_rows_ptr, target, slot, own, offsets_ptr, slots_ptr, weights_ptr, n_sources, D, START_K, UNITS_K,
                BLOCK_K,
            )  # fmt: skip
            for start in range(0, n_sources, BLOCK_SOURCES):
                source = start + tl.arange(0, BLOCK_SOURCES)
                offset = tl.load(offsets_ptr + source, mask=source < n_sources, other=-1).to(tl.int64)
                gone = tl.load(slots_ptr + source, mask=source < n_sources, other=0).to(tl.int32)
                clear_live(words_ptr, offset, gone, offset >= 0)
        else:
            merge_rows(
                v_rows_ptr, target, slot, own, offsets_ptr, slots_ptr, weights_ptr, n_sources, DV, START_V, UNITS_V,
                BLOCK_V,
            )  # fmt: skip


@triton.jit
def evict_kernel(
    words_ptr,  # int32 view of the arena
    offsets_ptr, slots_ptr,  # [n_entries]
    n_entries,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    entry = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    offset = tl.load(offsets_ptr + entry, mask=entry < n_entries, other=-1).to(tl.int64)
    slot = tl.load(slots_ptr + entry, mask=entry < n_entries, other=0).to(tl.int32)
    clear_live(words_ptr, offset, slot, offset >= 0)


def places(form: PageFormat) -> dict[str, int]:
    """The constants of `facts` that stored rows need, and their tiles."""
    known = facts(form)
    blocks = {"BLOCK_K": triton.next_power_of_2(form.head_dim), "BLOCK_V": triton.next_power_of_2(form.value_dim)}
    return {name: known[name] for name in ("D", "START_K", "UNITS_K", "DV", "START_V", "UNITS_V")} | blocks


def views(arena: torch.Tensor, form: PageFormat) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return arena.view(torch.int32), pattern(arena, form, form.bits_k), pattern(arena, form, form.bits_v)


@on_its_device
def scatter(arena, k, v, rows, positions, offsets, slots, form: PageFormat) -> None:
    """See the public function; grid (heads, blocks of entries)."""
    k, v = integers(k, form, form.bits_k), integers(v, form, form.bits_v)
    heads, entries = offsets.shape
    if heads and entries:
        scatter_kernel[(heads, triton.cdiv(entries, BLOCK_ENTRIES))](
            *views(arena, form), k, v, rows.contiguous(), positions.contiguous(), offsets.contiguous(),
            slots.contiguous(), k.stride(0), k.stride(1), v.stride(0), v.stride(1), entries, **places(form),
            BLOCK_ENTRIES=BLOCK_ENTRIES,
        )  # fmt: skip


@on_its_device
def move(arena, offsets, slots, to_offsets, to_slots, form: PageFormat, sides, numbers, to_numbers) -> None:
    """See the public function; one program for each block of entries."""
    entries = offsets.numel()
    if entries:
        first, second = (*sides, None, None)[:2]
        lists = (offsets, slots, to_offsets, to_slots)
        names = (t if t is None else t.contiguous() for t in (numbers, to_numbers))
        move_kernel[(triton.cdiv(entries, BLOCK_ENTRIES),)](
            *views(arena, form), *(t.contiguous() for t in lists), first, second, *names, entries, **places(form),
            SIDES=len(sides), BLOCK_ENTRIES=BLOCK_ENTRIES,
        )  # fmt: skip


@on_its_device
def merge(arena, offsets, slots, weights, to_offsets, to_slots, own, form: PageFormat) -> None:
    """See the public function; two programs for each target, its keys and its values."""
    targets, sources = offsets.shape
    if targets:
        lists = (offsets, slots, weights, to_offsets, to_slots, own)
        rows = arena.view(form.element(form.bits_k)), arena.view(form.element(form.bits_v))
        merge_kernel[(targets, 2)](
            arena.view(torch.int32), *rows, *(t.contiguous() for t in lists), sources, **places(form),
            BLOCK_SOURCES=max(triton.next_power_of_2(min(sources, 128)), 1), num_warps=1,
        )  # fmt: skip


@on_its_device
def evict(arena: torch.Tensor, offsets: torch.Tensor, slots: torch.Tensor) -> None:
    """See the public function; one program for 256 entries."""
    entries = offsets.numel()
    if entries:
        evict_kernel[(triton.cdiv(entries, 256),)](
            arena.view(torch.int32), offsets.contiguous(), slots.contiguous(), entries, BLOCK_SIZE=256
        )

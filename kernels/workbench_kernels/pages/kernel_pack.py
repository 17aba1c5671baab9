"""Packing in Triton: a program takes one page's keys or its values, and codes them from the steps it has stored."""

import torch
import triton
import triton.language as tl

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.pages.kernel_common import facts, integers, pattern, row_block, warps
from workbench_kernels.pages.layout import SLOTS, PageFormat

__all__ = ["pack"]

SLOT_COUNT = tl.constexpr(SLOTS)


@triton.jit
def floor_half(x):
    """The largest half that is not above x."""
    half = x.to(tl.float16)
    bits = half.to(tl.int16, bitcast=True).to(tl.int32)
    lower = tl.where(bits > 0, bits - 1, bits + 1)  # sign and magnitude: below 0 a larger pattern is a lower number
    return tl.where(half.to(tl.float32) > x, lower, bits).to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def ceil_half(x):
    """The smallest positive half that is not below x, for x >= 0."""
    half = x.to(tl.float16)
    bits = half.to(tl.int16, bitcast=True).to(tl.int32)
    bits = tl.maximum(tl.where(half.to(tl.float32) < x, bits + 1, bits), 1)
    return bits.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def steps(low, high):
    """Stored (step, zero) of the 8-bit grid over [low, high]; -0 is written as 0."""
    zero = floor_half(tl.where(low == 0, 0.0, low))
    # true division: the approximate one of `/` would change bytes
    step = ceil_half(tl.div_rn(high - zero.to(tl.float32), tl.full(high.shape, 255.0, tl.float32)))
    return step, zero


@triton.jit
def encode(x, step, zero, GAIN: tl.constexpr):
    """8-bit codes on the stored grid, rounded once more to the width's own."""
    x, step = tl.broadcast(x - zero.to(tl.float32), step.to(tl.float32))
    level = tl.minimum(tl.maximum(tl.div_rn(x, step), 0.0), 255.0)
    return ((level + 0.5).to(tl.int32) + GAIN // 2) // GAIN


@triton.jit
def pack_stored(rows_ptr, x_ptr, x_slot_stride, used, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    slot = tl.arange(0, SLOT_COUNT)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = channel < CHANNELS
    x = tl.load(x_ptr + slot * x_slot_stride + channel, mask=inside & (slot < used), other=0)
    tl.store(rows_ptr + slot * CHANNELS + channel, x, mask=inside)


@triton.jit
def pack_keys(
    rows_ptr, scale_ptr, x_ptr, x_slot_stride, used, CHANNELS: tl.constexpr, BITS: tl.constexpr, GAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One step per channel: each planar part of the row holds whole channels, so one pass is enough."""
    WIDTH: tl.constexpr = CHANNELS * BITS // 8
    slot = tl.arange(0, SLOT_COUNT)[:, None]
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    live = slot < used
    packed = tl.zeros([SLOT_COUNT, BLOCK], tl.int32)
    for part in tl.static_range(8 // BITS):
        channel = part * WIDTH + column
        at = x_ptr + slot * x_slot_stride + channel[None, :]
        x = tl.load(at, mask=live & inside[None, :], other=0.0).to(tl.float32)
        low = tl.where(used > 0, tl.min(tl.where(live, x, float("inf")), axis=0), 0.0)
        high = tl.where(used > 0, tl.max(tl.where(live, x, float("-inf")), axis=0), 0.0)
        step, zero = steps(low, high)
        tl.store(scale_ptr + channel, step, mask=inside)
        tl.store(scale_ptr + CHANNELS + channel, zero, mask=inside)
        packed |= tl.where(live, encode(x, step[None, :], zero[None, :], GAIN), 0) << (part * BITS)
    tl.store(rows_ptr + slot * WIDTH + column[None, :], packed.to(tl.uint8), mask=inside[None, :])


@triton.jit
def pack_values(
    rows_ptr, scale_ptr, x_ptr, x_slot_stride, used, CHANNELS: tl.constexpr, BITS: tl.constexpr, GAIN: tl.constexpr,
    GROUP: tl.constexpr, BLOCK: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_COUNT: tl.constexpr,
):  # fmt: skip
    """One step per slot and group. A group may reach over two planar parts: steps first, then codes from them."""
    WIDTH: tl.constexpr = CHANNELS * BITS // 8
    COUNT: tl.constexpr = CHANNELS // GROUP
    slots = tl.arange(0, SLOT_COUNT)
    group = tl.arange(0, BLOCK_COUNT)
    member = tl.arange(0, BLOCK_GROUP)
    channel = group[:, None] * GROUP + member[None, :]
    inside = (group < COUNT)[:, None] & (member < GROUP)[None, :]
    live = slots < used
    there = inside[None, :, :] & live[:, None, None]
    at = x_ptr + slots[:, None, None] * x_slot_stride + channel[None, :, :]
    x = tl.load(at, mask=there, other=0.0).to(tl.float32)
    some = live[:, None] & (group < COUNT)[None, :]
    low = tl.where(some, tl.min(tl.where(there, x, float("inf")), axis=2), 0.0)
    high = tl.where(some, tl.max(tl.where(there, x, float("-inf")), axis=2), 0.0)
    step, zero = steps(low, high)
    at = scale_ptr + slots[:, None] * COUNT + group[None, :]
    tl.store(at, step, mask=(group < COUNT)[None, :])
    tl.store(at + SLOT_COUNT * COUNT, zero, mask=(group < COUNT)[None, :])
    tl.debug_barrier()  # the steps are read back by other threads
    column = tl.arange(0, BLOCK)[None, :]
    slot = slots[:, None]
    packed = tl.zeros([SLOT_COUNT, BLOCK], tl.int32)
    for part in tl.static_range(8 // BITS):
        channel = part * WIDTH + column
        there = (column < WIDTH) & (slot < used)
        x = tl.load(x_ptr + slot * x_slot_stride + channel, mask=there, other=0.0).to(tl.float32)
        at = scale_ptr + slot * COUNT + channel // GROUP
        step = tl.load(at, mask=there, other=1.0).to(tl.float32)
        zero = tl.load(at + SLOT_COUNT * COUNT, mask=there, other=0.0).to(tl.float32)
        packed |= tl.where(there, encode(x, step, zero, GAIN), 0) << (part * BITS)
    tl.store(rows_ptr + slot * WIDTH + column, packed.to(tl.uint8), mask=column < WIDTH)


@triton.jit(do_not_specialize=["birth"])
def pack_kernel(
    words_ptr,  # int32 view of the arena
    halves_ptr,  # float16 view
    k_rows_ptr,  # uint8 view for codes, else integers as wide as the elements
    v_rows_ptr,
    k_ptr,  # [n_pages, SLOTS, D]; integers where the width is no code
    v_ptr,  # [n_pages, SLOTS, Dv]
    positions_ptr,  # [n_pages, SLOTS]
    used_ptr,  # [n_pages]
    offsets_ptr,  # [n_pages] in units of 16 bytes
    k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, birth,
    D: tl.constexpr, DV: tl.constexpr, GROUP: tl.constexpr,
    BITS_K: tl.constexpr, GAIN_K: tl.constexpr, SCALE_K: tl.constexpr, START_K: tl.constexpr, UNITS_K: tl.constexpr,
    BITS_V: tl.constexpr, GAIN_V: tl.constexpr, SCALE_V: tl.constexpr, START_V: tl.constexpr, UNITS_V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_GROUP: tl.constexpr, BLOCK_COUNT: tl.constexpr,
):  # fmt: skip
    page = tl.program_id(0).to(tl.int64)
    offset = tl.load(offsets_ptr + page).to(tl.int64)
    used = tl.load(used_ptr + page).to(tl.int32)
    if tl.program_id(1) == 0:
        word = tl.arange(0, 4)
        kinds = BITS_K + (GAIN_K << 8) + (BITS_V << 16) + (GAIN_V << 24)
        live = ((tl.full((), 1, tl.int64) << used) - 1).to(tl.int32)
        header = tl.where(word == 0, live, tl.where(word == 1, kinds, tl.where(word == 2, used << 8, birth)))
        tl.store(words_ptr + offset * 4 + word, header)
        slot = tl.arange(0, SLOT_COUNT)
        positions = tl.load(positions_ptr + page * SLOT_COUNT + slot).to(tl.int32)
        tl.store(words_ptr + offset * 4 + 4 + slot, positions)
        k_rows_ptr += offset * UNITS_K + START_K
        k_ptr += page * k_page_stride
        if GAIN_K:
            scale_ptr = halves_ptr + offset * 8 + SCALE_K // 2
            pack_keys(k_rows_ptr, scale_ptr, k_ptr, k_slot_stride, used, D, BITS_K, GAIN_K, BLOCK_K)
        else:
            pack_stored(k_rows_ptr, k_ptr, k_slot_stride, used, D, BLOCK_K)
    else:
        v_rows_ptr += offset * UNITS_V + START_V
        v_ptr += page * v_page_stride
        if GAIN_V:
            scale_ptr = halves_ptr + offset * 8 + SCALE_V // 2
            pack_values(
                v_rows_ptr, scale_ptr, v_ptr, v_slot_stride, used, DV, BITS_V, GAIN_V, GROUP, BLOCK_V, BLOCK_GROUP,
                BLOCK_COUNT,
            )  # fmt: skip
        else:
            pack_stored(v_rows_ptr, v_ptr, v_slot_stride, used, DV, BLOCK_V)


@on_its_device
def pack(k, v, positions, used, form: PageFormat, arena, offsets, birth: int = 0) -> None:
    """See the public function; k [n, SLOTS, D], v [n, SLOTS, Dv], two programs a page."""
    k, v = integers(k, form, form.bits_k), integers(v, form, form.bits_v)
    if not len(k):
        return
    pack_kernel[(len(k), 2)](
        arena.view(torch.int32), arena.view(torch.float16),
        pattern(arena, form, form.bits_k), pattern(arena, form, form.bits_v),
        k, v, positions.contiguous(), used.contiguous(), offsets.contiguous(),
        k.stride(0), k.stride(1), v.stride(0), v.stride(1), birth,
        **facts(form), BLOCK_K=row_block(form.head_dim, form.bits_k), BLOCK_V=row_block(form.value_dim, form.bits_v),
        BLOCK_GROUP=triton.next_power_of_2(form.group),
        BLOCK_COUNT=triton.next_power_of_2(form.value_dim // form.group), num_warps=warps(form),
    )  # fmt: skip

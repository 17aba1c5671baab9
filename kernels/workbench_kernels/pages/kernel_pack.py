"""Packing in Triton: a program takes one page's keys or its values, and codes them from the steps it has stored."""

import triton
import triton.language as tl

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.pages.kernel_common import integers, sides, views, warps
from workbench_kernels.pages.layout import PageFormat


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
def pack_stored(rows_ptr, x_ptr, stride, used, side: tl.constexpr):
    slot = tl.arange(0, side.slots)[:, None]
    channel = tl.arange(0, side.block)[None, :]
    inside = channel < side.row
    x = tl.load(x_ptr + slot * stride + channel, mask=inside & (slot < used), other=0)
    tl.store(rows_ptr + slot * side.row + channel, x, mask=inside)


@triton.jit
def pack_keys(rows_ptr, scale_ptr, x_ptr, stride, used, side: tl.constexpr):
    """One step per channel: each planar part of the row holds whole channels, so one pass is enough."""
    PARTS: tl.constexpr = 8 // side.bits
    BLOCK: tl.constexpr = side.block
    SLOTS: tl.constexpr = side.slots
    slot = tl.arange(0, side.slots)[:, None]
    column = tl.arange(0, BLOCK)
    inside = column < side.row
    live = slot < used
    packed = tl.zeros([SLOTS, BLOCK], tl.int32)
    for part in tl.static_range(PARTS):
        channel = part * side.row + column
        x = tl.load(x_ptr + slot * stride + channel[None, :], mask=live & inside[None, :], other=0.0).to(tl.float32)
        low = tl.where(used > 0, tl.min(tl.where(live, x, float("inf")), axis=0), 0.0)
        high = tl.where(used > 0, tl.max(tl.where(live, x, float("-inf")), axis=0), 0.0)
        step, zero = steps(low, high)
        tl.store(scale_ptr + channel, step, mask=inside)
        tl.store(scale_ptr + side.size + channel, zero, mask=inside)
        packed |= tl.where(live, encode(x, step[None, :], zero[None, :], side.gain), 0) << (part * side.bits)
    tl.store(rows_ptr + slot * side.row + column[None, :], packed.to(tl.uint8), mask=inside[None, :])


@triton.jit
def pack_values(rows_ptr, scale_ptr, x_ptr, stride, used, side: tl.constexpr):
    """One step per slot and group. A group may reach over two planar parts: steps first, then codes from them."""
    PARTS: tl.constexpr = 8 // side.bits
    BLOCK: tl.constexpr = side.block
    SLOTS: tl.constexpr = side.slots
    COUNT: tl.constexpr = side.size // side.group
    slots = tl.arange(0, side.slots)
    group = tl.arange(0, side.groups)
    member = tl.arange(0, side.members)
    channel = group[:, None] * side.group + member[None, :]
    inside = (group < COUNT)[:, None] & (member < side.group)[None, :]
    live = slots < used
    there = inside[None, :, :] & live[:, None, None]
    x = tl.load(x_ptr + slots[:, None, None] * stride + channel[None, :, :], mask=there, other=0.0).to(tl.float32)
    some = live[:, None] & (group < COUNT)[None, :]
    low = tl.where(some, tl.min(tl.where(there, x, float("inf")), axis=2), 0.0)
    high = tl.where(some, tl.max(tl.where(there, x, float("-inf")), axis=2), 0.0)
    step, zero = steps(low, high)
    at = scale_ptr + slots[:, None] * COUNT + group[None, :]
    tl.store(at, step, mask=(group < COUNT)[None, :])
    tl.store(at + side.slots * COUNT, zero, mask=(group < COUNT)[None, :])
    tl.debug_barrier()  # the steps are read back by other threads
    column = tl.arange(0, BLOCK)[None, :]
    slot = slots[:, None]
    there = (column < side.row) & (slot < used)
    packed = tl.zeros([SLOTS, BLOCK], tl.int32)
    for part in tl.static_range(PARTS):
        channel = part * side.row + column
        x = tl.load(x_ptr + slot * stride + channel, mask=there, other=0.0).to(tl.float32)
        at = scale_ptr + slot * COUNT + channel // side.group
        step = tl.load(at, mask=there, other=1.0).to(tl.float32)
        zero = tl.load(at + side.slots * COUNT, mask=there, other=0.0).to(tl.float32)
        packed |= tl.where(there, encode(x, step, zero, side.gain), 0) << (part * side.bits)
    tl.store(rows_ptr + slot * side.row + column, packed.to(tl.uint8), mask=column < side.row)


@triton.jit
def pack_kernel(arena, k, v, positions_ptr, used_ptr, offsets_ptr, K: tl.constexpr, V: tl.constexpr):
    """k [n_pages, slots, D], v [n_pages, slots, Dv]: `Rows`, bit patterns where the width is no code.

    positions: [n_pages, slots]; used, offsets: [n_pages].
    """
    page = tl.program_id(0).to(tl.int64)
    offset = tl.load(offsets_ptr + page).to(tl.int64)
    used = tl.load(used_ptr + page).to(tl.int32)
    if tl.program_id(1) == 0:
        word = tl.arange(0, 4)
        kinds = K.bits + (K.gain << 8) + (V.bits << 16) + (V.gain << 24)
        of_word = tl.minimum(tl.maximum(used - 32 * word, 0), 32)
        live = ((tl.full((4,), 1, tl.int64) << of_word) - 1).to(tl.int32)
        header = tl.where(word < 2, live, tl.where(word == 2, kinds, used))
        tl.store(arena.words + offset * 4 + word, header)
        slot = tl.arange(0, K.slots)
        positions = tl.load(positions_ptr + page * K.slots + slot).to(tl.int32)
        tl.store(arena.words + offset * 4 + 4 + slot, positions)
        rows_ptr = arena.k + offset * K.unit + K.start
        k_ptr = k.data + page * k.outer
        if K.gain:
            pack_keys(rows_ptr, arena.halves + offset * 8 + K.scale, k_ptr, k.inner, used, K)
        else:
            pack_stored(rows_ptr, k_ptr, k.inner, used, K)
    else:
        rows_ptr = arena.v + offset * V.unit + V.start
        v_ptr = v.data + page * v.outer
        if V.gain:
            pack_values(rows_ptr, arena.halves + offset * 8 + V.scale, v_ptr, v.inner, used, V)
        else:
            pack_stored(rows_ptr, v_ptr, v.inner, used, V)


@on_its_device
def pack(k, v, positions, used, form: PageFormat, arena, offsets) -> None:
    """See the public function; k [n, slots, D], v [n, slots, Dv], two programs a page."""
    if not len(k):
        return
    rows = integers(k, form, form.bits_k), integers(v, form, form.bits_v)
    lists = (t.contiguous() for t in (positions, used, offsets))
    pack_kernel[(len(k), 2)](views(arena, form), *rows, *lists, **sides(form), num_warps=warps(form))

"""Reading packed pages inside a kernel: header, keys and values of one page as float32 tiles.

A page's widths are read from its header, so a scalar branch per page is all that mixed precision costs. Planar codes
make every branch one tile load: channel d lies in byte d mod W, and the shift depends on the channel alone. Where a
tile has 16 query rows or more, scaling a page's keys costs no more than scaling the queries to each page.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from workbench_kernels.pages import layout

ALIGN = tl.constexpr(layout.ALIGN)
POSITIONS = tl.constexpr(layout.HEADER)


class Kind(NamedTuple):
    """What all pages of a launch share, as constants."""

    slots: int  # of a page
    groups: int  # of channels that share a value step
    raw: str  # what raw width means
    scales: int  # bytes before the first step

    @classmethod
    def of(cls, slots: int, groups: int, raw: str) -> "Kind":
        return cls(slots, groups, raw, layout.HEADER + 4 * slots)


@triton.jit
def open_page(arena_ptr, table_ptr, index, inside):
    """Unit, live mask and widths of a table entry; kernels call it one page ahead, to hide its two dependent loads."""
    unit = tl.load(table_ptr + index, mask=inside, other=0)
    page = arena_ptr + unit.to(tl.int64) * ALIGN
    live = tl.load(page.to(tl.pointer_type(tl.int64)), mask=inside, other=0)
    return unit, live, tl.load(page.to(tl.pointer_type(tl.int32)) + 2, mask=inside, other=0)


@triton.jit
def load_slots(page, kind: tl.constexpr):
    """Original positions [slots], int32."""
    return tl.load((page + POSITIONS).to(tl.pointer_type(tl.int32)) + tl.arange(0, kind.slots))


@triton.jit
def load_keys(page, widths, kind: tl.constexpr, tile: tl.constexpr):
    """Keys of a page, float32 [slots, block_d]; 0 beyond head_dim."""
    bits = widths & 255
    gain = ((widths >> 8) & 255).to(tl.float32)
    values_coded = is_coded((widths >> 16) & 255)
    body = page + (kind.scales + is_coded(bits) * (4 * tile.head_dim) + values_coded * (4 * kind.slots * kind.groups))
    if is_coded(bits) == 1:
        channels = tl.arange(0, tile.block_d)[None, :]
        steps = (page + kind.scales).to(tl.pointer_type(tl.float16)) + channels
        step = tl.load(steps, mask=channels < tile.head_dim, other=0).to(tl.float32) * gain
        zero = tl.load(steps + tile.head_dim, mask=channels < tile.head_dim, other=0).to(tl.float32)
        keys = load_codes(body, bits, tile.head_dim, tile.block_d, kind) * step + zero
    else:
        keys = load_plain(body, bits, tile.head_dim, tile.block_d, kind)
    return keys


@triton.jit
def load_values(page, widths, kind: tl.constexpr, tile: tl.constexpr):
    """Values of a page, float32 [slots, block_v]; 0 beyond value_dim."""
    key_bits = widths & 255
    bits = (widths >> 16) & 255
    gain = ((widths >> 24) & 255).to(tl.float32)
    scales = page + (kind.scales + is_coded(key_bits) * (4 * tile.head_dim))
    stored = tl.where(key_bits == 0, 32 if kind.raw == "fp32" else 16, key_bits)
    body = scales + is_coded(bits) * (4 * kind.slots * kind.groups) + stored * (kind.slots * tile.head_dim // 8)
    if is_coded(bits) == 1:
        steps = scales.to(tl.pointer_type(tl.float16))
        step = load_grouped(steps, tile.value_dim, tile.block_v, kind) * gain
        zero = load_grouped(steps + kind.slots * kind.groups, tile.value_dim, tile.block_v, kind)
        values = load_codes(body, bits, tile.value_dim, tile.block_v, kind) * step + zero
    else:
        values = load_plain(body, bits, tile.value_dim, tile.block_v, kind)
    return values


@triton.jit
def is_coded(bits):
    """1 for 2, 4 and 8 bits, 0 for raw (0) and 16."""
    return ((bits > 0) & (bits < 16)).to(tl.int32)


@triton.jit
def load_codes(body, bits, DIM: tl.constexpr, BLOCK: tl.constexpr, kind: tl.constexpr):
    if bits == 8:
        codes = load_planar(body, 8, DIM, BLOCK, kind)
    elif bits == 4:
        codes = load_planar(body, 4, DIM, BLOCK, kind)
    else:
        codes = load_planar(body, 2, DIM, BLOCK, kind)
    return codes


@triton.jit
def load_planar(body, BITS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, kind: tl.constexpr):
    """Codes float32 [slots, BLOCK]. The row length is a constant, so that the compiler sees the runs of d mod W."""
    ROW: tl.constexpr = DIM * BITS // 8
    slots = tl.arange(0, kind.slots)[:, None]
    channels = tl.arange(0, BLOCK)[None, :]
    packed = tl.load(body + slots * ROW + channels % ROW, mask=channels < DIM, other=0).to(tl.int32)
    return ((packed >> (channels // ROW * BITS)) & ((1 << BITS) - 1)).to(tl.float32)


@triton.jit
def load_plain(body, bits, DIM: tl.constexpr, BLOCK: tl.constexpr, kind: tl.constexpr):
    place = tl.arange(0, kind.slots)[:, None] * DIM + tl.arange(0, BLOCK)[None, :]
    inside = tl.arange(0, BLOCK)[None, :] < DIM
    if bits == 16:
        plain = tl.load(body.to(tl.pointer_type(tl.float16)) + place, mask=inside, other=0).to(tl.float32)
    else:
        plain = tl.load(body.to(tl.pointer_type(tl.dtype(kind.raw))) + place, mask=inside, other=0).to(tl.float32)
    return plain


@triton.jit
def load_grouped(steps_ptr, DIM: tl.constexpr, BLOCK: tl.constexpr, kind: tl.constexpr):
    """One number per slot and group, float16 [slots, groups], spread over the channels: float32 [slots, BLOCK]."""
    GROUP: tl.constexpr = DIM // kind.groups
    slots = tl.arange(0, kind.slots)[:, None]
    if GROUP & (GROUP - 1) == 0:
        # one load per group instead of one per channel
        groups = tl.arange(0, BLOCK // GROUP)[None, :]
        per_group = tl.load(steps_ptr + slots * kind.groups + groups, mask=groups < kind.groups, other=0).to(tl.float32)
        spread = tl.broadcast_to(per_group[:, :, None], (kind.slots, BLOCK // GROUP, GROUP))
        numbers = tl.reshape(spread, (kind.slots, BLOCK))
    else:
        channels = tl.arange(0, BLOCK)[None, :]
        inside = channels < DIM
        numbers = tl.load(steps_ptr + slots * kind.groups + channels // GROUP, mask=inside, other=0).to(tl.float32)
    return numbers

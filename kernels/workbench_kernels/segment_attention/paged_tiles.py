"""Reading packed pages inside a kernel: header, keys and values of one page as float32 tiles.

A page's widths are read from its header, so a scalar branch per page is all that mixed precision costs. Planar codes
make every branch one tile load: channel d lies in byte d mod W, and the shift depends on the channel alone. Where a
tile has 16 query rows or more, scaling a page's 32 keys costs no more than scaling the queries to each page.
"""

import triton
import triton.language as tl

from workbench_kernels.pages import layout

SLOTS = tl.constexpr(layout.SLOTS)
ALIGN = tl.constexpr(layout.ALIGN)
POSITIONS = tl.constexpr(layout.HEADER)
SCALES = tl.constexpr(layout.HEADER + 4 * layout.SLOTS)


@triton.jit
def open_page(arena_ptr, table_ptr, index, inside):
    """Unit, live mask and widths of a table entry; kernels call it one page ahead, to hide its two dependent loads."""
    unit = tl.load(table_ptr + index, mask=inside, other=0)
    words = (arena_ptr + unit.to(tl.int64) * ALIGN).to(tl.pointer_type(tl.int32))
    return unit, tl.load(words, mask=inside, other=0), tl.load(words + 1, mask=inside, other=0)


@triton.jit
def load_slots(page):
    """Original positions [SLOTS], int32."""
    return tl.load((page + POSITIONS).to(tl.pointer_type(tl.int32)) + tl.arange(0, SLOTS))


@triton.jit
def load_keys(page, widths, RAW: tl.constexpr, GROUPS: tl.constexpr, tile: tl.constexpr):
    """Keys of a page, float32 [SLOTS, block_d]; 0 beyond head_dim."""
    bits = widths & 255
    gain = ((widths >> 8) & 255).to(tl.float32)
    values_coded = is_coded((widths >> 16) & 255)
    body = page + (SCALES + is_coded(bits) * (4 * tile.head_dim) + values_coded * (4 * SLOTS * GROUPS))
    if is_coded(bits) == 1:
        channels = tl.arange(0, tile.block_d)[None, :]
        steps = (page + SCALES).to(tl.pointer_type(tl.float16)) + channels
        step = tl.load(steps, mask=channels < tile.head_dim, other=0).to(tl.float32) * gain
        zero = tl.load(steps + tile.head_dim, mask=channels < tile.head_dim, other=0).to(tl.float32)
        keys = load_codes(body, bits, tile.head_dim, tile.block_d) * step + zero
    else:
        keys = load_plain(body, bits, RAW, tile.head_dim, tile.block_d)
    return keys


@triton.jit
def load_values(page, widths, RAW: tl.constexpr, GROUPS: tl.constexpr, tile: tl.constexpr):
    """Values of a page, float32 [SLOTS, block_v]; 0 beyond value_dim."""
    key_bits = widths & 255
    bits = (widths >> 16) & 255
    gain = ((widths >> 24) & 255).to(tl.float32)
    scales = page + (SCALES + is_coded(key_bits) * (4 * tile.head_dim))
    stored = tl.where(key_bits == 0, 32 if RAW == "fp32" else 16, key_bits)
    body = scales + is_coded(bits) * (4 * SLOTS * GROUPS) + stored * (SLOTS * tile.head_dim // 8)
    if is_coded(bits) == 1:
        steps = scales.to(tl.pointer_type(tl.float16))
        step = load_grouped(steps, tile.value_dim, GROUPS, tile.block_v) * gain
        zero = load_grouped(steps + SLOTS * GROUPS, tile.value_dim, GROUPS, tile.block_v)
        values = load_codes(body, bits, tile.value_dim, tile.block_v) * step + zero
    else:
        values = load_plain(body, bits, RAW, tile.value_dim, tile.block_v)
    return values


@triton.jit
def is_coded(bits):
    """1 for 2, 4 and 8 bits, 0 for raw (0) and 16."""
    return ((bits > 0) & (bits < 16)).to(tl.int32)


@triton.jit
def load_codes(body, bits, DIM: tl.constexpr, BLOCK: tl.constexpr):
    if bits == 8:
        codes = load_planar(body, 8, DIM, BLOCK)
    elif bits == 4:
        codes = load_planar(body, 4, DIM, BLOCK)
    else:
        codes = load_planar(body, 2, DIM, BLOCK)
    return codes


@triton.jit
def load_planar(body, BITS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Codes float32 [SLOTS, BLOCK]. The row length is a constant, so that the compiler sees the runs of d mod W."""
    ROW: tl.constexpr = DIM * BITS // 8
    slots = tl.arange(0, SLOTS)[:, None]
    channels = tl.arange(0, BLOCK)[None, :]
    packed = tl.load(body + slots * ROW + channels % ROW, mask=channels < DIM, other=0).to(tl.int32)
    return ((packed >> (channels // ROW * BITS)) & ((1 << BITS) - 1)).to(tl.float32)


@triton.jit
def load_plain(body, bits, RAW: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.arange(0, SLOTS)[:, None] * DIM + tl.arange(0, BLOCK)[None, :]
    inside = tl.arange(0, BLOCK)[None, :] < DIM
    if bits == 16:
        plain = tl.load(body.to(tl.pointer_type(tl.float16)) + place, mask=inside, other=0).to(tl.float32)
    else:
        plain = tl.load(body.to(tl.pointer_type(tl.dtype(RAW))) + place, mask=inside, other=0).to(tl.float32)
    return plain


@triton.jit
def load_grouped(steps_ptr, DIM: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """One number per slot and group, float16 [SLOTS, GROUPS], spread over the channels: float32 [SLOTS, BLOCK]."""
    GROUP: tl.constexpr = DIM // GROUPS
    slots = tl.arange(0, SLOTS)[:, None]
    if GROUP & (GROUP - 1) == 0:
        # one load per group instead of one per channel
        groups = tl.arange(0, BLOCK // GROUP)[None, :]
        per_group = tl.load(steps_ptr + slots * GROUPS + groups, mask=groups < GROUPS, other=0).to(tl.float32)
        spread = tl.broadcast_to(per_group[:, :, None], (SLOTS, BLOCK // GROUP, GROUP))
        numbers = tl.reshape(spread, (SLOTS, BLOCK))
    else:
        channels = tl.arange(0, BLOCK)[None, :]
        inside = channels < DIM
        numbers = tl.load(steps_ptr + slots * GROUPS + channels // GROUP, mask=inside, other=0).to(tl.float32)
    return numbers

"""Reading packed slots and rounding pages to smaller widths, in Triton: a program takes 32 rows of keys or values."""

import torch
import triton
import triton.language as tl

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.pages.kernel_common import copy, facts, row_block, warps
from workbench_kernels.pages.layout import GAINS, SLOTS, PageFormat

__all__ = ["demote", "read"]

SLOT_COUNT = tl.constexpr(SLOTS)


@triton.jit
def read_rows(
    out_ptr, rows_ptr, halves_ptr, offset, slot, row, there, CHANNELS: tl.constexpr, BITS: tl.constexpr,
    GAIN: tl.constexpr, SCALE: tl.constexpr, START: tl.constexpr, UNITS: tl.constexpr, GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows [SLOTS, CHANNELS] in the dtype of out; GROUP 0 means one step per channel."""
    WIDTH: tl.constexpr = CHANNELS * BITS // 8 if GAIN else CHANNELS
    PARTS: tl.constexpr = 8 // BITS if GAIN else 1
    STEPS: tl.constexpr = SLOT_COUNT * (CHANNELS // GROUP) if GROUP else CHANNELS
    column = tl.arange(0, BLOCK)[None, :]
    there = there & (column < WIDTH)
    raw = tl.load(rows_ptr + offset * UNITS + START + slot * WIDTH + column, mask=there, other=0)
    for part in tl.static_range(PARTS):
        channel = part * WIDTH + column
        if GAIN:
            code = (raw.to(tl.int32) >> (part * BITS)) & ((1 << BITS) - 1)
            if GROUP:
                at = halves_ptr + offset * 8 + SCALE // 2 + slot * (CHANNELS // GROUP) + channel // GROUP
            else:
                at = halves_ptr + offset * 8 + SCALE // 2 + channel
            step = tl.load(at, mask=(column < WIDTH) & (offset >= 0), other=0.0).to(tl.float32)
            zero = tl.load(at + STEPS, mask=(column < WIDTH) & (offset >= 0), other=0.0).to(tl.float32)
            x = (code * GAIN).to(tl.float32) * step + zero
        else:
            x = raw.to(tl.float32)
        tl.store(out_ptr + row * CHANNELS + channel, tl.where(there, x, 0.0), mask=(row >= 0) & (column < WIDTH))


@triton.jit(do_not_specialize=["n_rows"])
def read_kernel(
    k_ptr,  # [n_rows, D]
    v_ptr,  # [n_rows, Dv]
    positions_ptr,  # [n_rows] int64
    live_ptr,  # [n_rows] uint8
    words_ptr, halves_ptr, k_rows_ptr, v_rows_ptr,  # typed views of the arena
    offsets_ptr,  # [n_pages], or [n_rows] where the rows lie anywhere; below 0: no row, read as zeros
    slots_ptr,  # [n_rows], only where the rows lie anywhere
    n_rows,
    D: tl.constexpr, DV: tl.constexpr, GROUP: tl.constexpr,
    BITS_K: tl.constexpr, GAIN_K: tl.constexpr, SCALE_K: tl.constexpr, START_K: tl.constexpr, UNITS_K: tl.constexpr,
    BITS_V: tl.constexpr, GAIN_V: tl.constexpr, SCALE_V: tl.constexpr, START_V: tl.constexpr, UNITS_V: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row = program * SLOT_COUNT + tl.arange(0, SLOT_COUNT)
    inside = row < n_rows
    if WHOLE:  # one offset for all rows: the steps of the keys are read once
        offset = tl.load(offsets_ptr + program + tl.arange(0, 1)).to(tl.int64)
        slot = tl.arange(0, SLOT_COUNT)
    else:
        offset = tl.load(offsets_ptr + row, mask=inside, other=-1).to(tl.int64)
        slot = tl.load(slots_ptr + row, mask=inside, other=0).to(tl.int32)
    there = inside & (offset >= 0)
    if tl.program_id(1) == 0:
        position = tl.load(words_ptr + offset * 4 + 4 + slot, mask=there, other=0).to(tl.int64)
        tl.store(positions_ptr + row, position, mask=inside)
        bits = tl.load(words_ptr + offset * 4 + slot * 0, mask=there, other=0)
        tl.store(live_ptr + row, ((bits >> slot) & 1).to(tl.uint8), mask=inside)
        read_rows(
            k_ptr, k_rows_ptr, halves_ptr, offset[:, None], slot[:, None], tl.where(inside, row, -1)[:, None],
            there[:, None], D, BITS_K, GAIN_K, SCALE_K, START_K, UNITS_K, 0, BLOCK_K,
        )  # fmt: skip
    else:
        read_rows(
            v_ptr, v_rows_ptr, halves_ptr, offset[:, None], slot[:, None], tl.where(inside, row, -1)[:, None],
            there[:, None], DV, BITS_V, GAIN_V, SCALE_V, START_V, UNITS_V, GROUP, BLOCK_V,
        )  # fmt: skip


@triton.jit
def recode(
    out_ptr, bytes_ptr, CHANNELS: tl.constexpr, FROM: tl.constexpr, FROM_GAIN: tl.constexpr, TO: tl.constexpr,
    TO_GAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Codes of one width rounded to those of a smaller one; the ratio of the gains is odd, so there are no ties."""
    WIDTH: tl.constexpr = CHANNELS * TO // 8
    FROM_WIDTH: tl.constexpr = CHANNELS * FROM // 8
    RATIO: tl.constexpr = TO_GAIN // FROM_GAIN
    slot = tl.arange(0, SLOT_COUNT)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    packed = tl.zeros([SLOT_COUNT, BLOCK], tl.int32)
    for part in tl.static_range(8 // TO):
        channel = part * WIDTH + column
        at = bytes_ptr + slot * FROM_WIDTH + channel % FROM_WIDTH
        code = tl.load(at, mask=column < WIDTH, other=0).to(tl.int32)
        code = (code >> (FROM * (channel // FROM_WIDTH))) & ((1 << FROM) - 1)
        packed |= ((code + RATIO // 2) // RATIO) << (part * TO)
    tl.store(out_ptr + slot * WIDTH + column, packed.to(tl.uint8), mask=column < WIDTH)


@triton.jit
def demote_kernel(
    out_words_ptr, out_bytes_ptr,  # int32 and uint8 views of the arena of the smaller pages
    words_ptr, bytes_ptr,
    out_offsets_ptr,  # [n_pages] in units of 16 bytes
    offsets_ptr,  # [n_pages]
    D: tl.constexpr, DV: tl.constexpr,
    FROM_K: tl.constexpr, FROM_GAIN_K: tl.constexpr, FROM_CODES_K: tl.constexpr,
    FROM_V: tl.constexpr, FROM_GAIN_V: tl.constexpr, FROM_CODES_V: tl.constexpr,
    TO_K: tl.constexpr, TO_GAIN_K: tl.constexpr, CODES_K: tl.constexpr,
    TO_V: tl.constexpr, TO_GAIN_V: tl.constexpr, CODES_V: tl.constexpr, BYTES: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    page = tl.program_id(0).to(tl.int64)
    out_offset = tl.load(out_offsets_ptr + page).to(tl.int64)
    offset = tl.load(offsets_ptr + page).to(tl.int64)
    out_words_ptr += out_offset * 4
    words_ptr += offset * 4
    out_bytes_ptr += out_offset * 16
    bytes_ptr += offset * 16
    if tl.program_id(1) == 0:
        word = tl.arange(0, 4)
        kinds = TO_K + (TO_GAIN_K << 8) + (TO_V << 16) + (TO_GAIN_V << 24)
        tl.store(out_words_ptr + word, tl.where(word == 1, kinds, tl.load(words_ptr + word)))
        copy(out_words_ptr, words_ptr, 4, CODES_K // 4, BLOCK)  # positions and every step: the same places
        if FROM_K == TO_K:
            copy(out_words_ptr + CODES_K // 4, words_ptr + FROM_CODES_K // 4, 0, (CODES_V - CODES_K) // 4, BLOCK)
        else:
            keys_ptr = out_bytes_ptr + CODES_K
            recode(keys_ptr, bytes_ptr + FROM_CODES_K, D, FROM_K, FROM_GAIN_K, TO_K, TO_GAIN_K, BLOCK_K)
    else:
        if FROM_V == TO_V:
            copy(out_words_ptr + CODES_V // 4, words_ptr + FROM_CODES_V // 4, 0, (BYTES - CODES_V) // 4, BLOCK)
        else:
            values_ptr = out_bytes_ptr + CODES_V
            recode(values_ptr, bytes_ptr + FROM_CODES_V, DV, FROM_V, FROM_GAIN_V, TO_V, TO_GAIN_V, BLOCK_V)


@on_its_device
def read(arena, form: PageFormat, offsets, slots, dtype: torch.dtype):
    """k [..., D], v [..., Dv], positions int64 [...], live bool [...] of slots anywhere; [n, SLOTS] of whole pages."""
    shape = (len(offsets), SLOTS) if slots is None else offsets.shape
    slots = None if slots is None else slots.contiguous()
    k, v = (torch.empty(*shape, size, dtype=dtype, device=arena.device) for size in (form.head_dim, form.value_dim))
    positions = torch.empty(shape, dtype=torch.int64, device=arena.device)
    live = torch.empty(shape, dtype=torch.bool, device=arena.device)
    rows = positions.numel()
    if rows:
        read_kernel[(triton.cdiv(rows, SLOTS), 2)](
            k, v, positions, live.view(torch.uint8), arena.view(torch.int32), arena.view(torch.float16),
            arena.view(form.element(form.bits_k)), arena.view(form.element(form.bits_v)),
            offsets.contiguous(), slots, rows, **facts(form), BLOCK_K=row_block(form.head_dim, form.bits_k),
            BLOCK_V=row_block(form.value_dim, form.bits_v), WHOLE=slots is None, num_warps=warps(form),
        )  # fmt: skip
    return k, v, positions, live


@on_its_device
def demote(arena, form: PageFormat, to: PageFormat, offsets, out, out_offsets) -> None:
    """See the public function; two programs a page."""
    if not len(offsets):
        return
    demote_kernel[(len(offsets), 2)](
        out.view(torch.int32), out, arena.view(torch.int32), arena, out_offsets.contiguous(), offsets.contiguous(),
        D=form.head_dim, DV=form.value_dim,
        FROM_K=form.bits_k, FROM_GAIN_K=GAINS.get(form.bits_k, 0), FROM_CODES_K=form.codes_k,
        FROM_V=form.bits_v, FROM_GAIN_V=GAINS.get(form.bits_v, 0), FROM_CODES_V=form.codes_v,
        TO_K=to.bits_k, TO_GAIN_K=GAINS.get(to.bits_k, 0), CODES_K=to.codes_k,
        TO_V=to.bits_v, TO_GAIN_V=GAINS.get(to.bits_v, 0), CODES_V=to.codes_v, BYTES=to.bytes,
        BLOCK_K=row_block(form.head_dim, to.bits_k), BLOCK_V=row_block(form.value_dim, to.bits_v), BLOCK=1024,
        num_warps=warps(form),
    )  # fmt: skip

"""What the kernels share: views of an arena, keys or values of a page as constants, rows with strides, and copies."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.pages.layout import ALIGN, GAINS, PageFormat

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
BLOCK = tl.constexpr(1024)


class Arena(NamedTuple):
    """The same bytes as several dtypes. Pages and their sections start at multiples of 16: one offset serves all."""

    words: Tensor  # int32
    halves: Tensor  # float16
    k: Tensor  # rows of keys, uint8 for codes
    v: Tensor


class Rows(NamedTuple):
    """Rows [n, m, channels] and their strides; channels lie side by side."""

    data: Tensor
    outer: int
    inner: int


class Side(NamedTuple):
    """Keys or values of a page, as constants. Elements are bytes for codes, else what a page stores."""

    slots: int  # of a page
    size: int  # channels
    bits: int
    gain: int  # 0 where the width is no code
    group: int  # channels that share a step of a slot; 0: a step a channel, of all slots
    row: int  # elements of a slot
    block: int  # columns of a slot's tile
    unit: int  # elements in 16 bytes
    start: int  # first element
    scale: int  # first step, in halves
    word: int  # first word
    end: int  # word behind the last
    groups: int  # of a slot, padded
    members: int  # of a group, padded


def sides(form: PageFormat) -> dict[str, Side]:
    """The constants K and V."""
    parts = {
        "K": (form.head_dim, form.bits_k, 0, form.scale_k, form.codes_k, form.codes_v),
        "V": (form.value_dim, form.bits_v, form.group, form.scale_v, form.codes_v, form.bytes),
    }
    found = {}
    for name, (size, bits, group, scale, start, end) in parts.items():
        item = form.element(bits).itemsize
        row = (end - start) // (form.slots * item)
        place = (ALIGN // item, start // item, scale // 2, start // 4, end // 4)
        padded = (triton.next_power_of_2(n) for n in (size // (group or size), group or size))
        found[name] = Side(
            form.slots, size, bits, GAINS.get(bits, 0), group, row, triton.next_power_of_2(row), *place, *padded
        )
    return found


def views(arena: Tensor, form: PageFormat, floats: bool = False) -> Arena:
    """floats: rows that are no codes in their own dtype, else as bit patterns."""
    kinds = [form.element(bits) for bits in (form.bits_k, form.bits_v)]
    if not floats:
        kinds = [kind if kind == torch.uint8 else INTEGERS[kind.itemsize] for kind in kinds]
    return Arena(arena.view(torch.int32), arena.view(torch.float16), *(arena.view(kind) for kind in kinds))


def integers(x: Tensor, form: PageFormat, bits: int) -> Rows:
    """x as the kernels read it: floats that will be coded, or the bit patterns that a page stores."""
    if bits not in GAINS:
        x = x.to(form.element(bits))
    if x.stride(-1) != 1:
        x = x.contiguous()
    return Rows(x if bits in GAINS else x.view(INTEGERS[x.itemsize]), *x.stride()[:2])


def warps(form: PageFormat) -> int:
    return 4 if max(form.head_dim, form.value_dim) <= 128 else 8


@triton.jit
def row_at(rows_ptr, offset, slot, side: tl.constexpr):
    """Where a slot's row begins."""
    return rows_ptr + offset * side.unit + side.start + slot * side.row


@triton.jit
def copy(out_ptr, in_ptr, START: tl.constexpr, END: tl.constexpr):
    """Words START to END."""
    for start in tl.static_range(START, END, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(out_ptr + at, tl.load(in_ptr + at, mask=at < END, other=0), mask=at < END)

"""What the kernels share: an arena as typed views of the same bytes, a page's places as constants, and copies.

Pages start at multiples of 16 bytes and so does every section of a page: one offset serves all views.
"""

import torch
import triton
import triton.language as tl

from workbench_kernels.pages.layout import ALIGN, GAINS, PageFormat

__all__ = ["INTEGERS", "copy", "copy_rows", "facts", "integers", "pattern", "row_block", "warps"]

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@triton.jit
def copy(out_ptr, in_ptr, START: tl.constexpr, END: tl.constexpr, BLOCK: tl.constexpr):
    """Words START to END."""
    for start in tl.static_range(START, END, BLOCK):
        at = start + tl.arange(0, BLOCK)
        tl.store(out_ptr + at, tl.load(in_ptr + at, mask=at < END, other=0), mask=at < END)


@triton.jit
def copy_rows(out_ptr, in_ptr, there, CHANNELS: tl.constexpr, BLOCK: tl.constexpr):
    """Rows at [entries] pointers, where `there` says so."""
    channel = tl.arange(0, BLOCK)[None, :]
    mask = there[:, None] & (channel < CHANNELS)
    tl.store(out_ptr[:, None] + channel, tl.load(in_ptr[:, None] + channel, mask=mask, other=0), mask=mask)


def facts(form: PageFormat) -> dict[str, int]:
    """Where keys and values lie, as constants: SCALE in bytes, START and UNITS (of 16 bytes) in elements."""
    out = {"D": form.head_dim, "DV": form.value_dim, "GROUP": form.group}
    for side, bits, scale, start in (
        ("K", form.bits_k, form.scale_k, form.codes_k),
        ("V", form.bits_v, form.scale_v, form.codes_v),
    ):
        size = 1 if bits in GAINS else form.stored(bits) // 8
        out |= {f"BITS_{side}": bits, f"GAIN_{side}": GAINS.get(bits, 0), f"SCALE_{side}": scale}
        out |= {f"START_{side}": start // size, f"UNITS_{side}": ALIGN // size}
    return out


def row_block(channels: int, bits: int) -> int:
    """Columns of a row's tile: its bytes where it holds codes, else its elements."""
    return triton.next_power_of_2(channels * bits // 8 if bits in GAINS else channels)


def warps(form: PageFormat) -> int:
    return 4 if max(form.head_dim, form.value_dim) <= 128 else 8


def integers(x: torch.Tensor, form: PageFormat, bits: int) -> torch.Tensor:
    """x as the kernels read it: floats that will be coded, or the bit patterns that a page stores."""
    if bits not in GAINS:
        x = x.to(form.element(bits))
    if x.stride(-1) != 1:
        x = x.contiguous()
    return x if bits in GAINS else x.view(INTEGERS[x.itemsize])


def pattern(arena: torch.Tensor, form: PageFormat, bits: int) -> torch.Tensor:
    return arena if bits in GAINS else arena.view(INTEGERS[form.stored(bits) // 8])

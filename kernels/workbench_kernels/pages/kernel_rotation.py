"""Moving rotated keys to other positions, in Triton: a program takes 32 keys of one head, or one page."""

import torch
import triton
import triton.language as tl

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.pages.kernel_common import copy, facts
from workbench_kernels.pages.layout import SLOTS, PageFormat

__all__ = ["rotate", "rotate_pages"]

SLOT_COUNT = tl.constexpr(SLOTS)


@triton.jit
def rotate_rows(
    out_ptr, in_ptr, out_stride, in_stride, delta, inv_freq_ptr, there, D: tl.constexpr, HALF: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Channels f and f + HALF turn by delta * inv_freq[f]; those from 2 HALF on are copied."""
    row = tl.arange(0, SLOT_COUNT)[:, None]
    pair = tl.arange(0, BLOCK)
    mask = there[:, None] & (pair < HALF)[None, :]
    frequency = tl.load(inv_freq_ptr + pair, mask=pair < HALF, other=0.0).to(tl.float32)
    angle = delta.to(tl.float32)[:, None] * frequency[None, :]
    cos, sin = tl.cos(angle), tl.sin(angle)
    x = tl.load(in_ptr + row * in_stride + pair[None, :], mask=mask, other=0.0).to(tl.float32)
    y = tl.load(in_ptr + row * in_stride + HALF + pair[None, :], mask=mask, other=0.0).to(tl.float32)
    at = out_ptr + row * out_stride + pair[None, :]
    tl.store(at, (x * cos - y * sin).to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(at + HALF, (y * cos + x * sin).to(out_ptr.dtype.element_ty), mask=mask)
    if 2 * HALF < D:
        rest = 2 * HALF + tl.arange(0, BLOCK_REST)
        mask = there[:, None] & (rest < D)[None, :]
        x = tl.load(in_ptr + row * in_stride + rest[None, :], mask=mask, other=0.0)
        tl.store(out_ptr + row * out_stride + rest[None, :], x, mask=mask)


@triton.jit
def rotate_kernel(
    out_ptr,  # [n_heads, n_keys, D]
    k_ptr,  # [n_heads, n_keys, D]
    origin_ptr, target_ptr,  # [n_heads, n_keys]
    inv_freq_ptr,  # [HALF]
    k_head_stride, k_row_stride, origin_stride, target_stride, n_keys,
    D: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0).to(tl.int64) * SLOT_COUNT
    key = start + tl.arange(0, SLOT_COUNT)
    there = key < n_keys
    origin = tl.load(origin_ptr + head * origin_stride + key, mask=there, other=0).to(tl.int64)
    delta = tl.load(target_ptr + head * target_stride + key, mask=there, other=0).to(tl.int64) - origin
    out_ptr += (head * n_keys + start) * D
    k_ptr += head * k_head_stride + start * k_row_stride
    rotate_rows(out_ptr, k_ptr, D, k_row_stride, delta, inv_freq_ptr, there, D, HALF, BLOCK, BLOCK_REST)


@triton.jit
def rotate_pages_kernel(
    out_words_ptr, out_rows_ptr,  # views of the arena written to: int32, and the elements of keys
    words_ptr, rows_ptr,  # views of the arena read
    out_offsets_ptr, offsets_ptr,  # [n_pages] in units of 16 bytes
    targets_ptr,  # [n_pages, SLOTS]
    inv_freq_ptr,  # [HALF]
    D: tl.constexpr, START: tl.constexpr, UNITS: tl.constexpr, KEY_WORD: tl.constexpr, VALUE_WORD: tl.constexpr,
    END_WORD: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, BLOCK_REST: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    page = tl.program_id(0).to(tl.int64)
    out_offset = tl.load(out_offsets_ptr + page).to(tl.int64)
    offset = tl.load(offsets_ptr + page).to(tl.int64)
    slot = tl.arange(0, SLOT_COUNT)
    words_ptr += offset * 4
    out_words_ptr += out_offset * 4
    delta = tl.load(targets_ptr + page * SLOT_COUNT + slot).to(tl.int64) - tl.load(words_ptr + 4 + slot).to(tl.int64)
    out_rows_ptr += out_offset * UNITS + START
    rows_ptr += offset * UNITS + START
    rotate_rows(out_rows_ptr, rows_ptr, D, D, delta, inv_freq_ptr, slot >= 0, D, HALF, BLOCK, BLOCK_REST)
    word = tl.arange(0, 4)
    tl.store(out_words_ptr + word, tl.load(words_ptr + word))
    tl.store(out_words_ptr + 4 + slot, tl.load(targets_ptr + page * SLOT_COUNT + slot).to(tl.int32))
    copy(out_words_ptr, words_ptr, 4 + SLOT_COUNT, KEY_WORD, BLOCK_SIZE)  # steps of coded values
    copy(out_words_ptr, words_ptr, VALUE_WORD, END_WORD, BLOCK_SIZE)


def shape(size: int, inv_freq: torch.Tensor) -> dict[str, int]:
    half = len(inv_freq)
    rest = triton.next_power_of_2(max(size - 2 * half, 1))
    return {"D": size, "HALF": half, "BLOCK": triton.next_power_of_2(half), "BLOCK_REST": rest}


@on_its_device
def rotate(k: torch.Tensor, origin: torch.Tensor, target: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """See the public function; grid (blocks of 32 keys, heads)."""
    k = k if k.stride(-1) == 1 else k.contiguous()
    heads, keys, size = k.shape
    origin, target = (t if t.stride(-1) == 1 else t.contiguous() for t in (origin, target))
    out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    if out.numel():
        strides = (t.stride(0) if t.ndim == 2 else 0 for t in (origin, target))
        rotate_kernel[(triton.cdiv(keys, SLOTS), heads)](
            out, k, origin, target, inv_freq.contiguous(), k.stride(0), k.stride(1), *strides, keys,
            **shape(size, inv_freq),
        )  # fmt: skip
    return out


@on_its_device
def rotate_pages(arena, form: PageFormat, offsets, targets, inv_freq, out, out_offsets) -> None:
    """See the public function; one program a page."""
    if len(offsets):
        known, element = facts(form), form.element(form.bits_k)
        rotate_pages_kernel[(len(offsets),)](
            out.view(torch.int32), out.view(element), arena.view(torch.int32), arena.view(element),
            out_offsets.contiguous(), offsets.contiguous(), targets.contiguous(), inv_freq.contiguous(),
            START=known["START_K"], UNITS=known["UNITS_K"], KEY_WORD=form.codes_k // 4, VALUE_WORD=form.codes_v // 4,
            END_WORD=form.bytes // 4, BLOCK_SIZE=1024, **shape(form.head_dim, inv_freq),
        )  # fmt: skip

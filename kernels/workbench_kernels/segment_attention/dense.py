"""Attention over dense keys: rows in flight under their mask, or the rows of many sequences over one shared prefix.

The prefix is read once per tile of rows, whichever sequences they belong to; long segments are split along the keys
and merged. Staged rows carry a causal or a tree mask, the latter as one bit a pair.
"""

import torch
import triton
import triton.language as tl

from workbench_kernels.segment_attention.merging import launch_splits
from workbench_kernels.segment_attention.scores import (
    load_queries,
    softmax_step,
    staged_visible,
    store_output,
    tile_rows,
)
from workbench_kernels.segment_attention.tiles import STAGES, split_count, tile

__all__ = ["attend_dense", "mask_arguments"]


@triton.jit
def dense_attention_fwd_kernel(
    out_ptr,  # [splits, R, H, Dv] float32
    lse_ptr,  # [splits, R, H] float32
    q_ptr,  # [R, H, D]
    k_ptr,  # [Hk, n, D]
    v_ptr,  # [Hk, n, Dv]
    words_ptr,  # [R, ceil(n / 32)] int32 or None
    q_row_stride,
    q_head_stride,
    k_head_stride,
    k_row_stride,
    v_head_stride,
    v_row_stride,
    words_row_stride,
    n_rows,
    n_keys,
    scale,
    MASK: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    split, kv_head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, head, inside = tile_rows(n_rows, GROUP_SIZE, BLOCK_ROWS, BLOCK_HEADS)
    q = load_queries(q_ptr, row, head, inside, q_row_stride, q_head_stride, HEAD_DIM, BLOCK_D)
    key_channels = tl.arange(0, BLOCK_D)[None, :]
    value_channels = tl.arange(0, BLOCK_V)[None, :]
    share = tl.cdiv(tl.cdiv(n_keys, BLOCK_KEYS), tl.num_programs(1)) * BLOCK_KEYS
    last = tl.minimum((split + 1) * share, n_keys)

    best = tl.full((BLOCK_ROWS * BLOCK_HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS * BLOCK_HEADS,), tl.float32)
    acc = tl.zeros((BLOCK_ROWS * BLOCK_HEADS, BLOCK_V), tl.float32)
    for start in range(split * share, last, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        held = (keys < n_keys)[:, None]
        k_rows = k_ptr + kv_head * k_head_stride + keys.to(tl.int64)[:, None] * k_row_stride
        v_rows = v_ptr + kv_head * v_head_stride + keys.to(tl.int64)[:, None] * v_row_stride
        k = tl.load(k_rows + key_channels, mask=held & (key_channels < HEAD_DIM), other=0).to(tl.float32)
        v = tl.load(v_rows + value_channels, mask=held & (value_channels < VALUE_DIM), other=0).to(tl.float32)
        seen = staged_visible(words_ptr, row, keys, inside, n_rows, n_keys, words_row_stride, start, MASK)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where(seen, scores, float("-inf"))
        best, total, acc = softmax_step(best, total, acc, scores, v, PRECISION)

    store_output(out_ptr, lse_ptr, best, total, acc, row, head, inside, n_rows, GROUP_SIZE, VALUE_DIM, BLOCK_V)


def mask_arguments(mask: torch.Tensor | str | None) -> tuple[torch.Tensor | None, int, str]:
    """words_ptr, words_row_stride and MASK of a mask: None, "causal", or int32 words."""
    if mask is None or isinstance(mask, str):
        return None, 0, mask or "none"
    mask = mask.contiguous()
    return mask, mask.stride(0), "words"


def attend_dense(q, k, v, scale, mask=None, splits=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch over q [R, H, D], k [Hk, n, D], v [Hk, n, Dv]; mask as in `mask_arguments`."""
    q, k, v = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (q, k, v))
    (rows, _, head_dim), (kv_heads, n, value_dim) = q.shape, v.shape
    words, words_row_stride, kind = mask_arguments(mask)
    plan = tile(q, kv_heads, head_dim, value_dim)
    block_keys = 32 if kind == "words" or max(head_dim, value_dim) * q.itemsize > 256 else 64
    splits = splits or split_count(-(-n // block_keys), plan.blocks * kv_heads, q.device)
    return launch_splits(
        dense_attention_fwd_kernel, plan, splits, kv_heads, value_dim, q, k, v, words, *q.stride()[:2],
        *k.stride()[:2], *v.stride()[:2], words_row_stride, rows, n, scale, MASK=kind, BLOCK_KEYS=block_keys,
        num_stages=STAGES,
    )  # fmt: skip

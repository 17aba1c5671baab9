"""Attention over dense keys: rows in flight under their mask, or the rows of many sequences over one shared prefix.

The prefix is read once per tile of rows, whichever sequences they belong to; long segments are split along the keys
and merged. Staged rows carry a causal or a tree mask, the latter as one bit a pair.
"""

import torch
import triton
import triton.language as tl

from workbench_kernels.segment_attention.merging import merge_stacked
from workbench_kernels.segment_attention.scores import load_queries, staged_visible, tile_rows
from workbench_kernels.segment_attention.tiles import split_count, tile

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
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        # -inf minus -inf is NaN: a row that has seen nothing yet has no maximum
        finite = tl.where(new_best == float("-inf"), 0.0, new_best)
        decay = tl.exp(best - finite)
        p = tl.exp(scores - finite[:, None])
        total = total * decay + tl.sum(p, axis=1)
        acc = acc * decay[:, None] + tl.dot(p, v, input_precision=PRECISION)
        best = new_best

    seen_any = total > 0
    total = tl.where(seen_any, total, 1.0)
    heads = tl.num_programs(2) * GROUP_SIZE
    place = (split.to(tl.int64) * n_rows + row) * heads + head
    tl.store(lse_ptr + place, tl.where(seen_any, best + tl.log(total), float("-inf")), mask=inside)
    out = acc / total[:, None]
    stored = inside[:, None] & (value_channels < VALUE_DIM)
    tl.store(out_ptr + place[:, None] * VALUE_DIM + value_channels, out, mask=stored)


def mask_arguments(mask: torch.Tensor | str | None) -> tuple[torch.Tensor | None, int, str]:
    """words_ptr, words_row_stride and MASK of a mask: None, "causal", or int32 words."""
    if mask is None or isinstance(mask, str):
        return None, 0, mask or "none"
    mask = mask.contiguous()
    return mask, mask.stride(0), "words"


def attend_dense(q, k, v, scale, mask=None, splits=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch over q [R, H, D], k [Hk, n, D], v [Hk, n, Dv]; mask as in `mask_arguments`."""
    q, k, v = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (q, k, v))
    (rows, heads, head_dim), (kv_heads, n, value_dim) = q.shape, v.shape
    words, words_row_stride, kind = mask_arguments(mask)
    plan = tile(q, kv_heads, head_dim, value_dim)
    block_keys = 32 if kind == "words" or max(head_dim, value_dim) * q.itemsize > 256 else 64
    splits = splits or split_count(-(-n // block_keys), plan.blocks * kv_heads, q.device)
    out = torch.empty(splits, rows, heads, value_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(splits, rows, heads, dtype=torch.float32, device=q.device)
    if rows:
        dense_attention_fwd_kernel[(plan.blocks, splits, kv_heads)](
            out,
            lse,
            q,
            k,
            v,
            words,
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            v.stride(0),
            v.stride(1),
            words_row_stride,
            rows,
            n,
            scale,
            MASK=kind,
            BLOCK_KEYS=block_keys,
            **plan.constants,
            num_warps=plan.num_warps,
            num_stages=2,  # a third stage of float32 tiles would not fit in shared memory
        )
    return (out[0], lse[0]) if splits == 1 else merge_stacked(out, lse)

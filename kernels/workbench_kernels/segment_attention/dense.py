"""Attention over dense keys, and its statistics: rows in flight, a prefix that sequences share, or a run's live slots.

The first `base` keys are seen by every row. The staged ones behind them carry a causal or a tree mask, the latter as
one bit a pair. `base` may be a tensor, so that a captured CUDA graph serves every length. Then each program finds its
share of the keys by itself, and empty shares merge to nothing. Keys are read once per tile of rows, whichever sequences
these belong to; long segments are split along the keys and merged.
"""

import torch
import triton
import triton.language as tl

from workbench_kernels.segment_attention import scores as ops
from workbench_kernels.segment_attention.merging import launch
from workbench_kernels.segment_attention.tiles import STAGES, split_count, tile

__all__ = ["attend_dense"]


@triton.jit
def dense_attention_kernel(
    out_ptr,  # [splits, R, H, Dv] float32; for REDUCE the mass, see store_mass
    lse_ptr,  # [splits, R, H] float32; for REDUCE the entropy
    merged_ptr,  # [R, H] float32, the merged log-sum-exp; None without REDUCE
    q_ptr,  # [R, H, D]
    k_ptr,  # [Hk, n, D]
    v_ptr,  # [Hk, n, Dv]; not read for REDUCE
    base_ptr,  # [1] int32, or None for 0
    words_ptr,  # [R, ceil(n_staged / 32)] int32, or None
    q_row_stride, q_head_stride, k_head_stride, k_row_stride, v_head_stride, v_row_stride, words_row_stride, n_rows,
    n_staged, scale, MASK: tl.constexpr,
    REDUCE: tl.constexpr,  # "none" for attention
    GROUP_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_KEYS: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    split, kv_head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, head, inside = ops.tile_rows(n_rows, GROUP_SIZE, BLOCK_ROWS, BLOCK_HEADS)
    q = ops.load_queries(q_ptr, row, head, inside, q_row_stride, q_head_stride, HEAD_DIM, BLOCK_D)
    key_channels = tl.arange(0, BLOCK_D)[None, :]
    value_channels = tl.arange(0, BLOCK_V)[None, :]
    if base_ptr is None:
        base = 0
    else:
        base = tl.load(base_ptr)
    live = base + n_staged
    share = tl.cdiv(tl.cdiv(live, BLOCK_KEYS), tl.num_programs(1)) * BLOCK_KEYS
    last = tl.minimum((split + 1) * share, live)

    best = tl.full((BLOCK_ROWS * BLOCK_HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS * BLOCK_HEADS,), tl.float32)  # for REDUCE the entropy
    acc = tl.zeros((BLOCK_ROWS * BLOCK_HEADS, BLOCK_V), tl.float32)
    if REDUCE != "none":
        merged = ops.load_merged(merged_ptr, row, head, inside, GROUP_SIZE)
    for start in range(split * share, last, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        held = keys < live
        k_rows = k_ptr + kv_head * k_head_stride + keys.to(tl.int64)[:, None] * k_row_stride
        k = tl.load(k_rows + key_channels, mask=held[:, None] & (key_channels < HEAD_DIM), other=0).to(tl.float32)
        seen = ops.staged_visible(words_ptr, row, keys, inside, base, n_rows, n_staged, words_row_stride, MASK)
        scores = tl.where(seen, tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, float("-inf"))
        if REDUCE == "none":
            v_rows = v_ptr + kv_head * v_head_stride + keys.to(tl.int64)[:, None] * v_row_stride
            v = tl.load(v_rows + value_channels, mask=held[:, None] & (value_channels < VALUE_DIM), other=0)
            best, total, acc = ops.softmax_step(best, total, acc, scores, v.to(tl.float32), PRECISION)
        else:
            p, entropy = ops.probabilities(scores, merged)
            total += entropy
            ops.store_mass(
                out_ptr, p, keys, held, n_rows, live, REDUCE, GROUP_SIZE, BLOCK_ROWS, BLOCK_HEADS, BLOCK_KEYS
            )

    ops.store_output(
        out_ptr, lse_ptr, best, total, acc, row, head, inside, n_rows, REDUCE, GROUP_SIZE, VALUE_DIM, BLOCK_V
    )


def attend_dense(q, k, v, scale, mask=None, splits=None, base=None, staged=None, **mass):
    """Launch over q [R, H, D], k [Hk, n, D], v [Hk, n, Dv]. Returns out [R, H, Dv] and lse [R, H] in float32.

    mask: None, "causal", or int32 words, of the `staged` (None: all) keys behind the first `base` (None, or int32 [1]).
    splits: into how many parts the keys are cut. mass: what `launch` takes for mass and entropy in place of the output.
    """
    q, k, v = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (q, k, v))
    (rows, _, head_dim), (kv_heads, n, value_dim) = q.shape, v.shape
    words = mask.contiguous() if isinstance(mask, torch.Tensor) else None
    kind = mask or "none" if words is None else "words"
    plan = tile(q, kv_heads, head_dim, value_dim)
    block_keys = 32 if max(head_dim, value_dim) * q.itemsize > 256 else 64
    splits = splits or split_count(-(-n // block_keys), plan.blocks * kv_heads, q.device)
    return launch(
        dense_attention_kernel, plan, splits, kv_heads, q, k, v, base, words, *q.stride()[:2], *k.stride()[:2],
        *v.stride()[:2], 0 if words is None else words.stride(0), rows, n if staged is None else staged, scale,
        **mass, MASK=kind, BLOCK_KEYS=block_keys, num_stages=STAGES,
    )  # fmt: skip

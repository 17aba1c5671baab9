"""Attention over the live part of a preallocated run whose length is known to the device alone.

A run holds `capacity` slots. The first `base` of them are committed and seen by every row; `staged` rows in flight
follow, seen as one bit a pair says; whatever lies behind is neither read nor paid for. `base` is a tensor, so that a
captured CUDA graph serves every length; grid and splits follow from the capacity, each program finds its share of the
live keys by itself, and shares that turn out empty merge to nothing.
"""

import torch
import triton
import triton.language as tl

from workbench_kernels.segment_attention.checks import check_dense
from workbench_kernels.segment_attention.merging import launch_splits
from workbench_kernels.segment_attention.scores import load_queries, softmax_step, store_output, tile_rows
from workbench_kernels.segment_attention.tiles import STAGES, split_count, tile

__all__ = ["attend_live"]


@triton.jit
def live_attention_fwd_kernel(
    out_ptr,  # [splits, R, H, Dv] float32
    lse_ptr,  # [splits, R, H] float32
    q_ptr,  # [R, H, D]
    k_ptr,  # [Hk, capacity, D]
    v_ptr,  # [Hk, capacity, Dv]
    base_ptr,  # [1] int32
    words_ptr,  # [R, ceil(n_staged / 32)] int32
    q_row_stride,
    q_head_stride,
    k_head_stride,
    k_row_stride,
    v_head_stride,
    v_row_stride,
    words_row_stride,
    n_rows,
    n_staged,
    scale,
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
    base = tl.load(base_ptr)
    live = base + n_staged
    share = tl.cdiv(tl.cdiv(live, BLOCK_KEYS), tl.num_programs(1)) * BLOCK_KEYS
    last = tl.minimum((split + 1) * share, live)

    best = tl.full((BLOCK_ROWS * BLOCK_HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS * BLOCK_HEADS,), tl.float32)
    acc = tl.zeros((BLOCK_ROWS * BLOCK_HEADS, BLOCK_V), tl.float32)
    for start in range(split * share, last, BLOCK_KEYS):
        keys = start + tl.arange(0, BLOCK_KEYS)
        held = (keys < live)[:, None]
        k_rows = k_ptr + kv_head * k_head_stride + keys.to(tl.int64)[:, None] * k_row_stride
        v_rows = v_ptr + kv_head * v_head_stride + keys.to(tl.int64)[:, None] * v_row_stride
        k = tl.load(k_rows + key_channels, mask=held & (key_channels < HEAD_DIM), other=0).to(tl.float32)
        v = tl.load(v_rows + value_channels, mask=held & (value_channels < VALUE_DIM), other=0).to(tl.float32)
        # staged keys ask their bit; committed ones, and tiles without staged keys, load nothing here
        flying = (keys >= base) & (keys < live)
        bit = tl.where(flying, keys - base, 0)
        words = words_ptr + row[:, None] * words_row_stride + (bit // 32)[None, :]
        word = tl.load(words, mask=inside[:, None] & flying[None, :], other=0)
        seen = (keys < base)[None, :] | (flying[None, :] & (((word >> (bit % 32)[None, :]) & 1) == 1))
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where(seen, scores, float("-inf"))
        best, total, acc = softmax_step(best, total, acc, scores, v, PRECISION)

    store_output(out_ptr, lse_ptr, best, total, acc, row, head, inside, n_rows, GROUP_SIZE, VALUE_DIM, BLOCK_V)


def attend_live(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    base: torch.Tensor,
    words: torch.Tensor,
    staged: int,
    scale: float,
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of R rows over the live slots of a run, in Triton, without asking the device how many there are.

    q: [R, H, D]; k: [Hk, capacity, D]; v: [Hk, capacity, Dv], strided views allowed. base: int32 [1] on the device,
    slots every row sees; base + staged <= capacity is the caller's to keep. words: int32 [R, ceil(staged / 32)], what
    each row sees of the `staged` slots behind them (`mask_words`, `ancestor_words`). splits: into how many parts the
    keys are cut (None: by the capacity). Returns out [R, H, Dv] and lse [R, H] in float32; out 0 and lse -inf for a row
    that sees nothing.

    `choose(q, v)` tells beforehand whether Triton can run it. Raises ValueError where shapes, dtypes or devices do not
    fit.
    """
    check_dense("attend_live", q, k, v)
    rows, _, head_dim = q.shape
    kv_heads, capacity, value_dim = v.shape
    if not 0 <= staged <= capacity:
        raise ValueError(f"attend_live: expected staged rows in [0, {capacity}], got {staged}")
    for name, tensor, shape in (("base", base, (1,)), ("words", words, (rows, -(-staged // 32)))):
        if tensor.shape != shape or tensor.dtype != torch.int32 or tensor.device != q.device:
            raise ValueError(
                f"attend_live: expected int32 {name} {list(shape)} on {q.device}, "
                f"got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )
    q, k, v = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (q, k, v))
    words = words.contiguous()
    plan = tile(q, kv_heads, head_dim, value_dim)
    block_keys = 32 if max(head_dim, value_dim) * q.itemsize > 256 else 64
    splits = splits or split_count(-(-capacity // block_keys), plan.blocks * kv_heads, q.device)
    return launch_splits(
        live_attention_fwd_kernel, plan, splits, kv_heads, value_dim, q, k, v, base, words, *q.stride()[:2],
        *k.stride()[:2], *v.stride()[:2], words.stride(0), rows, staged, scale, BLOCK_KEYS=block_keys,
        num_stages=STAGES,
    )  # fmt: skip

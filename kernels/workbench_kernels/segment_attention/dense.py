"""Attention over dense keys, and its statistics: rows in flight, a prefix that sequences share, or a run's live slots.

The first `base` keys are seen by every row. The staged ones behind them carry a causal or a tree mask, the latter as
one bit a pair. `base` may be a tensor, so that a captured CUDA graph serves every length. Then each program finds its
share of the keys by itself, and empty shares merge to nothing. Keys are read once per tile of rows, whichever sequences
these belong to; long segments are split along the keys and merged.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.segment_attention import scores as ops
from workbench_kernels.segment_attention.merging import launch
from workbench_kernels.segment_attention.tiles import STAGES, plan


class Keys(NamedTuple):
    """A segment: keys and values, the strides of their heads and rows, and which of them a row sees."""

    k: Tensor  # [Hk, n, D]
    v: Tensor  # [Hk, n, Dv]; not read for the mass
    k_head_stride: int
    k_row_stride: int
    v_head_stride: int
    v_row_stride: int
    base: Tensor | None  # [1] int32; None for 0
    words: Tensor | None  # [R, ceil(n_staged / 32)] int32
    n_staged: int


@triton.jit
def dense_attention_kernel(
    results, queries, segment, scale, MASK: tl.constexpr, MASS: tl.constexpr, KEYS: tl.constexpr, TILE: tl.constexpr
):
    """results: `Results`; queries: `Queries`; segment: `Keys`; MASS: the mass in place of the output."""
    split, kv_head, n_rows = tl.program_id(1), tl.program_id(2).to(tl.int64), queries.n_rows
    row, head, inside, q, merged, best, total, acc = ops.begin(results, queries, MASS, TILE)
    key_channels = tl.arange(0, TILE.block_d)[None, :]
    value_channels = tl.arange(0, TILE.block_v)[None, :]
    if segment.base is None:
        base = 0
    else:
        base = tl.load(segment.base)
    live = base + segment.n_staged
    share = tl.cdiv(tl.cdiv(live, KEYS), tl.num_programs(1)) * KEYS
    last = tl.minimum((split + 1) * share, live)

    for start in range(split * share, last, KEYS):
        keys = start + tl.arange(0, KEYS)
        held = keys < live
        k_rows = segment.k + kv_head * segment.k_head_stride + keys.to(tl.int64)[:, None] * segment.k_row_stride
        k = tl.load(k_rows + key_channels, mask=held[:, None] & (key_channels < TILE.head_dim), other=0).to(tl.float32)
        seen = ops.staged_visible(segment.words, row, keys, inside, base, n_rows, segment.n_staged, MASK)
        scores = tl.where(seen, tl.dot(q, tl.trans(k), input_precision=TILE.precision) * scale, float("-inf"))
        if MASS:
            p, entropy = ops.probabilities(scores, merged)
            total += entropy
            ops.store_mass(results.out, p, keys, held, n_rows, live, TILE)
        else:
            v_rows = segment.v + kv_head * segment.v_head_stride + keys.to(tl.int64)[:, None] * segment.v_row_stride
            v = tl.load(v_rows + value_channels, mask=held[:, None] & (value_channels < TILE.value_dim), other=0)
            best, total, acc = ops.softmax_step(best, total, acc, scores, v.to(tl.float32), TILE)
    ops.store_output(results, best, total, acc, row, head, inside, n_rows, MASS, TILE)


def attend_dense(q, k, v, scale, mask=None, splits=None, base=None, staged=None, **mass):
    """Launch over q [R, H, D], k [Hk, n, D], v [Hk, n, Dv]. Returns out [R, H, Dv] and lse [R, H] in float32.

    mask: None, "causal", or int32 words, of the `staged` (None: all) keys behind the first `base` (None, or int32 [1]).
    splits: into how many parts the keys are cut. mass: what `launch` takes for mass and entropy in place of the output.
    """
    q, k, v = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (q, k, v))
    head_dim, (kv_heads, n, value_dim) = q.shape[2], v.shape
    words = mask.contiguous() if isinstance(mask, Tensor) else None
    planned = plan(q, kv_heads, head_dim, value_dim)
    block_keys = max(16, min(64, 16384 // (max(planned.tile.block_d, planned.tile.block_v) * q.itemsize)))
    segment = Keys(k, v, *k.stride()[:2], *v.stride()[:2], base, words, n if staged is None else staged)
    constants = {"MASK": mask or "none" if words is None else "words", "KEYS": block_keys, "num_stages": STAGES}
    steps = -(-n // block_keys)
    return launch(
        dense_attention_kernel, planned, steps, kv_heads, q, segment, scale, splits=splits, **constants, **mass
    )

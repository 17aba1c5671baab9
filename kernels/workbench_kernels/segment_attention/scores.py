"""What attention over dense keys and over pages share inside a kernel.

Attention runs a softmax over the keys. Its statistics need no matrix either: once the merged log-sum-exp is known, a
second pass computes the scores again tile by tile, p = exp(score - lse), and only sums leave the program. These are the
mass of each slot over the tile's rows and heads, and each row's share of the entropy, Σ -p log p.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


class Queries(NamedTuple):
    """data [R, H, D] and its strides; the number of rows, R."""

    data: Tensor
    row_stride: int
    head_stride: int
    n_rows: int


class Results(NamedTuple):
    """What a launch writes, in float32, and the merged log-sum-exp that its statistics need."""

    out: Tensor  # [splits, R, H, Dv]; of statistics the mass, see `store_mass`
    lse: Tensor  # [splits, R, H]; of statistics the entropy
    merged: Tensor | None  # [R, H]; None for attention


@triton.jit
def begin(results, queries, MASS: tl.constexpr, tile: tl.constexpr):
    """Query row, query head and validity of each tile row; queries float32 [tile rows, block_d]; the merged log-sum-exp
    of each row, -inf outside; and the running maximum, sum and weighted values; for the mass the sum is the entropy.

    Program axis 0 is the row block, axis 2 the KV head.
    """
    ROWS: tl.constexpr = tile.rows * tile.heads
    BLOCK_V: tl.constexpr = tile.block_v
    within = tl.arange(0, ROWS)
    row = (tl.program_id(0) * tile.rows + within // tile.heads).to(tl.int64)
    member = within % tile.heads
    head = tl.program_id(2) * tile.group + member
    inside = (row < queries.n_rows) & (member < tile.group)
    channels = tl.arange(0, tile.block_d)[None, :]
    pointers = queries.data + (row * queries.row_stride + head * queries.head_stride)[:, None] + channels
    q = tl.load(pointers, mask=inside[:, None] & (channels < tile.head_dim), other=0).to(tl.float32)
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    merged = best
    if MASS:
        place = row * (tl.num_programs(2) * tile.group) + head
        merged = tl.load(results.merged + place, mask=inside, other=float("-inf"))
    return row, head, inside, q, merged, best, tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, BLOCK_V), tl.float32)


@triton.jit
def staged_visible(words_ptr, row, keys, inside, base, n_rows, n_staged, MASK: tl.constexpr):
    """bool [tile rows, keys]. Every row sees the first `base` keys, and of the n_staged behind them what MASK says:
    "none" all, "causal" what comes before it (the rows are the last of them), "words" those whose bit is set."""
    seen = (keys < base + n_staged)[None, :]
    if MASK == "causal":
        seen = seen & (keys[None, :] - base <= row[:, None] + (n_staged - n_rows))
    if MASK == "words":
        staged = (keys >= base) & (keys < base + n_staged)
        bit = tl.where(staged, keys - base, 0)
        words = words_ptr + row[:, None] * tl.cdiv(n_staged, 32) + (bit // 32)[None, :]
        word = tl.load(words, mask=inside[:, None] & staged[None, :], other=0)
        seen = (keys < base)[None, :] | (staged[None, :] & (((word >> (bit % 32)[None, :]) & 1) == 1))
    return seen


@triton.jit
def softmax_step(best, total, acc, scores, values, tile: tl.constexpr):
    """The running maximum and sum [tile rows] and weighted values [tile rows, BLOCK_V] with one more tile of keys."""
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    # -inf minus -inf is NaN: a row that has seen nothing yet has no maximum
    finite = tl.where(new_best == float("-inf"), 0.0, new_best)
    decay = tl.exp(best - finite)
    p = tl.exp(scores - finite[:, None])
    total = total * decay + tl.sum(p, axis=1)
    acc = acc * decay[:, None] + tl.dot(p, values, input_precision=tile.precision)
    return new_best, total, acc


@triton.jit
def store_output(results, best, total, acc, row, head, inside, n_rows, MASS: tl.constexpr, tile: tl.constexpr):
    """Write a program's output and log-sum-exp: 0 and -inf for a row that has seen nothing. Axis 1 is the split.
    For MASS write its entropies, `total`, instead."""
    heads = tl.num_programs(2) * tile.group
    place = (tl.program_id(1).to(tl.int64) * n_rows + row) * heads + head
    if MASS:
        tl.store(results.lse + place, total, mask=inside)
    else:
        seen = total > 0
        total = tl.where(seen, total, 1.0)
        tl.store(results.lse + place, tl.where(seen, best + tl.log(total), float("-inf")), mask=inside)
        channels = tl.arange(0, tile.block_v)[None, :]
        stored = inside[:, None] & (channels < tile.value_dim)
        tl.store(results.out + place[:, None] * tile.value_dim + channels, acc / total[:, None], mask=stored)


@triton.jit
def probabilities(scores, lse):
    """p [tile rows, n] and Σ -p log p over the n [tile rows]; rows that see nothing have lse -inf and p 0."""
    seen = (scores > float("-inf")) & (lse > float("-inf"))[:, None]
    log_p = tl.where(seen, scores, 0.0) - tl.where(lse > float("-inf"), lse, 0.0)[:, None]
    p = tl.where(seen, tl.exp(log_p), 0.0)
    return p, -tl.sum(p * log_p, axis=1)


@triton.jit
def store_mass(mass_ptr, p, keys, held, n_rows, n_places, tile: tl.constexpr):
    """p [tile rows, keys] with the heads of a group added; keys: their places, of which `held` exist.

    mass: [R, Hk, n_places].
    """
    ROWS: tl.constexpr = tile.rows
    HEADS: tl.constexpr = tile.heads
    by_row = tl.reshape(p, (ROWS, HEADS, p.shape[1]))
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    place = (rows * tl.num_programs(2) + tl.program_id(2)) * n_places + keys[None, :]
    tl.store(mass_ptr + place, tl.sum(by_row, axis=1), mask=(rows < n_rows) & held[None, :])

"""What attention over dense keys and over pages share inside a kernel.

Attention runs a softmax over the keys. Its statistics need no matrix either: once the merged log-sum-exp is known, a
second pass computes the scores again tile by tile, p = exp(score - lse), and only sums leave the program. These are the
mass of each slot over the tile's rows and heads, and each row's share of the entropy, Σ -p log p.
"""

import triton
import triton.language as tl

from workbench_kernels.segment_attention.paged_tiles import SLOTS, load_slots

__all__ = [
    "load_merged",
    "load_queries",
    "page_scores",
    "probabilities",
    "softmax_step",
    "staged_visible",
    "store_mass",
    "store_output",
    "tile_rows",
]


@triton.jit
def tile_rows(n_rows, GROUP_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_HEADS: tl.constexpr):
    """Query row, query head and validity of each tile row; program axis 0 is the row block, axis 2 the KV head."""
    within = tl.arange(0, BLOCK_ROWS * BLOCK_HEADS)
    row = tl.program_id(0) * BLOCK_ROWS + within // BLOCK_HEADS
    member = within % BLOCK_HEADS
    head = tl.program_id(2) * GROUP_SIZE + member
    return row.to(tl.int64), head, (row < n_rows) & (member < GROUP_SIZE)


@triton.jit
def load_queries(q_ptr, row, head, inside, q_row_stride, q_head_stride, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """float32 [tile rows, BLOCK_D]."""
    channels = tl.arange(0, BLOCK_D)[None, :]
    pointers = q_ptr + (row * q_row_stride + head * q_head_stride)[:, None] + channels
    return tl.load(pointers, mask=inside[:, None] & (channels < HEAD_DIM), other=0).to(tl.float32)


@triton.jit
def page_scores(
    q, keys, page, live, entry, bias_ptr, numbers_ptr, row_positions, scale, window, PRECISION: tl.constexpr
):
    """Scores [tile rows, SLOTS], -inf where a row may not see a slot, and the slots that are live [SLOTS]."""
    slots = tl.arange(0, SLOTS)
    alive = ((live >> slots) & 1) == 1
    keys = tl.where(alive[:, None], keys, 0.0)  # what a dead slot holds may be anything
    scores = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale
    if bias_ptr is not None:
        number = tl.load(numbers_ptr + entry).to(tl.int64)
        scores += tl.load(bias_ptr + number * SLOTS + slots).to(tl.float32)[None, :]
    seen = alive[None, :]
    if row_positions is not None:
        seen = seen & (row_positions[:, None] - load_slots(page)[None, :] < window)
    return tl.where(seen, scores, float("-inf")), alive


@triton.jit
def staged_visible(words_ptr, row, keys, inside, base, n_rows, n_staged, words_row_stride, MASK: tl.constexpr):
    """bool [tile rows, keys]. Every row sees the first `base` keys, and of the n_staged behind them what MASK says:
    "none" all, "causal" what comes before it (the rows are the last of them), "words" those whose bit is set."""
    seen = (keys < base + n_staged)[None, :]
    if MASK == "causal":
        seen = seen & (keys[None, :] - base <= row[:, None] + (n_staged - n_rows))
    if MASK == "words":
        staged = (keys >= base) & (keys < base + n_staged)
        bit = tl.where(staged, keys - base, 0)
        words = words_ptr + row[:, None] * words_row_stride + (bit // 32)[None, :]
        word = tl.load(words, mask=inside[:, None] & staged[None, :], other=0)
        seen = (keys < base)[None, :] | (staged[None, :] & (((word >> (bit % 32)[None, :]) & 1) == 1))
    return seen


@triton.jit
def softmax_step(best, total, acc, scores, values, PRECISION: tl.constexpr):
    """The running maximum and sum [tile rows] and weighted values [tile rows, BLOCK_V] with one more tile of keys."""
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    # -inf minus -inf is NaN: a row that has seen nothing yet has no maximum
    finite = tl.where(new_best == float("-inf"), 0.0, new_best)
    decay = tl.exp(best - finite)
    p = tl.exp(scores - finite[:, None])
    total = total * decay + tl.sum(p, axis=1)
    acc = acc * decay[:, None] + tl.dot(p, values, input_precision=PRECISION)
    return new_best, total, acc


@triton.jit
def store_output(
    out_ptr,  # [splits, R, H, Dv] float32
    lse_ptr,  # [splits, R, H] float32
    best, total, acc, row, head, inside, n_rows, REDUCE: tl.constexpr, GROUP_SIZE: tl.constexpr,
    VALUE_DIM: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write a program's output and log-sum-exp: 0 and -inf for a row that has seen nothing. Axis 1 is the split.
    For REDUCE write its entropies, `total`, instead."""
    heads = tl.num_programs(2) * GROUP_SIZE
    place = (tl.program_id(1).to(tl.int64) * n_rows + row) * heads + head
    if REDUCE != "none":
        tl.store(lse_ptr + place, total, mask=inside)
    else:
        seen = total > 0
        total = tl.where(seen, total, 1.0)
        tl.store(lse_ptr + place, tl.where(seen, best + tl.log(total), float("-inf")), mask=inside)
        channels = tl.arange(0, BLOCK_V)[None, :]
        stored = inside[:, None] & (channels < VALUE_DIM)
        tl.store(out_ptr + place[:, None] * VALUE_DIM + channels, acc / total[:, None], mask=stored)


@triton.jit
def load_merged(merged_ptr, row, head, inside, GROUP_SIZE: tl.constexpr):
    """The merged log-sum-exp of each tile row; -inf outside."""
    heads = tl.num_programs(2) * GROUP_SIZE
    return tl.load(merged_ptr + row * heads + head, mask=inside, other=float("-inf"))


@triton.jit
def probabilities(scores, lse):
    """p [tile rows, n] and Σ -p log p over the n [tile rows]; rows that see nothing have lse -inf and p 0."""
    seen = (scores > float("-inf")) & (lse > float("-inf"))[:, None]
    log_p = tl.where(seen, scores, 0.0) - tl.where(lse > float("-inf"), lse, 0.0)[:, None]
    p = tl.where(seen, tl.exp(log_p), 0.0)
    return p, -tl.sum(p * log_p, axis=1)


@triton.jit
def store_mass(
    mass_ptr,  # [blocks, Hk, n] for "sum", [blocks, Hk * G, n] for "max", [R, Hk, n] for "row"
    p,  # [tile rows, keys]
    keys,  # [keys] places in n
    held,  # [keys] which of them exist
    n_rows, n_places, REDUCE: tl.constexpr, GROUP_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    block, kv_head, kv_heads = tl.program_id(0).to(tl.int64), tl.program_id(2), tl.num_programs(2)
    if REDUCE == "sum":
        place = (block * kv_heads + kv_head) * n_places + keys
        tl.store(mass_ptr + place, tl.sum(p, axis=0), mask=held)
    else:
        by_row = tl.reshape(p, (BLOCK_ROWS, BLOCK_HEADS, BLOCK_KEYS))
        if REDUCE == "row":
            rows = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
            place = (rows * kv_heads + kv_head) * n_places + keys[None, :]
            tl.store(mass_ptr + place, tl.sum(by_row, axis=1), mask=(rows < n_rows) & held[None, :])
        else:
            members = tl.arange(0, BLOCK_HEADS)[:, None]
            place = ((block * kv_heads + kv_head) * GROUP_SIZE + members) * n_places + keys[None, :]
            tl.store(mass_ptr + place, tl.sum(by_row, axis=0), mask=(members < GROUP_SIZE) & held[None, :])

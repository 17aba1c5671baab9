"""What attention and its statistics share inside a kernel: query tiles, scores of a page, masks of rows in flight, and
the softmax that runs over the keys."""

import triton
import triton.language as tl

from workbench_kernels.segment_attention.paged_tiles import SLOTS, load_slots

__all__ = ["load_queries", "page_scores", "softmax_step", "staged_visible", "store_output", "tile_rows"]


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
def staged_visible(words_ptr, row, keys, inside, n_rows, n_keys, words_row_stride, start, MASK: tl.constexpr):
    """bool [tile rows, keys] for MASK "none", "causal" (the rows are the last keys) or "words" (32 keys a tile)."""
    seen = (keys < n_keys)[None, :]
    if MASK == "causal":
        seen = seen & (keys[None, :] <= row[:, None] + (n_keys - n_rows))
    if MASK == "words":
        words = tl.load(words_ptr + row * words_row_stride + start // 32, mask=inside, other=0)
        seen = seen & (((words[:, None] >> (keys[None, :] - start)) & 1) == 1)
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
    best,
    total,
    acc,
    row,
    head,
    inside,
    n_rows,
    GROUP_SIZE: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write a program's output and log-sum-exp: 0 and -inf for a row that has seen nothing. Axis 1 is the split."""
    seen = total > 0
    total = tl.where(seen, total, 1.0)
    heads = tl.num_programs(2) * GROUP_SIZE
    place = (tl.program_id(1).to(tl.int64) * n_rows + row) * heads + head
    tl.store(lse_ptr + place, tl.where(seen, best + tl.log(total), float("-inf")), mask=inside)
    channels = tl.arange(0, BLOCK_V)[None, :]
    stored = inside[:, None] & (channels < VALUE_DIM)
    tl.store(out_ptr + place[:, None] * VALUE_DIM + channels, acc / total[:, None], mask=stored)

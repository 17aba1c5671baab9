"""Attention over packed pages of any mixture of widths, split along the pages.

A program takes one tile of query rows, one KV head and one run of its pages, keeps the running maximum and sum of the
softmax in float32, and writes the pair of its run; `merge` puts the runs together. Runs are even shares of each head's
own page count, so ragged heads keep all their programs busy.
"""

import torch
import triton
import triton.language as tl

from workbench_kernels.segment_attention.merging import merge_stacked
from workbench_kernels.segment_attention.paged_tiles import ALIGN, load_keys, load_values, open_page
from workbench_kernels.segment_attention.scores import load_queries, page_scores, tile_rows
from workbench_kernels.segment_attention.tiles import split_count, tile

__all__ = ["RAW_NAMES", "attend_pages"]

RAW_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@triton.jit
def paged_attention_fwd_kernel(
    out_ptr,  # [splits, R, H, Dv] float32
    lse_ptr,  # [splits, R, H] float32
    q_ptr,  # [R, H, D]
    arena_ptr,  # [bytes] uint8
    table_ptr,  # [Hk, P] int32, in units of 16 bytes
    count_ptr,  # [Hk] int32
    bias_ptr,  # [pages, SLOTS] float32 or None
    numbers_ptr,  # [Hk, P] int32 or None
    positions_ptr,  # [R] int32 or None
    q_row_stride,
    q_head_stride,
    table_row_stride,
    n_rows,
    n_pages,
    window,
    scale,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_GROUPS: tl.constexpr,
    RAW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    split, kv_head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, head, inside = tile_rows(n_rows, GROUP_SIZE, BLOCK_ROWS, BLOCK_HEADS)
    q = load_queries(q_ptr, row, head, inside, q_row_stride, q_head_stride, HEAD_DIM, BLOCK_D)
    row_positions = None
    if positions_ptr is not None:
        row_positions = tl.load(positions_ptr + row, mask=inside, other=0)
    entries = kv_head * table_row_stride
    count = tl.minimum(tl.load(count_ptr + kv_head), n_pages)
    share = tl.cdiv(count, tl.num_programs(1))
    first = split * share
    last = tl.minimum(first + share, count)

    best = tl.full((BLOCK_ROWS * BLOCK_HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS * BLOCK_HEADS,), tl.float32)
    acc = tl.zeros((BLOCK_ROWS * BLOCK_HEADS, BLOCK_V), tl.float32)
    unit, live, widths = open_page(arena_ptr, table_ptr + entries, first, first < last)
    for index in range(first, last):
        next_unit, next_live, next_widths = open_page(arena_ptr, table_ptr + entries, index + 1, index + 1 < last)
        page = arena_ptr + unit.to(tl.int64) * ALIGN
        keys = load_keys(page, widths, RAW, HEAD_DIM, VALUE_GROUPS, BLOCK_D)
        scores, alive = page_scores(
            q, keys, page, live, entries + index, bias_ptr, numbers_ptr, row_positions, scale, window, PRECISION
        )
        values = load_values(page, widths, RAW, HEAD_DIM, VALUE_DIM, VALUE_GROUPS, BLOCK_V)
        values = tl.where(alive[:, None], values, 0.0)
        new_best = tl.maximum(best, tl.max(scores, axis=1))
        # -inf minus -inf is NaN: a row that has seen nothing yet has no maximum
        finite = tl.where(new_best == float("-inf"), 0.0, new_best)
        decay = tl.exp(best - finite)
        p = tl.exp(scores - finite[:, None])
        total = total * decay + tl.sum(p, axis=1)
        acc = acc * decay[:, None] + tl.dot(p, values, input_precision=PRECISION)
        best = new_best
        unit, live, widths = next_unit, next_live, next_widths

    seen = total > 0
    total = tl.where(seen, total, 1.0)
    heads = tl.num_programs(2) * GROUP_SIZE
    place = (split.to(tl.int64) * n_rows + row) * heads + head
    tl.store(lse_ptr + place, tl.where(seen, best + tl.log(total), float("-inf")), mask=inside)
    channels = tl.arange(0, BLOCK_V)[None, :]
    out = acc / total[:, None]
    tl.store(out_ptr + place[:, None] * VALUE_DIM + channels, out, mask=inside[:, None] & (channels < VALUE_DIM))


def attend_pages(
    q,
    arena,
    table,
    count,
    scale,
    value_dim,
    group,
    raw,
    bias=None,
    numbers=None,
    positions=None,
    window=None,
    splits=None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch; see the public function. scale holds 1 / tau; splits overrides the number of runs."""
    (rows, heads, head_dim), (kv_heads, pages) = q.shape, table.shape
    if q.stride(2) != 1:
        q = q.contiguous()
    plan = tile(q, kv_heads, head_dim, value_dim)
    splits = splits or split_count(pages, plan.blocks * kv_heads, q.device)
    out = torch.empty(splits, rows, heads, value_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(splits, rows, heads, dtype=torch.float32, device=q.device)
    if rows:
        paged_attention_fwd_kernel[(plan.blocks, splits, kv_heads)](
            out,
            lse,
            q,
            arena,
            table.contiguous(),
            count,
            bias,
            None if numbers is None else numbers.contiguous(),
            positions,
            q.stride(0),
            q.stride(1),
            pages,
            rows,
            pages,
            0 if window is None else window,
            scale,
            VALUE_GROUPS=value_dim // group,
            RAW=RAW_NAMES[raw],
            **plan.constants,
            num_warps=plan.num_warps,
        )
    return (out[0], lse[0]) if splits == 1 else merge_stacked(out, lse)

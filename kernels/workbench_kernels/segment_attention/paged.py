"""Attention over packed pages of any mixture of widths, and its statistics, split along the pages.

A program takes one tile of query rows, one KV head and one run of its pages. It keeps the running maximum and sum of
the softmax in float32, and writes the pair of its run. `merge` puts the runs together. Runs are even shares of each
head's own page count, so ragged heads keep all their programs busy.
"""

import torch
import triton
import triton.language as tl

from workbench_kernels.segment_attention import scores as ops
from workbench_kernels.segment_attention.merging import launch
from workbench_kernels.segment_attention.paged_tiles import ALIGN, SLOTS, load_keys, load_values, open_page
from workbench_kernels.segment_attention.tiles import split_count, tile

__all__ = ["attend_pages"]

RAW_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@triton.jit
def page_share(count_ptr, table_row_stride, n_pages):
    """Where the table of a program's KV head begins, and the pages it takes of it: an even share of those in use."""
    split, kv_head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    count = tl.minimum(tl.load(count_ptr + kv_head), n_pages)
    share = tl.cdiv(count, tl.num_programs(1))
    first = split * share
    return kv_head * table_row_stride, first, tl.minimum(first + share, count)


@triton.jit
def paged_attention_kernel(
    out_ptr,  # [splits, R, H, Dv] float32; for REDUCE the mass, see store_mass, n = P * SLOTS, zeroed
    lse_ptr,  # [splits, R, H] float32; for REDUCE the entropy
    merged_ptr,  # [R, H] float32, the merged log-sum-exp; None without REDUCE
    q_ptr,  # [R, H, D]
    arena_ptr,  # [bytes] uint8
    table_ptr,  # [Hk, P] int32, in units of 16 bytes
    count_ptr,  # [Hk] int32
    bias_ptr,  # [pages, SLOTS] float32 or None
    numbers_ptr,  # [Hk, P] int32 or None
    positions_ptr,  # [R] int32 or None
    q_row_stride, q_head_stride, table_row_stride, n_rows, n_pages, window, scale,
    REDUCE: tl.constexpr,  # "none" for attention
    GROUP_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, VALUE_GROUPS: tl.constexpr,
    RAW: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, head, inside = ops.tile_rows(n_rows, GROUP_SIZE, BLOCK_ROWS, BLOCK_HEADS)
    q = ops.load_queries(q_ptr, row, head, inside, q_row_stride, q_head_stride, HEAD_DIM, BLOCK_D)
    row_positions = None
    if positions_ptr is not None:
        row_positions = tl.load(positions_ptr + row, mask=inside, other=0)
    entries, first, last = page_share(count_ptr, table_row_stride, n_pages)

    slots = tl.arange(0, SLOTS)
    best = tl.full((BLOCK_ROWS * BLOCK_HEADS,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_ROWS * BLOCK_HEADS,), tl.float32)  # for REDUCE the entropy
    acc = tl.zeros((BLOCK_ROWS * BLOCK_HEADS, BLOCK_V), tl.float32)
    if REDUCE != "none":
        merged = ops.load_merged(merged_ptr, row, head, inside, GROUP_SIZE)
    unit, live, widths = open_page(arena_ptr, table_ptr + entries, first, first < last)
    for index in range(first, last):
        next_unit, next_live, next_widths = open_page(arena_ptr, table_ptr + entries, index + 1, index + 1 < last)
        page = arena_ptr + unit.to(tl.int64) * ALIGN
        keys = load_keys(page, widths, RAW, HEAD_DIM, VALUE_GROUPS, BLOCK_D)
        scores, alive = ops.page_scores(
            q, keys, page, live, entries + index, bias_ptr, numbers_ptr, row_positions, scale, window, PRECISION
        )
        if REDUCE == "none":
            values = load_values(page, widths, RAW, HEAD_DIM, VALUE_DIM, VALUE_GROUPS, BLOCK_V)
            values = tl.where(alive[:, None], values, 0.0)
            best, total, acc = ops.softmax_step(best, total, acc, scores, values, PRECISION)
        else:
            p, entropy = ops.probabilities(scores, merged)
            total += entropy
            place = index * SLOTS + slots
            ops.store_mass(
                out_ptr, p, place, slots < SLOTS, n_rows, n_pages * SLOTS, REDUCE, GROUP_SIZE, BLOCK_ROWS, BLOCK_HEADS,
                SLOTS,
            )  # fmt: skip
        unit, live, widths = next_unit, next_live, next_widths

    ops.store_output(
        out_ptr, lse_ptr, best, total, acc, row, head, inside, n_rows, REDUCE, GROUP_SIZE, VALUE_DIM, BLOCK_V
    )


def attend_pages(
    q, arena, table, count, scale, value_dim, group, raw, bias=None, numbers=None, positions=None, window=None,
    splits=None, **mass,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Launch; see the public functions. scale holds 1 / tau, splits overrides the number of runs. mass: what `launch`
    takes for mass and entropy in place of the output."""
    head_dim, (kv_heads, pages) = q.shape[2], table.shape
    if q.stride(2) != 1:
        q = q.contiguous()
    plan = tile(q, kv_heads, head_dim, value_dim)
    splits = splits or split_count(pages, plan.blocks * kv_heads, q.device)
    numbers = None if numbers is None else numbers.contiguous()
    window = 0 if window is None else window
    return launch(
        paged_attention_kernel, plan, splits, kv_heads, q, arena, table.contiguous(), count, bias, numbers, positions,
        *q.stride()[:2], pages, len(q), pages, window, scale, **mass, VALUE_GROUPS=value_dim // group,
        RAW=RAW_NAMES[raw],
    )  # fmt: skip

"""Attention over packed pages of any mixture of widths, and its statistics, split along the pages.

A program takes one tile of query rows, one KV head and one run of its pages. It keeps the running maximum and sum of
the softmax in float32, and writes the pair of its run. `merge` puts the runs together. Runs are even shares of each
head's own page count, so ragged heads keep all their programs busy.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.segment_attention import scores as ops
from workbench_kernels.segment_attention.checks import PageOptions
from workbench_kernels.segment_attention.merging import launch
from workbench_kernels.segment_attention.paged_tiles import ALIGN, Kind, load_keys, load_slots, load_values, open_page
from workbench_kernels.segment_attention.tiles import plan

RAW_NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


class Pages(NamedTuple):
    """Where the pages are and what else decides about their slots; see the public function."""

    arena: Tensor  # [bytes] uint8
    table: Tensor  # [Hk, P] int32, in units of 16 bytes
    count: Tensor  # [Hk] int32
    bias: Tensor | None  # [pages, slots] float32
    numbers: Tensor | None  # [Hk, P] int32
    positions: Tensor | None  # [R] int32
    n_pages: int  # P
    window: int


@triton.jit
def page_scores(q, keys, page, live, entry, pages, row_positions, scale, kind: tl.constexpr, tile: tl.constexpr):
    """Scores [tile rows, slots], -inf where a row may not see a slot, and the slots that are live [slots]."""
    slots = tl.arange(0, kind.slots)
    alive = ((live >> slots.to(tl.int64)) & 1) == 1
    keys = tl.where(alive[:, None], keys, 0.0)  # what a dead slot holds may be anything
    scores = tl.dot(q, tl.trans(keys), input_precision=tile.precision) * scale
    if pages.bias is not None:
        number = tl.load(pages.numbers + entry).to(tl.int64)
        scores += tl.load(pages.bias + number * kind.slots + slots).to(tl.float32)[None, :]
    seen = alive[None, :]
    if row_positions is not None:
        seen = seen & (row_positions[:, None] - load_slots(page, kind)[None, :] < pages.window)
    return tl.where(seen, scores, float("-inf")), alive


@triton.jit
def paged_attention_kernel(results, queries, pages, scale, KIND: tl.constexpr, MASS: tl.constexpr, TILE: tl.constexpr):
    """MASS: the mass in place of the output, zeroed, n = P * slots."""
    split, kv_head, n_rows = tl.program_id(1), tl.program_id(2).to(tl.int64), queries.n_rows
    row, head, inside, q, merged, best, total, acc = ops.begin(results, queries, MASS, TILE)
    row_positions = None
    if pages.positions is not None:
        row_positions = tl.load(pages.positions + row, mask=inside, other=0)
    count = tl.minimum(tl.load(pages.count + kv_head), pages.n_pages)
    share = tl.cdiv(count, tl.num_programs(1))
    first = split * share
    last = tl.minimum(first + share, count)
    entries = kv_head * pages.n_pages
    table_ptr = pages.table + entries

    slots = tl.arange(0, KIND.slots)
    unit, live, widths = open_page(pages.arena, table_ptr, first, first < last)
    for index in range(first, last):
        next_unit, next_live, next_widths = open_page(pages.arena, table_ptr, index + 1, index + 1 < last)
        page = pages.arena + unit.to(tl.int64) * ALIGN
        keys = load_keys(page, widths, KIND, TILE)
        scores, alive = page_scores(q, keys, page, live, entries + index, pages, row_positions, scale, KIND, TILE)
        if MASS:
            p, entropy = ops.probabilities(scores, merged)
            total += entropy
            place = index * KIND.slots + slots
            ops.store_mass(results.out, p, place, slots < KIND.slots, n_rows, pages.n_pages * KIND.slots, TILE)
        else:
            values = load_values(page, widths, KIND, TILE)
            values = tl.where(alive[:, None], values, 0.0)
            best, total, acc = ops.softmax_step(best, total, acc, scores, values, TILE)
        unit, live, widths = next_unit, next_live, next_widths
    ops.store_output(results, best, total, acc, row, head, inside, n_rows, MASS, TILE)


def attend_pages(
    q: Tensor, arena, table, count, scale: float, options: PageOptions, splits: int | None = None, **mass
) -> tuple[Tensor, Tensor]:
    """Launch; see the public functions. splits overrides the number of runs. mass: what `launch` takes for mass and
    entropy in place of the output."""
    if q.stride(2) != 1:
        q = q.contiguous()
    kv_heads, n_pages = table.shape
    planned = plan(q, kv_heads, q.shape[2], options.value_dim)
    numbers = None if options.numbers is None else options.numbers.contiguous()
    held = (arena, table.contiguous(), count, options.bias, numbers, options.positions)
    pages = Pages(*held, n_pages, 0 if options.window is None else options.window)
    kind = Kind.of(options.slots, options.value_dim // options.group, RAW_NAMES[options.raw])
    kernel = paged_attention_kernel
    return launch(kernel, planned, n_pages, kv_heads, q, pages, scale, splits=splits, KIND=kind, **mass)

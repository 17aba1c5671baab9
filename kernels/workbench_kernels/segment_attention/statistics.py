"""Statistics of attention without its matrix: a second pass over the same keys, once the merged log-sum-exp is known.

Scores are computed again tile by tile, p = exp(score - lse), and only sums leave the program: the mass of each slot,
over the tile's rows and heads, and each row's share of the entropy, Σ -p log p. Partial sums of different programs are
added in torch, in a fixed order: no atomics, the same figures every time.
"""

import torch
import triton
import triton.language as tl

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.pages import layout
from workbench_kernels.segment_attention.dense import mask_arguments
from workbench_kernels.segment_attention.paged import RAW_NAMES, page_arguments, page_share
from workbench_kernels.segment_attention.paged_tiles import ALIGN, SLOTS, load_keys, open_page
from workbench_kernels.segment_attention.scores import load_queries, page_scores, staged_visible, tile_rows
from workbench_kernels.segment_attention.tiles import split_count, tile

__all__ = ["dense_mass", "page_mass"]


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
    n_rows,
    n_places,
    REDUCE: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
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


@triton.jit
def page_mass_kernel(
    mass_ptr,  # see store_mass, n = P * SLOTS; zeroed
    entropy_ptr,  # [splits, R, H] float32
    lse_ptr,  # [R, H] float32
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
    REDUCE: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_GROUPS: tl.constexpr,
    RAW: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    split = tl.program_id(1)
    row, head, inside = tile_rows(n_rows, GROUP_SIZE, BLOCK_ROWS, BLOCK_HEADS)
    q = load_queries(q_ptr, row, head, inside, q_row_stride, q_head_stride, HEAD_DIM, BLOCK_D)
    row_positions = None
    if positions_ptr is not None:
        row_positions = tl.load(positions_ptr + row, mask=inside, other=0)
    heads = tl.num_programs(2) * GROUP_SIZE
    lse = tl.load(lse_ptr + row * heads + head, mask=inside, other=float("-inf"))
    entries, first, last = page_share(count_ptr, table_row_stride, n_pages)

    slots = tl.arange(0, SLOTS)
    entropy = tl.zeros((BLOCK_ROWS * BLOCK_HEADS,), tl.float32)
    unit, live, widths = open_page(arena_ptr, table_ptr + entries, first, first < last)
    for index in range(first, last):
        next_unit, next_live, next_widths = open_page(arena_ptr, table_ptr + entries, index + 1, index + 1 < last)
        page = arena_ptr + unit.to(tl.int64) * ALIGN
        keys = load_keys(page, widths, RAW, HEAD_DIM, VALUE_GROUPS, BLOCK_D)
        scores, _ = page_scores(
            q, keys, page, live, entries + index, bias_ptr, numbers_ptr, row_positions, scale, window, PRECISION
        )
        p, part = probabilities(scores, lse)
        entropy += part
        place = index * SLOTS + slots
        everywhere = slots < SLOTS
        store_mass(
            mass_ptr, p, place, everywhere, n_rows, n_pages * SLOTS, REDUCE, GROUP_SIZE, BLOCK_ROWS, BLOCK_HEADS, SLOTS
        )
        unit, live, widths = next_unit, next_live, next_widths
    tl.store(entropy_ptr + (split.to(tl.int64) * n_rows + row) * heads + head, entropy, mask=inside)


@triton.jit
def dense_mass_kernel(
    mass_ptr,  # see store_mass
    entropy_ptr,  # [key blocks, R, H] float32
    lse_ptr,  # [R, H] float32
    q_ptr,  # [R, H, D]
    k_ptr,  # [Hk, n, D]
    words_ptr,  # [R, ceil(n / 32)] int32 or None
    q_row_stride,
    q_head_stride,
    k_head_stride,
    k_row_stride,
    words_row_stride,
    n_rows,
    n_keys,
    scale,
    MASK: tl.constexpr,
    REDUCE: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    key_block, kv_head = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row, head, inside = tile_rows(n_rows, GROUP_SIZE, BLOCK_ROWS, BLOCK_HEADS)
    q = load_queries(q_ptr, row, head, inside, q_row_stride, q_head_stride, HEAD_DIM, BLOCK_D)
    heads = tl.num_programs(2) * GROUP_SIZE
    lse = tl.load(lse_ptr + row * heads + head, mask=inside, other=float("-inf"))
    start = key_block * BLOCK_KEYS
    keys = start + tl.arange(0, BLOCK_KEYS)
    held = keys < n_keys
    channels = tl.arange(0, BLOCK_D)[None, :]
    k_rows = k_ptr + kv_head * k_head_stride + keys.to(tl.int64)[:, None] * k_row_stride
    k = tl.load(k_rows + channels, mask=held[:, None] & (channels < HEAD_DIM), other=0).to(tl.float32)
    seen = staged_visible(words_ptr, row, keys, inside, n_rows, n_keys, words_row_stride, start, MASK)
    scores = tl.where(seen, tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale, float("-inf"))
    p, entropy = probabilities(scores, lse)
    store_mass(mass_ptr, p, keys, held, n_rows, n_keys, REDUCE, GROUP_SIZE, BLOCK_ROWS, BLOCK_HEADS, BLOCK_KEYS)
    tl.store(entropy_ptr + (key_block.to(tl.int64) * n_rows + row) * heads + head, entropy, mask=inside)


@on_its_device
def page_mass(
    q, arena, table, count, scale, lse, value_dim, group, raw, bias, numbers, positions, window, reduce, splits=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch over pages. Returns mass [Hk, P * SLOTS] or [R, Hk, P * SLOTS], entropy [R, H]."""
    (rows, heads, head_dim), (kv_heads, pages) = q.shape, table.shape
    if q.stride(2) != 1:
        q = q.contiguous()
    plan = tile(q, kv_heads, head_dim)
    splits = splits or split_count(pages, plan.blocks * kv_heads, q.device)
    mass = _mass_buffer(reduce, plan.blocks, rows, heads, kv_heads, pages * layout.SLOTS, q.device)
    entropy = torch.empty(splits, rows, heads, dtype=torch.float32, device=q.device)
    if rows:
        page_mass_kernel[(plan.blocks, splits, kv_heads)](
            mass,
            entropy,
            lse.float().contiguous(),
            q,
            *page_arguments(q, arena, table, count, bias, numbers, positions, window, scale),
            REDUCE=reduce,
            VALUE_GROUPS=value_dim // group,
            RAW=RAW_NAMES[raw],
            **plan.constants,
            num_warps=plan.num_warps,
        )
    return _reduced(mass, reduce, kv_heads), entropy.sum(0)


@on_its_device
def dense_mass(q, k, scale, lse, mask, reduce) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch over dense keys; see the public function. Returns mass [Hk, n] or [R, Hk, n], entropy [R, H]."""
    q, k = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (q, k))
    (rows, heads, head_dim), (kv_heads, n, _) = q.shape, k.shape
    words, words_row_stride, kind = mask_arguments(mask)
    plan = tile(q, kv_heads, head_dim)
    block_keys = 32
    key_blocks = -(-n // block_keys)
    mass = _mass_buffer(reduce, plan.blocks, rows, heads, kv_heads, n, q.device)
    entropy = torch.empty(key_blocks, rows, heads, dtype=torch.float32, device=q.device)
    if rows and n:
        dense_mass_kernel[(plan.blocks, key_blocks, kv_heads)](
            mass,
            entropy,
            lse.float().contiguous(),
            q,
            k,
            words,
            q.stride(0),
            q.stride(1),
            k.stride(0),
            k.stride(1),
            words_row_stride,
            rows,
            n,
            scale,
            MASK=kind,
            REDUCE=reduce,
            BLOCK_KEYS=block_keys,
            **plan.constants,
            num_warps=plan.num_warps,
        )
    return _reduced(mass, reduce, kv_heads), entropy.sum(0)


def _mass_buffer(reduce, blocks, rows, heads, kv_heads, places, device) -> torch.Tensor:
    lead = {"sum": (blocks, kv_heads), "max": (blocks, heads), "row": (rows, kv_heads)}[reduce]
    return torch.zeros(*lead, places, dtype=torch.float32, device=device)


def _reduced(mass: torch.Tensor, reduce: str, kv_heads: int) -> torch.Tensor:
    if reduce == "row":
        return mass
    summed = mass.sum(0)
    return summed if reduce == "sum" else summed.unflatten(0, (kv_heads, -1)).amax(1)

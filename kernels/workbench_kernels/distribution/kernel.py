"""Figures of a distribution, and the seeded draw from it, in one pass over the logits and a few over what it leaves.

1. `partial_fwd_kernel`, one program per (row, BLOCK_SIZE columns), reads the logits from memory once. With m the
   largest logit of its columns and x the others it leaves s = Σ e^(x-m), a = Σ e^(x-m) (x-m) and b = Σ e^(x-m) (x-m)²;
   where nothing is to be cut, also its best token after noise.
2. `combine_fwd_kernel`, one program per row, merges them. A larger maximum m' = m - d (d <= 0) rescales a part:
   s' = f s, a' = f (a + d s), b' = f (b + 2 d a + d² s) with f = e^d. At the end lse = m + log s,
   entropy = log s - a/s, varentropy = b/s - (a/s)².

A distribution cut by top-k, top-p or min-p takes two launches more: `candidates.py`.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.distribution import Sample, reference
from workbench_kernels.noise import launch_key
from workbench_kernels.noise.kernel import position_key, seeded_best

GROUP = tl.constexpr(64)  # columns per group maximum
NOTHING = tl.constexpr(-2139095041)  # ordered(-inf)
PARTS = tl.constexpr(8)  # numbers a split leaves: m, s, a, b, s and a at the temperature, tokens alive, 1 if bad


@triton.jit
def ordered(x):
    """int32 that rise as float32 values do; both zeros are one."""
    raw = tl.where(x == 0, 0.0, x).to(tl.int32, bitcast=True)
    return raw ^ ((raw >> 31) & 0x7FFFFFFF)


@triton.jit
def disordered(key):
    """float32 of such an int32."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


class Logits(NamedTuple):
    data: Tensor  # [R, V]
    row_stride: int
    n_cols: int


class Splits(NamedTuple):
    """What the first launch leaves of each split of a row."""

    parts: Tensor  # [R, PARTS, n_splits] float32
    best_ids: Tensor  # [R, n_splits] int32
    groups: Tensor  # [R, n_groups] float32, the maximum of GROUP columns; top_k
    draws: Tensor  # [R, n_splits] float64; drawn, as the next
    draw_ids: Tensor  # [R, n_splits] int32
    n_splits: int
    n_groups: int


class Cuts(NamedTuple):
    temperature: float
    log_tail: float  # log of the probability below which top-p keeps nothing
    log_min_p: float


class Branches(NamedTuple):
    """What the kernels do, as a constant."""

    scaled: bool  # the temperature is not 1
    drawn: bool  # the first two launches draw: nothing is to be cut
    filtered: bool
    top_k: bool  # they look for large logits
    top_p: bool


class Figures(NamedTuple):
    """Each [R]."""

    lse: Tensor
    entropy: Tensor
    varentropy: Tensor
    argmax: Tensor
    best: Tensor  # the largest logit, NaN where the row is no distribution
    floor: Tensor  # the logits that may count are at least this; filtered
    mass: Tensor  # Σ e^((x - best) / temperature)


REAL, WHOLE = torch.float32, torch.int64
FIGURES = Figures(REAL, REAL, REAL, WHOLE, REAL, REAL, torch.float64)
DRAWN = Sample(WHOLE, REAL, WHOLE, REAL, REAL, REAL, WHOLE, None)


@triton.jit
def logits_tile(logits, row, cols):
    """float32 logits of a row's columns, -inf behind the last."""
    at = logits.data + row * logits.row_stride + cols
    return tl.load(at, mask=cols < logits.n_cols, other=float("-inf")).to(tl.float32)


@triton.jit(do_not_specialize=["key"])
def partial_fwd_kernel(left, logits, positions_ptr, temperature, key, BLOCK_SIZE: tl.constexpr, BRANCHES: tl.constexpr):
    """left: `Splits`; logits: `Logits`; positions [R] int64, where a token is drawn."""
    row, split, n_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    col_offsets = split * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    x = logits_tile(logits, row, col_offsets)
    bad = (x != x) | (x == float("inf"))
    x = tl.where(bad, float("-inf"), x)
    cut = x == float("-inf")
    best = tl.max(x, axis=0)
    y = tl.where(cut, 0.0, x - best)  # -inf minus -inf is NaN
    w = tl.where(cut, 0.0, tl.exp(y))
    parts = left.parts + row * PARTS * n_splits + split
    tl.store(parts, best)
    tl.store(parts + n_splits, tl.sum(w, axis=0))
    tl.store(parts + 2 * n_splits, tl.sum(w * y, axis=0))
    tl.store(parts + 3 * n_splits, tl.sum(w * y * y, axis=0))
    z = x
    if BRANCHES.scaled:
        z = tl.div_rn(x, tl.full(x.shape, temperature, tl.float32))
        y = tl.where(cut, 0.0, z - tl.max(z, axis=0))
        w = tl.where(cut, 0.0, tl.exp(y))
    tl.store(parts + 4 * n_splits, tl.sum(w, axis=0))
    tl.store(parts + 5 * n_splits, tl.sum(w * y, axis=0))
    tl.store(parts + 6 * n_splits, tl.sum(tl.where(cut, 0.0, 1.0), axis=0))
    tl.store(parts + 7 * n_splits, tl.max(tl.where(bad, 1.0, 0.0), axis=0))
    tl.store(left.best_ids + row * n_splits + split, tl.min(tl.where(x == best, col_offsets, 2147483647), axis=0))
    if BRANCHES.top_k:
        maxima = tl.max(tl.reshape(x, [BLOCK_SIZE // GROUP, GROUP]), axis=1)
        group_offsets = split * (BLOCK_SIZE // GROUP) + tl.arange(0, BLOCK_SIZE // GROUP)
        tl.store(left.groups + row * n_splits * (BLOCK_SIZE // GROUP) + group_offsets, maxima)
    if BRANCHES.drawn:
        noise_key = position_key(key, tl.load(positions_ptr + row))
        draw, draw_id = seeded_best(z, ~cut, col_offsets, noise_key)
        tl.store(left.draws + row * n_splits + split, draw)
        tl.store(left.draw_ids + row * n_splits + split, draw_id)


@triton.jit
def kth_bound(keys, k):
    """A key that at least k entries reach, near the k-th largest; that of -inf where fewer than k are alive."""
    alive = keys > NOTHING
    lowest = tl.min(tl.where(alive, keys, 2147483647), axis=0)
    low = tl.where(tl.sum(alive.to(tl.int32), axis=0) >= k, lowest, NOTHING).to(tl.int64)
    high = tl.max(keys, axis=0).to(tl.int64) + 1
    for _ in range(16):
        middle = (low + high) // 2
        enough = tl.sum((keys >= middle).to(tl.int32), axis=0) >= k
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle)
    return low.to(tl.int32)


@triton.jit
def store_draw(drawn, row, bad, token, p, kept, lse, entropy, threshold, threshold_id):
    """A row of `Sample`; NaN, 0 and -1 where the row is no distribution."""
    nan = float("nan")
    tl.store(drawn.token + row, tl.where(bad, -1, token).to(tl.int64))
    tl.store(drawn.p + row, tl.where(bad, nan, p).to(tl.float32))
    tl.store(drawn.kept + row, tl.where(bad, 0, kept))
    tl.store(drawn.lse + row, tl.where(bad, nan, lse).to(tl.float32))
    tl.store(drawn.entropy + row, tl.where(bad, nan, entropy).to(tl.float32))
    tl.store(drawn.threshold + row, tl.where(bad, nan, threshold))
    tl.store(drawn.threshold_id + row, tl.where(bad, -1, threshold_id).to(tl.int64))


@triton.jit
def part(parts, number, n_splits, mask):
    return tl.load(parts + number * n_splits, mask=mask, other=0.0).to(tl.float64)


@triton.jit
def merged(s, a, d):
    """(Σ e^(x-m), its mean of x-m) of a row, from s and a of its splits, whose maxima are m + d."""
    f = tl.exp(d)
    total = tl.sum(f * s, axis=0)
    return total, tl.sum(f * (a + d * s), axis=0) / total


@triton.jit(do_not_specialize=["top_k"])
def combine_fwd_kernel(
    figures, drawn, left, logits, cuts, top_k, SPLITS: tl.constexpr, GROUPS: tl.constexpr, BRANCHES: tl.constexpr
):
    """figures: `Figures`; drawn: `Sample`; left: `Splits`; cuts: `Cuts`; SPLITS, GROUPS: how many there are, padded."""
    n_splits = left.n_splits
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, SPLITS)
    mask = splits < n_splits
    parts = left.parts + row * PARTS * n_splits + splits
    bests = tl.load(parts, mask=mask, other=float("-inf"))
    best = tl.max(bests, axis=0)
    bad = (tl.max(part(parts, 7, n_splits, mask), axis=0) > 0) | (best == float("-inf"))
    dead = bests == float("-inf")
    d = tl.where(dead, 0.0, bests - best).to(tl.float64)
    s_part, a_part = part(parts, 1, n_splits, mask), part(parts, 2, n_splits, mask)
    s, mean = merged(s_part, a_part, d)
    b_part = part(parts, 3, n_splits, mask)
    square = tl.sum(tl.exp(d) * (b_part + 2 * d * a_part + d * d * s_part), axis=0) / s
    nan = float("nan")
    best_ids = tl.load(left.best_ids + row * n_splits + splits, mask=mask, other=2147483647)
    tl.store(figures.lse + row, tl.where(bad, nan, best + tl.log(s)).to(tl.float32))
    tl.store(figures.entropy + row, tl.where(bad, nan, tl.log(s) - mean).to(tl.float32))
    tl.store(figures.varentropy + row, tl.where(bad, nan, square - mean * mean).to(tl.float32))
    tl.store(figures.argmax + row, tl.min(tl.where(bests == best, best_ids, 2147483647), axis=0).to(tl.int64))
    tl.store(figures.best + row, tl.where(bad, nan, best))

    heat = tl.full((), cuts.temperature, tl.float32)
    best_z = tl.div_rn(best, heat)
    d = tl.where(dead, 0.0, tl.div_rn(bests, tl.full(bests.shape, cuts.temperature, tl.float32)) - best_z).to(
        tl.float64
    )
    s, mean = merged(part(parts, 4, n_splits, mask), part(parts, 5, n_splits, mask), d)
    drawn_lse = best_z + tl.log(s)
    tl.store(figures.mass + row, s)

    if BRANCHES.filtered:
        # below this no filter keeps a token: slack for what float32 rounds
        floor_z = tl.maximum(drawn_lse + cuts.log_tail, best_z + cuts.log_min_p).to(tl.float32)
        floor = floor_z * heat
        floor -= 1e-5 * (tl.abs(floor) + heat)
        floor = tl.where(floor != floor, float("-inf"), floor)
        if BRANCHES.top_k:
            groups = tl.arange(0, GROUPS)
            maxima = tl.load(
                left.groups + row * left.n_groups + groups, mask=groups < left.n_groups, other=float("-inf")
            )
            floor = disordered(kth_bound(ordered(maxima), top_k))
        tl.store(figures.floor + row, tl.where(bad, float("inf"), floor))

    if BRANCHES.drawn:
        draws = tl.load(left.draws + row * n_splits + splits, mask=mask, other=float("-inf"))
        draw_ids = tl.load(left.draw_ids + row * n_splits + splits, mask=mask, other=2147483647)
        token = tl.min(tl.where(draws == tl.max(draws, axis=0), draw_ids, 2147483647), axis=0)
        token = tl.where(bad, 0, token)
        x = tl.load(logits.data + row * logits.row_stride + token).to(tl.float32)
        p = tl.exp(tl.div_rn(x, heat) - drawn_lse)
        kept = tl.sum(part(parts, 6, n_splits, mask), axis=0).to(tl.int64)
        store_draw(drawn, row, bad, token, p, kept, drawn_lse, tl.log(s) - mean, float("-inf"), logits.n_cols - 1)


class Rules(NamedTuple):
    """What is asked of a launch. drawn: a seeded draw is wanted; the filters are None where they cut nothing."""

    drawn: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    @property
    def filtered(self) -> bool:
        return self.drawn and not self.top_k == self.top_p == self.min_p is None


@on_its_device
def launch(logits: Tensor, rules: Rules, seed: int = 0, positions: Tensor | None = None) -> tuple[Tensor, ...]:
    """Statistics of logits [R, V], then what `Sample` holds, where it is wanted.

    Two launches, four with filters. Rows may be strided, columns must lie side by side.
    """
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, cols = logits.shape

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    figures = FIGURES._make(empty(rows, dtype=dtype) for dtype in FIGURES)
    drawn = DRAWN._make(dtype and empty(rows, dtype=dtype) for dtype in DRAWN)
    if rows:
        # in a large vocabulary one load of 16 bytes a thread (bfloat16), and 64 programs for 128 k columns
        block = min(max(triton.next_power_of_2(cols), GROUP.value), 2048)
        many = {"BLOCK_SIZE": block, "num_warps": 8 if block > 1024 else 4}
        splits = triton.cdiv(cols, block)
        groups = splits * block // GROUP.value
        filters = (rules.filtered, rules.top_k is not None, rules.top_p is not None)
        branches = Branches(rules.temperature != 1, rules.drawn and not rules.filtered, *filters)
        parts, best_ids = empty(rows, PARTS.value, splits), empty(rows, splits, dtype=torch.int32)
        draws, draw_ids = empty(rows, splits, dtype=torch.float64), empty(rows, splits, dtype=torch.int32)
        maxima = empty(rows, groups) if branches.top_k else parts
        left = Splits(parts, best_ids, maxima, draws, draw_ids, splits, groups)
        held, key = Logits(logits, logits.stride(0), cols), launch_key(seed, "target")
        first = (left, held, positions, rules.temperature, key)
        partial_fwd_kernel[(rows, splits)](*first, **many, BRANCHES=branches)
        tail = reference.log32((1 - rules.top_p) / cols if rules.top_p else 0.0)
        cuts = Cuts(rules.temperature, tail, reference.log32(rules.min_p or 0.0))
        second = (figures, drawn, left, held, cuts, rules.top_k or 0)
        sizes = (triton.next_power_of_2(n) for n in (splits, groups))
        combine_fwd_kernel[(rows,)](*second, *sizes, branches)
        if rules.filtered:
            from workbench_kernels.distribution import candidates

            candidates.launch(held, rules, key, positions, figures, cuts, many, branches, drawn)
    return *figures[:4], *drawn[:-1]

"""What top-k, top-p and min-p keep, found without a sort.

Order the tokens by logit, lowest id first among equals: each of the three keeps a prefix, and so do all together. The
prefix ends at one token, hence at one int64 key (logit, id). It is searched for among the few tokens that can matter:

3. `gather_fwd_kernel`, one program per (row, BLOCK_SIZE columns), reads the logits again (from the cache) and collects
   the keys of tokens at or above the row's floor. The floor is the k-th largest of the maxima of groups of columns
   for top-k, lse + log((1 - top_p) / V) for top-p: all tokens below that hold less than 1 - top_p together.
4. `select_fwd_kernel`, one program per row, finds the prefix's last key by a nine-way search on counts (top-k) or
   probability (top-p), then draws.

Probabilities are added as multiples of 2**-44 of the largest one. Integer sums are the same in any order, so the order
in which programs have collected the keys cannot show. A distribution so flat that nothing lies below the floor is
still cut right, by one program that reads its whole row at every step.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.distribution import kernel as ops
from workbench_kernels.noise.kernel import gumbel, position_key, seeded_best

ID_BITS = tl.constexpr(24)
LAST_ID = tl.constexpr(2**24 - 1)
NO_KEY = tl.constexpr(-(2**62))
UNIT = tl.constexpr(2.0**44)
WAYS = tl.constexpr(8)  # cuts tried at once


class Keys(NamedTuple):
    data: Tensor  # [R, n_cols] int64, in no order
    counts: Tensor  # [R] int32, how many of each row
    n_cols: int


@triton.jit
def gather_fwd_kernel(found, logits, floor_ptr, BLOCK_SIZE: tl.constexpr):
    """found: `Keys`, counts 0 before; logits: `Logits`; floor [R] float32."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    x = ops.logits_tile(logits, row, cols)
    high = (cols < logits.n_cols) & (x >= tl.load(floor_ptr + row))
    n_high = tl.sum(high.to(tl.int32), axis=0)
    if n_high > 0:
        keys = (ops.ordered(x).to(tl.int64) << ID_BITS) | (LAST_ID - cols)
        places = tl.atomic_add(found.counts + row, n_high) + tl.cumsum(high.to(tl.int32), axis=0) - 1
        tl.store(found.data + row * logits.n_cols + places, keys, mask=high)


@triton.jit
def scaled(keys, temperature):
    """Logits over temperature, float32, of keys."""
    return tl.div_rn(ops.disordered((keys >> ID_BITS).to(tl.int32)), tl.full(keys.shape, temperature, tl.float32))


@triton.jit
def masses(keys, best_z, temperature):
    """Probabilities in units of 2**-44 of the largest, int64."""
    return (tl.exp(tl.minimum(scaled(keys, temperature) - best_z, 0.0)).to(tl.float64) * UNIT).to(tl.int64)


@triton.jit
def search(keys_ptr, n_keys, low, high, target, best_z, temperature, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The smallest key in (low, high] above which less than `target` lies: of tokens, or of their mass."""
    while high - low > 1:
        step = tl.maximum((high - low) // (WAYS + 1), 1)
        cuts = tl.minimum(low + step * (tl.arange(0, WAYS) + 1), high)
        above = tl.zeros([WAYS], tl.int64)
        for start in range(0, n_keys, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            keys = tl.load(keys_ptr + offsets, mask=offsets < n_keys, other=NO_KEY)
            if BY_MASS:
                weights = masses(keys, best_z, temperature)
            else:
                weights = tl.full(keys.shape, 1, tl.int64)
            above += tl.sum(tl.where(keys[None, :] > cuts[:, None], weights[None, :], 0), axis=1)
        enough = above.to(tl.float64) < target
        new_high = tl.min(tl.where(enough, cuts, high), axis=0)
        low = tl.max(tl.where(enough, low, cuts), axis=0)
        high = new_high
    return high


@triton.jit(do_not_specialize=["key", "top_k", "top_p"])
def select_fwd_kernel(
    drawn,  # `Sample`
    found,  # `Keys`
    figures,  # `Figures`
    positions_ptr,  # [n_rows] int64
    cuts,  # `Cuts`
    key,
    top_k,
    top_p,  # in units of 2**-60: a float argument would be rounded to float32
    BLOCK: tl.constexpr,
    BRANCHES: tl.constexpr,
):
    temperature, log_min_p = cuts.temperature, cuts.log_min_p
    row = tl.program_id(0).to(tl.int64)
    keys_ptr = found.data + row * found.n_cols
    n_keys = tl.load(found.counts + row)
    best = tl.load(figures.best + row)
    bad = best != best
    best_z = tl.div_rn(best, tl.full((), temperature, tl.float32))
    least = (ops.ordered(tl.load(figures.floor + row)).to(tl.int64) << ID_BITS) - 1
    most = (ops.ordered(best).to(tl.int64) << ID_BITS) | LAST_ID
    last = least
    share = top_p.to(tl.float64) * 8.673617379884035e-19  # 2**-60
    target = share * tl.load(figures.mass + row) * UNIT
    if BRANCHES.top_k:
        # all tokens tied with the k-th stay: the lowest key of its value
        last = search(keys_ptr, n_keys, least, most, top_k.to(tl.float64), best_z, temperature, False, BLOCK)
        last = (last >> ID_BITS) << ID_BITS
        if BRANCHES.top_p:
            total = tl.zeros([BLOCK], tl.int64)
            for start in range(0, n_keys, BLOCK):
                offsets = start + tl.arange(0, BLOCK)
                keys = tl.load(keys_ptr + offsets, mask=offsets < n_keys, other=NO_KEY)
                total += tl.where(keys >= last, masses(keys, best_z, temperature), 0)
            target = tl.sum(total, axis=0).to(tl.float64) * share
    if BRANCHES.top_p:
        last = search(keys_ptr, n_keys, last - 1, most, target, best_z, temperature, True, BLOCK)
    lowest = most
    n_kept = tl.zeros([BLOCK], tl.int64)
    s = tl.zeros([BLOCK], tl.float64)
    a = tl.zeros([BLOCK], tl.float64)
    draw = tl.full((), float("-inf"), tl.float64)
    token = tl.full((), 2147483647, tl.int32)
    noise_key = position_key(key, tl.load(positions_ptr + row))
    for start in range(0, n_keys, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        keys = tl.load(keys_ptr + offsets, mask=offsets < n_keys, other=NO_KEY)
        z = tl.where(offsets < n_keys, scaled(keys, temperature), float("-inf"))
        kept = (keys >= last) & (z >= best_z + log_min_p) & (z > float("-inf"))
        y = tl.where(kept, z - best_z, 0.0).to(tl.float64)
        w = tl.where(kept, tl.exp(y), 0.0)
        n_kept += kept.to(tl.int64)
        s += w
        a += w * y
        lowest = tl.minimum(lowest, tl.min(tl.where(kept, keys, most), axis=0))
        ids = LAST_ID - (keys & LAST_ID).to(tl.int32)
        tile_draw, tile_token = seeded_best(z, kept, ids, noise_key)
        token = tl.where(
            tile_draw > draw, tile_token, tl.where(tile_draw == draw, tl.minimum(token, tile_token), token)
        )
        draw = tl.maximum(draw, tile_draw)
    mass = tl.sum(s, axis=0)
    mean = tl.sum(a, axis=0) / mass
    drawn_z = draw - gumbel(noise_key, token)
    p, entropy = tl.exp(drawn_z - best_z) / mass, tl.log(mass) - mean
    threshold = ops.disordered((lowest >> ID_BITS).to(tl.int32))
    lse, count, last_id = best_z + tl.log(mass), tl.sum(n_kept, axis=0), LAST_ID - (lowest & LAST_ID)
    ops.store_draw(drawn, row, bad, token, p, count, lse, entropy, threshold, last_id)


def launch(logits, rules, key: int, positions, figures, cuts, many: dict, branches, drawn) -> None:
    """Fill the draw, from what `kernel.launch` has found of the logits; many: its constants."""
    (rows, cols), device = logits.data.shape, logits.data.device
    keys = torch.empty(rows, cols, dtype=torch.int64, device=device)
    found = Keys(keys, torch.zeros(rows, dtype=torch.int32, device=device), cols)
    gather_fwd_kernel[(rows, triton.cdiv(cols, many["BLOCK_SIZE"]))](found, logits, figures.floor, **many)
    held = (drawn, found, figures, positions, cuts, key)
    limits = (rules.top_k or 0, int((rules.top_p or 1.0) * 2**60))
    block = min(max(triton.next_power_of_2(cols), 16), 1024)
    select_fwd_kernel[(rows,)](*held, *limits, block, branches, num_warps=8)

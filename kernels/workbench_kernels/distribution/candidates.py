"""What top-k, top-p and min-p keep, found without a sort.

Order the tokens by logit, lowest id first among equals: each of the three keeps a prefix, and so do all together. The
prefix ends at one token, hence at one int64 key (logit, id). It is searched for among the few tokens that can matter:

3. `gather_fwd_kernel`, one program per (row, BLOCK_SIZE columns), reads the logits again (from the cache) and collects
   the keys of tokens at or above the row's floor. The floor is the k-th largest of the maxima of groups of columns
   for top-k, lse + log((1 - top_p) / V) for top-p: all tokens below that hold less than 1 - top_p together.
4. `select_fwd_kernel`, one program per row, finds the prefix's last key by a nine-way search on counts (top-k) or
   probability (top-p), then draws, and sorts the candidates asked for.

Probabilities are added as multiples of 2**-44 of the largest one. Integer sums are the same in any order, so the order
in which programs have collected the keys cannot show. A distribution so flat that nothing lies below the floor is
still cut right, by one program that reads its whole row at every step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.distribution import reference
from workbench_kernels.distribution.kernel import disordered, ordered, store_draw
from workbench_kernels.noise.kernel import gumbel, position_key, seeded_best

ID_BITS = tl.constexpr(24)
LAST_ID = tl.constexpr(2**24 - 1)
NO_KEY = tl.constexpr(-(2**62))
UNIT = tl.constexpr(2.0**44)
WAYS = tl.constexpr(8)  # cuts tried at once


@triton.jit
def gather_fwd_kernel(
    keys_ptr,  # [n_rows, n_cols] int64, in no order
    counts_ptr,  # [n_rows] int32, 0 before
    logits_ptr,  # [n_rows, n_cols]
    floor_ptr,  # [n_rows] float32
    logits_row_stride,
    n_cols,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    col_offsets = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = col_offsets < n_cols
    x = tl.load(logits_ptr + row * logits_row_stride + col_offsets, mask=mask, other=float("-inf")).to(tl.float32)
    found = mask & (x >= tl.load(floor_ptr + row))
    n_found = tl.sum(found.to(tl.int32), axis=0)
    if n_found > 0:
        keys = (ordered(x).to(tl.int64) << ID_BITS) | (LAST_ID - col_offsets)
        first = tl.atomic_add(counts_ptr + row, n_found)
        places = first + tl.cumsum(found.to(tl.int32), axis=0) - 1
        tl.store(keys_ptr + row * n_cols + places, keys, mask=found)


@triton.jit
def scaled(keys, temperature):
    """Logits over temperature, float32, of keys."""
    return tl.div_rn(disordered((keys >> ID_BITS).to(tl.int32)), tl.full(keys.shape, temperature, tl.float32))


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


@triton.jit(do_not_specialize=["key", "top_k", "raw_k", "top_p"])
def select_fwd_kernel(
    top_values_ptr,  # [n_rows, raw_k] float32; raw_k > 0
    top_ids_ptr,  # [n_rows, raw_k] int64
    drawn,  # `Draw`; FILTERED
    scratch_ptr,  # [n_rows, BLOCK_TOP] int64
    keys_ptr,  # [n_rows, n_cols] int64
    counts_ptr,  # [n_rows] int32
    figures,  # `Figures`
    positions_ptr,  # [n_rows] int64; FILTERED
    n_cols, temperature, key, top_k, raw_k,
    top_p,  # in units of 2**-60: a float argument would be rounded to float32
    log_min_p, FILTERED: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr,
    BLOCK_TOP: tl.constexpr,  # 0 where raw_k is 0
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    keys_ptr += row * n_cols
    n_keys = tl.load(counts_ptr + row)
    best = tl.load(figures.best + row)
    bad = best != best
    best_z = tl.div_rn(best, tl.full((), temperature, tl.float32))
    least = (ordered(tl.load(figures.floor + row)).to(tl.int64) << ID_BITS) - 1
    most = (ordered(best).to(tl.int64) << ID_BITS) | LAST_ID

    if FILTERED:
        last = least
        share = top_p.to(tl.float64) * 8.673617379884035e-19  # 2**-60
        target = share * tl.load(figures.mass + row) * UNIT
        if TOP_K:
            # all tokens tied with the k-th stay: the lowest key of its value
            last = search(keys_ptr, n_keys, least, most, top_k.to(tl.float64), best_z, temperature, False, BLOCK)
            last = (last >> ID_BITS) << ID_BITS
            if TOP_P:
                total = tl.zeros([BLOCK], tl.int64)
                for start in range(0, n_keys, BLOCK):
                    offsets = start + tl.arange(0, BLOCK)
                    keys = tl.load(keys_ptr + offsets, mask=offsets < n_keys, other=NO_KEY)
                    total += tl.where(keys >= last, masses(keys, best_z, temperature), 0)
                target = tl.sum(total, axis=0).to(tl.float64) * share
        if TOP_P:
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
        threshold = disordered((lowest >> ID_BITS).to(tl.int32))
        lse, count, last_id = best_z + tl.log(mass), tl.sum(n_kept, axis=0), LAST_ID - (lowest & LAST_ID)
        store_draw(drawn, row, bad, token, p, count, lse, entropy, threshold, last_id)

    if BLOCK_TOP > 0:
        last = search(keys_ptr, n_keys, least, most, raw_k.to(tl.float64), best_z, temperature, False, BLOCK)
        scratch_ptr += row * BLOCK_TOP
        found = tl.full((), 0, tl.int32)
        for start in range(0, n_keys, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            keys = tl.load(keys_ptr + offsets, mask=offsets < n_keys, other=NO_KEY)
            chosen = keys >= last
            places = found + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
            tl.store(scratch_ptr + places, keys, mask=chosen & (places < raw_k))
            found += tl.sum(chosen.to(tl.int32), axis=0)
        tl.debug_barrier()  # the program reads what its other threads wrote
        slots = tl.arange(0, BLOCK_TOP)
        keys = tl.load(scratch_ptr + slots, mask=slots < tl.minimum(found, raw_k), other=NO_KEY)
        keys = tl.sort(keys, descending=True)
        values = tl.where(bad, float("nan"), disordered((keys >> ID_BITS).to(tl.int32)))
        ids = tl.where(bad, -1, LAST_ID - (keys & LAST_ID))
        tl.store(top_values_ptr + row * raw_k + slots, values, mask=slots < raw_k)
        tl.store(top_ids_ptr + row * raw_k + slots, ids, mask=slots < raw_k)


def launch(
    logits: Tensor, rules, key: int, positions: Tensor | None, figures, block: int, top: tuple[Tensor, Tensor], drawn
) -> None:
    """Fill the top candidates and the draw, from what `kernel.launch` has found of logits [R, V]."""
    rows, cols = logits.shape
    keys = torch.empty(rows, cols, dtype=torch.int64, device=logits.device)
    counts = torch.zeros(rows, dtype=torch.int32, device=logits.device)
    block_top = triton.next_power_of_2(rules.candidates) if rules.candidates else 0
    scratch = torch.empty(rows, block_top, dtype=torch.int64, device=logits.device)
    least = reference.log32(rules.min_p or 0.0)
    many = {"BLOCK_SIZE": block, "num_warps": 8 if block > 1024 else 4}
    gather_fwd_kernel[(rows, triton.cdiv(cols, block))](
        keys, counts, logits, figures.floor, logits.stride(0), cols, **many
    )
    select_fwd_kernel[(rows,)](
        *top, drawn, scratch, keys, counts, figures, positions, cols, rules.temperature, key,
        rules.top_k or 0, rules.candidates, int((rules.top_p or 1.0) * 2**60), least,
        FILTERED=rules.filtered, TOP_K=rules.top_k is not None, TOP_P=rules.top_p is not None,
        BLOCK_TOP=block_top, BLOCK=min(max(triton.next_power_of_2(cols), 16), 1024), num_warps=8,
    )  # fmt: skip

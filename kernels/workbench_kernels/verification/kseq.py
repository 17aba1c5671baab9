"""K-SEQ over a tree of chains: the launches do not grow in number with the tree, and only the walk is sequential.

Launches: `normalise` (largest logit and sum of p and q after every node); with more than one chain 6 times `search`
(rho*, 4 bits a launch: sums over the vocabulary at 15 divisors, between two of which the next 15 lie); `test` (rho,
beta, and p and q of every draw); `walk`; `final` and `last` (the draw from what is left at the stop).
"""

import torch
import triton
import triton.language as tl

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.distribution.noise import keyed_best, position_key, uniform
from workbench_kernels.distribution.reference import launch_key
from workbench_kernels.verification import reference_kseq
from workbench_kernels.verification.kernel import (
    ACCEPTED,
    BONUS,
    NO_ID,
    PARENT_REJECTED,
    PRUNED,
    RATIO,
    REJECTED,
    RESIDUAL,
    SIBLING_WON,
    TARGET,
    UNUSED,
    Target,
)  # fmt: skip
from workbench_kernels.verification.kseq_search import (
    STEPS,
    TURNS,
    draft_law,
    none_passes,
    normalise_fwd_kernel,
    search_fwd_kernel,
    target_law,
    test_fwd_kernel,
)  # fmt: skip
from workbench_kernels.verification.rejection import last_fwd_kernel

__all__ = ["final_fwd_kernel", "verify", "walk_fwd_kernel"]

EMPTY = tl.constexpr(reference_kseq.EMPTY)


@triton.jit(do_not_specialize=["key"])
def walk_fwd_kernel(
    path_ptr,  # [n_trees, n_nodes] int32, -1 behind the path
    length_ptr,  # [n_trees] int32, as the next three
    source_ptr,
    stop_ptr,  # the node the walk ended at
    tested_ptr,  # how many draws it has, all rejected
    fates_ptr,  # [n_trees, n_nodes] int32, as the next
    reasons_ptr,
    us_ptr,  # [n_trees, n_chains, n_levels] float64, as the next
    ratios_ptr,
    parents_ptr,  # [n_trees, n_nodes] int32
    positions_ptr,  # [n_trees] int64
    chains_ptr,  # [n_trees, n_chains, n_levels] int32
    rho_ptr,  # [n_trees, n_nodes] float64, as the next two
    p_ptr,
    q_ptr,
    n_nodes,
    n_chains,
    n_levels,
    key,
    BLOCK_NODES: tl.constexpr,
    BLOCK_CHAINS: tl.constexpr,
):
    tree = tl.program_id(0).to(tl.int64)
    first = tree * n_nodes
    nodes = tl.arange(0, BLOCK_NODES)
    chain = tl.arange(0, BLOCK_CHAINS)
    mask = nodes < n_nodes
    real = tl.load(parents_ptr + first + nodes, mask=mask, other=-1) >= 0
    position = tl.load(positions_ptr + tree)
    fates = tl.where(real, PRUNED, UNUSED)
    reasons = tl.zeros([BLOCK_NODES], tl.int32)
    node = tl.full((), 0, tl.int32)
    length = tl.full((), 0, tl.int32)
    tested = tl.full((), 0, tl.int32)
    walking = tl.full((), 1, tl.int32)
    for level in range(0, n_levels):
        place = (tree * n_chains + chain) * n_levels + level
        child = tl.load(chains_ptr + place, mask=chain < n_chains, other=-1)
        parent = tl.load(parents_ptr + first + child, mask=child >= 0, other=-1)
        live = (child >= 0) & (parent == node) & (walking > 0)
        number = tl.cumsum(live.to(tl.int32), axis=0) - 1
        u = uniform(position_key(key, position + level), number)
        rho = tl.load(rho_ptr + first + node)
        p = tl.load(p_ptr + first + child, mask=live, other=0.0)
        q = tl.load(q_ptr + first + child, mask=live, other=1.0)
        winner = tl.min(tl.where(live & (u * rho * q < p), number, NO_ID), axis=0)
        asked = live & (number <= winner)
        tl.store(us_ptr + place, tl.where(asked, u, float("nan")), mask=chain < n_chains)
        tl.store(ratios_ptr + place, tl.where(asked, p / (rho * q), float("nan")), mask=chain < n_chains)
        held = child[:, None] == nodes[None, :]
        drawn = tl.max((held & (child >= 0)[:, None]).to(tl.int32), axis=0) > 0
        below = tl.max((held & live[:, None]).to(tl.int32), axis=0) > 0
        lost = tl.max((held & asked[:, None]).to(tl.int32), axis=0) > 0
        won = tl.max(tl.where(live & (number == winner), child, -1), axis=0)
        fates = tl.where(real & drawn, PARENT_REJECTED, fates)
        fates = tl.where(below, tl.where(nodes == won, ACCEPTED, tl.where(lost, REJECTED, SIBLING_WON)), fates)
        reasons = tl.where(lost & (nodes != won), RATIO, reasons)
        tested = tl.where(walking > 0, tl.sum(live.to(tl.int32), axis=0), tested)
        walking = (winner != NO_ID).to(tl.int32)
        tl.store(path_ptr + first + length, won, mask=walking > 0)
        node = tl.where(walking > 0, won, node)
        length += walking
    tested = tl.where(walking > 0, 0, tested)
    tl.store(path_ptr + first + nodes, tl.full([BLOCK_NODES], -1, tl.int32), mask=mask & (nodes >= length))
    tl.store(length_ptr + tree, length)
    tl.store(source_ptr + tree, tl.where(tested > 0, RESIDUAL, tl.where(length > 0, BONUS, TARGET)))
    tl.store(stop_ptr + tree, node)
    tl.store(tested_ptr + tree, tested)
    tl.store(fates_ptr + first + nodes, fates, mask=mask)
    tl.store(reasons_ptr + first + nodes, reasons, mask=mask)


@triton.jit(do_not_specialize=["key"])
def final_fwd_kernel(
    best_ptr,  # [n_trees, n_splits] float64
    best_ids_ptr,  # [n_trees, n_splits] int32
    stop_ptr,  # [n_trees] int32, as the next
    tested_ptr,
    positions_ptr,  # [n_trees] int64
    rho_ptr,
    beta_ptr,
    logits_ptr,
    proposals_ptr,
    threshold_ptr,
    threshold_id_ptr,
    rows_ptr,
    depths_ptr,
    p_parts_ptr,
    q_parts_ptr,
    logits_row_stride,
    proposals_row_stride,
    n_nodes,
    n_cols,
    temperature,
    key,
    SCALED: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    tree, split, n_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    node = tree * n_nodes + tl.load(stop_ptr + tree)
    k = tl.load(tested_ptr + tree)
    cols = split * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    p = target_law(
        node, cols, logits_ptr, threshold_ptr, threshold_id_ptr, p_parts_ptr, logits_row_stride, n_cols, n_splits,
        temperature, SCALED, CUT, BLOCK_SPLITS,
    )  # fmt: skip
    if k > 0:
        splits = tl.arange(0, BLOCK_SPLITS)
        beta = tl.sum(tl.load(beta_ptr + node * n_splits + splits, mask=splits < n_splits, other=0.0), axis=0)
        left = none_passes(beta, k)
        if left >= EMPTY:
            q = draft_law(
                node, cols, proposals_ptr, rows_ptr, q_parts_ptr, proposals_row_stride, n_cols, n_splits, BLOCK_SPLITS
            )
            taken = tl.minimum(q, p / tl.load(rho_ptr + node))
            p = tl.maximum(p - taken * ((1.0 - left) / tl.maximum(beta, 1e-300)), 0.0)
    kept = p > 0
    position = tl.load(positions_ptr + tree) + tl.load(depths_ptr + node)
    best, best_id = keyed_best(tl.log(tl.where(kept, p, 1.0)), kept, cols, position_key(key, position))
    tl.store(best_ptr + tree * n_splits + split, best)
    tl.store(best_ids_ptr + tree * n_splits + split, best_id)


@on_its_device
def verify(target: Target, tree, chains: torch.Tensor, proposals: torch.Tensor, seed: int) -> tuple[torch.Tensor, ...]:
    """As `reference_kseq.verify`, on contiguous columns; the target is one of logits."""
    trees, count, cols = target.logits.shape
    _, strands, levels = chains.shape
    device = target.logits.device
    logits = target.logits
    if logits.stride(2) != 1 or logits.stride(0) != count * logits.stride(1):
        logits = logits.contiguous()
    if proposals.stride(1) != 1:
        proposals = proposals.contiguous()
    block = min(max(triton.next_power_of_2(cols), 16), 2048)
    splits = triton.cdiv(cols, block)
    tokens, parents, depths, rows, positions = tree

    def ints(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    def doubles(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float64, device=device)

    path, fates, reasons = (ints(trees, count) for _ in range(3))
    length, source, stop, tested = (ints(trees) for _ in range(4))
    rhos, p, q = (doubles(trees, count) for _ in range(3))
    us, ratios = (doubles(trees, strands, levels) for _ in range(2))
    token = torch.empty(trees, dtype=torch.int64, device=device)
    p_parts, q_parts = (doubles(trees, count, 2, splits) for _ in range(2))
    beta, best, best_ids = doubles(trees, count, splits), doubles(trees, splits), ints(trees, splits)
    searched = strands > 1
    low = ints(TURNS.value if searched else 0, trees, count)
    masses = [doubles(trees if searched else 0, count, STEPS.value, splits) for _ in range(2)]

    grid, laws = (trees * count, splits), (logits, proposals, target.threshold, target.threshold_id)
    strides, sizes = (logits.stride(1), proposals.stride(0)), (count, strands, levels, cols, target.temperature)
    cut = {"SCALED": target.temperature != 1, "CUT": target.threshold is not None}
    options = {**cut, "BLOCK_SIZE": block, "num_warps": 8 if block > 1024 else 4}
    held, wide = {"BLOCK_CHAINS": triton.next_power_of_2(strands)}, {"BLOCK_SPLITS": triton.next_power_of_2(splits)}
    above, parts = (rows, parents, depths, chains), (p_parts, q_parts)
    if trees:
        normalise_fwd_kernel[grid](*parts, *laws, *above, *strides, *sizes, **options, **held)
        for turn in range(TURNS.value if searched else 0):
            search_fwd_kernel[grid](
                low, masses[turn % 2], masses[1 - turn % 2], *laws, *above, *parts, *strides, *sizes, turn,
                float(STEPS.value) ** -(turn + 1), **options, **held, **wide,
            )  # fmt: skip
        test_fwd_kernel[grid](
            rhos, p, q, beta, low, masses[1 - TURNS.value % 2], *laws, tokens, *above, *parts, *strides, *sizes,
            float(STEPS.value) ** -TURNS.value, **options, **held, **wide,
        )  # fmt: skip
        walk_fwd_kernel[(trees,)](
            path, length, source, stop, tested, fates, reasons, us, ratios, parents, positions, chains, rhos, p, q,
            count, strands, levels, launch_key(seed, "accept"), BLOCK_NODES=max(triton.next_power_of_2(count), 16),
            num_warps=8, **held,
        )  # fmt: skip
        final_fwd_kernel[(trees, splits)](
            best, best_ids, stop, tested, positions, rhos, beta, *laws, rows, depths, *parts, *strides, count, cols,
            target.temperature, launch_key(seed, "residual"), **options, **wide,
        )  # fmt: skip
        last_fwd_kernel[(trees,)](token, best, best_ids, splits, **wide)
    return path, length, token, source, fates, reasons, rhos, us, ratios

"""What K-SEQ reads of the vocabulary: the laws after every node, the divisor rho of its tests, and the laws' values at
its draws.

How many chains still agree at a node does not depend on what is accepted, so every node is worked on at once, as if the
walk came by. Laws are computed in float64 and never written, as in `rejection`.
"""

import triton
import triton.language as tl

from workbench_kernels.verification import reference_kseq
from workbench_kernels.verification.kernel import present, target_tile
from workbench_kernels.verification.rejection import log_sum, store_parts

__all__ = ["STEPS", "TURNS", "draft_law", "none_passes", "normalise_fwd_kernel", "search_fwd_kernel", "target_law",
           "test_fwd_kernel"]  # fmt: skip

SLACK = tl.constexpr(reference_kseq.SLACK)
STEPS = tl.constexpr(16)  # a launch of the search cuts the interval into as many
TURNS = tl.constexpr(6)  # 16^6 = 2^24, the steps of the reference


@triton.jit
def draws_after(node, chains_ptr, parents_ptr, depths_ptr, n_nodes, n_chains, n_levels, BLOCK_CHAINS: tl.constexpr):
    """[BLOCK_CHAINS] the child, as a number within the tree, that each chain has drawn after a node; -1 for none."""
    tree, local = node // n_nodes, node % n_nodes
    chain = tl.arange(0, BLOCK_CHAINS)
    depth = tl.load(depths_ptr + node)
    inside = (chain < n_chains) & (depth < n_levels)
    child = tl.load(chains_ptr + (tree * n_chains + chain) * n_levels + depth, mask=inside, other=-1)
    parent = tl.load(parents_ptr + tree * n_nodes + child, mask=child >= 0, other=-1)
    return tl.where((child >= 0) & (parent == local), child, -1)


@triton.jit
def none_passes(beta, k):
    """(1 - beta)^k, for k of 1 or more."""
    left = 1.0 - beta
    for _ in range(1, k):
        left = left * (1.0 - beta)
    return left


@triton.jit
def divisor(k, index, scale):
    """The divisor `index` steps of `scale` on the way from 1 to k."""
    return 1.0 + (k - 1).to(tl.float64) * index.to(tl.float64) * scale


@triton.jit
def narrowed(low, k, scale, masses_ptr, node, n_splits, BLOCK_SPLITS: tl.constexpr):
    """The last step of a launch's own `scale` at which the tests are not exact yet, from the masses of the launch."""
    steps = tl.arange(0, STEPS)
    splits = tl.arange(0, BLOCK_SPLITS)
    tile = (node * STEPS + steps[:, None]) * n_splits + splits[None, :]
    inside = (steps[:, None] > 0) & (splits[None, :] < n_splits)
    mass = tl.sum(tl.load(masses_ptr + tile, mask=inside, other=0.0), axis=1)
    over = 1.0 - none_passes(mass / divisor(k, low * STEPS + steps, scale), k) > mass + SLACK
    return low * STEPS + tl.sum(((steps > 0) & over).to(tl.int32), axis=0)


@triton.jit
def target_law(
    node, cols, logits_ptr, threshold_ptr, threshold_id_ptr, p_parts_ptr, logits_row_stride, n_cols, n_splits,
    temperature, SCALED: tl.constexpr, CUT: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """p of a node's columns, float64."""
    z, kept = target_tile(
        logits_ptr, node, logits_row_stride, threshold_ptr, threshold_id_ptr, cols, n_cols, temperature, SCALED, CUT
    )
    best, total = log_sum(p_parts_ptr, node, n_splits, BLOCK_SPLITS)
    return tl.where(kept, tl.exp(tl.where(kept, z - best, 0.0)) / total, 0.0)


@triton.jit
def draft_law(
    node, cols, proposals_ptr, rows_ptr, q_parts_ptr, proposals_row_stride, n_cols, n_splits, BLOCK_SPLITS: tl.constexpr
):
    """q of a node's columns, float64; it must have draws."""
    row = tl.load(rows_ptr + node).to(tl.int64)
    q = tl.load(proposals_ptr + row * proposals_row_stride + cols, mask=cols < n_cols, other=float("-inf"))
    best, total = log_sum(q_parts_ptr, node, n_splits, BLOCK_SPLITS)
    return tl.exp(q.to(tl.float64) - best) / tl.maximum(total, 1e-300)


@triton.jit
def normalise_fwd_kernel(
    p_parts_ptr,  # [n_trees * n_nodes, 2, n_splits] float64: largest logit and sum of the target's law after a node
    q_parts_ptr,  # [n_trees * n_nodes, 2, n_splits] float64: of the law that its children were drawn from
    logits_ptr,  # [n_trees * n_nodes, n_cols]
    proposals_ptr,  # [n_proposals, n_cols]
    threshold_ptr,  # [n_trees * n_nodes]; CUT, as the next
    threshold_id_ptr,
    rows_ptr,  # [n_trees * n_nodes] int32, as the next two
    parents_ptr,
    depths_ptr,
    chains_ptr,  # [n_trees, n_chains, n_levels] int32
    logits_row_stride,
    proposals_row_stride,
    n_nodes,
    n_chains,
    n_levels,
    n_cols,
    temperature,
    SCALED: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_CHAINS: tl.constexpr,
):
    node, split, n_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    if present(parents_ptr, node, n_nodes):
        cols = split * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        z, kept = target_tile(
            logits_ptr, node, logits_row_stride, threshold_ptr, threshold_id_ptr, cols, n_cols, temperature, SCALED, CUT
        )
        store_parts(p_parts_ptr, node, split, n_splits, tl.where(kept, z, float("-inf")))
        child = draws_after(node, chains_ptr, parents_ptr, depths_ptr, n_nodes, n_chains, n_levels, BLOCK_CHAINS)
        if tl.max(child, axis=0) >= 0:
            row = tl.load(rows_ptr + node).to(tl.int64)
            q = tl.load(proposals_ptr + row * proposals_row_stride + cols, mask=cols < n_cols, other=float("-inf"))
            store_parts(q_parts_ptr, node, split, n_splits, q.to(tl.float64))


@triton.jit(do_not_specialize=["turn", "scale"])
def search_fwd_kernel(
    low_ptr,  # [TURNS, n_trees * n_nodes] int32: where the interval of a turn begins, in steps of the turn before
    masses_ptr,  # [n_trees * n_nodes, STEPS, n_splits] float64: sum of min(rho q, p) at every step, as the next
    older_masses_ptr,  # those of the turn before
    logits_ptr,
    proposals_ptr,
    threshold_ptr,
    threshold_id_ptr,
    rows_ptr,
    parents_ptr,
    depths_ptr,
    chains_ptr,
    p_parts_ptr,
    q_parts_ptr,
    logits_row_stride,
    proposals_row_stride,
    n_nodes,
    n_chains,
    n_levels,
    n_cols,
    temperature,
    turn,
    scale,  # of this turn's steps
    SCALED: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_CHAINS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    node, split, n_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    child = draws_after(node, chains_ptr, parents_ptr, depths_ptr, n_nodes, n_chains, n_levels, BLOCK_CHAINS)
    k = tl.sum((child >= 0).to(tl.int32), axis=0)
    if k > 1:
        low = tl.full((), 0, tl.int32)
        if turn > 0:
            before = tl.load(low_ptr + (turn - 1) * tl.num_programs(0) + node)
            low = narrowed(before, k, scale * STEPS, older_masses_ptr, node, n_splits, BLOCK_SPLITS)
        tl.store(low_ptr + turn * tl.num_programs(0) + node, low, mask=split == 0)
        cols = split * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        p = target_law(
            node, cols, logits_ptr, threshold_ptr, threshold_id_ptr, p_parts_ptr, logits_row_stride, n_cols, n_splits,
            temperature, SCALED, CUT, BLOCK_SPLITS,
        )  # fmt: skip
        q = draft_law(
            node, cols, proposals_ptr, rows_ptr, q_parts_ptr, proposals_row_stride, n_cols, n_splits, BLOCK_SPLITS
        )
        for step in range(1, STEPS):
            rho = divisor(k, low * STEPS + step, scale)
            mass = tl.sum(tl.minimum(rho * q, p), axis=0)
            tl.store(masses_ptr + (node * STEPS + step) * n_splits + split, mass)


@triton.jit
def test_fwd_kernel(
    rho_ptr,  # [n_trees * n_nodes] float64, NaN where nothing was drawn
    p_ptr,  # [n_trees * n_nodes] float64: p and q, after its parent, of a drawn child's token
    q_ptr,
    beta_ptr,  # [n_trees * n_nodes, n_splits] float64: the chance that one draw passes, in parts
    low_ptr,
    masses_ptr,  # of the last turn
    logits_ptr,
    proposals_ptr,
    threshold_ptr,
    threshold_id_ptr,
    tokens_ptr,
    rows_ptr,
    parents_ptr,
    depths_ptr,
    chains_ptr,
    p_parts_ptr,
    q_parts_ptr,
    logits_row_stride,
    proposals_row_stride,
    n_nodes,
    n_chains,
    n_levels,
    n_cols,
    temperature,
    scale,  # of the last turn's steps
    SCALED: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_CHAINS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    node, split, n_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    child = draws_after(node, chains_ptr, parents_ptr, depths_ptr, n_nodes, n_chains, n_levels, BLOCK_CHAINS)
    k = tl.sum((child >= 0).to(tl.int32), axis=0)
    rho = tl.full((), float("nan"), tl.float64)
    if k > 0:
        rho = tl.full((), 1.0, tl.float64)
        if k > 1:
            before = tl.load(low_ptr + (TURNS - 1) * tl.num_programs(0) + node)
            low = narrowed(before, k, scale, masses_ptr, node, n_splits, BLOCK_SPLITS)
            rho = divisor(k, low + 1, scale)
        cols = split * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        p = target_law(
            node, cols, logits_ptr, threshold_ptr, threshold_id_ptr, p_parts_ptr, logits_row_stride, n_cols, n_splits,
            temperature, SCALED, CUT, BLOCK_SPLITS,
        )  # fmt: skip
        q = draft_law(
            node, cols, proposals_ptr, rows_ptr, q_parts_ptr, proposals_row_stride, n_cols, n_splits, BLOCK_SPLITS
        )
        tl.store(beta_ptr + node * n_splits + split, tl.sum(tl.minimum(q, p / rho), axis=0))
        if split == 0:
            drawn = node // n_nodes * n_nodes + child
            tokens = tl.load(tokens_ptr + drawn, mask=child >= 0, other=n_cols)
            p_drawn = target_law(
                node, tokens, logits_ptr, threshold_ptr, threshold_id_ptr, p_parts_ptr, logits_row_stride, n_cols,
                n_splits, temperature, SCALED, CUT, BLOCK_SPLITS,
            )  # fmt: skip
            q_drawn = draft_law(
                node, tokens, proposals_ptr, rows_ptr, q_parts_ptr, proposals_row_stride, n_cols, n_splits, BLOCK_SPLITS
            )
            tl.store(p_ptr + drawn, p_drawn, mask=child >= 0)
            tl.store(q_ptr + drawn, q_drawn, mask=child >= 0)
    tl.store(rho_ptr + node, rho, mask=split == 0)

"""Rejection over the vocabulary: the residual laws of all nodes at once, and the draw from the one that is left.

What is left of p after r rejections follows from p, q and the r tokens; it is recomputed column by column, so that
nothing as large as the logits is ever written. Only the masses between (sums over the vocabulary) need a launch each.
"""

import torch
import triton
import triton.language as tl

from workbench_kernels.noise.kernel import position_key, seeded_best
from workbench_kernels.verification.kernel import NO_ID, present, target_tile

__all__ = ["Rounds", "final_fwd_kernel", "last_fwd_kernel", "normalise_fwd_kernel", "round_fwd_kernel"]


@triton.jit
def store_parts(parts_ptr, row, split, n_splits, z):
    """Store a split's largest log-weight and its sum of exp(z - largest); see `log_sum`."""
    best = tl.max(z, axis=0)
    tl.store(parts_ptr + row * 2 * n_splits + split, best)
    total = tl.sum(tl.exp(z - tl.where(best > float("-inf"), best, 0.0)), axis=0)
    tl.store(parts_ptr + (row * 2 + 1) * n_splits + split, total)


@triton.jit
def normalise_fwd_kernel(
    p_parts_ptr,  # [n_trees * n_nodes, 2, n_splits] float64: largest logit and sum of the target's law after a node
    q_parts_ptr,  # [n_trees * n_nodes, 2, n_splits] float64: of the proposal that a DIST node is tested against
    logits_ptr,  # [n_trees * n_nodes, n_cols]
    proposals_ptr,  # [n_proposals, n_cols]
    threshold_ptr,  # [n_trees * n_nodes]; CUT, as the next
    threshold_id_ptr,
    tokens_ptr,  # [n_trees * n_nodes] int32, as the next three
    kinds_ptr,
    rows_ptr,
    parents_ptr,
    children_ptr,  # [n_trees * n_nodes, width] int32
    logits_row_stride,
    proposals_row_stride,
    n_nodes,
    n_cols,
    width,
    temperature,
    SCALED: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    node, split, n_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    first = node // n_nodes * n_nodes
    if present(parents_ptr, node, n_nodes):
        cols = split * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        z, kept = target_tile(
            logits_ptr, node, logits_row_stride, threshold_ptr, threshold_id_ptr, cols, n_cols, temperature, SCALED, CUT
        )
        store_parts(p_parts_ptr, node, split, n_splits, tl.where(kept, z, float("-inf")))
        row = tl.load(rows_ptr + node).to(tl.int64)
        if row >= 0:
            q = tl.load(proposals_ptr + row * proposals_row_stride + cols, mask=cols < n_cols, other=float("-inf"))
            q = q.to(tl.float64)
            for turn in range(0, width):
                local = tl.load(children_ptr + node * width + turn)
                child = first + tl.maximum(local, 0)
                if (local >= 0) & (tl.load(kinds_ptr + child) > 0):
                    store_parts(q_parts_ptr, child, split, n_splits, q)
                    q = tl.where(cols == tl.load(tokens_ptr + child), float("-inf"), q)


@triton.jit
def log_sum(parts_ptr, row, n_splits, BLOCK_SPLITS: tl.constexpr):
    """Log-sum-exp of a row, as (largest logit, sum), from the parts of its splits."""
    splits = tl.arange(0, BLOCK_SPLITS)
    bests = tl.load(parts_ptr + row * 2 * n_splits + splits, mask=splits < n_splits, other=float("-inf"))
    totals = tl.load(parts_ptr + (row * 2 + 1) * n_splits + splits, mask=splits < n_splits, other=0.0)
    best = tl.max(bests, axis=0)
    best = tl.where(best > float("-inf"), best, 0.0)
    return best, tl.sum(totals * tl.exp(bests - best), axis=0)


@triton.jit
def reject(p, q, child, cols, tokens_ptr, kinds_ptr, q_parts_ptr, n_splits, BLOCK_SPLITS: tl.constexpr):
    """(what rejecting a child leaves of p, not normalised; q after its draw; its own law at every column)."""
    token = tl.load(tokens_ptr + child)
    law = tl.zeros(p.shape, tl.float64)
    if tl.load(kinds_ptr + child) > 0:
        best, total = log_sum(q_parts_ptr, child, n_splits, BLOCK_SPLITS)
        law = tl.exp(q - best) / tl.maximum(total, 1e-300)
        rest = tl.maximum(p - law, 0.0)
        q = tl.where(cols == token, float("-inf"), q)
    else:
        rest = tl.where(cols == token, 0.0, p)
    return rest, q, law


@triton.jit
def left_over(
    node, turns, cols, logits_ptr, proposals_ptr, threshold_ptr, threshold_id_ptr, tokens_ptr, kinds_ptr, rows_ptr,
    children_ptr, p_parts_ptr, q_parts_ptr, mass_ptr, logits_row_stride, proposals_row_stride, n_nodes, n_splits,
    n_cols, width, temperature, SCALED: tl.constexpr, CUT: tl.constexpr, BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    """(p, log q) of a node's columns once the first `turns` of its children were rejected."""
    first = node // n_nodes * n_nodes
    splits = tl.arange(0, BLOCK_SPLITS)
    z, kept = target_tile(
        logits_ptr, node, logits_row_stride, threshold_ptr, threshold_id_ptr, cols, n_cols, temperature, SCALED, CUT
    )
    best, total = log_sum(p_parts_ptr, node, n_splits, BLOCK_SPLITS)
    p = tl.where(kept, tl.exp(tl.where(kept, z - best, 0.0)) / total, 0.0)
    row = tl.load(rows_ptr + node).to(tl.int64)
    q = tl.load(
        proposals_ptr + row * proposals_row_stride + cols, mask=(cols < n_cols) & (row >= 0), other=float("-inf")
    ).to(tl.float64)
    for turn in range(0, turns):
        child = first + tl.load(children_ptr + node * width + turn)
        p, q, _ = reject(p, q, child, cols, tokens_ptr, kinds_ptr, q_parts_ptr, n_splits, BLOCK_SPLITS)
        mass = tl.sum(tl.load(mass_ptr + child * n_splits + splits, mask=splits < n_splits, other=0.0), axis=0)
        p = p / tl.maximum(mass, 1e-300)
    return p, q


@triton.jit(do_not_specialize=["turn"])
def round_fwd_kernel(
    p_ptr,  # [n_trees * n_nodes] float64: p and q of a child's token when it is its turn
    q_ptr,
    mass_ptr,  # [n_trees * n_nodes, n_splits] float64: mass that rejecting a child leaves
    logits_ptr,
    proposals_ptr,
    threshold_ptr,
    threshold_id_ptr,
    tokens_ptr,
    kinds_ptr,
    rows_ptr,
    children_ptr,
    p_parts_ptr,
    q_parts_ptr,
    logits_row_stride,
    proposals_row_stride,
    n_nodes,
    n_cols,
    width,
    temperature,
    turn,
    SCALED: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    node, split, n_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    local = tl.load(children_ptr + node * width + turn)
    if local >= 0:
        child = node // n_nodes * n_nodes + local
        cols = split * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        p, q = left_over(
            node, turn, cols, logits_ptr, proposals_ptr, threshold_ptr, threshold_id_ptr, tokens_ptr, kinds_ptr,
            rows_ptr, children_ptr, p_parts_ptr, q_parts_ptr, mass_ptr, logits_row_stride, proposals_row_stride,
            n_nodes, n_splits, n_cols, width, temperature, SCALED, CUT, BLOCK_SPLITS,
        )  # fmt: skip
        rest, _, law = reject(p, q, child, cols, tokens_ptr, kinds_ptr, q_parts_ptr, n_splits, BLOCK_SPLITS)
        tl.store(mass_ptr + child * n_splits + split, tl.sum(rest, axis=0))
        token = tl.load(tokens_ptr + child)
        if token // BLOCK_SIZE == split:
            here = cols == token
            tl.store(p_ptr + child, tl.sum(tl.where(here, p, 0.0), axis=0))
            tl.store(q_ptr + child, tl.sum(tl.where(here, law, 0.0), axis=0))


@triton.jit(do_not_specialize=["key"])
def final_fwd_kernel(
    best_ptr,  # [n_trees, n_splits] float64
    best_ids_ptr,  # [n_trees, n_splits] int32
    stop_ptr,  # [n_trees] int32
    rounds_ptr,  # [n_trees] int32
    depths_ptr,  # [n_trees * n_nodes] int32
    positions_ptr,  # [n_trees] int64
    mass_ptr,
    logits_ptr,
    proposals_ptr,
    threshold_ptr,
    threshold_id_ptr,
    tokens_ptr,
    kinds_ptr,
    rows_ptr,
    children_ptr,
    p_parts_ptr,
    q_parts_ptr,
    logits_row_stride,
    proposals_row_stride,
    n_nodes,
    n_cols,
    width,
    temperature,
    key,
    SCALED: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    tree, split, n_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    node = tree * n_nodes + tl.load(stop_ptr + tree)
    cols = split * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    p, _ = left_over(
        node, tl.load(rounds_ptr + tree), cols, logits_ptr, proposals_ptr, threshold_ptr, threshold_id_ptr,
        tokens_ptr, kinds_ptr, rows_ptr, children_ptr, p_parts_ptr, q_parts_ptr, mass_ptr, logits_row_stride,
        proposals_row_stride, n_nodes, n_splits, n_cols, width, temperature, SCALED, CUT, BLOCK_SPLITS,
    )  # fmt: skip
    kept = p > 0
    position = tl.load(positions_ptr + tree) + tl.load(depths_ptr + node)
    best, best_id = seeded_best(tl.log(tl.where(kept, p, 1.0)), kept, cols, position_key(key, position))
    tl.store(best_ptr + tree * n_splits + split, best)
    tl.store(best_ids_ptr + tree * n_splits + split, best_id)


@triton.jit
def last_fwd_kernel(
    token_ptr,  # [n_trees] int64
    best_ptr,  # [n_trees, n_splits] float64
    best_ids_ptr,  # [n_trees, n_splits] int32
    n_splits,
    BLOCK_SPLITS: tl.constexpr,
):
    tree = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, BLOCK_SPLITS)
    best = tl.load(best_ptr + tree * n_splits + splits, mask=splits < n_splits, other=float("-inf"))
    ids = tl.load(best_ids_ptr + tree * n_splits + splits, mask=splits < n_splits, other=NO_ID)
    tl.store(token_ptr + tree, tl.min(tl.where(best == tl.max(best, axis=0), ids, NO_ID), axis=0).to(tl.int64))


class Rounds:
    """The launches of one verification by rejection, over the tensors they share."""

    def __init__(self, target, tree, proposals: torch.Tensor | None, children: torch.Tensor, block: int, splits: int):
        trees, count, cols = target.logits.shape
        self.target, self.tree, self.children = target, tree, children
        self.grid, self.width = (trees * count, splits), children.shape[2]
        if proposals is None:
            proposals = target.logits.flatten(0, 1)  # never read: no row is named
        self.proposals = proposals if proposals.stride(1) == 1 else proposals.contiguous()
        self.strides = (target.logits.stride(1), self.proposals.stride(0), count, cols, self.width, target.temperature)
        self.parts = [
            torch.empty(trees, count, 2, splits, dtype=torch.float64, device=target.logits.device) for _ in range(2)
        ]
        cut = {"SCALED": target.temperature != 1, "CUT": target.threshold is not None}
        self.options = {**cut, "BLOCK_SIZE": block, "num_warps": 8 if block > 1024 else 4}
        self.wide = {"BLOCK_SPLITS": triton.next_power_of_2(splits)}

    def run(self, p: torch.Tensor, q: torch.Tensor, mass: torch.Tensor) -> None:
        """Fill p and q of every child at its turn, and the mass that its rejection leaves, in parts per split."""
        target, tree = self.target, self.tree
        laws = (target.logits, self.proposals, target.threshold, target.threshold_id, tree.tokens, tree.kinds)
        normalise_fwd_kernel[self.grid](
            *self.parts, *laws, tree.rows, tree.parents, self.children, *self.strides, **self.options
        )
        for turn in range(self.width):
            round_fwd_kernel[self.grid](
                p,
                q,
                mass,
                *laws,
                tree.rows,
                self.children,
                *self.parts,
                *self.strides,
                turn,
                **self.options,
                **self.wide,
            )

    def draw(self, token: torch.Tensor, stop: torch.Tensor, rounds: torch.Tensor, mass: torch.Tensor, key: int) -> None:
        """Fill the token drawn from what the walk left at its stop."""
        target, tree = self.target, self.tree
        trees, splits = len(token), self.grid[1]
        best = torch.empty(trees, splits, dtype=torch.float64, device=token.device)
        best_ids = torch.empty(trees, splits, dtype=torch.int32, device=token.device)
        final_fwd_kernel[(trees, splits)](
            best, best_ids, stop, rounds, tree.depths, tree.positions, mass, target.logits, self.proposals,
            target.threshold, target.threshold_id, tree.tokens, tree.kinds, tree.rows, self.children, *self.parts,
            *self.strides, key, **self.options, **self.wide,
        )  # fmt: skip
        last_fwd_kernel[(trees,)](token, best, best_ids, splits, **self.wide)

"""Rejection over the vocabulary: the residuals of all nodes at once, and the draw from the one that is left.

What is left of p after r rejections follows from p, q and the r tokens. It is recomputed column by column, so that
nothing as large as the logits is ever written. Only the masses between (sums over the vocabulary) need a launch each.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.noise.kernel import position_key, seeded_best
from workbench_kernels.verification.kernel import NO_ID, Target, Tree, Walk, present, target_tile


class State(NamedTuple):
    """What the launches of one verification share."""

    children: Tensor  # [B, N, width] int32
    width: int
    proposals: Tensor  # [M, V]
    row_stride: int  # of the proposals
    p_parts: Tensor  # [B, N, 2, splits] float64: largest logit and sum of the target's row after a node
    q_parts: Tensor  # the same, of the proposal that a DIST node is tested against
    p: Tensor  # [B, N] float64, of a child's token when it is its turn
    q: Tensor
    mass: Tensor  # [B, N, splits] float64: what rejecting a child leaves


@triton.jit
def store_parts(parts_ptr, row, split, n_splits, z):
    """Store a split's largest log-weight and its sum of exp(z - largest); see `log_sum`."""
    best = tl.max(z, axis=0)
    tl.store(parts_ptr + row * 2 * n_splits + split, best)
    total = tl.sum(tl.exp(z - tl.where(best > float("-inf"), best, 0.0)), axis=0)
    tl.store(parts_ptr + (row * 2 + 1) * n_splits + split, total)


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
def proposal_tile(state, row, cols, n_cols):
    """Log-weights of a proposal's columns, float64; -inf without a row."""
    at = state.proposals + row * state.row_stride + cols
    return tl.load(at, mask=(cols < n_cols) & (row >= 0), other=float("-inf")).to(tl.float64)


@triton.jit
def normalise_fwd_kernel(
    state,  # `State`
    target, tree, n_nodes, n_cols, SCALED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    node, split, n_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    first = node // n_nodes * n_nodes
    if present(tree, node, n_nodes):
        cols = split * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        z, kept = target_tile(target, node, cols, n_cols, SCALED)
        store_parts(state.p_parts, node, split, n_splits, tl.where(kept, z, float("-inf")))
        row = tl.load(tree.rows + node).to(tl.int64)
        if row >= 0:
            q = proposal_tile(state, row, cols, n_cols)
            for turn in range(0, state.width):
                local = tl.load(state.children + node * state.width + turn)
                child = first + tl.maximum(local, 0)
                if (local >= 0) & (tl.load(tree.kinds + child) > 0):
                    store_parts(state.q_parts, child, split, n_splits, q)
                    q = tl.where(cols == tl.load(tree.tokens + child), float("-inf"), q)


@triton.jit
def reject(p, q, child, cols, state, tree, n_splits, BLOCK_SPLITS: tl.constexpr):
    """(what rejecting a child leaves of p, not normalised; q after its draw; what it was drawn from), by column."""
    token = tl.load(tree.tokens + child)
    proposal = tl.zeros(p.shape, tl.float64)
    if tl.load(tree.kinds + child) > 0:
        best, total = log_sum(state.q_parts, child, n_splits, BLOCK_SPLITS)
        proposal = tl.exp(q - best) / tl.maximum(total, 1e-300)
        rest = tl.maximum(p - proposal, 0.0)
        q = tl.where(cols == token, float("-inf"), q)
    else:
        rest = tl.where(cols == token, 0.0, p)
    return rest, q, proposal


@triton.jit
def left_over(
    node, turns, cols, state, target, tree, n_nodes, n_splits, n_cols, SCALED: tl.constexpr, BLOCK_SPLITS: tl.constexpr
):
    """(p, log q) of a node's columns once the first `turns` of its children were rejected."""
    first = node // n_nodes * n_nodes
    splits = tl.arange(0, BLOCK_SPLITS)
    z, kept = target_tile(target, node, cols, n_cols, SCALED)
    best, total = log_sum(state.p_parts, node, n_splits, BLOCK_SPLITS)
    p = tl.where(kept, tl.exp(tl.where(kept, z - best, 0.0)) / total, 0.0)
    q = proposal_tile(state, tl.load(tree.rows + node).to(tl.int64), cols, n_cols)
    for turn in range(0, turns):
        child = first + tl.load(state.children + node * state.width + turn)
        p, q, _ = reject(p, q, child, cols, state, tree, n_splits, BLOCK_SPLITS)
        mass = tl.sum(tl.load(state.mass + child * n_splits + splits, mask=splits < n_splits, other=0.0), axis=0)
        p = p / tl.maximum(mass, 1e-300)
    return p, q


@triton.jit(do_not_specialize=["turn"])
def round_fwd_kernel(
    state, target, tree, n_nodes, n_cols, turn, SCALED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    node, split, n_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    local = tl.load(state.children + node * state.width + turn)
    if local >= 0:
        child = node // n_nodes * n_nodes + local
        cols = split * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        p, q = left_over(node, turn, cols, state, target, tree, n_nodes, n_splits, n_cols, SCALED, BLOCK_SPLITS)
        rest, _, proposal = reject(p, q, child, cols, state, tree, n_splits, BLOCK_SPLITS)
        tl.store(state.mass + child * n_splits + split, tl.sum(rest, axis=0))
        token = tl.load(tree.tokens + child)
        if token // BLOCK_SIZE == split:
            here = cols == token
            tl.store(state.p + child, tl.sum(tl.where(here, p, 0.0), axis=0))
            tl.store(state.q + child, tl.sum(tl.where(here, proposal, 0.0), axis=0))


@triton.jit(do_not_specialize=["key"])
def final_fwd_kernel(
    best_ptr,  # [n_trees, n_splits] float64
    best_ids_ptr,  # [n_trees, n_splits] int32
    walk, state, target, tree, n_nodes, n_cols, key, SCALED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):  # fmt: skip
    number, split, n_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    node = number * n_nodes + tl.load(walk.stop + number)
    cols = split * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    turns = tl.load(walk.rounds + number)
    p, _ = left_over(node, turns, cols, state, target, tree, n_nodes, n_splits, n_cols, SCALED, BLOCK_SPLITS)
    kept = p > 0
    position = tl.load(tree.positions + number) + tl.load(tree.depths + node)
    best, best_id = seeded_best(tl.log(tl.where(kept, p, 1.0)), kept, cols, position_key(key, position))
    tl.store(best_ptr + number * n_splits + split, best)
    tl.store(best_ids_ptr + number * n_splits + split, best_id)


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


def run(target: Target, tree: Tree, proposals, children, p, q, mass, tiles: dict, wide: dict) -> State:
    """Fill p and q of every child at its turn, and the mass that its rejection leaves, in parts per split."""
    trees, count, cols = target.logits.shape
    splits, width = mass.shape[2], children.shape[2]
    if proposals is None:
        proposals = target.logits.flatten(0, 1)  # never read: no row is named
    proposals = proposals if proposals.stride(1) == 1 else proposals.contiguous()
    parts = (torch.empty(trees, count, 2, splits, dtype=torch.float64, device=mass.device) for _ in range(2))
    state = State(children, width, proposals, proposals.stride(0), *parts, p, q, mass)
    grid = (trees * count, splits)
    normalise_fwd_kernel[grid](state, target, tree, count, cols, **tiles)
    for turn in range(width):
        round_fwd_kernel[grid](state, target, tree, count, cols, turn, **tiles, **wide)
    return state


def draw(walk: Walk, target: Target, tree: Tree, state: State, key: int, tiles: dict, wide: dict) -> None:
    """Fill the token drawn from what the walk left at its stop."""
    trees, count, splits = state.mass.shape
    best = torch.empty(trees, splits, dtype=torch.float64, device=state.mass.device)
    best_ids = torch.empty(trees, splits, dtype=torch.int32, device=state.mass.device)
    cols = target.logits.shape[2]
    final_fwd_kernel[(trees, splits)](best, best_ids, walk, state, target, tree, count, cols, key, **tiles, **wide)
    last_fwd_kernel[(trees,)](walk.token, best, best_ids, splits, **wide)

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
from workbench_kernels.verification.kernel import NO_ID, Tree, Walk


class Target(NamedTuple):
    """The target's log-weights, logits [B, N, V], and the stride of their rows."""

    logits: Tensor
    row_stride: int
    n_cols: int


class Best(NamedTuple):
    """The best score of each split of the columns, float64 [.., n_splits], and its token, int32."""

    scores: Tensor
    ids: Tensor


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
def present(tree, node):
    """Whether a node is there: the root, or one with a parent."""
    return (node % tree.n_nodes == 0) | (tl.load(tree.parents + node) >= 0)


@triton.jit
def split_cols(tiles: tl.constexpr):
    """The columns of a program's split."""
    return tl.program_id(1) * tiles.cols + tl.arange(0, tiles.cols)


@triton.jit
def target_tile(target, node, cols):
    """(logits in float64, which of them are there) of a node's columns."""
    mask = cols < target.n_cols
    x = tl.load(target.logits + node * target.row_stride + cols, mask=mask, other=float("-inf")).to(tl.float64)
    return x, mask & (x > float("-inf"))


@triton.jit
def store_best(best, row, score, token):
    """The best of a program's split."""
    place = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(best.scores + place, score)
    tl.store(best.ids + place, token)


@triton.jit
def store_parts(parts_ptr, row, z):
    """Store a split's largest log-weight and its sum of exp(z - largest); see `log_sum`."""
    split, n_splits = tl.program_id(1), tl.num_programs(1)
    best = tl.max(z, axis=0)
    tl.store(parts_ptr + row * 2 * n_splits + split, best)
    total = tl.sum(tl.exp(z - tl.where(best > float("-inf"), best, 0.0)), axis=0)
    tl.store(parts_ptr + (row * 2 + 1) * n_splits + split, total)


@triton.jit
def log_sum(parts_ptr, row, tiles: tl.constexpr):
    """Log-sum-exp of a row, as (largest logit, sum), from the parts of its splits."""
    splits, n_splits = tl.arange(0, tiles.splits), tl.num_programs(1)
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
def normalise_fwd_kernel(state, target, tree, TILES: tl.constexpr):
    node = tl.program_id(0).to(tl.int64)
    first = node // tree.n_nodes * tree.n_nodes
    if present(tree, node):
        cols = split_cols(TILES)
        z, kept = target_tile(target, node, cols)
        store_parts(state.p_parts, node, tl.where(kept, z, float("-inf")))
        row = tl.load(tree.rows + node).to(tl.int64)
        if row >= 0:
            q = proposal_tile(state, row, cols, target.n_cols)
            for turn in range(0, state.width):
                local = tl.load(state.children + node * state.width + turn)
                child = first + tl.maximum(local, 0)
                if (local >= 0) & (tl.load(tree.kinds + child) > 0):
                    store_parts(state.q_parts, child, q)
                    q = tl.where(cols == tl.load(tree.tokens + child), float("-inf"), q)


@triton.jit
def reject(p, q, child, cols, state, tree, tiles: tl.constexpr):
    """(what rejecting a child leaves of p, not normalised; q after its draw; what it was drawn from), by column."""
    token = tl.load(tree.tokens + child)
    proposal = tl.zeros(p.shape, tl.float64)
    if tl.load(tree.kinds + child) > 0:
        best, total = log_sum(state.q_parts, child, tiles)
        proposal = tl.exp(q - best) / tl.maximum(total, 1e-300)
        rest = tl.maximum(p - proposal, 0.0)
        q = tl.where(cols == token, float("-inf"), q)
    else:
        rest = tl.where(cols == token, 0.0, p)
    return rest, q, proposal


@triton.jit
def left_over(node, turns, cols, state, target, tree, tiles: tl.constexpr):
    """(p, log q) of a node's columns once the first `turns` of its children were rejected."""
    first = node // tree.n_nodes * tree.n_nodes
    splits, n_splits = tl.arange(0, tiles.splits), tl.num_programs(1)
    z, kept = target_tile(target, node, cols)
    best, total = log_sum(state.p_parts, node, tiles)
    p = tl.where(kept, tl.exp(tl.where(kept, z - best, 0.0)) / total, 0.0)
    q = proposal_tile(state, tl.load(tree.rows + node).to(tl.int64), cols, target.n_cols)
    for turn in range(0, turns):
        child = first + tl.load(state.children + node * state.width + turn)
        p, q, _ = reject(p, q, child, cols, state, tree, tiles)
        mass = tl.sum(tl.load(state.mass + child * n_splits + splits, mask=splits < n_splits, other=0.0), axis=0)
        p = p / tl.maximum(mass, 1e-300)
    return p, q


@triton.jit(do_not_specialize=["turn"])
def round_fwd_kernel(state, target, tree, turn, TILES: tl.constexpr):
    node, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    local = tl.load(state.children + node * state.width + turn)
    if local >= 0:
        child = node // tree.n_nodes * tree.n_nodes + local
        cols = split_cols(TILES)
        p, q = left_over(node, turn, cols, state, target, tree, TILES)
        rest, _, proposal = reject(p, q, child, cols, state, tree, TILES)
        tl.store(state.mass + child * tl.num_programs(1) + split, tl.sum(rest, axis=0))
        token = tl.load(tree.tokens + child)
        if token // TILES.cols == split:
            here = cols == token
            tl.store(state.p + child, tl.sum(tl.where(here, p, 0.0), axis=0))
            tl.store(state.q + child, tl.sum(tl.where(here, proposal, 0.0), axis=0))


@triton.jit(do_not_specialize=["key"])
def final_fwd_kernel(best, walk, state, target, tree, key, TILES: tl.constexpr):
    """best: `Best` of every tree."""
    number = tl.program_id(0).to(tl.int64)
    node = number * tree.n_nodes + tl.load(walk.stop + number)
    cols = split_cols(TILES)
    p, _ = left_over(node, tl.load(walk.rounds + number), cols, state, target, tree, TILES)
    kept = p > 0
    position = tl.load(tree.positions + number) + tl.load(tree.depths + node)
    score, token = seeded_best(tl.log(tl.where(kept, p, 1.0)), kept, cols, position_key(key, position))
    store_best(best, number, score, token)


@triton.jit
def last_fwd_kernel(token_ptr, best, n_splits, TILES: tl.constexpr):
    """token: [B] int64; best: `Best` of every tree."""
    number = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, TILES.splits)
    scores = tl.load(best.scores + number * n_splits + splits, mask=splits < n_splits, other=float("-inf"))
    ids = tl.load(best.ids + number * n_splits + splits, mask=splits < n_splits, other=NO_ID)
    token = tl.min(tl.where(scores == tl.max(scores, axis=0), ids, NO_ID), axis=0)
    tl.store(token_ptr + number, token.to(tl.int64))


def run(target: Target, tree: Tree, proposals, children: Tensor, splits: int, constants: dict) -> State:
    """Fill p and q of every child at its turn, and the mass that its rejection leaves, in parts per split."""
    trees, count, width = children.shape
    proposals = proposals if proposals.stride(1) == 1 else proposals.contiguous()
    shapes = (2, splits), (2, splits), (), (), (splits,)
    held = (torch.empty(trees, count, *shape, dtype=torch.float64, device=children.device) for shape in shapes)
    state = State(children, width, proposals, proposals.stride(0), *held)
    grid = (trees * count, splits)
    normalise_fwd_kernel[grid](state, target, tree, **constants)
    for turn in range(width):
        round_fwd_kernel[grid](state, target, tree, turn, **constants)
    return state


def draw(walk: Walk, target: Target, tree: Tree, state: State, key: int, constants: dict) -> None:
    """Fill the token drawn from what the walk left at its stop."""
    trees, _, splits = state.mass.shape
    kinds = torch.float64, torch.int32
    best = Best(*(torch.empty(trees, splits, dtype=kind, device=state.mass.device) for kind in kinds))
    final_fwd_kernel[(trees, splits)](best, walk, state, target, tree, key, **constants)
    last_fwd_kernel[(trees,)](walk.token, best, splits, TILES=constants["TILES"])

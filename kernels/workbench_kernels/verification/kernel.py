"""Verification of drafted trees: all that reads the vocabulary runs in parallel, the walk reads a few numbers a node.

A sibling is tested only after all before it were rejected, so each test depends on the laws alone, not on the walk.
Hence all nodes are worked on at once and the walk, one program per tree, only compares. Launches:

- greedy, keyed: 3. `order` (siblings in test order, doubles dropped), `choice` (the target's own token after every
  node), `walk`.
- rejection: 5 + W, with W the largest number of siblings. `order`; `normalise` (largest logit and sum, of every target
  row and of every proposal row as it is before each of its draws); W times `round` (round r: the law p left after r
  rejections, its value at the r-th child, and the mass that one rejection more would leave: a sum over the vocabulary
  that the next round divides by, hence a launch each); `walk`; `final` (what is left at the stop, and its best token
  per block of columns); `last` (the best of these).

Laws are computed in float64: acceptance compares u q(x) with p(x) exactly as the reference does, and what is left of
p after a rejection may be 1e-7 of it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.noise import launch_key
from workbench_kernels.noise.kernel import position_key, seeded_best, uniform

__all__ = ["Target", "Tree", "choice_fwd_kernel", "order_fwd_kernel", "verify", "walk_fwd_kernel"]

EMPTY = tl.constexpr(1e-7)
NO_ID = tl.constexpr(2147483647)
CHUNK = tl.constexpr(16)  # nodes compared with all others at once
UNUSED, ACCEPTED, REJECTED, SIBLING_WON, PARENT_REJECTED, PRUNED = (tl.constexpr(i) for i in range(6))
MISMATCH, RATIO = tl.constexpr(1), tl.constexpr(2)
BONUS, RESIDUAL, TARGET = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def order_fwd_kernel(
    ranks_ptr,  # [n_trees, n_nodes] int32: place among its siblings in test order, -1 for a double
    children_ptr,  # [n_trees, n_nodes, width] int32: nodes in test order, -1 before
    tokens_ptr,  # [n_trees, n_nodes] int32, as the next two
    parents_ptr,
    kinds_ptr,
    n_nodes,
    width,
    BLOCK_NODES: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * n_nodes
    nodes = tl.arange(0, BLOCK_NODES)
    mask = nodes < n_nodes
    tokens = tl.load(tokens_ptr + first + nodes, mask=mask, other=-1)
    parents = tl.load(parents_ptr + first + nodes, mask=mask, other=-1)
    drawn = tl.load(kinds_ptr + first + nodes, mask=mask, other=0)
    double = tl.zeros([BLOCK_NODES], tl.int32)
    for start in range(0, n_nodes, CHUNK):
        others = start + tl.arange(0, CHUNK)
        inside = others < n_nodes
        other_tokens = tl.load(tokens_ptr + first + others, mask=inside, other=-1)
        other_parents = tl.load(parents_ptr + first + others, mask=inside, other=-2)
        other_drawn = tl.load(kinds_ptr + first + others, mask=inside, other=0)
        same = (other_parents[None, :] == parents[:, None]) & (other_tokens[None, :] == tokens[:, None])
        before = (other_drawn[None, :] > 0) | (others[None, :] < nodes[:, None])
        double += tl.sum((same & before).to(tl.int32), axis=1)
    tested = (parents >= 0) & ((drawn > 0) | (double == 0))
    tl.store(ranks_ptr + first + nodes, tl.where(tested, 0, -1), mask=mask)
    tl.debug_barrier()  # the program reads what its other threads wrote
    rank = tl.zeros([BLOCK_NODES], tl.int32)
    for start in range(0, n_nodes, CHUNK):
        others = start + tl.arange(0, CHUNK)
        inside = others < n_nodes
        other_parents = tl.load(parents_ptr + first + others, mask=inside, other=-2)
        other_drawn = tl.load(kinds_ptr + first + others, mask=inside, other=0)
        other_tested = tl.load(ranks_ptr + first + others, mask=inside, other=-1) >= 0
        same = (other_parents[None, :] == parents[:, None]) & other_tested[None, :]
        earlier = (other_drawn[None, :] == drawn[:, None]) & (others[None, :] < nodes[:, None])
        rank += tl.sum((same & ((other_drawn[None, :] > drawn[:, None]) | earlier)).to(tl.int32), axis=1)
    tl.debug_barrier()
    tl.store(ranks_ptr + first + nodes, tl.where(tested, rank, -1), mask=mask)
    tl.store(children_ptr + (first + parents) * width + rank, nodes, mask=mask & tested & (rank < width))


@triton.jit
def present(parents_ptr, node, n_nodes):
    """Whether a node is there: the root, or one with a parent."""
    return (node % n_nodes == 0) | (tl.load(parents_ptr + node) >= 0)


@triton.jit
def target_tile(
    logits_ptr, node, logits_row_stride, threshold_ptr, threshold_id_ptr, cols, n_cols, temperature,
    SCALED: tl.constexpr, CUT: tl.constexpr,
):  # fmt: skip
    """(logits / temperature in float64, which of them are kept) of a node's columns."""
    mask = cols < n_cols
    x = tl.load(logits_ptr + node * logits_row_stride + cols, mask=mask, other=float("-inf"))
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    kept = mask & (x > float("-inf"))
    if CUT:
        threshold = tl.load(threshold_ptr + node).to(x.dtype)
        kept = kept & ((x > threshold) | ((x == threshold) & (cols <= tl.load(threshold_id_ptr + node))))
    if SCALED:
        if x.dtype == tl.float64:
            x = x / temperature
        else:
            x = tl.div_rn(x, tl.full(x.shape, temperature, tl.float32))
    return x.to(tl.float64), kept


@triton.jit(do_not_specialize=["key"])
def choice_fwd_kernel(
    best_ptr,  # [n_trees * n_nodes, n_splits] float64
    best_ids_ptr,  # [n_trees * n_nodes, n_splits] int32
    logits_ptr,  # [n_trees * n_nodes, n_cols]
    threshold_ptr,  # [n_trees * n_nodes]; CUT, as the next
    threshold_id_ptr,
    parents_ptr,  # [n_trees * n_nodes] int32, as the next
    depths_ptr,
    positions_ptr,  # [n_trees] int64
    logits_row_stride,
    n_nodes,
    n_cols,
    temperature,
    key,
    KEYED: tl.constexpr,
    SCALED: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    node, split, n_splits = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    if present(parents_ptr, node, n_nodes):
        cols = split * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        z, kept = target_tile(
            logits_ptr, node, logits_row_stride, threshold_ptr, threshold_id_ptr, cols, n_cols, temperature, SCALED, CUT
        )
        if KEYED:
            position = tl.load(positions_ptr + node // n_nodes) + tl.load(depths_ptr + node)
            best, best_id = seeded_best(z, kept, cols, position_key(key, position))
        else:
            z = tl.where(kept, z, float("-inf"))
            best = tl.max(z, axis=0)
            best_id = tl.min(tl.where(kept & (z == best), cols, NO_ID), axis=0)
        tl.store(best_ptr + node * n_splits + split, best)
        tl.store(best_ids_ptr + node * n_splits + split, best_id)


@triton.jit(do_not_specialize=["key"])
def walk_fwd_kernel(
    path_ptr,  # [n_trees, n_nodes] int32, -1 behind the path
    length_ptr,  # [n_trees] int32
    token_ptr,  # [n_trees] int64; not REJECTION
    source_ptr,  # [n_trees] int32
    stop_ptr,  # [n_trees] int32: the node the walk ended at
    rounds_ptr,  # [n_trees] int32: how many of its children were rejected
    fates_ptr,  # [n_trees, n_nodes] int32, as the next
    reasons_ptr,
    us_ptr,  # [n_trees, n_nodes] float64, as the next
    ratios_ptr,
    tokens_ptr,  # [n_trees, n_nodes] int32, as the next four
    parents_ptr,
    depths_ptr,
    kinds_ptr,
    ranks_ptr,
    positions_ptr,  # [n_trees] int64
    best_ptr,  # [n_trees, n_nodes, n_splits] float64: choices, or masses for REJECTION
    best_ids_ptr,  # [n_trees, n_nodes, n_splits] int32; not REJECTION
    p_ptr,  # [n_trees, n_nodes] float64; REJECTION, as the next
    q_ptr,
    n_nodes,
    n_splits,
    key,
    REJECTION: tl.constexpr,
    BLOCK_NODES: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    tree = tl.program_id(0).to(tl.int64)
    first = tree * n_nodes
    nodes = tl.arange(0, BLOCK_NODES)
    splits = tl.arange(0, BLOCK_SPLITS)
    mask = nodes < n_nodes
    tokens = tl.load(tokens_ptr + first + nodes, mask=mask, other=-1)
    parents = tl.load(parents_ptr + first + nodes, mask=mask, other=-1)
    depths = tl.load(depths_ptr + first + nodes, mask=mask, other=0)
    ranks = tl.load(ranks_ptr + first + nodes, mask=mask, other=-1)
    tile = (first + nodes[:, None]) * n_splits + splits[None, :]
    inside = mask[:, None] & (splits[None, :] < n_splits)
    tested = ranks >= 0
    u = tl.full([BLOCK_NODES], float("nan"), tl.float64)
    ratio = tl.full([BLOCK_NODES], float("nan"), tl.float64)
    choices = tl.full([BLOCK_NODES], -1, tl.int32)
    passes = tested
    if REJECTION:
        mass = tl.sum(tl.load(best_ptr + tile, mask=inside, other=0.0), axis=1)
        drawn = tl.load(kinds_ptr + first + nodes, mask=mask, other=0) > 0
        p = tl.load(p_ptr + first + nodes, mask=mask & tested, other=0.0)
        q = tl.where(drawn, tl.load(q_ptr + first + nodes, mask=mask & tested, other=1.0), 1.0)
        # a child is drawn at its own position, one before the one its own row speaks of
        u = uniform(position_key(key, tl.load(positions_ptr + tree) + depths - 1), ranks)
        ratio = p / q
        passes = tested & ((u * q < p) | (mass < EMPTY))
    else:
        best = tl.load(best_ptr + tile, mask=inside, other=float("-inf"))
        ids = tl.load(best_ids_ptr + tile, mask=inside, other=NO_ID)
        choices = tl.min(tl.where(best == tl.max(best, axis=1)[:, None], ids, NO_ID), axis=1)

    real = mask & (parents >= 0)
    fates = tl.where(real, tl.where(tested, PARENT_REJECTED, PRUNED), UNUSED)
    reasons = tl.zeros([BLOCK_NODES], tl.int32)
    asked = tl.zeros([BLOCK_NODES], tl.int32)
    node = tl.full((), 0, tl.int32)
    length = tl.full((), 0, tl.int32)
    rounds = tl.full((), 0, tl.int32)
    choice = tl.full((), -1, tl.int32)
    walking = tl.full((), 1, tl.int32)
    while walking > 0:
        below = tested & (parents == node)
        if REJECTION:
            hits = below & passes
        else:
            choice = tl.max(tl.where(nodes == node, choices, -1), axis=0)
            hits = below & (tokens == choice)
        winner = tl.min(tl.where(hits, ranks, NO_ID), axis=0)
        won = below & (ranks == winner)
        if REJECTION:
            lost = below & (ranks < winner)
            reasons = tl.where(lost, RATIO, reasons)
        else:
            lost = below & (winner == NO_ID)
            reasons = tl.where(lost, MISMATCH, reasons)
        fates = tl.where(below, SIBLING_WON, fates)
        fates = tl.where(lost, REJECTED, tl.where(won, ACCEPTED, fates))
        asked = tl.where(lost | won, 1, asked)
        rounds = tl.sum(below.to(tl.int32), axis=0)
        walking = (winner != NO_ID).to(tl.int32)
        node = tl.where(winner != NO_ID, tl.max(tl.where(won, nodes, -1), axis=0), node)
        length += walking
    tl.store(path_ptr + first + nodes, tl.full([BLOCK_NODES], -1, tl.int32), mask=mask & (nodes >= length))
    tl.store(path_ptr + first + depths - 1, nodes, mask=mask & (fates == ACCEPTED))
    tl.store(length_ptr + tree, length)
    tl.store(stop_ptr + tree, node)
    tl.store(rounds_ptr + tree, rounds)
    ended = tl.where(rounds > 0, RESIDUAL if REJECTION else TARGET, tl.where(length > 0, BONUS, TARGET))
    tl.store(source_ptr + tree, ended)
    tl.store(fates_ptr + first + nodes, fates, mask=mask)
    tl.store(reasons_ptr + first + nodes, reasons, mask=mask)
    tl.store(us_ptr + first + nodes, tl.where(asked > 0, u, float("nan")), mask=mask)
    tl.store(ratios_ptr + first + nodes, tl.where(asked > 0, ratio, float("nan")), mask=mask)
    if not REJECTION:
        tl.store(token_ptr + tree, choice.to(tl.int64))


class Tree(NamedTuple):
    """Columns over the nodes of B trees, each [B, N] int32 and contiguous; positions [B] int64."""

    tokens: torch.Tensor
    parents: torch.Tensor
    depths: torch.Tensor
    kinds: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor


class Target(NamedTuple):
    """The target's laws: logits [B, N, V], the temperature they are divided by, and the last kept token of each row."""

    logits: torch.Tensor
    temperature: float
    threshold: torch.Tensor | None
    threshold_id: torch.Tensor | None


@on_its_device
def verify(target: Target, tree: Tree, proposals: torch.Tensor | None, mode: str, seed: int, width: int):
    """Path, length, token, source, fates, reasons, us, ratios. width: the largest number of siblings, at least 1."""
    trees, count, cols = target.logits.shape
    device = target.logits.device
    if target.logits.stride(2) != 1 or target.logits.stride(0) != count * target.logits.stride(1):
        target = target._replace(logits=target.logits.contiguous())
    block = min(max(triton.next_power_of_2(cols), 16), 2048)
    splits = triton.cdiv(cols, block)
    sizes = {"BLOCK_NODES": max(triton.next_power_of_2(count), CHUNK.value)}
    wide = {"BLOCK_SPLITS": triton.next_power_of_2(splits)}

    def ints(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    def doubles(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float64, device=device)

    path, fates, reasons, ranks = (ints(trees, count) for _ in range(4))
    length, source, stop, rounds = (ints(trees) for _ in range(4))
    us, ratios, p, q = (doubles(trees, count) for _ in range(4))
    token = torch.empty(trees, dtype=torch.int64, device=device)
    best, best_ids = doubles(trees, count, splits), ints(trees, count, splits)
    children = torch.full((trees, count, width), -1, dtype=torch.int32, device=device)
    if trees:
        order_fwd_kernel[(trees,)](ranks, children, tree.tokens, tree.parents, tree.kinds, count, width, **sizes)
        rejecting = None
        if mode == "rejection":
            from workbench_kernels.verification import rejection

            rejecting = rejection.Rounds(target, tree, proposals, children, block, splits)
            rejecting.run(p, q, best)
        else:
            choice_fwd_kernel[(trees * count, splits)](
                best, best_ids, target.logits, target.threshold, target.threshold_id, tree.parents, tree.depths,
                tree.positions, target.logits.stride(1), count, cols, target.temperature, launch_key(seed, "target"),
                KEYED=mode == "keyed", SCALED=target.temperature != 1, CUT=target.threshold is not None,
                BLOCK_SIZE=block, num_warps=8 if block > 1024 else 4,
            )  # fmt: skip
        walk_fwd_kernel[(trees,)](
            path, length, token, source, stop, rounds, fates, reasons, us, ratios, tree.tokens, tree.parents,
            tree.depths, tree.kinds, ranks, tree.positions, best, best_ids, p, q, count, splits,
            launch_key(seed, "accept"), REJECTION=rejecting is not None, num_warps=8, **sizes, **wide,
        )  # fmt: skip
        if rejecting is not None:
            rejecting.draw(token, stop, rounds, best, launch_key(seed, "residual"))
    return path, length, token, source, fates, reasons, us, ratios

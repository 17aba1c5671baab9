"""Verification of drafted trees: all that reads the vocabulary runs in parallel, the walk reads a few numbers a node.

A sibling is tested only after all before it were rejected, so each test depends on the distributions alone, not on the
walk. Hence all nodes are worked on at once and the walk, one program per tree, only compares.

5 + W launches, with W the largest number of siblings: `order` (siblings in test order, doubles dropped); `normalise`
(largest logit and sum, of every target row and of every proposal row as it is before each of its draws); W times
`round` (round r: what r rejections leave of p, its value at the r-th child, and the mass that one rejection more would
leave: a sum over the vocabulary that the next round divides by, hence a launch each); `walk`; `final` (what is left at
the stop, and its best token per block of columns); `last` (the best of these).

Distributions are computed in float64: acceptance compares u q(x) with p(x) exactly as the reference does, and what is
left of p after a rejection may be 1e-7 of it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.noise import launch_key
from workbench_kernels.noise.kernel import position_key, uniform

EMPTY = tl.constexpr(1e-7)
NO_ID = tl.constexpr(2147483647)
CHUNK = tl.constexpr(16)  # nodes compared with all others at once
UNUSED, ACCEPTED, REJECTED, SIBLING_WON, PARENT_REJECTED, PRUNED = (tl.constexpr(i) for i in range(6))
RATIO = tl.constexpr(1)
BONUS, RESIDUAL, TARGET = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


class Tree(NamedTuple):
    """Columns over the nodes of B trees, each [B, N] int32 and contiguous; positions [B] int64."""

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    kinds: Tensor
    rows: Tensor
    positions: Tensor
    n_nodes: int


class Walk(NamedTuple):
    """What a walk gives. Each [B, N] or [B]; int32, but token is int64, us float64."""

    path: Tensor  # -1 behind the path
    length: Tensor
    token: Tensor  # filled behind the walk
    source: Tensor
    fates: Tensor
    reasons: Tensor
    us: Tensor
    stop: Tensor  # the node the walk ended at
    rounds: Tensor  # how many of its children were rejected


class Tiles(NamedTuple):
    """Constants: the columns of a split, and how many there are, padded."""

    cols: int
    splits: int


@triton.jit
def order_fwd_kernel(ranks_ptr, children_ptr, tree, width, NODES: tl.constexpr):
    """ranks [B, N] int32: place among its siblings in test order, -1 for a double; children [B, N, width] int32: nodes
    in test order, -1 before."""
    n_nodes = tree.n_nodes
    first = tl.program_id(0).to(tl.int64) * n_nodes
    nodes = tl.arange(0, NODES)
    mask = nodes < n_nodes
    tokens = tl.load(tree.tokens + first + nodes, mask=mask, other=-1)
    parents = tl.load(tree.parents + first + nodes, mask=mask, other=-1)
    drawn = tl.load(tree.kinds + first + nodes, mask=mask, other=0)
    double = tl.zeros([NODES], tl.int32)
    for start in range(0, n_nodes, CHUNK):
        others = start + tl.arange(0, CHUNK)
        inside = others < n_nodes
        other_tokens = tl.load(tree.tokens + first + others, mask=inside, other=-1)
        other_parents = tl.load(tree.parents + first + others, mask=inside, other=-2)
        other_drawn = tl.load(tree.kinds + first + others, mask=inside, other=0)
        same = (other_parents[None, :] == parents[:, None]) & (other_tokens[None, :] == tokens[:, None])
        before = (other_drawn[None, :] > 0) | (others[None, :] < nodes[:, None])
        double += tl.sum((same & before).to(tl.int32), axis=1)
    tested = (parents >= 0) & ((drawn > 0) | (double == 0))
    tl.store(ranks_ptr + first + nodes, tl.where(tested, 0, -1), mask=mask)
    tl.debug_barrier()  # the program reads what its other threads wrote
    rank = tl.zeros([NODES], tl.int32)
    for start in range(0, n_nodes, CHUNK):
        others = start + tl.arange(0, CHUNK)
        inside = others < n_nodes
        other_parents = tl.load(tree.parents + first + others, mask=inside, other=-2)
        other_drawn = tl.load(tree.kinds + first + others, mask=inside, other=0)
        other_tested = tl.load(ranks_ptr + first + others, mask=inside, other=-1) >= 0
        same = (other_parents[None, :] == parents[:, None]) & other_tested[None, :]
        earlier = (other_drawn[None, :] == drawn[:, None]) & (others[None, :] < nodes[:, None])
        rank += tl.sum((same & ((other_drawn[None, :] > drawn[:, None]) | earlier)).to(tl.int32), axis=1)
    tl.debug_barrier()
    tl.store(ranks_ptr + first + nodes, tl.where(tested, rank, -1), mask=mask)
    tl.store(children_ptr + (first + parents) * width + rank, nodes, mask=mask & tested & (rank < width))


@triton.jit(do_not_specialize=["key"])
def walk_fwd_kernel(walk, tree, ranks_ptr, state, n_splits, key, NODES: tl.constexpr, TILES: tl.constexpr):
    """ranks: [B, N] int32; state: of the rounds, see `rejection.State`."""
    number = tl.program_id(0).to(tl.int64)
    n_nodes = tree.n_nodes
    first = number * n_nodes
    nodes = tl.arange(0, NODES)
    splits = tl.arange(0, TILES.splits)
    mask = nodes < n_nodes
    parents = tl.load(tree.parents + first + nodes, mask=mask, other=-1)
    depths = tl.load(tree.depths + first + nodes, mask=mask, other=0)
    ranks = tl.load(ranks_ptr + first + nodes, mask=mask, other=-1)
    tile = (first + nodes[:, None]) * n_splits + splits[None, :]
    inside = mask[:, None] & (splits[None, :] < n_splits)
    tested = ranks >= 0
    mass = tl.sum(tl.load(state.mass + tile, mask=inside, other=0.0), axis=1)
    drawn = tl.load(tree.kinds + first + nodes, mask=mask, other=0) > 0
    p = tl.load(state.p + first + nodes, mask=mask & tested, other=0.0)
    q = tl.where(drawn, tl.load(state.q + first + nodes, mask=mask & tested, other=1.0), 1.0)
    # a child is drawn at its own position, one before the one its own row speaks of
    u = uniform(position_key(key, tl.load(tree.positions + number) + depths - 1), ranks)
    passes = tested & ((u * q < p) | (mass < EMPTY))

    real = mask & (parents >= 0)
    fates = tl.where(real, tl.where(tested, PARENT_REJECTED, PRUNED), UNUSED)
    reasons = tl.zeros([NODES], tl.int32)
    asked = tl.zeros([NODES], tl.int32)
    node = tl.full((), 0, tl.int32)
    length = tl.full((), 0, tl.int32)
    rounds = tl.full((), 0, tl.int32)
    walking = tl.full((), 1, tl.int32)
    while walking > 0:
        below = tested & (parents == node)
        hits = below & passes
        winner = tl.min(tl.where(hits, ranks, NO_ID), axis=0)
        won = below & (ranks == winner)
        lost = below & (ranks < winner)
        reasons = tl.where(lost, RATIO, reasons)
        fates = tl.where(below, SIBLING_WON, fates)
        fates = tl.where(lost, REJECTED, tl.where(won, ACCEPTED, fates))
        asked = tl.where(lost | won, 1, asked)
        rounds = tl.sum(below.to(tl.int32), axis=0)
        walking = (winner != NO_ID).to(tl.int32)
        node = tl.where(winner != NO_ID, tl.max(tl.where(won, nodes, -1), axis=0), node)
        length += walking
    tl.store(walk.path + first + nodes, tl.full([NODES], -1, tl.int32), mask=mask & (nodes >= length))
    tl.store(walk.path + first + depths - 1, nodes, mask=mask & (fates == ACCEPTED))
    tl.store(walk.length + number, length)
    tl.store(walk.stop + number, node)
    tl.store(walk.rounds + number, rounds)
    ended = tl.where(rounds > 0, RESIDUAL, tl.where(length > 0, BONUS, TARGET))
    tl.store(walk.source + number, ended)
    tl.store(walk.fates + first + nodes, fates, mask=mask)
    tl.store(walk.reasons + first + nodes, reasons, mask=mask)
    tl.store(walk.us + first + nodes, tl.where(asked > 0, u, float("nan")), mask=mask)


@on_its_device
def verify(logits: Tensor, tree, proposals: Tensor, seed: int, width: int) -> tuple[Tensor, ...]:
    """Path, length, token, source, fates, reasons, us. width: the largest number of siblings, at least 1."""
    from workbench_kernels.verification import rejection

    trees, count, cols = logits.shape
    if logits.stride(2) != 1 or logits.stride(0) != count * logits.stride(1):
        logits = logits.contiguous()
    target, tree = rejection.Target(logits, logits.stride(1), cols), Tree(*tree, count)
    block = min(max(triton.next_power_of_2(cols), 16), 2048)
    splits = triton.cdiv(cols, block)
    tiles = Tiles(block, triton.next_power_of_2(splits))
    constants = {"TILES": tiles, "num_warps": 8 if block > 1024 else 4}
    nodes = max(triton.next_power_of_2(count), CHUNK.value)

    def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=logits.device)

    path, fates, reasons, ranks = (empty(trees, count) for _ in range(4))
    length, source, stop, rounds = (empty(trees) for _ in range(4))
    token, us = empty(trees, dtype=torch.int64), empty(trees, count, dtype=torch.float64)
    walk = Walk(path, length, token, source, fates, reasons, us, stop, rounds)
    children = torch.full((trees, count, width), -1, dtype=torch.int32, device=logits.device)
    if trees:
        order_fwd_kernel[(trees,)](ranks, children, tree, width, NODES=nodes)
        state = rejection.run(target, tree, proposals, children, splits, constants)
        held = (walk, tree, ranks, state, splits, launch_key(seed, "accept"))
        walk_fwd_kernel[(trees,)](*held, nodes, tiles, num_warps=8)
        rejection.draw(walk, target, tree, state, launch_key(seed, "residual"), constants)
    return walk[:7]

"""Whole rounds on distributions that are tables over four tokens: a shape grows a tree with seeded noise, a verifier
walks it.

The noise of many seeds is worked out at once, by the very hash that is used seed by seed.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

import workbench as wb
from workbench.engine.distribution import Distribution, draw
from workbench.speculation import DIST, DraftTree
from workbench.speculation.tree_builder import TreeBuilder
from workbench_kernels.noise import reference as noise

VOCAB, DEPTH, START, BLOCK = 4, 3, 3, 4096
Distributions = dict[tuple[int, ...], torch.Tensor]


def dists(seed: int, sharpness: float) -> Distributions:
    """[VOCAB] log-probabilities after every prefix of at most DEPTH tokens."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = (p for length in range(DEPTH + 1) for p in itertools.product(range(VOCAB), repeat=length))
    draws = ((p, torch.randn(VOCAB, generator=generator, dtype=torch.float64)) for p in prefixes)
    return {prefix: (x * sharpness).log_softmax(-1) for prefix, x in draws}


TARGET, DRAFT = dists(13, 1.0), dists(63, 1.3)  # draws often repeat, and are often refused


def noise_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tables: dict[tuple, torch.Tensor] = {}
    first = torch.arange(1, VOCAB + 1) * noise.signed(noise.GOLDEN)

    def gumbel(seed, purpose, position, ids, branch=0, hypothesis=0):
        block, row = divmod(seed, BLOCK)
        if (block, purpose, position, branch) not in tables:
            seeds = range(block * BLOCK, (block + 1) * BLOCK)
            keys = torch.tensor([noise.signed(noise.position_key(s, purpose, position, branch)) for s in seeds])
            tables[block, purpose, position, branch] = noise.gumbel_of(keys[:, None] + first)
        found = tables[block, purpose, position, branch][row]
        return found if len(ids) == VOCAB else found[ids]

    monkeypatch.setattr(noise, "gumbel", gumbel)


def texts(tree: DraftTree, node: int) -> tuple[int, ...]:
    return tuple(tree.tokens[n] for n in tree.path(node))


def grown(
    shape: wb.DraftShape,
    seed: int = 0,
    seeded: bool = False,
    temperature: float = 1.0,
    depth: int = DEPTH,
    draft: Distributions = DRAFT,
    features: Callable[[int], torch.Tensor] | None = None,
    make: type[TreeBuilder] = TreeBuilder,
    start: int = START,
) -> TreeBuilder:
    """A shape's tree over the draft's distributions, below the last of `start` tokens."""

    def dist(logits, prefixes):
        return Distribution(logits, logits, [()] * len(logits), greedy=temperature == 0)

    def logits(builder, nodes):
        if features:
            builder.features |= {node: features(node) for node in nodes}
        return torch.stack([draft[texts(builder.tree, node)] for node in nodes])

    settings = SimpleNamespace(sampling=wb.Sampling(temperature=temperature), noise_seed=seed, level="default")
    target = SimpleNamespace(model=SimpleNamespace(vocab_size=VOCAB))
    state = SimpleNamespace(pending=0, tokens=[0] * max(1, start), memory={}, runners={"target": target})
    r = SimpleNamespace(settings=settings, dist=dist, step=SimpleNamespace(rows={}))
    builder = make("test", state, r, depth, seeded, logits, shape.needs)
    shape.grow(builder)
    return builder


def emitted(tree: DraftTree, seed: int, verifier: wb.Verifier) -> tuple[int, int]:
    """The next two tokens: those of the round, then plain decoding."""
    rows = torch.stack([TARGET[texts(tree, node)] for node in range(len(tree))])
    outcome = verifier.verify(Distribution(rows, rows, [()] * len(rows)), tree, START, seed, None)
    text = [*(tree.tokens[node] for node in outcome.path), outcome.token]
    if len(text) < 2:
        text.append(draw(TARGET[tuple(text)], seed, "target", START + 1))
    return tuple(text[:2])


def outcome_distribution(
    shape: wb.DraftShape,
    runs: int,
    verifier: wb.Verifier | None = None,
    spoil: Callable[[DraftTree], DraftTree] = lambda tree: tree,
) -> tuple[float, float]:
    """p-values of chi-square over seeds: of the texts that whole rounds emit against the target's distribution, and of
    the children that DIST nodes have against the rows stored with them (1 where draws are independent)."""
    found, cells = np.zeros([VOCAB] * 2), defaultdict(lambda: np.zeros(VOCAB))
    for seed in range(runs):
        tree = spoil(grown(shape, seed).tree)
        found[emitted(tree, seed, verifier or wb.Rejection())] += 1
        for node in () if tree.draws else tree.rows:
            children = tree.children(node)
            assert all(tree.kinds[child] == DIST for child in children)
            tokens = [tree.tokens[child] for child in children]
            for place, token in enumerate(tokens):
                cells[texts(tree, node), tuple(tokens[:place])][token] += 1
    dist = torch.stack([TARGET[()][a] + TARGET[(a,)] for a in range(VOCAB)]).exp().numpy()
    whole = float(stats.chisquare(found.ravel(), dist.ravel() * runs).pvalue)
    total = freedom = 0.0
    for (prefix, used), counts in cells.items():
        row = DRAFT[prefix].exp().numpy().copy()
        row[list(used)] = 0
        expected = row / row.sum() * counts.sum()
        if (kept := expected >= 5).sum() > 1 and kept[row > 0].all():
            total += (((counts - expected) ** 2)[kept] / expected[kept]).sum()
            freedom += kept.sum() - 1
    return whole, float(stats.chi2.sf(total, freedom)) if freedom else 1.0

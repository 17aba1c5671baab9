"""Tri-gram weights, searched for the continuations most worth a test."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from heapq import heappop, heappush
from math import inf, log, sqrt
from typing import NamedTuple

import numpy as np
import torch

from workbench.declare import register, setting
from workbench.engine.model import LanguageModel, Output
from workbench.rounds import Round, State
from workbench.speculation.drafters.base import Drafter
from workbench.speculation.drafters.corpus import look_again, trigrams
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedTree
from workbench.speculation.tree import DraftTree

NAME = "aded"
ALONE = -2  # stands for the token before, where the last token alone counts (-1: there is none)

Weights = Callable[[int, int], dict[int, float]]  # the last two tokens -> weights of the next one


class _Table(NamedTuple):
    """A direct-mapped table of pairs: keys [S, 2], successors and weights [S, width]."""

    keys: np.ndarray
    successors: np.ndarray
    weights: np.ndarray

    @classmethod
    def empty(cls, slots: int, width: int) -> "_Table":
        keys, successors = np.full((slots, 2), ALONE, dtype=np.int32), np.zeros((slots, width), dtype=np.int32)
        return cls(keys, successors, np.zeros((slots, width), dtype=np.float32))

    def copy(self) -> "_Table":
        return _Table(*(column.copy() for column in self))

    def put(self, pairs: np.ndarray, successors: np.ndarray, weights: np.ndarray) -> None:
        slots = (pairs[:, 0] * 1_000_003 + pairs[:, 1] * 8_219) % len(self.keys)
        self.keys[slots], self.successors[slots], self.weights[slots] = pairs, successors, weights

    def get(self, a: int, b: int) -> tuple[list[int], list[float]] | None:
        slot = (a * 1_000_003 + b * 8_219) % len(self.keys)
        if self.keys[slot].tolist() != [a, b]:
            return None
        return self.successors[slot].tolist(), self.weights[slot].tolist()


@register("drafter", NAME)
@dataclass(frozen=True)
class ADED(Drafter):
    """A table of tri-gram weights, from a corpus and from what the target found likely, tells how probable a
    continuation is; a search under it picks the tree's nodes.

    search = "mcts" is the published one: tree search by visit counts, the most visited prefixes are drafted. "best"
    takes the most probable path next, which the weights allow at a fraction of the time, and drops what is less
    probable than `min_prob`: so an unsure table drafts little or nothing. Nodes are POINT. Source: "Adaptive
    Draft-Verification for Efficient Large Language Model Decoding" (https://arxiv.org/abs/2407.12021;
    https://github.com/liuxukun2000/Adaptix). Departures: weights come from the target's own probabilities at every node
    it verified and in the prompt (theirs: the corpus and the output); after an unknown pair the last token alone
    counts, by `backoff`; a tri-gram of the last `window` tokens gains `boost` for each time it occurs there (theirs: at
    every search); roll-outs follow the largest weight (theirs: are drawn); fewer simulations; a default tree of 8 nodes
    (theirs: 24 to 64).
    """

    corpus: str = setting("", trust="owner", help="text file or directory the weights begin with (empty: none)")
    megabytes: int = setting(16, ge=1, le=1024, unit="MB", help="text read of the corpus, at most")
    search: str = setting("mcts", choices=("mcts", "best"), help="how the nodes are chosen")
    width: int = setting(8, ge=1, le=32, unit="tokens", help="successors kept of each pair of tokens (theirs: 12)")
    pairs: int = setting(8191, ge=64, le=2**20, help="pairs remembered; two that share a place replace each other")
    window: int = setting(16, ge=0, le=4096, unit="tokens", help="recent tokens whose tri-grams are boosted")
    boost: float = setting(0.04, ge=0, le=1, help="what a recent tri-gram gains for each time it occurs")
    backoff: float = setting(0.5, ge=0, le=1, help="what a weight after the last token alone is worth")
    min_prob: float = setting(0.05, ge=0, le=1, help="search 'best': the least probability of a path that is drafted")
    levels: int = setting(10, ge=1, le=32, unit="tokens", help="search 'best': levels drafted at most")
    simulations: int = setting(64, ge=1, le=1000, help="search 'mcts': descents each round (theirs: 150)")
    depth: int = setting(3, ge=1, le=8, unit="tokens", help="search 'mcts': levels searched")

    needs = frozenset({"logits"})

    def default_shape(self) -> DraftShape:
        return FixedTree((2, 1, 1, 1))

    def check(self, lm: LanguageModel) -> None:
        if self.corpus:
            look_again(self.corpus, lm.tokenizer)
            trigrams(self.corpus, lm.tokenizer, self.megabytes, self.width)

    def observe(self, state: State, r: Round, start: int, out: Output) -> None:
        tokens = state.tokens[start : start + len(out.logits)]
        before = [state.tokens[start - 1] if start else -1, *tokens[:-1]]
        self._learn(state, before, tokens, out.logits)

    def propose(self, state: State, r: Round, shape: DraftShape, depth: int, seeded: bool) -> DraftTree:
        weights, tokens = self._weights(state), state.tokens
        before, last = tokens[-2] if len(tokens) > 1 else -1, tokens[-1]
        width, most = (None, shape.budget) if "branches" in shape.needs else (1, min(depth, shape.budget))
        if self.search == "best":
            paths = best_first(weights, before, last, most, min(depth, self.levels), self.min_prob, width)
        else:
            paths = by_visits(weights, before, last, most, min(depth, self.depth), self.simulations, width)
        return self.trie(state, shape, paths if "branches" in shape.needs else paths[-1:], depth)

    def on_verified(
        self, state: State, r: Round, tree: DraftTree, path: list[int], logits: torch.Tensor | None
    ) -> None:
        if logits is None:
            return
        root, stood = len(state.tokens) - len(path) - 2, {0, *path}
        order = sorted(range(len(tree)), key=lambda node: (node in stood, node))  # what stood has the last word
        before = state.tokens[root - 1] if root else -1
        above = [tree.tokens[parent] if parent >= 0 else before for parent in tree.parents]
        self._learn(state, [above[n] for n in order], [tree.tokens[n] for n in order], logits[order])

    def _learn(self, state: State, before: list[int], tokens: list[int], logits: torch.Tensor) -> None:
        """Note the target's distributions [n, V] after pairs of tokens, and after the second alone; of equal pairs the
        last."""
        logits = logits.float()
        best = logits.topk(min(self.width, logits.shape[-1]))
        weights = (best.values - logits.logsumexp(-1, keepdim=True)).exp().cpu().numpy()
        pairs, successors = np.array([before, tokens], dtype=np.int64).T, best.indices.cpu().numpy()
        held = state.memory.get(NAME)
        fits = held and held[1].shape == (self.pairs, successors.shape[1])
        table = _Table(*held).copy() if fits else _Table.empty(self.pairs, successors.shape[1])
        for keys in (np.stack([np.full(len(pairs), ALONE), pairs[:, 1]], 1), pairs):
            table.put(keys, successors, weights)
        state.memory[NAME] = tuple(table)

    def _weights(self, state: State) -> Weights:
        table = _Table(*state.memory[NAME]) if NAME in state.memory else _Table.empty(1, self.width)
        corpus = None
        if self.corpus:
            corpus = trigrams(self.corpus, state.runners["target"].model.tokenizer, self.megabytes, self.width)
        recent: dict[tuple[int, int], dict[int, float]] = {}
        ids = state.tokens[-self.window - 2 :] if self.window else []
        for a, b, c in zip(ids, ids[1:], ids[2:], strict=False):
            row = recent.setdefault((a, b), {})
            row[c] = row.get(c, 0.0) + self.boost

        @cache
        def weights(a: int, b: int) -> dict[int, float]:
            row = table.get(a, b) or (corpus.get(a, b) if corpus else None)
            found = dict(zip(*row, strict=True)) if row else {}
            for token, weight in zip(*(table.get(ALONE, b) or ((), ())), strict=True):
                found[token] = max(found.get(token, 0.0), self.backoff * weight)
            for token, gain in recent.get((a, b), {}).items():
                found[token] = min(1.0, found.get(token, 0.0) + gain)
            return found

        return weights


def best_first(
    weights: Weights, a: int, b: int, most: int, depth: int, least: float, width: int | None = None
) -> list[list[int]]:
    """The `most` paths of the largest products of weights, each a token longer than the empty one or one before it, of
    at most `depth` tokens and a product of `min_prob` or more; `width` successors of each (None: all)."""
    heap: list[tuple[float, int, int, list[int]]] = [(-1.0, a, b, [])]
    paths: list[list[int]] = []
    while heap and len(paths) <= most:
        value, a, b, path = heappop(heap)
        paths.append(path)
        if len(path) < depth:
            children = sorted(weights(a, b).items(), key=lambda child: -child[1])[:width]
            for token, weight in children:
                if value * weight <= -least:
                    heappush(heap, (value * weight, b, token, [*path, token]))
    return paths[1:]


class _Place:
    """A node of the tree search: visits, summed value, weight; children are made at the first visit."""

    __slots__ = ("children", "pair", "path", "value", "visits", "weight")

    def __init__(self, pair: tuple[int, int], path: list[int], weight: float):
        self.pair, self.path, self.weight = pair, path, weight
        self.visits, self.value = 0, 0.0
        self.children: list[_Place] | None = None


def by_visits(
    weights: Weights, a: int, b: int, most: int, depth: int, simulations: int, width: int | None = None
) -> list[list[int]]:
    """The `most` paths visited most by Monte-Carlo tree search of `depth` levels, each a token longer than the empty
    one or one before it; at the end of each path that was not searched further, its likeliest next token is one more.
    """
    root = _Place((a, b), [], 1.0)
    seen: list[_Place] = []
    for _ in range(simulations):
        node, line = root, [root]
        while node.children and node.visits:
            scale = (32 + log((node.visits + 9) / 8)) * sqrt(node.visits)
            node = max(node.children, key=lambda child: _score(child, scale))
            line.append(node)
        if node.visits == 0 and node is not root:
            seen.append(node)
        if node.children is None:
            found = sorted(weights(*node.pair).items(), key=lambda child: -child[1]) if len(node.path) < depth else []
            node.children = [_Place((node.pair[1], t), [*node.path, t], w) for t, w in found[:width]]
        value = 1.0 + sum(place.weight for place in line[1:]) + _roll_out(weights, node.pair, depth - len(node.path))
        for place in line:
            place.visits += 1
            place.value += value
    paths = [place.path for place in sorted(seen, key=lambda place: (-place.visits, len(place.path)))]
    ends = [place for place in seen if len(place.path) == depth]
    for place in sorted(ends, key=lambda place: -place.visits):
        if follow := weights(*place.pair):
            paths.append([*place.path, max(follow, key=follow.__getitem__)])
    return paths[:most]


def _score(place: _Place, scale: float) -> float:
    if not place.visits:
        return inf
    return place.value / place.visits + scale * place.weight / (1 + place.visits)


def _roll_out(weights: Weights, pair: tuple[int, int], levels: int) -> float:
    total = 0.0
    for _ in range(levels):
        follow = weights(*pair)
        if not follow:
            break
        token = max(follow, key=follow.__getitem__)
        total, pair = total + follow[token], (pair[1], token)
    return total

"""A tree fixed beforehand, the best one for how often the first, second, … sibling is the one accepted."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from workbench.declare import register, setting
from workbench.errors import BadInput
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import MAX_NODES, DraftTree

Template = dict[tuple[int, ...], int]  # ranks on the path from the root -> number of children


@register("shape", "sequoia")
@dataclass(frozen=True)
class Sequoia(DraftShape):
    """The tree of at most `max_nodes` tokens and `depth` levels that promises the most accepted tokens.

    p[b], the probability that a node's b-th child is the first of them to be accepted, is measured beforehand; dynamic
    programming over (nodes, levels, children) finds the tree. Children are draws without replacement, by rank, so any
    drafter that branches can follow it. `best_tree` chooses `max_nodes` and `depth` from measured times. Compare shapes
    at equal nodes, not at equal depth. The default `calibration` was measured at temperature 0 and is used at any: when
    sampling, "draft_model-sampled" fits better. The default of 12 nodes is small (theirs: 64 and more). Source:
    "Sequoia: Scalable, Robust, and Hardware-aware Speculative Decoding" (https://arxiv.org/abs/2402.12374;
    https://github.com/Infini-AI-Lab/Sequoia)."""

    max_nodes: int = setting(12, ge=1, le=MAX_NODES - 1, unit="tokens", help="tokens drafted at most")
    depth: int = setting(4, ge=1, le=16, unit="tokens", help="levels at most")
    calibration: str = setting(
        "draft_model", trust="visitor", help="name of the measured probabilities in calibration.json"
    )

    needs = frozenset({"branches"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration not in calibrations():
            raise BadInput(
                f"Sequoia(calibration=…): expected one of {', '.join(calibrations())}, got {self.calibration!r}"
            )

    @property
    def template(self) -> Template:
        return static_tree(calibrations()[self.calibration], self.max_nodes, self.depth)

    @property
    def budget(self) -> int:
        return sum(self.template.values())

    def ask(self, tree: DraftTree, memory: dict[str, Any]) -> list[tuple[int, int]]:
        template, depth = self.template, tree.depths[-1]
        level = [(n, tuple(tree.ranks[i] for i in tree.path(n))) for n, d in enumerate(tree.depths) if d == depth]
        return [(node, template[ranks]) for node, ranks in level if ranks in template]


@cache
def calibrations() -> dict[str, tuple[float, ...]]:
    """Name -> p[1], p[2], …, as measured by `workbench.experiments.calibration`."""
    file = Path(__file__).with_name("calibration.json")
    return {name: tuple(values) for name, values in json.loads(file.read_text()).items()}


def _values(chances: tuple[float, ...], most: int, depth: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """T[l][m, b]: the most tokens a round can expect of a tree of m nodes (the root among them), l levels below the
    root and b root children; and how many of the m are not in the last child's subtree."""
    values, splits = [], []
    for level in range(depth + 1):
        value = np.full((most + 1, len(chances) + 1), -np.inf)
        split = np.zeros(value.shape, dtype=int)
        value[1, 0] = 1.0  # the root stands for the token that the target adds
        below = values[-1].max(1) if level else np.full(most + 1, -np.inf)
        for b, chance in enumerate(chances, 1):
            for m in range(2, most + 1):
                rest = np.arange(1, m)
                gains = value[rest, b - 1] + chance * below[m - rest]
                best = int(gains.argmax())
                value[m, b], split[m, b] = gains[best], rest[best]
        values.append(value)
        splits.append(split)
    return values, splits


@cache
def static_tree(chances: tuple[float, ...], nodes: int, depth: int) -> Template:
    """The tree of at most `nodes` nodes below the root, where chances[b] is the probability that child b (from 0)
    is the first of its siblings to be accepted."""
    values, splits = _values(chances, nodes + 1, depth)
    template: Template = {}

    def build(ranks: tuple[int, ...], level: int, size: int) -> None:
        count = int(values[level][size].argmax())
        if count:
            template[ranks] = count
        for child in range(count, 0, -1):
            rest = int(splits[level][size, child])
            build((*ranks, child - 1), level - 1, size - rest)
            size = rest

    build((), depth, int(values[depth].max(1).argmax()))
    return template


def best_tree(
    chances: Sequence[float], target_ms: Mapping[int, float], draft_ms: float, depth: int = 8
) -> tuple[int, int, float]:
    """(nodes, depth, ms per token) of the cheapest tree: the least (d · draft_ms + target_ms(rows)) / expected tokens.

    target_ms: rows of a forward -> its time, measured at some numbers of rows and interpolated between them.
    draft_ms: one level of drafting. Raises BadInput where fewer than two numbers of rows were measured.
    """
    if len(target_ms) < 2:
        raise BadInput(f"best_tree: expected the target's time at two numbers of rows or more, got {dict(target_ms)}")
    rows = np.arange(1, min(max(target_ms), MAX_NODES) + 1)
    times = np.interp(rows, sorted(target_ms), [target_ms[r] for r in sorted(target_ms)])
    values, _ = _values(tuple(chances), int(rows[-1]), depth)
    costs = np.stack([(level * draft_ms + times) / values[level].max(1)[1:] for level in range(depth + 1)])
    costs[costs <= 0] = np.inf  # no such tree
    level, at = np.unravel_index(costs.argmin(), costs.shape)
    return int(rows[at]) - 1, int(level), float(costs[level, at])


def acceptance_by_rank(tests: Sequence[tuple[int | None, int]]) -> list[float]:
    """p[b] of nodes whose children were tested: (rank of the accepted child or None, number of children) of each."""
    ranks = max(count for _, count in tests)
    return [
        sum(won == rank for won, _ in tests) / max(1, sum(count > rank for _, count in tests)) for rank in range(ranks)
    ]

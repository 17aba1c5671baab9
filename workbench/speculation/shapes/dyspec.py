"""Grow the tree where it is most likely to be reached."""

import heapq
from dataclasses import dataclass

from workbench.declare import register, setting
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import MAX_NODES
from workbench.speculation.tree_builder import TreeBuilder


@register("shape", "dyspec")
@dataclass(frozen=True)
class DySpec(DraftShape):
    """A heap of open slots, each worth the estimated probability that the text gets there; the best one is drawn next.

    A drawn child of probability q opens a slot below it worth q times its parent's slot, and leaves its parent a slot
    for a next sibling worth what the draws so far have not used up. Draws at different nodes use noise of their own:
    whether a slot is ever filled depends on what was drawn elsewhere. Without noise of the drafter's own (temperature
    0, seeded verification) the next child of a node is known (POINT), and its slot is worth the probability of its
    path.

    The tree is that of one drafter call per filled node, for fewer calls: where the best slot's distribution is not
    known yet, every node with a slot worth `threshold` is read along with it. Compare shapes at equal nodes, not at
    equal depth. Source: "DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure"
    (https://arxiv.org/abs/2410.11744; reconstructed from the abstract: budget and threshold).
    """

    max_nodes: int = setting(12, ge=1, le=MAX_NODES - 1, unit="tokens", help="tokens drafted at most")
    threshold: float = setting(0.1, ge=0, le=1, help="least estimated probability that a slot is filled for")

    needs = frozenset({"rows", "branches"})

    @property
    def budget(self) -> int:
        return self.max_nodes

    def grow(self, builder: TreeBuilder) -> None:
        tree, known = builder.tree, builder.greedy or builder.seeded
        slots = [(-1.0, 0)] if builder.depth > 0 else []  # (−worth, parent): at most one slot for a parent at a time
        offers: dict[int, list[tuple[int, float]]] = {}  # fed parent -> its children in draw order, the next one last
        worth = {0: 1.0}  # of reaching a node
        while slots and len(tree) <= self.max_nodes:
            value, parent = heapq.heappop(slots)
            if -value < self.threshold:
                tree.stop_reason = "threshold"
                break
            if parent not in offers:
                waiting = [parent, *(n for v, n in slots if n not in offers and -v >= self.threshold)]
                builder.expand(sorted(waiting))
                offers |= {node: self._children(builder, node) for node in waiting}
                if known:
                    heapq.heappush(slots, (-worth[parent] * offers[parent][-1][1], parent))
                    continue
            token, chance = offers[parent].pop()
            child = builder.add(parent, token)
            worth[child] = worth[parent] * chance
            if offers[parent]:
                rest = -worth[parent] * offers[parent][-1][1] if known else value + worth[child]
                heapq.heappush(slots, (rest, parent))
            if tree.depths[child] < builder.depth:
                heapq.heappush(slots, (-worth[child], child))

    def _children(self, builder: TreeBuilder, node: int) -> list[tuple[int, float]]:
        """(token, estimated probability), the next to be drawn last."""
        dist, count = builder.estimate(node), self.max_nodes + 1 - len(builder.tree)
        if builder.greedy or builder.seeded:
            tokens = dist.topk(min(count, len(dist))).indices.tolist()
        else:
            tokens = builder.best(node, count, builder.unique_branch(node))
        return list(zip(tokens, dist[tokens].exp().tolist(), strict=True))[::-1]

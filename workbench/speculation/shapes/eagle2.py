"""Expand the likeliest branches, then keep the best of all that was generated."""

from dataclasses import dataclass

from workbench.declare import register, setting
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import MAX_NODES, POINT
from workbench.speculation.tree_builder import TreeBuilder


@register("shape", "eagle2")
@dataclass(frozen=True)
class Eagle2(DraftShape):
    """Level by level the `width` likeliest nodes get their `width` likeliest children; of all of them `max_nodes` stay.

    Likeliest by the drafter's probability of the whole path, which never rises along it, so what stays is a tree. Nodes
    are chosen by their own value, hence POINT, at any temperature. Under seeded verification probabilities are those
    given the noise that will pick the token. The drafter reads up to width · (depth − 1) nodes, also some that are
    dropped again. Compare shapes at equal nodes, not at equal depth. Source: "EAGLE-2: Faster Inference of Language
    Models with Dynamic Draft Trees" (https://arxiv.org/abs/2406.16858; https://github.com/SafeAILab/EAGLE).
    """

    max_nodes: int = setting(60, ge=1, le=MAX_NODES - 1, unit="tokens", help="tokens that stay")
    width: int = setting(10, ge=1, le=32, help="nodes expanded at a level, and children of each")
    depth: int = setting(7, ge=1, le=32, unit="tokens", help="levels")

    needs = frozenset({"rows", "branches"})

    @property
    def budget(self) -> int:
        return self.max_nodes

    def grow(self, builder: TreeBuilder) -> None:
        tree, level = builder.tree, {0: 0.0}  # fed next: node -> log-probability of its path
        generated: list[tuple[float, int, int]] = []  # (log-probability, parent, token), parents before their children
        node_of: dict[tuple[int, int], int] = {}
        for depth in range(depths := min(self.depth, builder.depth)):
            builder.expand(list(level))
            found = []
            for node, path in level.items():
                best = builder.estimate(node).topk(min(self.width, len(tree.rows[node])))
                found += [(path + v, node, t) for v, t in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
            generated += found
            if depth + 1 < depths:
                level = {}
                for path, parent, token in sorted(found, key=lambda child: -child[0])[: self.width]:
                    node = node_of[parent, token] = builder.add(parent, token, POINT)
                    level[node] = path
        kept = sorted(generated, key=lambda child: -child[0])[
            : self.max_nodes
        ]  # stable: a parent goes before its equals
        for _, parent, token in kept:
            if (parent, token) not in node_of:
                node_of[parent, token] = builder.add(parent, token, POINT)
        builder.keep([node_of[parent, token] for _, parent, token in kept])

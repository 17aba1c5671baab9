"""Several chains, drawn independently of each other."""

from dataclasses import dataclass

from workbench.declare import register, setting
from workbench.errors import BadInput
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import MAX_NODES
from workbench.speculation.tree_builder import TreeBuilder


@register("shape", "chains")
@dataclass(frozen=True)
class IndependentChains(DraftShape):
    """`count` chains of `length` tokens, each drawn with noise of its own; common beginnings are one node.

    Draws are with replacement: `DraftTree.draws` tells every draw, repeats too, and verifiers test them all (a repeat
    left out would bias the output). What SpecTr's K-SEQ and SpecInfer's multi-round recursive verification test.
    Without noise of the drafter's own (temperature 0, seeded verification) all chains would be one: one is drafted.
    Sources: "SpecTr: Fast Speculative Decoding via Optimal Transport" (https://arxiv.org/abs/2310.15141); "SpecInfer:
    Accelerating Large Language Model Serving with Tree-based Speculative Inference and Verification"
    (https://arxiv.org/abs/2305.09781; https://github.com/flexflow/flexflow-serve).
    """

    count: int = setting(2, ge=1, le=16, help="chains")
    length: int = setting(4, ge=1, le=32, unit="tokens", help="tokens of a chain")

    needs, gives = frozenset({"rows", "branches"}), frozenset({"independent"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget > MAX_NODES - 1:
            raise BadInput(f"IndependentChains: {self.count} × {self.length} nodes; expected at most {MAX_NODES - 1}")

    @property
    def budget(self) -> int:
        return self.count * self.length

    def grow(self, builder: TreeBuilder) -> None:
        tree, drawn = builder.tree, not (builder.greedy or builder.seeded)
        ends, known = [0] * (self.count if drawn else 1), {}
        for _ in range(min(self.length, builder.depth)):
            builder.expand(sorted(set(ends)))
            for chain, parent in enumerate(ends):
                (token,) = builder.best(parent, 1, chain)
                if (parent, token) not in known:
                    known[parent, token] = builder.add(parent, token)
                ends[chain] = known[parent, token]
                if drawn:
                    tree.draws.setdefault(parent, []).append(ends[chain])

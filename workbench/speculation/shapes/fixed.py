"""Shapes decided before drafting: a chain of K, and a tree of constant branching."""

from dataclasses import dataclass

from workbench.declare import register, setting
from workbench.errors import BadInput
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import MAX_NODES, DraftTree


@register("shape", "fixed")
@dataclass(frozen=True)
class FixedLength(DraftShape):
    """A chain of `length` tokens every round. Source: "Fast Inference from Transformers via Speculative Decoding"
    (https://arxiv.org/abs/2211.17192)."""

    length: int = setting(4, ge=1, le=64, unit="tokens", help="tokens drafted each round")

    @property
    def budget(self) -> int:
        return self.length

    def ask(self, tree: DraftTree, memory: dict) -> list[tuple[int, int]]:
        return [(len(tree) - 1, 1)] if len(tree) <= self.length else []


@register("shape", "tree")
@dataclass(frozen=True)
class FixedTree(DraftShape):
    """Every node of depth d gets `branching[d]` children, drawn without replacement: RSD-C.

    To compare with other shapes, give all the same number of nodes (what the target computes), not the same depth.
    Source: the constant branching of "Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without
    Replacement" (https://arxiv.org/abs/2402.14160; reconstructed from the abstract).
    """

    branching: tuple[int, ...] = setting((2, 2, 1, 1), ge=1, le=16, help="children of each node, by depth")

    needs = frozenset({"branches"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.branching or self.budget > MAX_NODES - 1:
            raise BadInput(
                f"FixedTree(branching={list(self.branching)}): {self.budget} nodes; expected 1 to {MAX_NODES - 1}"
            )

    @property
    def budget(self) -> int:
        total, width = 0, 1
        for factor in self.branching:
            width *= factor
            total += width
        return total

    def ask(self, tree: DraftTree, memory: dict) -> list[tuple[int, int]]:
        depth = tree.depths[-1]
        if depth >= len(self.branching):
            return []
        return [(node, self.branching[depth]) for node, d in enumerate(tree.depths) if d == depth]

"""Draft while the drafter is sure of itself."""

from dataclasses import dataclass

from workbench.declare import register, setting
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import DraftTree


@register("shape", "confidence")
@dataclass(frozen=True)
class ConfidenceStop(DraftShape):
    """A chain that ends after the first token whose row had its largest probability below `threshold`.

    The token stays: withdrawing it by its own value would bias the output. Source: "Kangaroo: Lossless Self-Speculative
    Decoding via Double Early Exiting" (https://arxiv.org/abs/2404.18911; https://github.com/Equationliu/Kangaroo).
    """

    max_length: int = setting(6, ge=1, le=64, unit="tokens", help="tokens drafted at most")
    threshold: float = setting(0.6, ge=0, le=1, help="stop once the drafter's largest probability falls below this")

    needs = frozenset({"confidence"})

    @property
    def budget(self) -> int:
        return self.max_length

    def ask(self, tree: DraftTree, memory: dict) -> list[tuple[int, int]]:
        last = len(tree) - 1
        if last >= self.max_length:
            return []
        if last > 0 and tree.confidence[tree.parents[last]] < self.threshold:
            tree.stop_reason = "confidence"
            return []
        return [(last, 1)]

"""Stochastic beam search: the best branches of a whole level, drawn without replacement."""

from dataclasses import dataclass
from math import exp, expm1, inf, log, log1p

from workbench.declare import register, setting
from workbench.errors import BadInput
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import MAX_NODES
from workbench.speculation.tree_builder import TreeBuilder


@register("shape", "rsd_s")
@dataclass(frozen=True)
class StochasticBeam(DraftShape):
    """Every level keeps the `width` nodes of largest perturbed log-probability of their whole path: RSD-S.

    A node's score is the largest perturbed log-probability below it, so its children's scores are Gumbel draws
    conditioned on their maximum being that score. Siblings are tested in decreasing score, which is their draw order
    without replacement; sorting them by q instead would bias the output. Each node has noise of its own. Without noise
    of the drafter's own (temperature 0, seeded verification) it is plain beam search by log-probability (POINT).
    Compare shapes at equal nodes, not at equal depth. RSD-C is shape `tree`. Source: "Recursive Speculative Decoding:
    Accelerating LLM Inference via Sampling Without Replacement" (https://arxiv.org/abs/2402.14160; reconstructed from
    the abstract).
    """

    width: int = setting(3, ge=1, le=16, unit="tokens", help="nodes of a level")
    depth: int = setting(4, ge=1, le=32, unit="tokens", help="levels")

    needs = frozenset({"rows", "branches"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget > MAX_NODES - 1:
            raise BadInput(f"StochasticBeam: {self.width} × {self.depth} nodes; expected at most {MAX_NODES - 1}")

    @property
    def budget(self) -> int:
        return self.width * self.depth

    def grow(self, builder: TreeBuilder) -> None:
        beam = {0: (0.0, 0.0)}  # node -> (log-probability of its path, perturbed)
        for _ in range(min(self.depth, builder.depth)):
            builder.expand(list(beam))
            found = [
                (score, path, parent, token)
                for parent, (before, top) in beam.items()
                for token, path, score in self._children(builder, parent, before, top)
            ]
            found.sort(key=lambda child: -child[0])  # siblings in decreasing score
            beam = {builder.add(parent, token): (path, score) for score, path, parent, token in found[: self.width]}

    def _children(self, builder: TreeBuilder, node: int, before: float, top: float) -> list[tuple[int, float, float]]:
        """(token, log-probability of the path, perturbed) of the node's best children, the best first."""
        dist = builder.estimate(node)
        if builder.greedy or builder.seeded:
            best = dist.topk(min(self.width, len(dist)))
            paths = [before + value for value in best.values.tolist()]
            return list(zip(best.indices.tolist(), paths, paths, strict=True))
        dist = dist.double()
        best = (dist + builder.gumbel(node, builder.unique_branch(node))).topk(min(self.width, len(dist)))
        tokens, raw = best.indices.tolist(), best.values.tolist()
        paths = [before + value for value in dist[best.indices].tolist()]
        scores = [conditioned(before + value, before + raw[0], top) for value in raw]
        return [child for child in zip(tokens, paths, scores, strict=True) if child[1] > -inf]


def conditioned(score: float, largest: float, top: float) -> float:
    """A Gumbel score given that the largest of its siblings is `top`, from one drawn freely with maximum `largest`.

    −log(e^−top − e^−largest + e^−score) without overflow; source: "Stochastic Beams and Where to Find Them".
    """
    if score == -inf:
        return -inf
    below = log(-expm1(score - largest)) if score < largest else -inf
    v = top - score + below
    return top - max(0.0, v) - log1p(exp(-abs(v)))

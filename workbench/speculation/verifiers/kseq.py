"""K-SEQ: of several chains drawn independently from one distribution, take the first token that passes a shared
test."""

from collections.abc import Callable
from dataclasses import dataclass

from workbench.declare import register
from workbench.engine.distribution import Distribution
from workbench.engine.sampling import Sampling
from workbench.speculation.tree import DraftTree
from workbench.speculation.verifiers.base import Outcome, Verifier, untested
from workbench.speculation.verifiers.match import descend
from workbench.speculation.verifiers.rejection import sample
from workbench_kernels.noise import reference as noise
from workbench_kernels.verification import kseq_node

__all__ = ["KSeq"]


@register("verifier", "kseq")
@dataclass(frozen=True)
class KSeq(Verifier):
    """Test the next tokens of the k chains that still agree, in order: accept x with probability min(1, p(x)/(ρ q(x))).

    ρ is the smallest divisor for which the residual is a distribution, found by bisection; if none passes, the token is
    drawn from that residual. After an acceptance only the chains that agree go on. Needs independent chains (shape
    `chains`) from a drafter with distributions. At temperature 0 it is greedy exact match. Source: "SpecTr: Fast
    Speculative Decoding via Optimal Transport" (https://arxiv.org/abs/2310.15141; the residual is reconstructed, and
    checked by exact enumeration).
    """

    needs = frozenset({"rows", "independent"})

    def guarantee(self, sampling: Sampling) -> str:
        return "exact" if sampling.greedy else "distribution"

    def verify(
        self, dist: Distribution, tree: DraftTree, position: int, seed: int, choose: Callable[[int, int], int]
    ) -> Outcome:
        if dist.greedy:
            return descend(tree, position, choose)
        fates, reasons, us = untested(tree)
        node, path = 0, []
        while True:
            place, p, won = position + tree.depths[node], dist.probs(node), None
            drawn = tree.draws.get(node, [])
            if drawn:
                numbers = [noise.uniform(seed, "accept", place, i) for i in range(len(drawn))]
                q = tree.rows[node].double().softmax(-1)
                won, p = kseq_node(p, q, [tree.tokens[child] for child in drawn], numbers)
                for child, u in zip(drawn[:won] if won is not None else drawn, numbers, strict=False):
                    fates[child], reasons[child], us[child] = "rejected", "ratio", u
            if won is None:
                source = "residual" if drawn else "bonus" if path else "target"
                return Outcome(path, sample(p, seed, place), source, fates, reasons, us)
            for child in drawn[won + 1 :]:
                if fates[child] == "parent_rejected":
                    fates[child] = "sibling_won"
            node = drawn[won]
            fates[node], reasons[node], us[node] = "accepted", None, numbers[won]
            path.append(node)

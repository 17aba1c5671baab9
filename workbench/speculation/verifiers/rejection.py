"""Rejection sampling on chains and trees: accepted or not, the text follows the target's distribution."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from workbench.declare import register
from workbench.engine.distribution import Distribution, draw
from workbench.engine.sampling import Sampling
from workbench.speculation.tree import DIST, DraftTree
from workbench.speculation.verifiers.base import Outcome, Verifier, untested
from workbench_kernels.noise import reference as noise
from workbench_kernels.verification.reference import accept, without


@register("verifier", "rejection")
@dataclass(frozen=True)
class Rejection(Verifier):
    """Test siblings in draw order: accept x drawn from q with probability min(1, p(x)/q(x)), else p ← norm((p − q)+).

    Siblings are drawn without replacement, so after each test the tested token leaves q; where the draws were
    independent (`DraftTree.draws`) q stays, and every draw is tested, repeats too: multi-round recursive rejection.
    POINT children are accepted with probability p(x), else p(x) ← 0. A chain is one child per node; at temperature 0
    this is greedy exact match.

    Sources: "Fast Inference from Transformers via Speculative Decoding" (https://arxiv.org/abs/2211.17192);
    "Accelerating Large Language Model Decoding with Speculative Sampling" (https://arxiv.org/abs/2302.01318);
    "SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and Verification"
    (https://arxiv.org/abs/2305.09781; https://github.com/flexflow/flexflow-serve, draws with replacement); "Sequoia:
    Scalable, Robust, and Hardware-aware Speculative Decoding" (https://arxiv.org/abs/2402.12374;
    https://github.com/Infini-AI-Lab/Sequoia, the order without replacement).
    """

    reason = "ratio"  # why a child that failed was rejected

    def guarantee(self, sampling: Sampling) -> str:
        return "exact" if sampling.greedy else "distribution"

    def rescues(self, tree: DraftTree, child: int) -> bool:
        """Whether a child that failed the exact test stands all the same."""
        return False

    def verify(
        self, dist: Distribution, tree: DraftTree, position: int, seed: int, choose: Callable[[int, int], int | None]
    ) -> Outcome:
        fates, reasons, us = untested(tree)
        lossy = [False] * len(tree)
        node, path = 0, []
        while True:
            place = position + tree.depths[node]
            p, logq = dist.probs(node), tree.rows.get(node)
            children, independent = tree.tests(node), node in tree.draws
            won = None
            for turn, child in enumerate(children):
                token = tree.tokens[child]
                if won is not None:
                    if fates[child] == "parent_rejected":
                        fates[child] = "sibling_won"
                    continue
                us[child] = noise.uniform(seed, "accept", place, turn)
                if tree.kinds[child] == DIST:
                    accepted, p = accept(p, logq.double().softmax(-1), token, us[child])
                    logq = logq if independent else without(logq, token)
                else:
                    accepted, p = accept(p, None, token, us[child])
                if not accepted and self.rescues(tree, child) and not dist.forbids(node, token):
                    accepted = lossy[child] = True
                if accepted:
                    fates[child], reasons[child], won = "accepted", None, child
                else:
                    fates[child], reasons[child] = "rejected", self.reason
            if won is None:
                token = sample(p, seed, place)
                source = "residual" if children else "bonus" if path else "target"
                return Outcome(path, token, source, fates, reasons, us, lossy)
            path.append(won)
            node = won


def sample(p: torch.Tensor, seed: int, position: int) -> int:
    """A seeded draw from a distribution [V]; every position draws from a residual at most once."""
    return draw(p.log(), seed, "residual", position)

"""Typical acceptance: a draft stands where the target finds it not too unlikely. Lossy."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from workbench.declare import register, setting
from workbench.engine.distribution import Distribution
from workbench.engine.sampling import Sampling
from workbench.speculation.tree import DraftTree
from workbench.speculation.verifiers.base import Outcome, Verifier, untested
from workbench.speculation.verifiers.match import descend
from workbench_kernels.noise import reference as noise


@register("verifier", "typical")
@dataclass(frozen=True)
class Typical(Verifier):
    """Accept x if p(x) > min(epsilon, delta·exp(−H(p))); of the accepted paths take the longest, then the likeliest.

    The text does not follow the target's distribution: unlikely tokens are never drafted in, likely ones too often. An
    accepted node is `lossy` where the exact test u < p(x) would have rejected it. At temperature 0, where p is a point
    mass, this is greedy exact match. The last token is plain decoding's seeded draw. Source: "Medusa: Simple LLM
    Inference Acceleration Framework with Multiple Decoding Heads" (https://arxiv.org/abs/2401.10774;
    https://github.com/FasterDecoding/Medusa). Departures: the first token of a round is not forced to the argmax; p and
    H are of the distribution sampled from, cuts included (theirs: temperature alone).
    """

    epsilon: float = setting(0.09, ge=0, le=1, help="a token of at least this probability always stands")
    delta: float = setting(0.3, ge=0, help="times exp(−entropy): the threshold where the target is unsure")

    def guarantee(self, sampling: Sampling) -> str:
        return "exact" if sampling.greedy else "lossy"

    def verify(
        self, dist: Distribution, tree: DraftTree, position: int, seed: int, choose: Callable[[int, int], int]
    ) -> Outcome:
        if dist.greedy:
            return descend(tree, position, choose)
        fates, reasons, us = untested(tree)
        gain = {0: 0.0}  # sum of log-probabilities of the nodes that stand, with all above them
        tried: dict[int, float] = {}
        for node in range(len(tree)):
            for draw, child in enumerate(tree.children(node) if node in gain else ()):
                p = tried[child] = dist.scores[node][tree.tokens[child]].exp().item()
                us[child] = noise.uniform(seed, "accept", position + tree.depths[node], draw)
                if p > self.threshold(dist.scores[node]):
                    gain[child] = gain[node] + math.log(p)
        best = max(gain, key=lambda node: (tree.depths[node], gain[node]))
        path = tree.path(best)
        for node in tried:
            if node in path:
                fates[node] = "accepted"
            elif tree.parents[node] in (0, *path):
                fates[node] = "sibling_won" if node in gain else "rejected"
                reasons[node] = None if node in gain else "threshold"
        lossy = [node in path and us[node] >= tried[node] for node in range(len(tree))]
        token = choose(best, position + tree.depths[best])
        source = "target" if tree.children(best) or not path else "bonus"
        return Outcome(path, token, source, fates, reasons, us, lossy)

    def threshold(self, scores: torch.Tensor) -> float:
        """The probability that a token must exceed, from log-probabilities [V]."""
        entropy = torch.special.entr(scores.exp()).sum().item()
        return min(self.epsilon, self.delta * math.exp(-entropy))

"""Verifiers that compare drafts with one token of the target's at every node: argmax, seeded draw, or a draw of its
own.

The token that no child equals is the output itself: throwing it away and drawing again would be biased.
"""

from collections.abc import Callable
from dataclasses import dataclass

from workbench.declare import register
from workbench.engine.distribution import Distribution, draw
from workbench.engine.model import LanguageModel
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings
from workbench.errors import BadInput
from workbench.speculation.tree import DraftTree
from workbench.speculation.verifiers.base import Outcome, Verifier, untested


@register("verifier", "seeded")
@dataclass(frozen=True)
class SeededMatch(Verifier):
    """Descend while the child equals the target's own seeded draw; the first mismatch is that draw itself.

    The noise belongs to (seed, absolute position, token), so the text is that of plain decoding with the same seed,
    whoever drafts. At temperature 0 this is greedy exact match. Our own design; the same idea is in "Coupling without
    Communication and Drafter-Invariant Speculative Decoding" (https://arxiv.org/abs/2408.07978).
    """

    gives = frozenset({"seeded"})

    def guarantee(self, sampling: Sampling) -> str:
        return "exact" if sampling.greedy else "seeded"

    def verify(
        self, dist: Distribution, tree: DraftTree, position: int, seed: int, choose: Callable[[int, int], int]
    ) -> Outcome:
        return descend(tree, position, choose)


@register("verifier", "greedy")
@dataclass(frozen=True)
class Greedy(SeededMatch):
    """Longest match with the argmax; for temperature 0 only.

    Source: "Blockwise Parallel Decoding for Deep Autoregressive Models" (https://arxiv.org/abs/1811.03115).
    """

    def guarantee(self, sampling: Sampling) -> str:
        return "exact"

    def check(self, settings: Settings, lm: LanguageModel | None = None) -> None:
        if not settings.sampling.greedy:
            raise BadInput(
                f"verifier 'greedy' needs temperature 0, got {settings.sampling.temperature}; "
                "use SeededMatch() or Rejection() to sample"
            )


@register("verifier", "point")
@dataclass(frozen=True)
class PointMatch(Verifier):
    """Draw once from the target's distribution at each node and descend while a child equals the draw.

    Accepts x with probability p(x), whoever chose it: exact for any drafter, and it needs no proposal distribution;
    where there is one, rejection sampling accepts more. The draws are seeded, apart from those of plain decoding, so
    drafts that were drawn gain nothing by sharing its noise. Source: the sampling verifier of "EAGLE-2: Faster
    Inference of Language Models with Dynamic Draft Trees" (https://arxiv.org/abs/2406.16858;
    https://github.com/SafeAILab/EAGLE).
    """

    def guarantee(self, sampling: Sampling) -> str:
        return "exact" if sampling.greedy else "distribution"

    def verify(
        self, dist: Distribution, tree: DraftTree, position: int, seed: int, choose: Callable[[int, int], int]
    ) -> Outcome:
        if dist.greedy:
            return descend(tree, position, choose)
        return descend(tree, position, lambda row, place: draw(dist.scores[row], seed, "match", place))


def descend(tree: DraftTree, position: int, take: Callable[[int, int], int]) -> Outcome:
    """Walk down from the root while a child holds `take(node, absolute position)`."""
    fates, reasons, us = untested(tree)
    node, path = 0, []
    while True:
        token = take(node, position + tree.depths[node])
        children = tree.children(node)
        won = next((child for child in children if tree.tokens[child] == token), None)
        for child in children:
            if won is None:
                fates[child], reasons[child] = "rejected", "mismatch"
            else:
                fates[child] = "accepted" if child == won else "sibling_won"
        if won is None:
            source = "target" if children or not path else "bonus"
            return Outcome(path, token, source, fates, reasons, us)
        path.append(won)
        node = won

"""Verifiers that compare drafts with the token plain decoding would take: argmax, or the keyed draw."""

from collections.abc import Callable
from dataclasses import dataclass

from workbench.declare import register
from workbench.engine.distribution import Law
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings
from workbench.errors import BadInput
from workbench.speculation.tree import DraftTree
from workbench.speculation.verifiers.base import Outcome, Verifier, untested

__all__ = ["Greedy", "Keyed"]


@register("verifier", "keyed")
@dataclass(frozen=True)
class Keyed(Verifier):
    """Descend while the child equals the target's own keyed draw; the first mismatch is that draw itself.

    The noise belongs to (seed, absolute position, token), so the text is that of plain decoding with the same seed,
    whoever drafts. At temperature 0 this is greedy exact match. Our own design.
    """

    coupled = True

    def claim(self, sampling: Sampling) -> str:
        return "exact" if sampling.greedy else "seed"

    def verify(self, law: Law, tree: DraftTree, position: int, seed: int, choose: Callable[[int, int], int]) -> Outcome:
        fates, reasons, us = untested(tree)
        node, path = 0, []
        while True:
            token = choose(node, position + tree.depths[node])
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


@register("verifier", "greedy")
@dataclass(frozen=True)
class Greedy(Keyed):
    """Longest match with the argmax; for temperature 0 only. Source: "Blockwise Parallel Decoding"."""

    def claim(self, sampling: Sampling) -> str:
        return "exact"

    def check(self, settings: Settings) -> None:
        if not settings.sampling.greedy:
            raise BadInput(
                f"verifier 'greedy' needs temperature 0, got {settings.sampling.temperature}; "
                "use Keyed() or Rejection() to sample"
            )

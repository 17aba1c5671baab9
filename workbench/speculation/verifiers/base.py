"""What a verifier decides about a tree, given the target's distribution after every node."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from workbench.declare import Declared
from workbench.engine.distribution import Distribution
from workbench.engine.model import LanguageModel
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings
from workbench.speculation.drafters.base import Drafter
from workbench.speculation.refusals import unmet
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import DraftTree


@dataclass(slots=True)
class Outcome:
    """path: accepted nodes from below the root on. token: what the target adds after the path; source: `bonus` (the
    path reached a leaf), `residual` (drawn from what a rejection left) or `target` (the target's own choice).
    fates, reasons, us: per node (the root's entries are unused). lossy: accepted nodes that an exact test would have
    rejected with the same number (empty: none)."""

    path: list[int]
    token: int
    source: str
    fates: list[str]
    reasons: list[str | None]
    us: list[float | None] = field(default_factory=list)
    lossy: list[bool] = field(default_factory=list)


class Verifier(Declared):
    """Base of all verifiers."""

    family = "verifier"
    # "hidden": `DraftTree.hidden`; "rows" of the drafter; "independent" draws of the shape
    needs: ClassVar[frozenset[str]] = frozenset()
    # "seeded": compares with the target's own seeded choice, so drafters may use the same noise
    gives: ClassVar[frozenset[str]] = frozenset()

    @property
    def seeded(self) -> bool:
        return "seeded" in self.gives

    def guarantee(self, sampling: Sampling) -> str:
        raise NotImplementedError

    def refuses(self, drafter: "Drafter", shape: "DraftShape") -> str | None:
        """Why this verifier cannot judge what a drafter drafts in a shape, or None."""
        return unmet(self, drafter) or unmet(self, shape)

    def check(self, settings: Settings, lm: "LanguageModel | None" = None) -> None:
        """Raise BadInput where the sampling settings, or the target, do not fit."""

    def score_hidden(self, lm: "LanguageModel", tree: DraftTree) -> None:
        """Where it needs "hidden": look at `tree.hidden` before the walk."""

    def verify(
        self, dist: Distribution, tree: DraftTree, position: int, seed: int, choose: Callable[[int, int], int | None]
    ) -> Outcome:
        """Walk the tree from the root.

        distribution: the target's distributions, row i after node i. position: absolute position of the root's
        children. choose(row, position): what plain decoding takes there.
        """
        raise NotImplementedError


def untested(tree: DraftTree) -> tuple[list[str], list[str | None], list[float | None]]:
    """Fates before the walk: descendants of a rejected node and duplicate siblings are never tested."""
    n = len(tree)
    fates = ["parent_rejected"] * n
    if len(set(zip(tree.parents, tree.tokens, strict=True))) < n:
        tested = {child for node in range(n) for child in tree.children(node)}
        fates = ["parent_rejected" if node in tested else "pruned" for node in range(n)]
    return fates, [None] * n, [None] * n

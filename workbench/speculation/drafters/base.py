"""What a drafter does: propose a tree, and settle its own caches once the outcome is known."""

from typing import TYPE_CHECKING

from workbench.declare import Declared
from workbench.engine.model import LanguageModel
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedLength
from workbench.speculation.tree import DraftTree

if TYPE_CHECKING:
    from workbench.cache import Stack
    from workbench.decoders.base import RoundLog, State

__all__ = ["Drafter"]


class Drafter(Declared):
    """Base of all drafters. State between rounds lives in the decoding state: a lane, or `state.memory`."""

    family = "drafter"
    has_rows = False  # gives a law with every node: confidence and DIST nodes are possible

    def default_shape(self) -> DraftShape:
        return FixedLength(4)

    def refuses(self, shape: DraftShape) -> str | None:
        """Why this drafter cannot follow a shape, or None."""
        if shape.needs_confidence and not self.has_rows:
            return f"shape {shape.declared_name!r} reads the drafter's confidence, and {self.declared_name!r} has none"
        return None

    def lanes(self, lm: LanguageModel) -> dict[str, LanguageModel]:
        """The models the drafter runs, by role."""
        return {}

    def caches(self) -> dict[str, "Stack | None"]:
        """The cache stacks of these models, by role."""
        return {}

    def propose(self, state: "State", log: "RoundLog", shape: DraftShape, depth: int, coupled: bool) -> DraftTree:
        """A tree of at most `depth` levels below the pending token.

        coupled: the verifier compares with the target's own keyed draw; so propose what that noise would pick (POINT
        nodes). Otherwise nodes with a row are independent draws from it (DIST), except at temperature 0.
        """
        raise NotImplementedError

    def settle(self, state: "State", log: "RoundLog", tree: DraftTree, path: list[int]) -> None:
        """Commit or drop what was staged for the tree; `path` are the accepted nodes that became text."""

"""What a draft shape answers: which nodes get how many children next."""

from workbench.declare import Declared
from workbench.speculation.tree import DraftTree

__all__ = ["DraftShape"]


class DraftShape(Declared):
    """Base of all shapes.

    `ask` sees the nodes appended so far and their rows' confidence, never the value of a draw not yet appended: so
    any answer is neutral to the output law.
    """

    family = "shape"
    needs_confidence = False  # reads DraftTree.confidence, which only drafters with rows fill in
    branches = False  # may ask for several children of one node

    def ask(self, tree: DraftTree) -> list[tuple[int, int]]:
        """(parent, number of children) to draft next; empty ends the draft."""
        raise NotImplementedError

    @property
    def budget(self) -> int:
        """The most nodes a round may draft."""
        raise NotImplementedError

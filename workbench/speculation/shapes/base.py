"""What a draft shape decides: which nodes get how many children next."""

from typing import Any, ClassVar

from workbench.declare import Declared
from workbench.engine.model import LanguageModel
from workbench.speculation.tree import DraftTree
from workbench.speculation.tree_builder import TreeBuilder


class DraftShape(Declared):
    """Base of all shapes.

    A shape that counts children has `ask`; one that draws in a way of its own has `grow`. Either may see the nodes
    appended so far and their rows, never the value of a draw not yet appended: so any answer is neutral to the output
    distribution. What it keeps between rounds lies in the state's `memory`, under its own name; it must not depend on
    the values of nodes that were not tested.
    """

    family = "shape"
    # of the drafter: "rows" (`DraftTree.rows`), "confidence" (`DraftTree.confidence`), "features"
    # (`TreeBuilder.features`), "exits" (follows the shape's choice of a layer), "branches" (several children of a node)
    needs: ClassVar[frozenset[str]] = frozenset()
    gives: ClassVar[frozenset[str]] = frozenset()  # "independent": siblings are independent draws (`DraftTree.draws`)

    def check(self, drafter: Declared, lm: "LanguageModel") -> None:
        """Raise BadInput where the shape does not fit the target and the drafter; before any work."""

    def ask(self, tree: DraftTree, memory: dict[str, Any]) -> list[tuple[int, int]]:
        """(parent, number of children) to draft next; empty ends the draft."""
        raise NotImplementedError

    def grow(self, builder: "TreeBuilder") -> None:
        """Grow the round's tree: expand the nodes asked about, append their children, until nothing is asked."""
        tree = builder.tree
        while asked := [(n, m) for n, m in self.ask(tree, builder.memory) if tree.depths[n] < builder.depth]:
            builder.expand([parent for parent, _ in asked])
            for parent, count in asked:
                builder.children(parent, count)

    def observe(self, memory: dict[str, Any], tree: DraftTree, accepted: int) -> None:
        """After the verification: how many of the tree's nodes were accepted."""

    @property
    def budget(self) -> int:
        """The most nodes a round may draft."""
        raise NotImplementedError

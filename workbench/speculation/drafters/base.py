"""What a drafter does: propose a tree, and settle its own caches once the outcome is known."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from workbench.cache.stack import Stack
from workbench.declare import Declared
from workbench.engine.model import LanguageModel, Output
from workbench.rounds import Round, State
from workbench.speculation.refusals import unmet
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedLength
from workbench.speculation.tree import POINT, DraftTree
from workbench.speculation.tree_builder import TreeBuilder


class Drafter(Declared):
    """Base of all drafters. State between rounds lives in the decoding state: a runner, or `state.memory` under the
    drafter's name (values are replaced, never changed in place; tensors and arrays there are counted as its table)."""

    family = "drafter"
    # what shapes and verifiers may ask for: "rows" (a distribution with every node, so that DIST nodes are possible),
    # "confidence", "features" (its hidden state after every node below the root), "exits" (a shape may choose the
    # layer it drafts from), "branches" (several children of one node)
    gives: ClassVar[frozenset[str]] = frozenset({"branches"})
    # what it reads of the target: in `observe`, of all tokens, "hidden" (its final states, and as `tree.hidden` in
    # `on_verified`), "logits", and numbers of layers, for the states behind so many
    needs: ClassVar[frozenset] = frozenset()
    by_text = False  # its distribution after a text depends on the text alone, not on where a round began

    def default_shape(self) -> DraftShape:
        return FixedLength(4)

    def refuses(self, shape: DraftShape) -> str | None:
        """Why this drafter cannot follow a shape, or None."""
        return unmet(shape, self)

    def check(self, lm: LanguageModel) -> None:
        """Raise BadInput where the drafter does not fit the target; before any work."""

    def runners(self, lm: LanguageModel) -> dict[str, LanguageModel]:
        """The models the drafter runs, by role."""
        return {}

    def caches(self) -> dict[str, "Stack | None"]:
        """The cache stacks of these models, by role."""
        return {}

    def observe(self, state: "State", r: "Round", start: int, out: Output) -> None:
        """The target has read the tokens from `start` on outside a round (the prompt, as a rule), with these logits
        and hidden states as far as it `needs` them."""

    def propose(self, state: "State", r: "Round", shape: DraftShape, depth: int, seeded: bool) -> DraftTree:
        """A tree of at most `depth` levels below the pending token.

        seeded: the verifier compares with the target's own seeded draw; so propose what that noise would pick (POINT
        nodes). Otherwise nodes with a row are independent draws from it (DIST), except at temperature 0.
        """
        raise NotImplementedError

    def chain(self, state: "State", shape: DraftShape, tokens: Sequence[int], depth: int) -> DraftTree:
        """A proposed continuation as a tree: POINT nodes in a line, as far as the shape asks and `depth` reaches."""
        tree = DraftTree([state.pending])
        for token in within(state, tokens[:depth]):
            asked = shape.ask(tree, state.memory)
            if not asked:
                break
            tree.add(asked[0][0], token, POINT, None, self.declared_name)
        if len(tree) == 1:
            tree.stop_reason = "no match"
        return tree

    def trie(self, state: "State", shape: DraftShape, paths: Sequence[Sequence[int]], depth: int) -> DraftTree:
        """Proposed continuations, the best first, as a tree of POINT nodes with common beginnings told once: at most
        the shape's budget of nodes; a shape that does not branch takes the best alone."""
        if "branches" not in shape.needs:
            return self.chain(state, shape, paths[0] if paths else [], depth)
        tree, known = DraftTree([state.pending]), {}
        for path in paths:
            node = 0
            for token in within(state, path[:depth]):
                if (node, token) not in known:
                    if len(tree) > shape.budget:
                        return tree
                    known[node, token] = tree.add(node, token, POINT, None, self.declared_name)
                node = known[node, token]
        if len(tree) == 1:
            tree.stop_reason = "no match"
        return tree

    def score(self, state: "State", r: "Round", tree: DraftTree, hidden: bool) -> torch.Tensor:
        """The target's logits [n, V] after every node, in one forward; sets `tree.hidden` where that is wanted."""
        root = len(state.tokens) - 1
        mask = None if tree.is_chain else tree.ancestors()
        positions = [root + depth for depth in tree.depths]
        want = ("hidden",) if hidden or "hidden" in self.needs else ()
        out = r.forward("target", tree.tokens, positions, mask, want=want)
        tree.hidden = out.hidden
        return out.logits

    def on_verified(
        self, state: "State", r: "Round", tree: DraftTree, path: list[int], logits: torch.Tensor | None
    ) -> None:
        """Commit or drop what was staged for the tree and learn from it; `path` are the accepted nodes that became
        text, `logits` the target's after every node [n, V] (None where a device round kept them)."""


class RowDrafter(Drafter):
    """Base of drafters that know a distribution after every node: the shape grows the tree, the drafter reads nodes."""

    gives = frozenset({"rows", "confidence", "branches"})

    def propose(self, state: "State", r: "Round", shape: DraftShape, depth: int, seeded: bool) -> DraftTree:
        depth = min(depth, self.max_depth(state))
        builder = TreeBuilder(self.declared_name, state, r, depth, seeded, self.logits, shape.needs)
        shape.grow(builder)
        self.drafted(state, builder)
        return builder.tree

    def max_depth(self, state: "State") -> int:
        """The most levels this drafter can draft from here."""
        return 2**30

    def logits(self, builder: TreeBuilder, nodes: list[int]) -> torch.Tensor:
        """Logits [n, V'] after nodes that were not read before (`builder.expanded` were); maybe the root."""
        raise NotImplementedError

    def drafted(self, state: "State", builder: TreeBuilder) -> None:
        """The tree is grown: keep what `on_verified` will need."""


def within(state: "State", tokens: Sequence[int]) -> Sequence[int]:
    """A proposed text as far as the target has its tokens: a tokenizer may know more."""
    lm = state.runners["target"].model
    limit = min(lm.vocab_size, lm.ids_read)
    return next((tokens[:place] for place, token in enumerate(tokens) if token >= limit), tokens)

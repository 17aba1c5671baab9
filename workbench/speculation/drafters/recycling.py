"""Recycle what the target found likely after every token it has seen."""

from dataclasses import dataclass

import numpy as np
import torch

from workbench.declare import register, setting
from workbench.engine.model import Output
from workbench.rounds import Round, State
from workbench.speculation.drafters.base import Drafter
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedTree
from workbench.speculation.shapes.sequoia import Sequoia, calibrations
from workbench.speculation.tree import POINT, DraftTree

NAME = "recycling"


@register("drafter", NAME)
@dataclass(frozen=True)
class TokenRecycling(Drafter):
    """A table holds, for every token, the `width` likeliest successors when the target last met it; a fixed tree is
    filled from it: child r of a node is the r-th successor of the node's token.

    All nodes of a round teach the table, accepted or not, and so does the prompt. Nodes are POINT. Source: "Turning
    Trash into Treasure: Accelerating Inference of Large Language Models with Token Recycling"
    (https://arxiv.org/abs/2408.08696; https://github.com/Luowaterbi/TokenRecycling). Departures: the table begins with
    the prompt's own successors and knows when it knows nothing (theirs: zeros); where a round fed a token twice,
    accepted nodes have the last word (theirs: unordered); it lives as long as the run (theirs: for ever); the default
    tree has 16 nodes in 6 levels (theirs: 80 nodes).
    """

    width: int = setting(8, ge=1, le=32, unit="tokens", help="successors kept for each token")

    needs = frozenset({"logits"})

    def default_shape(self) -> DraftShape:
        return Sequoia(16, 6, NAME) if NAME in calibrations() else FixedTree((4, 2, 1))

    def observe(self, state: State, r: Round, start: int, out: Output) -> None:
        self._learn(state, state.tokens[start : start + len(out.logits)], out.logits)

    def propose(self, state: State, r: Round, shape: DraftShape, depth: int, seeded: bool) -> DraftTree:
        tree, table = DraftTree([state.pending]), state.memory.get(NAME)
        grown = 0
        while table is not None and len(tree) > grown:
            grown = len(tree)
            for parent, count in shape.ask(tree, state.memory):
                if tree.depths[parent] < depth:
                    for token in table[tree.tokens[parent], :count].tolist():
                        if token >= 0:
                            tree.add(parent, token, POINT, None, self.declared_name)
        if len(tree) == 1:
            tree.stop_reason = "no match"
        return tree

    def on_verified(
        self, state: State, r: Round, tree: DraftTree, path: list[int], logits: torch.Tensor | None
    ) -> None:
        if logits is not None:
            stood = {0, *path}
            order = sorted(range(len(tree)), key=lambda node: (node in stood, node))
            self._learn(state, [tree.tokens[node] for node in order], logits[order])

    def _learn(self, state: State, tokens: list[int], logits: torch.Tensor) -> None:
        """Overwrite the rows of tokens with the successors that logits [n, V] give; the last of a token stays."""
        best = logits.topk(min(self.width, logits.shape[-1])).indices.cpu().numpy()
        shape = max(logits.shape[-1], state.runners["target"].model.vocab_size), best.shape[1]
        table = state.memory.get(NAME)
        fits = table is not None and table.shape == shape
        table = table.copy() if fits else np.full(shape, -1, dtype=np.int32)
        table[tokens] = best
        state.memory[NAME] = table

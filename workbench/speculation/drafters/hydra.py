"""Medusa heads that read the drafted tokens before them."""

from dataclasses import dataclass

import torch

from workbench.declare import register, setting
from workbench.engine.model import LanguageModel
from workbench.speculation.drafters.medusa import HeadDrafter
from workbench.speculation.heads import modules, weights
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedTree
from workbench.speculation.tree_builder import TreeBuilder

__all__ = ["Hydra"]


@register("drafter", "hydra")
@dataclass(frozen=True)
class Hydra(HeadDrafter):
    """Head d reads the target's last hidden state and the d tokens since, the pending one and the path to the node.

    So the distribution depends on the path; the nodes of a level are read in one batch. Source: "Hydra:
    Sequentially-Dependent Draft Heads for Medusa Decoding" (https://arxiv.org/abs/2402.05109;
    https://github.com/zankner/Hydra). Departures: the vocabulary matrix is the target's, with a matrix before it as in
    our Medusa; heads of one layer (Hydra++ has four, and a decoder layer before them); the embeddings of tokens are
    normalised (theirs: not); the optimiser is Muon (theirs: AdamW).
    """

    weights: str = setting(
        "embedded", trust="owner", help="trained heads: 'embedded', or a directory or file made by the training"
    )

    def default_shape(self) -> DraftShape:
        return FixedTree((4, 1, 1))

    def module(self, lm: LanguageModel) -> modules.HydraHeads:
        return weights.load("hydra", modules.HydraHeads, self.weights, lm)

    def logits(self, builder: TreeBuilder, nodes: list[int]) -> torch.Tensor:
        tree, lm = builder.tree, builder.state.runners["target"].model
        heads, hidden = self.module(lm), self.hidden(builder.state)
        states = {}
        for depth in {tree.depths[node] for node in nodes}:
            level = [node for node in nodes if tree.depths[node] == depth]
            paths = [[tree.tokens[n] for n in (0, *tree.path(node))] for node in level]
            embedded = lm.embed(paths)  # [nodes, depth + 1, width]
            states |= zip(level, heads(hidden.expand(len(level), -1), embedded), strict=True)
        return lm.head(torch.stack([states[node] for node in nodes]))

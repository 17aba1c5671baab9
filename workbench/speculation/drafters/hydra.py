"""Medusa heads that read the drafted tokens before them."""

from dataclasses import dataclass

import torch
from torch import nn

from workbench.declare import register, setting
from workbench.engine.model import LanguageModel
from workbench.speculation.drafters.medusa import HeadDrafter, Residual
from workbench.speculation.heads import weights
from workbench.speculation.heads.modules import Norm
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedTree
from workbench.speculation.tree_builder import TreeBuilder


class HydraHeads(nn.Module):
    """One head per depth that also reads the tokens up to it."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.token = Norm(width)  # embeddings are far smaller than states
        self.heads = nn.ModuleList(Residual((2 + depth) * width, width) for depth in range(heads))

    def forward(self, hidden: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """hidden: [..., width], the target's state; embedded: [..., n, width], the n tokens since -> [..., width], from
        which the target's head tells the next token."""
        joined = torch.cat([hidden[..., None, :], self.token(embedded)], -2).flatten(-2)
        return hidden + self.heads[embedded.shape[-2] - 1](joined)


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
        "embedded", trust="owner", help="trained heads: 'embedded', a name of `models make`, a folder or file"
    )

    def default_shape(self) -> DraftShape:
        return FixedTree((4, 1, 1))

    def module(self, lm: LanguageModel) -> HydraHeads:
        return weights.load("hydra", HydraHeads, self.weights, lm)

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

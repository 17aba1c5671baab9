"""Heads that each guess one token further ahead from the target's last hidden state."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from workbench.declare import register, setting
from workbench.engine.model import LanguageModel, Output
from workbench.rounds import Round, State
from workbench.speculation.drafters.base import RowDrafter
from workbench.speculation.heads import weights
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedTree
from workbench.speculation.tree import DraftTree
from workbench.speculation.tree_builder import TreeBuilder


class Residual(nn.Module):
    """V SiLU(W x), V starting at zero: what a head adds to the target's state. [..., inputs] -> [..., width]."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.into, self.out = nn.Linear(inputs, width), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(F.silu(self.into(x)))


class MedusaHeads(nn.Module):
    """One head per depth over the target's state. [..., width] -> [heads, ..., width]."""

    def __init__(self, width: int, heads: int = 4):
        super().__init__()
        self.heads = nn.ModuleList(Residual(width, width) for _ in range(heads))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.stack([hidden + head(hidden) for head in self.heads])


class HeadDrafter(RowDrafter):
    """Base of drafters that need the target's hidden state before the pending token, and no cache.

    Where it is not known (the first round after a prompt of one token, or after a change of drafters) they draft
    nothing, and know it in the next round.
    """

    needs = frozenset({"hidden"})

    def module(self, lm: LanguageModel) -> torch.nn.Module:
        """The trained heads for a target; raises BadInput where there are none."""
        raise NotImplementedError

    def check(self, lm: LanguageModel) -> None:
        self.module(lm)

    def observe(self, state: State, r: Round, start: int, out: Output) -> None:
        self._note(state, start + len(out.hidden), out.hidden[-1])

    def on_verified(
        self, state: State, r: Round, tree: DraftTree, path: list[int], logits: torch.Tensor | None
    ) -> None:
        self._note(state, len(state.tokens) - 1, tree.hidden[path[-1] if path else 0])

    def _note(self, state: State, length: int, hidden: torch.Tensor) -> None:
        state.memory[self.declared_name] = (length, hidden.clone())

    def hidden(self, state: State) -> torch.Tensor | None:
        """[width] the target's state before the pending token."""
        length, hidden = state.memory.get(self.declared_name, (None, None))
        return hidden if length == len(state.tokens) - 1 else None

    def max_depth(self, state: State) -> int:
        return 0 if self.hidden(state) is None else len(self.module(state.runners["target"].model).heads)


@register("drafter", "medusa")
@dataclass(frozen=True)
class Medusa(HeadDrafter):
    """Head d tells the token d places after the pending one: h + V SiLU(W h), through the target's own head.

    The distributions of one depth are alike, whatever the path, so a level of the tree costs one row of the head.
    Source: "Medusa: Simple LLM Inference Acceleration Framework with Multiple Decoding Heads"
    (https://arxiv.org/abs/2401.10774; https://github.com/FasterDecoding/Medusa). Departures: the vocabulary matrix is
    the target's, with a matrix V before it (theirs: no V, and a copy of the vocabulary for each head, trained on);
    training is on the target's distribution instead of its tokens; children are drawn from the distribution or are its
    best, as the shape asks (theirs: a fixed tree of ranks, which the shape `sequoia` comes to); the default tree has 12
    nodes in two levels (theirs: 63 in four); the optimiser is Muon (theirs: AdamW).
    """

    weights: str = setting(
        "embedded", trust="owner", help="trained heads: 'embedded', a name of `models make`, a folder or file"
    )

    def default_shape(self) -> DraftShape:
        return FixedTree((6, 1))

    def module(self, lm: LanguageModel) -> MedusaHeads:
        return weights.load("medusa", MedusaHeads, self.weights, lm)

    def logits(self, builder: TreeBuilder, nodes: list[int]) -> torch.Tensor:
        lm, depths = builder.state.runners["target"].model, [builder.tree.depths[node] for node in nodes]
        asked = sorted(set(depths))
        states = self.module(lm)(self.hidden(builder.state))
        dists = dict(zip(asked, lm.head(states[asked]), strict=True))
        return torch.stack([dists[depth] for depth in depths])

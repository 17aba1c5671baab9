"""Draft from the distributions that the target's own last pass gave for the positions ahead."""

from dataclasses import dataclass

import torch

from workbench.declare import register, setting
from workbench.rounds import Round, State
from workbench.speculation.drafters.base import RowDrafter
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedLength
from workbench.speculation.tree import DraftTree
from workbench.speculation.tree_builder import TreeBuilder

NAME = "jacobi"


@register("drafter", NAME)
@dataclass(frozen=True)
class Jacobi(RowDrafter):
    """A window of tokens ahead is refined pass by pass: every token is drawn anew from the distribution that the last
    pass gave at its position, and tested against the distribution that the next pass gives.

    After a rejection the distributions behind the rejected token stay, though they saw a token that is gone; behind
    them the window is filled from the uniform distribution. Each token is DIST, drawn from the row stored with it and
    tested once. At temperature 0 this is Jacobi decoding. Text gains little by it. Sources: "Accelerating
    Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi Decoding"
    (https://arxiv.org/abs/2410.01699; https://github.com/tyshiwo1/Accelerating-T2I-AR-with-SJD); "Accelerating
    Transformer Inference for Translation via Parallel Decoding" (https://arxiv.org/abs/2305.10427;
    https://github.com/teelinsan/parallel-decoding). Departure: where the whole window stands, the target's own token is
    added (theirs: none). With `fill` = last the window is filled from its last distribution. The default window is of 8
    (theirs: 16).
    """

    fill: str = setting(
        "uniform", choices=("uniform", "last"), help="the distribution of positions that no pass has seen"
    )

    gives = RowDrafter.gives - {"branches"}

    def default_shape(self) -> DraftShape:
        return FixedLength(8)

    def logits(self, builder: TreeBuilder, nodes: list[int]) -> torch.Tensor:
        model = builder.state.runners["target"].model
        length, rows = builder.memory.get(NAME, (-1, None))
        if length != len(builder.state.tokens) or not len(rows):
            rows = torch.zeros((1, model.vocab_size), device=model.device)
        elif self.fill == "uniform":
            rows = torch.cat([rows, torch.zeros_like(rows[:1])])
        return rows[[min(builder.tree.depths[node], len(rows) - 1) for node in nodes]]

    def on_verified(
        self, state: State, r: Round, tree: DraftTree, path: list[int], logits: torch.Tensor | None
    ) -> None:
        if logits is not None:
            state.memory[NAME] = (len(state.tokens), logits[len(path) + 1 :].clone())

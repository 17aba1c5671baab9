"""A trained head tells how likely each drafted token is to be accepted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from workbench.declare import Declared, register, setting
from workbench.engine.model import LanguageModel
from workbench.errors import BadInput
from workbench.speculation.heads import weights
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree_builder import TreeBuilder

REJECTION = 6.0  # weight of rejections in an acceptance head's training: it moves its logits down by its logarithm


class Acceptance(nn.Module):
    """Residual SiLU blocks and a linear layer: states [..., width] -> logits [...] of being accepted.

    draft, probe: name of the draft model whose states it reads, and what tells it from others (`weights.probe`).
    """

    def __init__(self, width: int, blocks: int = 1, draft: str = "", probe: Sequence[float] = ()):
        super().__init__()
        self.draft, self.probe = draft, tuple(probe)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.out = nn.Linear(width, 1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            states = states + F.silu(block(states))
        return self.out(states)[..., 0]

    def chance(self, state: torch.Tensor) -> float:
        """The probability for one state [width], the weighting undone."""
        return torch.sigmoid(self(state) + math.log(REJECTION)).item()


@register("shape", "specdec")
@dataclass(frozen=True)
class SpecDec(DraftShape):
    """A chain that ends once the chance of at least one rejection in it exceeds `threshold` (SpecDec++).

    The head reads the draft model's last hidden state after a drafted token and gives the chance that the token is
    accepted; the chances are multiplied along the chain. The state comes with the distribution of the next token, which
    is drawn before the chain ends, since it costs no pass of the draft model.

    Source: "SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths" (https://arxiv.org/abs/2405.19715;
    https://github.com/Kaffaljidhmah2/SpecDec_pp). Departures: the head's blocks have weights of their own (theirs share
    one set), one block by default; the weight of rejections in its training is undone, so that `threshold` is a
    probability and drafts are longer than theirs at the same number; the token that came with the last state stays.
    """

    threshold: float = setting(0.3, ge=0, le=1, help="chance of a rejection at which the chain ends; larger is longer")
    min_length: int = setting(2, ge=1, le=64, unit="tokens", help="tokens drafted at least")
    max_length: int = setting(20, ge=1, le=64, unit="tokens", help="tokens drafted at most")
    weights: str = setting(
        "embedded", trust="owner", help="the head: embedded, or a folder or file that training wrote"
    )

    needs = frozenset({"rows", "features"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_length > self.max_length:
            raise BadInput(f"SpecDec: min_length={self.min_length} lies above max_length={self.max_length}")

    @property
    def budget(self) -> int:
        return self.max_length

    def check(self, drafter: Declared, lm: LanguageModel) -> None:
        head, draft = self._head(lm), drafter.runners(lm)["draft"]
        if not weights.alike(weights.probe(draft), head.probe):
            raise BadInput(
                f"SpecDec(weights={self.weights!r}): this head reads the states of {head.draft!r}, not of"
                f" {draft.name!r}; train one for it (workbench.training.acceptance)"
            )

    def _head(self, lm: LanguageModel) -> Acceptance:
        return weights.load("acceptance", Acceptance, self.weights, lm)

    def grow(self, builder: TreeBuilder) -> None:
        tree, passes = builder.tree, 1.0
        head = self._head(builder.state.runners["target"].model)
        for node in range(min(self.max_length, builder.depth)):
            builder.expand([node])
            if node:  # the root is text already
                passes *= head.chance(builder.features[node])
            builder.children(node, 1)
            if node + 1 >= self.min_length and 1 - passes > self.threshold:
                tree.stop_reason = "threshold"
                break

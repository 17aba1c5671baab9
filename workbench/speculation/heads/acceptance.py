"""SpecDec++'s head: how likely a drafted token is to be accepted, from the draft model's state after it."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["REJECTION", "Acceptance"]

REJECTION = 6.0  # weight of rejections in training: it moves the head's logits down by its logarithm


class Acceptance(nn.Module):
    """Residual SiLU blocks and a linear layer: states [..., width] -> logits [...] of being accepted.

    draft, probe: name of the draft model whose states it reads, and what tells it from others (`weights.probe`).

    Source: "SpecDec++: Boosting Speculative Decoding via Adaptive Candidate Lengths" (https://arxiv.org/abs/2405.19715;
    https://github.com/Kaffaljidhmah2/SpecDec_pp).
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

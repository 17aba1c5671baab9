"""Judge decoding's head: whether a token makes sense, from the target's state after reading it."""

import torch
from torch import nn

__all__ = ["JudgeHead"]


class JudgeHead(nn.Module):
    """One linear layer: final hidden states [..., width] -> logits [...] of being a sound continuation.

    Source: "Judge Decoding: Faster Speculative Sampling Requires Going Beyond Model Alignment"
    (https://arxiv.org/abs/2501.19309).
    """

    def __init__(self, width: int):
        super().__init__()
        self.out = nn.Linear(width, 1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.out(states)[..., 0]

"""Early exits of a target: what turns the residual stream behind its first layers into a draft distribution.

An exit is either the target's own final norm before its head, or a trained adapter: RMSNorm, attention with keys and
values of its own, a residual, RMSNorm (no MLP). Source: "Kangaroo: Lossless Self-Speculative Decoding via Double Early
Exiting" (https://arxiv.org/abs/2404.18911; https://github.com/Equationliu/Kangaroo).
"""

from collections.abc import Sequence

import torch
from torch import nn

from workbench.speculation.heads.modules import Attend, Attention

__all__ = ["Adapters"]


class Adapter(nn.Module):
    """One exit: states [B, R, width] behind the first layers -> what the target's head reads, [B, R, width].

    The residual is taken of the normed states (theirs: of the states; the last norm hides the difference in scale).
    """

    def __init__(self, width: int, heads: int, kv_heads: int):
        super().__init__()
        self.before = nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, kv_heads)
        self.after = nn.RMSNorm(width, eps=1e-6)

    def forward(self, states: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        states = self.before(states)
        return self.after(states + self.attention(states, positions, attend))


class Adapters(nn.Module):
    """The adapters of several exits: `exits[i]` layers of the target come before `adapters[i]`."""

    def __init__(self, exits: Sequence[int], width: int, heads: int, kv_heads: int):
        super().__init__()
        self.exits = tuple(exits)
        self.adapters = nn.ModuleList(Adapter(width, heads, kv_heads) for _ in self.exits)

    def behind(self, exits: Sequence[int]) -> dict[int, Adapter]:
        """Exit -> its adapter, for some of them."""
        return {exit: self.adapters[self.exits.index(exit)] for exit in exits}

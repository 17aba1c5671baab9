"""What trained modules over a model's hidden states share; each stands with its drafter, shape or verifier.

None of them holds a vocabulary: what they give is a state for the target's own head, and token embeddings are the
target's own.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from workbench import aliases

THETA = 10_000.0  # of rotary positions
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Norm(nn.RMSNorm):
    """In the dtype of its weight, whatever autocast made of its input."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.weight.dtype))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; the caller says what the rows attend to.

    forward(x [B, R, width], positions [R], attend) -> [B, R, width]; attend(q [B, H, R, D], k, v [B, Hk, R, D]) gives
    [B, H, R, D] at scale D^-0.5.
    """

    def __init__(self, width: int, heads: int, kv_heads: int):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        sizes = (heads * self.head_dim, kv_heads * self.head_dim, kv_heads * self.head_dim)
        self.q, self.k, self.v = (nn.Linear(width, size, bias=False) for size in sizes)
        self.out = nn.Linear(heads * self.head_dim, width, bias=False)
        steps = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        self.register_buffer("rates", THETA**-steps, persistent=False)

    def forward(self, x: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in (self.q, self.k, self.v))
        angles = positions[:, None].float() * self.rates.float()
        cos, sin = (f(angles).repeat(1, 2).to(x.dtype) for f in (torch.cos, torch.sin))
        out = attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
        return self.out(out.transpose(1, 2).flatten(2))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of whole sequences to themselves, for training."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def __getattr__(name: str) -> type:
    """The classes that stood here in version 0.1."""
    return aliases.moved(__name__, name)

"""The trained modules of drafters, shapes and verifiers: small networks over a model's hidden states.

None of them holds a vocabulary: what they give is a state for the target's own head, and token embeddings are the
target's own.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "REJECTION", "Acceptance", "Adapters", "EagleLayer", "HydraHeads", "JudgeHead", "MedusaHeads", "causal",
]  # fmt: skip

REJECTION = 6.0  # weight of rejections in an acceptance head's training: it moves its logits down by its logarithm

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Norm(nn.RMSNorm):
    """In the dtype of its weight, whatever autocast made of its input."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.weight.dtype))


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


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; the caller says what the rows attend to.

    forward(x [B, R, width], positions [R], attend) -> [B, R, width]; attend(q [B, H, R, D], k, v [B, Hk, R, D]) gives
    [B, H, R, D] at scale D^-0.5.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, theta: float = 10_000.0):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        sizes = (heads * self.head_dim, kv_heads * self.head_dim, kv_heads * self.head_dim)
        self.q, self.k, self.v = (nn.Linear(width, size, bias=False) for size in sizes)
        self.out = nn.Linear(heads * self.head_dim, width, bias=False)
        steps = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        self.register_buffer("rates", theta**-steps, persistent=False)

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


class Block(nn.Module):
    """A pre-norm decoder layer: attention, then a gated MLP."""

    def __init__(self, width: int, heads: int, kv_heads: int, inner: int, theta: float = 10_000.0):
        super().__init__()
        self.before = Norm(width)
        self.attention = Attention(width, heads, kv_heads, theta)
        self.between = Norm(width)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor, positions: torch.Tensor, attend: Attend) -> torch.Tensor:
        x = x + self.attention(self.before(x), positions, attend)
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class EagleLayer(nn.Module):
    """A feature and the token after it -> one decoder layer -> the next feature, and the state the head reads.

    sampling: FSPAD. The pair is widened to 4·width, gated by the token, and projected back, so that the token picks
    its feature; and the head reads a branch of its own, so that features and logits do not pull at one vector.
    """

    def __init__(self, width: int, heads: int, kv_heads: int, inner: int, sampling: bool = False):
        super().__init__()
        self.token = Norm(width)  # embeddings are far smaller than features
        if sampling:
            self.widen, self.gate = nn.Linear(2 * width, 4 * width), nn.Linear(width, 4 * width)
            self.narrow = nn.Linear(4 * width, width)
            self.branch = nn.Linear(width, width)
        else:
            self.fuse = nn.Linear(2 * width, width)
        self.sampling = sampling
        self.block = Block(width, heads, kv_heads, inner)
        self.norm = Norm(width)

    @property
    def attention(self) -> Attention:
        return self.block.attention

    def forward(
        self, pairs: torch.Tensor, positions: torch.Tensor, attend: Attend
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """pairs: [B, R, 2·width], of each token the feature before it and its embedding -> the feature after it and the
        state the head reads, [B, R, width] each."""
        feature, token = pairs.chunk(2, -1)
        token = self.token(token)
        pairs = torch.cat([feature, token], -1)
        x = self.narrow(self.widen(pairs) * self.gate(token).sigmoid()) if self.sampling else self.fuse(pairs)
        x = self.norm(self.block(x, positions, attend))
        return x, x + self.branch(x) if self.sampling else x


class Adapter(nn.Module):
    """One exit: states [B, R, width] behind the first layers -> what the target's head reads, [B, R, width].

    RMSNorm, attention with keys and values of its own, a residual, RMSNorm (no MLP). The residual is taken of the
    normed states (theirs: of the states; the last norm hides the difference in scale). Source: "Kangaroo: Lossless
    Self-Speculative Decoding via Double Early Exiting" (https://arxiv.org/abs/2404.18911;
    https://github.com/Equationliu/Kangaroo).
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

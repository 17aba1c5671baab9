"""Early exits of a target: what turns the residual stream behind its first layers into a draft distribution.

An exit is either the target's own final norm before its head, or a trained adapter: RMSNorm, attention with keys and
values of its own, a residual, RMSNorm (no MLP). Source: "Kangaroo: Lossless Self-Speculative Decoding via Double Early
Exiting" (https://arxiv.org/abs/2404.18911; https://github.com/Equationliu/Kangaroo).
"""

from collections.abc import Sequence

import torch
from torch import nn

from workbench.cache.store import CacheStore
from workbench.engine.model import LanguageModel, Output, chosen
from workbench.speculation.heads.feature_model import HeadModel
from workbench.speculation.heads.modules import Attend, Attention

__all__ = ["AdapterModel", "Adapters"]


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


class AdapterModel(HeadModel):
    """Adapters as a `LanguageModel` over exit states: its layer i is the adapter behind `exits[i]` target layers.

    `forward` takes states [R, width] and `layers=[i]`; `logits_at=()` spares the head.
    """

    gives = frozenset({"layers"})

    def __init__(self, lm: LanguageModel, module: Adapters, exits: Sequence[int], name: str):
        self.exits = tuple(exits)
        self.adapters = [module.adapters[module.exits.index(e)] for e in self.exits]
        parts = {str(e): adapter for e, adapter in zip(self.exits, self.adapters, strict=True)}
        key = ("adapters", lm.key, name, self.exits)
        super().__init__(name, key, lm, module, self.adapters[0].attention, len(self.exits), parts)

    @torch.inference_mode()
    def forward(
        self,
        tokens: torch.Tensor,
        positions: Sequence[int],
        cache: CacheStore,
        mask: torch.Tensor | None = None,
        layers: Sequence[int] | None = None,
        logits_at: str | Sequence[int] = "all",
        want: Sequence[str] = (),
    ) -> Output:
        """See `LanguageModel`; `layers` names one adapter."""
        (layer,) = range(self.layers) if layers is None else layers
        cache.begin(positions, mask, (layer,))
        try:
            places = torch.as_tensor(list(positions), device=self.device)
            states = self.adapters[layer](tokens[None], places, self.attend(cache, layer))[0]
        finally:
            cache.end()
        return Output(self.head(chosen(states, logits_at)))

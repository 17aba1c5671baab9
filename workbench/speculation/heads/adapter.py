"""Early exits of a target: what turns the residual stream behind its first layers into a draft distribution.

An exit is either the target's own final norm before its head, or a trained adapter: RMSNorm, attention with keys and
values of its own, a residual, RMSNorm (no MLP). Source: "Kangaroo: Lossless Self-Speculative Decoding via Double Early
Exiting" (https://arxiv.org/abs/2404.18911; https://github.com/Equationliu/Kangaroo).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from workbench.cache.store import CacheStore, PlainStore
from workbench.engine.attention import attend
from workbench.engine.model import LanguageModel, Output, facts
from workbench.errors import Unsupported
from workbench.models.digest import Digest
from workbench.speculation.heads.modules import Attend, Attention

__all__ = ["AdapterModel", "Adapters", "check_exits", "final_norm"]


def final_norm(lm: LanguageModel) -> nn.Module:
    """The norm between a target's last layer and its head. Raises Unsupported where there is none, or more than one."""
    if not hasattr(lm, "final_norm"):
        raise Unsupported(f"early exit: {lm.name!r} shows no norm between its layers and its head")
    return lm.final_norm


def check_exits(lm: LanguageModel) -> None:
    """Raise Unsupported where a target's own norm and head cannot read the states behind its first layers."""
    final_norm(lm)


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


class AdapterModel:
    """Adapters as a `LanguageModel` over exit states: its layer i is the adapter behind `exits[i]` target layers.

    `forward` takes states [R, width] and `layers=[i]`; the head is the target's.
    """

    tokenizer = None
    eos_ids: frozenset[int] = frozenset()

    def __init__(self, lm: LanguageModel, module: Adapters, exits: Sequence[int], name: str):
        self.target, self.exits = lm, tuple(exits)
        self.module, self._digest = module, Digest(module)
        self.adapters = [module.adapters[module.exits.index(e)] for e in self.exits]
        attention = self.adapters[0].attention
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self.name, self.key = name, ("adapters", lm.key, name, self.exits)
        self.layers, self.vocab_size, self.context = len(self.exits), lm.vocab_size, lm.context
        self.device, self.dtype = lm.device, lm.dtype
        weights = [p for adapter in self.adapters for p in adapter.parameters()]
        self.parameters = sum(p.numel() for p in weights)
        self.weight_bytes = sum(p.nbytes for p in weights)

    def new_store(self) -> PlainStore:
        return PlainStore(self.layers)

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
        """See `LanguageModel`; `layers` names one adapter. `logits_at=()` spares the head."""
        (layer,) = range(self.layers) if layers is None else layers

        def seen(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            cache.stage(layer, k[0], v[0])
            return attend(q, cache.segments(layer), self.head_dim**-0.5)

        cache.begin(positions, mask, (layer,))
        places = torch.as_tensor(list(positions), device=self.device)
        states = self.adapters[layer](tokens[None], places, seen)[0]
        cache.end()
        rows = states if logits_at == "all" else states[-1:] if logits_at == "last" else states[list(logits_at)]
        return Output(self.target.head(rows))

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        raise NotImplementedError("adapters read the target's states, not tokens")

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.target.head(hidden)

    def forward_flops(self, rows: int, context: int) -> int:
        """Multiply-adds counted twice: of all adapters, their attention, and the target's head for each."""
        width = self.heads * self.head_dim
        return rows * (2 * self.parameters + self.layers * width * (2 * self.vocab_size + 4 * context))

    def kv_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def describe(self) -> dict[str, Any]:
        """The facts that a trace records."""
        shapes = {
            f"{exit}.{n}": tuple(p.shape)
            for exit, a in zip(self.exits, self.adapters, strict=True)
            for n, p in a.named_parameters()
        }
        return facts(self, "Adapters", shapes, self._digest.of(self.module))

"""Compress the prompt once, by what its last tokens look at."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from workbench.cache.plan import CacheMethod, LayerView
from workbench.declare import register, setting
from workbench.errors import BadInput


@register("policy", "snapkv")
@dataclass(frozen=True)
class SnapKV(CacheMethod):
    """Compress the prompt, once it is in, to its last `window` tokens and what they attend to most.

    `budget` slots per KV head stay. Tokens written after that are all kept: the cache grows by one a token.
    The score is the attention of the last `window` rows, averaged over the query heads that share a KV head, and pooled
    over `kernel` neighbouring slots.

    Source: "SnapKV: LLM Knows What You are Looking for Before Generation" (https://arxiv.org/abs/2404.14469;
    https://github.com/FasterDecoding/SnapKV). Departures: the group mean, as in https://github.com/NVIDIA/kvpress;
    positions stay as baked.
    """

    budget: int = setting(128, ge=2, unit="slots", help="slots of the prompt kept per KV head")
    window: int = setting(32, ge=1, unit="tokens", help="last tokens of the prompt, which choose and are kept")
    kernel: int = setting(5, ge=1, le=63, unit="slots", help="neighbours pooled; odd")
    pooling: str = setting("mean", choices=("mean", "max"), help="how neighbours are pooled")

    needs = frozenset({"mass"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window >= self.budget:
            raise BadInput(f"SnapKV(budget={self.budget}): expected a budget above window={self.window}; raise it")
        if self.kernel % 2 == 0:
            raise BadInput(f"SnapKV(kernel={self.kernel}): expected an odd number")

    def next(self, length: int, prompt: int) -> int | None:
        return prompt if length < prompt else None

    def watches(self, position: int, prompt: int) -> bool:
        return prompt - self.window <= position < prompt

    @property
    def newest(self) -> int:
        return self.window

    def importance(self, view: LayerView) -> torch.Tensor:
        older = view.stats["mass"][None, :, : -self.window]
        pool = F.avg_pool1d if self.pooling == "mean" else F.max_pool1d
        return F.pad(pool(older, self.kernel, stride=1, padding=self.kernel // 2)[0], (0, self.window))

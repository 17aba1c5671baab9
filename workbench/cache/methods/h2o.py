"""Heavy hitters: keep the tokens that received most attention so far, and the newest."""

from dataclasses import dataclass

import torch

from workbench.cache.plan import CacheMethod, LayerView
from workbench.declare import register, setting
from workbench.errors import BadInput


@register("policy", "h2o")
@dataclass(frozen=True)
class H2O(CacheMethod):
    """Keep the newest tokens, and of the others those that received most attention: `budget` slots per KV head.

    The score of a slot is the attention probability it got from every committed row since it came, its own included,
    averaged over the query heads that share its KV head.

    Source: "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models"
    (https://arxiv.org/abs/2306.14048; https://github.com/FMInference/H2O), the variant with baked positions.
    Departures: acts every `interval` tokens, in the prompt too (theirs: once the whole prompt is in, then at every
    token); the group mean (theirs has one KV head per query head).
    """

    budget: int = setting(128, ge=2, unit="slots", help="slots per KV head after maintenance")
    recent: int | None = setting(None, ge=1, unit="tokens", help="newest tokens always kept; half the budget if unset")
    interval: int = setting(32, ge=1, le=4096, unit="tokens", help="committed tokens between two maintenances")

    needs = frozenset({"mass"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recent is not None and self.recent >= self.budget:
            raise BadInput(f"H2O(budget={self.budget}): expected a budget above recent={self.recent}; raise it")

    @property
    def newest(self) -> int:
        return self.budget // 2 if self.recent is None else self.recent

    def importance(self, view: LayerView) -> torch.Tensor:
        return view.stats["mass"]

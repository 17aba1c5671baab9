"""Share a layer's budget among its heads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.cache.methods.snapkv import SnapKV
from workbench.cache.plan import CacheMethod, LayerView, Wrapper
from workbench.declare import register, setting
from workbench.errors import BadInput


@register("policy", "adakv")
@dataclass(frozen=True)
class AdaKV(Wrapper):
    """Give heads whose attention is spread out more slots than heads that look at few: `AdaKV(H2O(budget=64))`.

    The layer's slots, beside the newest that each head keeps, go to the most important of all its heads together; a
    share of `floor` of an even budget is every head's own. `floor=1` is the even budget of the method inside.

    Source: "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference"
    (https://arxiv.org/abs/2407.11550; https://github.com/FFY0/AdaKV). Departures: around any method that gives
    importance; importances are compared as they are, without normalizing each head's.
    """

    method: CacheMethod = setting(factory=SnapKV, family="policy", help="what ranks the slots, and its budget")
    floor: float = setting(0.2, ge=0, le=1, help="share of an even budget that is every head's own")

    ragged = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.method).importance is CacheMethod.importance:
            raise BadInput(f"AdaKV(method=…): expected a policy that gives importance, got {self.method.declared_name}")

    def budgets(self, views: Sequence[LayerView]) -> list[torch.Tensor]:
        return [self._shared(view, even) for view, even in zip(views, self.method.budgets(views), strict=True)]

    def _shared(self, view: LayerView, even: int | torch.Tensor) -> torch.Tensor:
        heads, n = view.positions.shape
        even = torch.as_tensor(even, device=view.positions.device).expand(heads)
        if (view.live.sum(-1) <= even).all():
            return even
        older = max(n - self.newest, 0)
        live = view.live[:, :older]
        ranked = self.importance(view)[:, :older].masked_fill(~live, -torch.inf)
        ranked = ranked.sort(dim=-1, descending=True, stable=True).values
        free = (even - self.newest).clamp_min(0)
        own = torch.minimum((free * self.floor).long(), live.sum(-1))
        rest = ranked.masked_fill(torch.arange(older, device=own.device) < own[:, None], -torch.inf)
        count = min(int((free - own).sum()), int(rest.isfinite().sum()))
        best = rest.flatten().sort(descending=True, stable=True).indices[:count]
        return self.newest + own + torch.bincount(best // max(older, 1), minlength=heads)

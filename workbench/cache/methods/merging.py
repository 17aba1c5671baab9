"""Merge what a method drops into what it keeps."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from workbench.cache.methods.h2o import H2O
from workbench.cache.plan import CacheMethod, LayerView, Merge, Plan, Wrapper
from workbench.declare import register, setting
from workbench.errors import BadInput


@register("policy", "merging")
@dataclass(frozen=True)
class Merging(Wrapper):
    """Each dropped slot joins the kept slot with the most similar key, if their cosine reaches `threshold`.

    A slot and those that join it become their weighted mean, keys and values; weights are e to the cosine, the slot's
    own is e. Above a `threshold` of 1 nothing is merged.

    Source: the merging of "D2O: Dynamic Discriminative Operations for Efficient Long-Context Inference of Large
    Language Models" (https://arxiv.org/abs/2406.13035; https://github.com/AIoT-MLSys-Lab/d2o). Departures: a fixed
    threshold (theirs follows a moving average); around any method; positions stay those of the kept slot.
    """

    method: CacheMethod = setting(factory=H2O, family="policy", help="what chooses the slots that are dropped")
    threshold: float = setting(0.5, ge=-1, le=2, help="least cosine of two keys at which they are merged")

    def plan(self, view: LayerView, budget: int | torch.Tensor) -> Plan | None:
        plan = self.method.plan(view, budget)
        if plan is None or plan.keep is None or self.threshold > 1:
            return plan
        if plan.merge is not None:
            raise BadInput(f"Merging(method=…): {self.method.declared_name} merges already; expected one that drops")
        gone = view.live & ~plan.keep
        count = int(gone.sum(-1).max())
        source = gone.long().sort(dim=-1, descending=True, stable=True).indices[:, :count]
        keys = F.normalize(view.keys(), dim=-1)
        dropped = keys.gather(1, source[..., None].expand(-1, -1, keys.shape[-1]))
        alike = (dropped @ keys.transpose(1, 2)).masked_fill(~plan.keep[:, None], -torch.inf)
        cosine, target = alike.max(-1)
        joins = gone.gather(1, source) & (cosine >= self.threshold)
        weight = torch.where(joins, cosine.exp(), 0).double()
        into = torch.where(joins, target, 0)
        total = torch.full_like(view.positions, torch.e, dtype=torch.float64).scatter_add(1, into, weight)
        share = weight / total.gather(1, into)
        itself = torch.zeros_like(plan.keep, dtype=torch.float64).scatter_add(1, into, joins.double()) > 0
        own = torch.where(itself, torch.arange(keys.shape[1], device=keys.device), -1)
        source, target = (torch.where(joins, x, -1) for x in (source, target))
        weights = torch.cat([share, torch.e / total], 1)
        return Plan(plan.keep, Merge(torch.cat([source, own], 1), torch.cat([target, own], 1), weights, weights))

"""Heavy hitters, and what is dropped lives on in the values that follow it."""

from dataclasses import dataclass

import torch

from workbench.cache.methods.h2o import H2O
from workbench.cache.plan import LayerView, Merge, Plan
from workbench.declare import register, setting


@register("policy", "cam")
@dataclass(frozen=True)
class CaM(H2O):
    """H2O, whose dropped slots add their values to the `spread` kept slots that follow them.

    Each takes a `spread`-th part, times the attention that the dropped slot received over the mean of theirs, at most
    1. Keys are not merged. `strength=0` is H2O.

    Source: "CaM: Cache Merging for Memory-efficient LLMs Inference" (https://openreview.net/forum?id=LCTmppB165;
    https://github.com/zyxxmu/cam). Departures: those of H2O; the ratio is a weight (theirs: the probability of a draw).
    """

    spread: int = setting(8, ge=1, le=256, unit="slots", help="kept slots that take up a dropped one")
    strength: float = setting(1.0, ge=0, le=1, help="share of the values that is merged")

    def plan(self, view: LayerView, budget: int | torch.Tensor) -> Plan | None:
        plan = super().plan(view, budget)
        if plan is None or not self.strength:
            return plan
        keep, n = plan.keep, plan.keep.shape[1]
        column = torch.arange(n, device=keep.device).expand_as(keep)
        stays = torch.where(keep, column, n).sort(-1).values  # kept columns in order, then n
        rank = keep.long().cumsum(-1)[..., None] + torch.arange(self.spread, device=keep.device)
        target = torch.where(rank < n, stays.gather(1, rank.clamp_max(n - 1).flatten(1)).view_as(rank), n)
        there = (target < n) & (view.live & ~keep)[..., None]
        target = torch.where(there, target, 0)
        mass = view.stats["mass"]
        theirs = mass.gather(1, target.flatten(1)).view_as(rank).mul(there)
        mean = theirs.sum(-1) / there.sum(-1).clamp_min(1)
        share = (mass / mean.clamp_min(1e-12)).clamp_max(1) * self.strength / there.sum(-1).clamp_min(1)
        source, target = (torch.where(there, x, -1) for x in (column[..., None], target))
        weight = torch.where(there, share[..., None], 0)
        used = there.any(0).flatten()  # columns of pairs that some head needs
        pairs = [x.expand_as(rank).flatten(1)[:, used] for x in (source, target, torch.zeros_like(weight), weight)]
        return Plan(keep, Merge(*pairs))

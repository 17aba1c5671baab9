"""What a cache policy decides: when it acts, which rows it watches, which slots stay."""

from typing import ClassVar

import torch

from workbench.declare import Declared

__all__ = ["CachePolicy"]


class CachePolicy(Declared):
    """Base of all policies: a rule, no state. The store keeps positions and scores, and calls the rule at fixed
    committed lengths only, so that how tokens were drafted leaves no trace in what is kept.

    A policy keeps the same number of slots in every KV head; which ones may differ from head to head and by layer.
    """

    family = "policy"
    needs_mass: ClassVar[bool] = False  # reads the attention that each key received
    slot_positions: ClassVar[bool] = False  # keys are read at their place in the cache, not in the text

    def next(self, length: int, prompt: int) -> int | None:
        """The first committed length above `length` at which the policy acts; None if never again."""
        return length - length % self.interval + self.interval

    def watches(self, position: int, prompt: int) -> bool:
        """Whether the attention of the row at a position counts; `prompt`: tokens of the prompt."""
        return self.needs_mass

    @property
    def newest(self) -> int:
        """How many of the newest tokens are never dropped."""
        raise NotImplementedError

    def keep(self, positions: torch.Tensor, scores: torch.Tensor | None) -> torch.Tensor | None:
        """Which slots stay, [Hk, kept] increasing indices; None for all.

        positions: int [Hk, n], increasing, the newest token last. scores: float64 [Hk, n], the attention mass that each
        slot received from the watched rows, or None where the policy needs none.
        """
        raise NotImplementedError


def with_newest(chosen: torch.Tensor, n: int, newest: int) -> torch.Tensor:
    """Chosen indices [Hk, m] in order, and behind them those of the `newest` last of n slots."""
    recent = torch.arange(n - newest, n, device=chosen.device).expand(len(chosen), newest)
    return torch.cat([chosen.sort(-1).values, recent], -1)


def heaviest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices [Hk, count] of the largest scores; of equals, the earliest."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]

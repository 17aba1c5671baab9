"""What a cache policy decides: when it acts, which rows it watches, which slots stay."""

from typing import Any, ClassVar

import torch

from workbench.declare import Declared
from workbench.errors import BadInput

__all__ = ["CachePolicy"]


class CachePolicy(Declared):
    """Base of all policies: a rule, no state. The store keeps positions and scores, and calls the rule at fixed
    committed lengths only, so that how tokens were drafted leaves no trace in what is kept.

    A policy keeps the same number of slots in every KV head; which ones may differ from head to head and by layer.
    """

    family = "policy"
    # "mass": reads the attention that each key received; "slot_positions": keys are read at their place in the cache
    needs: ClassVar[frozenset[str]] = frozenset()

    def next(self, length: int, prompt: int) -> int | None:
        """The first committed length above `length` at which the policy acts; None if never again."""
        return length - length % self.interval + self.interval

    def watches(self, position: int, prompt: int) -> bool:
        """Whether the attention of the row at a position counts; `prompt`: tokens of the prompt."""
        return "mass" in self.needs

    @property
    def newest(self) -> int:
        """How many of the newest tokens are never dropped; the newest one never is."""
        return 1

    def keep(self, positions: torch.Tensor, scores: torch.Tensor | None) -> torch.Tensor | None:
        """Which slots stay: int64 [Hk, kept], in every row different indices below n, the `newest` last among them, on
        the device of `positions`; None for all. Any other answer is refused, before anything is dropped.

        positions: int [Hk, n], increasing, the newest token last. scores: float64 [Hk, n], the attention mass that each
        slot received from the watched rows, or None where the policy needs none.
        """
        raise NotImplementedError

    def kept(self, positions: torch.Tensor, scores: torch.Tensor | None) -> torch.Tensor | None:
        """What `keep` answers. Raises BadInput where that is no choice of slots."""
        chosen = self.keep(positions, scores)
        if chosen is not None and (wrong := self._wrong(chosen, positions)):
            heads, n = positions.shape
            raise BadInput(
                f"policy {self.declared_name}: keep() answered {wrong}; expected int64 indices [{heads}, kept] below "
                f"{n}, different ones in every row, with the newest {min(self.newest, n)}, or None to keep all"
            )
        return chosen

    def _wrong(self, chosen: Any, positions: torch.Tensor) -> str | None:
        """What is wrong with an answer of `keep`, or None."""
        heads, n = positions.shape
        if not isinstance(chosen, torch.Tensor):
            return f"a {type(chosen).__name__}"
        if chosen.dtype != torch.int64:
            return f"a tensor of {chosen.dtype}"
        if chosen.ndim != 2 or len(chosen) != heads or not chosen.shape[1]:
            return f"a tensor of shape {list(chosen.shape)}"
        if chosen.device != positions.device:
            return f"a tensor on {chosen.device}, not on {positions.device}"
        ordered = chosen.sort(-1).values
        if ordered[:, 0].min() < 0 or ordered[:, -1].max() >= n:
            return f"indices from {int(ordered.min())} to {int(ordered.max())}"
        if (ordered.diff(dim=-1) == 0).any():
            return "the same index twice in a row"
        newest = min(self.newest, n)
        if (
            chosen.shape[1] < newest
            or (ordered[:, -newest:] != torch.arange(n - newest, n, device=chosen.device)).any()
        ):
            return "indices without the newest"
        return None


def with_newest(chosen: torch.Tensor, n: int, newest: int) -> torch.Tensor:
    """Chosen indices [Hk, m] in order, and behind them those of the `newest` last of n slots."""
    recent = torch.arange(n - newest, n, device=chosen.device).expand(len(chosen), newest)
    return torch.cat([chosen.sort(-1).values, recent], -1)


def heaviest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices [Hk, count] of the largest scores; of equals, the earliest."""
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]

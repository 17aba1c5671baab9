"""Pages whose keys could score highest, by their bounds."""

from dataclasses import dataclass

import torch

from workbench.cache.readers.base import CacheReader, PageView, Reading
from workbench.declare import register, setting

SUB = 16  # slots that share bounds
NOWHERE = 1e30  # bounds of slots that hold nothing: no query scores high there


@register("reader", "lserve")
@dataclass(frozen=True)
class LServe(CacheReader):
    """Each row reads the pages in which some key could score highest: `budget` tokens in whole pages.

    Of every 16 slots of a page the least and the largest value of each key channel are kept. They bound every score
    that a query can find there. A page counts by its highest bound, for any of the query heads that share its KV head.
    The oldest and the newest pages are always read, also where the budget holds fewer.

    Source: "LServe: Efficient Long-sequence LLM Serving with Unified Sparse Attention"
    (https://arxiv.org/abs/2502.14866; https://github.com/mit-han-lab/omniserve). Departures: no streaming heads; each
    row chooses anew (theirs: one choice serves 4 tokens); the first page is read, too; the prompt reads all.
    """

    budget: int = setting(1024, ge=32, unit="tokens", help="tokens read in pages per KV head and row, in whole pages")
    oldest: int = setting(1, ge=0, le=1024, unit="pages", help="first pages, always read")
    newest: int = setting(1, ge=0, le=1024, unit="pages", help="last pages, always read")

    def notes(self, pages: PageView) -> torch.Tensor:
        k = pages.k.unflatten(1, (-1, SUB))
        dead = ~pages.live.unflatten(1, (-1, SUB))[..., None]
        low, high = k.masked_fill(dead, NOWHERE).amin(2), k.masked_fill(dead, -NOWHERE).amax(2)
        return torch.stack([low, high], 1)  # [n, 2, slots / 16, D]

    def select(self, reading: Reading) -> torch.Tensor:
        there = reading.there
        pages = max(self.budget // reading.page_size, self.oldest + self.newest)
        if there.shape[-1] <= pages:
            return there
        age = _rank(reading.newest[:, None].expand_as(there).masked_fill(~there, -1)) - (~there).sum(-1, keepdim=True)
        always = (age < self.oldest) | (age >= there.sum(-1, keepdim=True) - self.newest)
        bounds = self.bounds(reading).amax(1).masked_fill(always, torch.inf).masked_fill(~there, -torch.inf)
        return _rank(-bounds) < pages

    def bounds(self, reading: Reading) -> torch.Tensor:
        """What no score q·k of a row exceeds in a page: [Hk, query heads of a group, R, P]."""
        low, high = (side.flatten(1, 2).transpose(1, 2)[:, None] for side in reading.notes.unbind(2))
        q = reading.queries.to(low.dtype).unflatten(0, (len(low), -1))
        found = q.clamp_min(0) @ high + q.clamp_max(0) @ low
        return found.unflatten(-1, (reading.there.shape[-1], -1)).amax(-1)


def _rank(x: torch.Tensor) -> torch.Tensor:
    """The place of each in the order of its row, least first; of equals the earlier one."""
    return x.argsort(dim=-1, stable=True).argsort(dim=-1)

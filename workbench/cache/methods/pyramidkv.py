"""Compress the prompt once, lower layers less than upper ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.cache.methods.snapkv import SnapKV
from workbench.cache.plan import LayerView
from workbench.declare import register, setting


@register("policy", "pyramidkv")
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """SnapKV with budgets that fall from the first layer to the last, `budget` on average.

    The last layer keeps `window` slots and the `steepness`-th part of the others, more where the prompt is too short
    for the first layer's; budgets between fall evenly. `steepness=1` is SnapKV.

    Source: "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling"
    (https://arxiv.org/abs/2406.02069; https://github.com/Zefan-Cai/KVCache-Factory). Departures: those of SnapKV.
    """

    steepness: float = setting(20, ge=1, help="an even share over the last layer's share")

    ragged = True

    def budgets(self, views: Sequence[LayerView]) -> list[int]:
        even, last = self.budget - self.window, len(views) - 1
        room = max(views[0].positions.shape[1] - self.budget, 0)  # no layer can keep more than the prompt
        step = min(even * (1 - 1 / self.steepness), room)
        falls = [1 - 2 * i / last if last else 0.0 for i in range(last + 1)]  # 1 in the first layer, -1 in the last
        upto = [round(sum(even + step * fall for fall in falls[:i])) for i in range(last + 2)]
        return [self.window + after - before for before, after in zip(upto, upto[1:], strict=False)]

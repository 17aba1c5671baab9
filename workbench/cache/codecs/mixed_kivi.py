"""KIVI at two widths: what is looked at most keeps more bits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from workbench.cache.codecs.base import Quantizer
from workbench.cache.plan import LayerView
from workbench.declare import register, setting
from workbench.errors import BadInput
from workbench_kernels.pages import BITS, PAGE_SIZES


@register("quantizer", "mixed_kivi")
@dataclass(frozen=True)
class MixedKIVI(Quantizer):
    """Of the tokens that leave the residual window, a `share` gets `bits`, the others `low_bits`, in each head.

    Those with most attention since they came keep more. `interval` tokens leave together, so that pages of both widths
    are full; pages are never rounded twice. `share=1` is KIVI.

    Source: salient tokens as in "ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token
    Identification" (https://arxiv.org/abs/2405.14256; https://github.com/ThisisBillhe/ZipCache), steps as in KIVI.
    Departures: attention from all rows, added up (theirs: of sampled rows, over the rows that could look); no channels'
    outliers.
    """

    bits: int = setting(4, ge=0, le=16, unit="bits", help="of what is looked at most: 2, 4, 8, 16 or 0 (as it is)")
    low_bits: int = setting(2, ge=0, le=16, unit="bits", help="of the others")
    share: float = setting(0.25, ge=0, le=1, help="of the tokens that leave, those with `bits`")
    residual: int = setting(32, ge=0, le=4096, unit="tokens", help="newest tokens left as they are; whole pages")
    page_size: int = setting(32, choices=PAGE_SIZES, unit="tokens", help="of a page")
    interval: int = setting(128, ge=32, le=4096, unit="tokens", help="tokens that leave together; whole pages")
    group: int = setting(32, ge=1, le=1024, unit="channels", help="channels of a value that share a step")
    on_device: int | None = setting(None, ge=0, unit="tokens", help="pages of older tokens lie in the tier below")

    needs = frozenset({"mass"})
    in_pages = ("residual", "interval")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bits", "low_bits"):
            if getattr(self, name) not in BITS:
                known = ", ".join(map(str, sorted(BITS)))
                raise BadInput(f"MixedKIVI({name}=…): expected one of {known}, got {getattr(self, name)}")

    @property
    def shares(self) -> tuple[float, float]:
        return self.share, 1 - self.share

    def next(self, length: int) -> int:
        left = max(length - self.residual, 0)
        return self.residual + left - left % self.interval + self.interval

    def ladder(self, layer: int) -> Sequence[tuple[int, int]]:
        return (self.bits, self.bits), (self.low_bits, self.low_bits)

    def classes(self, view: LayerView, leaving: torch.Tensor) -> torch.Tensor:
        order = view.stats["mass"].masked_fill(~leaving, -1).sort(dim=-1, descending=True, stable=True).indices
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        return (rank >= (leaving.sum(-1, keepdim=True) * self.share).round()).long()

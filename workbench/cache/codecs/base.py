"""What a quantizer decides: the widths of each layer's pages, and how many newest tokens stay as they are."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from workbench.cache.plan import LayerView
from workbench.declare import Declared
from workbench.errors import BadInput, Unsupported
from workbench_kernels.pages import PageFormat

__all__ = ["Quantizer"]


class Quantizer(Declared):
    """Base of all quantizers. Tokens older than the newest `residual` are quantized into pages of 32 slots (see
    `workbench_kernels.pages`). Eviction clears slots there; pages that lost half of them are packed anew with others,
    which rounds their tokens once more.

    Fields that every quantizer has: `residual` (newest tokens kept in the model's own dtype, in multiples of a page)
    and `on_device` (newest tokens whose pages stay on the device; older pages lie in the host's memory and are fetched
    whenever they are read; None keeps all on the device).
    """

    family = "quantizer"
    needs: ClassVar[frozenset[str]] = frozenset()  # "mass": the attention that each slot received
    interval: ClassVar[int] = 32  # a page
    shares: ClassVar[tuple[float, ...]] = (1.0,)  # of the slots, class by class, as declared

    def widths(self, layer: int) -> tuple[int, int]:
        """Bits of a layer's keys and values; 16 is half precision, 0 the model's own dtype."""
        raise NotImplementedError

    def ladder(self, layer: int) -> Sequence[tuple[int, int]]:
        """The widths that a layer's pages may have, class by class; one of them unless there are `classes`."""
        return [self.widths(layer)]

    def classes(self, view: LayerView, leaving: torch.Tensor) -> torch.Tensor | None:
        """Which of the ladder's widths each slot gets that leaves the residual window: int64 [Hk, n]; None: the first.

        leaving: bool [Hk, n], the slots it is asked for.
        """
        return None

    def formats(self, layer: int, head_dim: int, value_dim: int, dtype: torch.dtype) -> list[PageFormat]:
        """The layouts of a layer's pages, class by class. Raises Unsupported where the head sizes do not fit."""
        return [self._format(layer, widths, head_dim, value_dim, dtype) for widths in self.ladder(layer)]

    def _format(self, layer: int, widths: Any, head_dim: int, value_dim: int, dtype: torch.dtype) -> PageFormat:
        if not isinstance(widths, tuple | list) or [type(bits) for bits in widths] != [int, int]:
            raise BadInput(
                f"quantizer {self.declared_name}: widths({layer}) answered {widths!r}; expected two integers, the "
                "bits of keys and of values"
            )
        group = min(getattr(self, "group", value_dim), value_dim)
        try:
            return PageFormat(head_dim, value_dim, *widths, group, dtype)
        except ValueError as error:
            raise Unsupported(f"{self.declared_name}: {error}") from None

    def next(self, length: int) -> int:
        """The first committed length above `length` at which pages are quantized."""
        return length - length % self.interval + self.interval

    def nominal(self, layer: int, head_dim: int, value_dim: int, dtype: torch.dtype) -> float:
        """Bits of an element as declared, keys and values together."""
        found = []
        for form in self.formats(layer, head_dim, value_dim, dtype):
            bits = head_dim * form.stored(form.bits_k) + value_dim * form.stored(form.bits_v)
            found.append(bits / (head_dim + value_dim))
        return sum(share * bits for share, bits in zip(self.shares, found, strict=True))

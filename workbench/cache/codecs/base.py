"""What a quantizer decides: the widths of each layer's pages, and how many newest tokens stay as they are."""

from typing import ClassVar

import torch

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
    interval: ClassVar[int] = 32  # a page

    def widths(self, layer: int) -> tuple[int, int]:
        """Bits of a layer's keys and values; 16 is half precision, 0 the model's own dtype."""
        raise NotImplementedError

    def page(self, layer: int, head_dim: int, value_dim: int, dtype: torch.dtype) -> PageFormat:
        """The layout of a layer's pages. Raises Unsupported where the head sizes do not fit."""
        answer = self.widths(layer)
        if not isinstance(answer, tuple | list) or [type(bits) for bits in answer] != [int, int]:
            raise BadInput(
                f"quantizer {self.declared_name}: widths({layer}) answered {answer!r}; expected two integers, the "
                "bits of keys and of values"
            )
        bits_k, bits_v = answer
        group = getattr(self, "group", value_dim)
        group = group if group < value_dim else value_dim
        try:
            return PageFormat(head_dim, value_dim, bits_k, bits_v, group, dtype)
        except ValueError as error:
            raise Unsupported(f"{self.declared_name}: {error}") from None

    def next(self, length: int) -> int:
        """The first committed length above `length` at which pages are quantized."""
        return length - length % self.interval + self.interval

    def nominal(self, layer: int, head_dim: int, value_dim: int, dtype: torch.dtype) -> float:
        """Bits of an element as declared, keys and values together."""
        form = self.page(layer, head_dim, value_dim, dtype)
        bits = head_dim * form.stored(form.bits_k) + value_dim * form.stored(form.bits_v)
        return bits / (head_dim + value_dim)

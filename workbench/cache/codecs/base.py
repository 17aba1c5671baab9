"""What a quantizer decides: the widths of each layer's pages, and how many newest tokens stay as they are."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from workbench.cache.codec import Affine, Codec
from workbench.cache.plan import LayerView
from workbench.cache.rotation import Rotation
from workbench.declare import Declared
from workbench.errors import BadInput, Unsupported
from workbench_kernels.pages import GAINS, PageFormat


class Quantizer(Declared):
    """Base of all quantizers. Tokens older than the newest `residual` are quantized into pages (see
    `workbench_kernels.pages`). Eviction clears slots there; pages that lost half of them are packed anew with others,
    which rounds their tokens once more.

    Fields that every quantizer has: `page_size` (tokens of a page, 32 or 64), `residual` (newest tokens kept in the
    model's own dtype) and `on_device` (newest tokens whose pages stay on the device; older pages lie in the tier below,
    the host's memory or for a CPU a scratch file, and are fetched when they are read; None keeps all on the device).
    """

    family = "quantizer"
    needs: ClassVar[frozenset[str]] = frozenset()  # "mass": the attention that each slot received
    page_size: ClassVar[int] = 32
    raw_keys: ClassVar[bool] = False  # keys are coded as they were before their rotary embedding
    in_pages: ClassVar[tuple[str, ...]] = ()  # settings that count in whole pages
    shares: ClassVar[tuple[float, ...]] = (1.0,)  # of the slots, class by class, as declared

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.in_pages:
            if (value := getattr(self, name)) % self.page_size:
                size = self.page_size
                raise BadInput(f"{type(self).__name__}({name}=…): expected a multiple of {size} (page_size), got "
                               f"{value}; give {-(-value // size) * size}")  # fmt: skip

    @property
    def interval(self) -> int:
        """Committed tokens between two turns."""
        return self.page_size

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

    def codecs(
        self, layer: int, head_dim: int, value_dim: int, dtype: torch.dtype, rotation: Rotation | None = None
    ) -> list[Codec]:
        """How a layer's pages are coded, class by class. Raises Unsupported where the head sizes do not fit.

        rotation: how the model's keys turn with position, where the quantizer asks for `raw_keys`.
        """
        frequencies = rotation.frequencies if rotation and self.raw_keys else None
        forms = [self._format(layer, widths, head_dim, value_dim, dtype) for widths in self.ladder(layer)]
        return [Affine(form, frequencies if form.bits_k in GAINS else None) for form in forms]

    def _format(self, layer: int, widths: Any, head_dim: int, value_dim: int, dtype: torch.dtype) -> PageFormat:
        if not isinstance(widths, tuple | list) or [type(bits) for bits in widths] != [int, int]:
            raise BadInput(
                f"quantizer {self.declared_name}: widths({layer}) answered {widths!r}; expected two integers, the "
                "bits of keys and of values"
            )
        group = min(getattr(self, "group", value_dim), value_dim)
        try:
            return PageFormat(head_dim, value_dim, *widths, group, dtype, self.page_size)
        except ValueError as error:
            raise Unsupported(f"{self.declared_name}: {error}") from None

    def next(self, length: int) -> int:
        """The first committed length above `length` at which pages are quantized."""
        return length - length % self.interval + self.interval

    def nominal(self, codecs: Sequence[Codec], head_dim: int, value_dim: int) -> float:
        """Bits of an element as declared, keys and values together, of a layer with such codecs."""
        pairs = [codec.bits for codec in codecs]
        each = [(head_dim * k + value_dim * v) / (head_dim + value_dim) for k, v in pairs]
        return sum(share * bits for share, bits in zip(self.shares, each, strict=True))

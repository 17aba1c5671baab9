"""How the slots of a page are coded. A page begins with its live mask (64 bits, slot i is bit i, lowest byte first) and
8 bytes of the codec's own; from byte 16 on stand the positions of its slots, int32; behind them the codec decides.

To write one, give what `Codec` lists and let a quantizer's `codecs` answer with it. Codecs are frozen and equal by
value: pages of equal codecs lie in one arena.
"""

from dataclasses import dataclass

import torch

from workbench.errors import NumericalError
from workbench_kernels import pages
from workbench_kernels.pages import GAINS, PageFormat


class Codec:
    """What pages ask of a codec.

    slots, bytes: of a page; bytes: a multiple of 16. bits: of an element of keys and of values, as declared. rounds:
    whether packing what was unpacked may change it, which `requantize` asks. kernel: the format in which kernels read
    these pages where they lie; None: they are unpacked first.
    """

    slots: int
    bytes: int
    bits: tuple[float, float]
    rounds: bool
    kernel: PageFormat | None = None

    def pack(self, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        """Pages uint8 [n, bytes] of k [n, slots, D] and v [n, slots, Dv] at positions int64 [n, slots].

        used: int64 [n]; slots from `used` on are empty. Raises NumericalError for values that it cannot hold.
        """
        raise NotImplementedError

    def unpack(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """k [n, slots, D] and v [n, slots, Dv] in float32 (float64 for float64), positions int64 and live bool
        [n, slots]."""
        raise NotImplementedError

    def ledger(self, live: int, used: int) -> dict[str, int]:
        """Bytes of a page with so many live of so many used slots, by kind; they sum to `bytes`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Affine(Codec):
    """Pages of `workbench_kernels.pages`: steps per channel for keys, per slot and group for values; half precision; or
    the model's own dtype.

    frequencies: radians per token of each pair of channels, half-split; with them keys are turned back to position 0
    before they are packed and forth when they are read (an error of some 1e-7 in float32). Only keys that are coded.
    """

    form: PageFormat
    frequencies: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.frequencies is not None and self.form.bits_k not in GAINS:
            raise ValueError("Affine: expected frequencies with keys of 8, 4 or 2 bits only")
        object.__setattr__(self, "_hash", hash((self.form, self.frequencies)))  # every page asks for it

    def __hash__(self) -> int:
        return self._hash

    @property
    def slots(self) -> int:
        return self.form.slots

    @property
    def bytes(self) -> int:
        return self.form.bytes

    @property
    def bits(self) -> tuple[int, int]:
        return self.form.stored(self.form.bits_k), self.form.stored(self.form.bits_v)

    @property
    def rounds(self) -> bool:
        return bool({self.form.bits_k, self.form.bits_v} & GAINS.keys())

    @property
    def kernel(self) -> PageFormat | None:
        return None if self.raw_keys else self.form

    @property
    def raw_keys(self) -> bool:
        return self.frequencies is not None

    def pack(self, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
        if self.raw_keys:
            k = self._turned(k, positions, torch.zeros_like(positions))
        try:
            return pages.pack(k, v, positions, used, self.form)
        except ValueError as error:
            raise NumericalError(str(error)) from None

    def unpack(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        k, v, positions, live = pages.unpack(rows, self.form)
        if self.raw_keys:
            k = self._turned(k, torch.zeros_like(positions), positions)
        return k, v, positions, live

    def _turned(self, k: torch.Tensor, origin: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(k.dtype, torch.float32)
        rows, *places = (x.flatten(0, 1)[None] for x in (k.to(wide), origin, target))
        return pages.rotate(rows, *places, torch.tensor(self.frequencies, dtype=wide, device=k.device)).view_as(k)

    def ledger(self, live: int, used: int) -> dict[str, int]:
        return pages.ledger(self.form, live, used)

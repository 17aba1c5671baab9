"""The packed page: T slots of one layer and one KV head, keys at one width, values at one width, in one run of bytes.

    offset  bytes             content
    0       16                header: u64 live mask (bit i = slot i), u8 key width, u8 key gain, u8 value width,
                              u8 value gain, u8 used slots, 3 reserved
    16      4 T               i32 original position of each slot
    +       4 D               f16 step s[D], f16 zero z[D] of the keys, per channel      (coded widths only)
    +       4 T Dv / G        f16 step s[T, Dv/G], f16 zero z[T, Dv/G] of the values      (coded widths only)
    +       T D w / 8         key codes, planar rows of D w / 8 bytes
    +       T Dv w / 8        value codes, planar rows

Widths: 2, 4 and 8 bits are codes; 16 is float16; 0 (RAW) keeps the model's own dtype. In a planar row of W bytes the
code of channel d lies in byte d mod W, at bit `width * (d // W)`.

Steps are nested: the 8-bit step is what is stored, and a width's real step is `gain * s` with gains 1, 17 and 85
(255 = 17 * 15 = 85 * 3). The ratios are odd, so rounding 8 -> 4 -> 2 bits gives the codes of direct rounding.
"""

from dataclasses import dataclass

import torch

PAGE_SIZES = (32, 64)  # slots that a page may have
HEADER = 16
ALIGN = 16  # page sizes and offsets are multiples of this; tables count in it
RAW = 0
BITS = (RAW, 16, 8, 4, 2)
GAINS = {8: 1, 4: 17, 2: 85}


@dataclass(frozen=True)
class PageFormat:
    """Where everything lies in a page of one kind; sizes and offsets in bytes.

    head_dim, value_dim: multiples of 16. bits_k, bits_v: of `BITS`. group: channels that share a value step; divides
    value_dim. dtype: what RAW means. slots: of `PAGE_SIZES`. Raises ValueError where these do not fit.
    """

    head_dim: int
    value_dim: int
    bits_k: int = RAW
    bits_v: int = RAW
    group: int = 32
    dtype: torch.dtype = torch.float32
    slots: int = 32

    def __post_init__(self) -> None:
        if self.slots not in PAGE_SIZES:
            raise ValueError(f"page: expected {' or '.join(map(str, PAGE_SIZES))} slots, got {self.slots}")
        if self.bits_k not in BITS or self.bits_v not in BITS:
            raise ValueError(f"page: expected widths of {BITS} (0 = raw), got {self.bits_k} and {self.bits_v}")
        smallest = min(self.head_dim, self.value_dim, self.group)
        if smallest < 1 or self.head_dim % 16 or self.value_dim % 16 or self.value_dim % self.group:
            raise ValueError(
                f"page: expected head sizes in multiples of 16 and of the group ({self.group}), "
                f"got {self.head_dim} and {self.value_dim}"
            )
        if not self.dtype.is_floating_point:
            raise ValueError(f"page: expected a floating dtype, got {self.dtype}")

    @property
    def scale_k(self) -> int:
        return HEADER + 4 * self.slots

    @property
    def scale_v(self) -> int:
        return self.scale_k + (4 * self.head_dim if self.bits_k in GAINS else 0)

    @property
    def codes_k(self) -> int:
        return self.scale_v + (4 * self.slots * (self.value_dim // self.group) if self.bits_v in GAINS else 0)

    @property
    def codes_v(self) -> int:
        return self.codes_k + self.slots * self.row_k

    @property
    def bytes(self) -> int:
        return self.codes_v + self.slots * self.row_v

    @property
    def row_k(self) -> int:
        """Bytes of one slot's keys."""
        return self.head_dim * self.stored(self.bits_k) // 8

    @property
    def row_v(self) -> int:
        return self.value_dim * self.stored(self.bits_v) // 8

    def stored(self, bits: int) -> int:
        """Bits that one element takes at a width."""
        return bits or 8 * self.dtype.itemsize

    def element(self, bits: int) -> torch.dtype:
        """What a row of a width is made of; uint8 where it holds codes."""
        return torch.uint8 if bits in GAINS else self.dtype if bits == RAW else torch.float16


def header(form: PageFormat, used: torch.Tensor) -> torch.Tensor:
    """The header's words, int32 [n, 4], of pages whose first `used` [n] slots are live and the rest new."""
    used = used.long()
    kinds = form.bits_k | GAINS.get(form.bits_k, 0) << 8 | form.bits_v << 16 | GAINS.get(form.bits_v, 0) << 24
    words = [(1 << used.clamp_max(32)) - 1, (1 << (used - 32).clamp_min(0)) - 1, torch.full_like(used, kinds), used]
    return torch.stack(words, -1).to(torch.int32)


def ledger(form: PageFormat, live: int | None = None, used: int | None = None) -> dict[str, int]:
    """Bytes of one page by kind; they sum to `form.bytes`.

    live: slots whose live bit is set (None: all); used: slots ever written (`live` where None). An evicted slot's rows,
    steps and position count as `dead`, those of a slot not written yet as `pad`. Steps of keys belong to the page,
    whatever lives in it. Raises ValueError unless 0 <= live <= used <= form.slots.
    """
    live = form.slots if live is None else live
    used = live if used is None else used
    if not 0 <= live <= used <= form.slots:
        raise ValueError(f"ledger: expected 0 <= live <= used <= {form.slots}, got {live} live of {used} used")
    half_k = 2 * form.head_dim if form.bits_k in GAINS else 0
    half_v = 2 * (form.value_dim // form.group) if form.bits_v in GAINS else 0  # of one slot
    slot = form.row_k + form.row_v + 2 * half_v + 4
    return {
        "payload": live * (form.row_k + form.row_v),
        "scale": half_k + live * half_v,
        "zero": half_k + live * half_v,
        "position": 4 * live,
        "header": HEADER,
        "dead": (used - live) * slot,
        "pad": (form.slots - used) * slot,
    }

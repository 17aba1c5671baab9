"""What every act on pages means, in plain torch: float32 inside, float64 kept.

Whole pages are rows of bytes, uint8 [n, format.bytes]. A slot is named by its page's offset in the arena, in units of
ALIGN bytes, and its number in the page. An offset below 0 names none, and the entry does nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench_kernels.pages.layout import ALIGN, GAINS, HEADER, PAGE_SIZES, PageFormat, header

KINDS = 8  # bytes of the header before the widths


def steps(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Stored half-precision (step, zero) of the 8-bit grid over [low, high], so that every value lies on or inside.

    The zero is rounded down and the step up; codes are computed from what is stored, and then the half-step bound is
    exact. A constant group gets the smallest positive step at which its values still lie on the grid.
    """
    low = torch.where(low == 0, 0.0, low)  # -0 and 0 are one zero
    zero = low.half()
    bits = zero.view(torch.int16)
    lower = torch.where(bits > 0, bits - 1, bits + 1)  # sign and magnitude: below 0 a larger pattern is a lower number
    zero = torch.where(zero.float() > low, lower, bits).view(torch.float16)
    wide = (high - zero.float()) / torch.full_like(high, 255)
    step = wide.half()
    bits = step.view(torch.int16)
    return torch.where(step.float() < wide, bits + 1, bits).clamp_min(1).view(torch.float16), zero


def to_codes(x: Tensor, step: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Codes at a width, uint8 of x's shape; step and zero broadcast against x.

    The 8-bit code rounded once more. The gains are odd, so this is the code of direct rounding: both stages together
    err by at most half a step of the width.
    """
    level = (x.float() - zero.float()).div_(step.float()).clamp_(0, 255)
    return coarser(level.add_(0.5).floor_(), 1, GAINS[bits]).to(torch.uint8)


def coarser(codes: Tensor, gain: int, to_gain: int) -> Tensor:
    """Codes of steps of one gain, rounded to those of a larger one."""
    ratio = to_gain // gain
    return codes if ratio == 1 else (codes.float() + ratio // 2).div_(ratio).floor_().to(codes.dtype)  # exact


def planar(codes: Tensor, bits: int) -> Tensor:
    """int codes [..., D] -> uint8 [..., D * bits / 8]."""
    row, *others = codes.to(torch.uint8).unflatten(-1, (8 // bits, -1)).unbind(-2)
    for i, part in enumerate(others, 1):
        row = row | part << (i * bits)
    return row


def unplanar(rows: Tensor, bits: int) -> Tensor:
    """uint8 [..., W] -> int32 codes [..., 8 W / bits]."""
    shifts = torch.arange(8 // bits, device=rows.device)[:, None] * bits
    return ((rows.int()[..., None, :] >> shifts) & (2**bits - 1)).flatten(-2)


def pack(k: Tensor, v: Tensor, positions: Tensor, used: Tensor, form: PageFormat) -> Tensor:
    """Pages of one kind, uint8 [n, form.bytes].

    k: [n, slots, D]; v: [n, slots, Dv]; positions: int [n, slots]; used: int [n], slots from `used` on are empty and
    take no part in the steps.
    """
    n, slots = len(k), form.slots
    page = k.new_zeros(n, form.bytes, dtype=torch.uint8)
    live = torch.arange(slots, device=k.device) < used[:, None]
    whole = used.is_cpu and bool((used == slots).all())
    page[:, :HEADER] = header(form, used).view(torch.uint8)
    page[:, HEADER : form.scale_k] = positions.to(torch.int32).contiguous().view(torch.uint8)
    for x, bits, scales, codes, end, axis in (
        (k, form.bits_k, form.scale_k, form.codes_k, form.codes_v, -2),
        (v.unflatten(-1, (-1, form.group)), form.bits_v, form.scale_v, form.codes_v, form.bytes, -1),
    ):
        if bits not in GAINS:
            stored = torch.where(live.view(n, slots, *[1] * (x.ndim - 2)), x, 0)
            page[:, codes:end] = stored.to(form.element(bits)).reshape(n, -1).view(torch.uint8)
            continue
        absent = ~live.view(n, slots, *[1] * (x.ndim - 2))
        x = x.float()
        low, high = (x, x) if whole else (x.masked_fill(absent, far) for far in (torch.inf, -torch.inf))
        low, high = low.amin(axis, keepdim=True), high.amax(axis, keepdim=True)
        empty = low == torch.inf  # no live slot
        step, zero = steps(low.masked_fill(empty, 0), high.masked_fill(empty, 0))
        chosen = to_codes(x, step, zero, bits)
        packed = planar((chosen if whole else chosen.masked_fill(absent, 0)).reshape(n, slots, -1), bits)
        both = torch.stack([step.reshape(n, -1), zero.reshape(n, -1)], 1).reshape(n, -1)
        page[:, scales : scales + 2 * both.shape[1]] = both.view(torch.uint8)
        page[:, codes:end] = packed.reshape(n, -1)
    return page


def unpack(page: Tensor, form: PageFormat, out: Sequence[Tensor | None] = (None, None)) -> tuple[Tensor, ...]:
    """Pages uint8 [n, form.bytes] -> k [n, slots, D] and v [n, slots, Dv] in float32 (float64 for RAW float64),
    positions int64 [n, slots], live bool [n, slots].

    out: float32 tensors [*lead, slots, D] and [*lead, slots, Dv], with gaps or without, where lead multiplies to n: k
    and v of coded widths are written there.
    """
    n, slots = len(page), form.slots
    live = live_bits(page[:, : slots // 8])
    places = page[:, HEADER : form.scale_k].contiguous().view(torch.int32).long()
    found = []
    for x, bits, by_channel, scales, codes, end, width in (
        (out[0], form.bits_k, True, form.scale_k, form.codes_k, form.codes_v, form.head_dim),
        (out[1], form.bits_v, False, form.scale_v, form.codes_v, form.bytes, form.value_dim),
    ):
        body = page[:, codes:end]
        if bits not in GAINS:
            x = body.contiguous().view(form.element(bits)).view(n, slots, width)
            found.append(x if x.dtype == torch.float64 else x.float())
            continue
        count = width if by_channel else slots * (width // form.group)
        step, zero = scales_at(page, scales, count)
        x = step.new_empty(n, slots, width) if x is None else x
        lead = x.shape[:-2]
        body, parts = body.unflatten(1, (slots, -1)).unflatten(0, lead), x.unflatten(-1, (8 // bits, -1))
        for i in range(8 // bits):
            high = body >> (i * bits) if i else body
            parts[..., i, :] = high & (2**bits - 1) if (i + 1) * bits < 8 else high
        shape = (*lead, 1, -1, 1) if by_channel else (*lead, slots, -1, 1)  # a step per channel, or per slot and group
        parts = x.unflatten(-1, (count if by_channel else count // slots, -1))
        parts.mul_((step * GAINS[bits]).view(shape)).add_(zero.view(shape))
        found.append(x)
    return found[0], found[1], places, live


def scales_at(page: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """Stored steps and zeros, float32 [n, count] each, from the byte `start` of pages on."""
    both = page[:, start : start + 4 * count].contiguous().view(torch.float16).float()
    return both.view(len(page), 2, -1).unbind(1)


def live_bits(rows: Tensor) -> Tensor:
    """The mask at the start of pages, uint8 [n, slots / 8] -> bool [n, slots]."""
    return (rows[..., None] >> torch.arange(8, device=rows.device, dtype=torch.uint8) & 1).bool().flatten(1)


def demote(page: Tensor, form: PageFormat, to: PageFormat) -> Tensor:
    """Pages uint8 [n, form.bytes] -> the same pages at smaller widths, uint8 [n, to.bytes]; steps and zeros stay."""
    n = len(page)
    out = torch.cat([page[:, : form.codes_k], page.new_empty(n, to.bytes - to.codes_k)], 1)
    out[:, :HEADER].view(torch.int32)[:, 2] = header(to, torch.zeros(1))[:, 2]
    for bits, start, end, small, low, high in (
        (form.bits_k, form.codes_k, form.codes_v, to.bits_k, to.codes_k, to.codes_v),
        (form.bits_v, form.codes_v, form.bytes, to.bits_v, to.codes_v, to.bytes),
    ):
        rows = page[:, start:end]
        if bits != small:
            codes = unplanar(rows.reshape(n, form.slots, -1), bits)
            rows = planar(coarser(codes, GAINS[bits], GAINS[small]), small).reshape(n, -1)
        out[:, low:high] = rows
    return out


def fetch(arena: Tensor, offsets: Tensor, form: PageFormat) -> Tensor:
    """Pages of an arena as rows, uint8 [n, form.bytes]; offsets [n] in units of ALIGN bytes."""
    unit = form.bytes // ALIGN
    if arena.is_cpu and len(arena) % form.bytes == 0 and (offsets % unit == 0).all():  # pages of one size, in rows
        return arena.view(-1, form.bytes).index_select(0, offsets // unit)
    return arena.view(-1, ALIGN)[cells(offsets, form)].flatten(1)


def put(arena: Tensor, offsets: Tensor, form: PageFormat, page: Tensor) -> None:
    """Rows uint8 [n, form.bytes] into an arena."""
    arena.view(-1, ALIGN)[cells(offsets, form)] = page.unflatten(1, (-1, ALIGN))


def cells(offsets: Tensor, form: PageFormat) -> Tensor:
    return offsets.long()[:, None] + torch.arange(form.bytes // ALIGN, device=offsets.device)


# -- slots ----------------------------------------------------------------------------------------------------------


def gather(arena: Tensor, offsets: Tensor, slots: Tensor, form: PageFormat):
    """k [..., D], v [..., Dv] in float32 (float64 for RAW float64), positions int64 [...], live bool [...]."""
    page, entry = offsets.clamp_min(0).unique(return_inverse=True)
    found = [x[entry, slots.clamp(0, form.slots - 1).long()] for x in unpack(fetch(arena, page, form), form)]
    return tuple(x.masked_fill((offsets < 0)[(...,) + (None,) * (x.ndim - offsets.ndim)], 0) for x in found)


def evict(arena: Tensor, offsets: Tensor, slots: Tensor) -> None:
    """Clear live bits; entries of any shape."""
    keep = offsets >= 0
    page, entry = offsets[keep].long().unique(return_inverse=True)
    named = torch.zeros(len(page), max(PAGE_SIZES), dtype=torch.bool, device=arena.device)
    named[entry, slots[keep].long()] = True
    mask = (named.long() << torch.arange(max(PAGE_SIZES), device=arena.device)).sum(-1)
    words = arena.view(torch.int64)
    words[page * 2] &= ~mask


# -- rotation -------------------------------------------------------------------------------------------------------


def rotate(k: Tensor, origin: Tensor, target: Tensor, inv_freq: Tensor) -> Tensor:
    """k [Hk, n, D]; origin, target [Hk, n] or [n]; inv_freq [F]. See the public function."""
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    angle = (target.long() - origin.long())[..., None].to(wide) * inv_freq.to(wide)
    cos, sin = angle.cos(), angle.sin()
    half = len(inv_freq)
    x, y, rest = k[..., :half].to(wide), k[..., half : 2 * half].to(wide), k[..., 2 * half :]
    return torch.cat([(x * cos - y * sin).to(k.dtype), (y * cos + x * sin).to(k.dtype), rest], -1)

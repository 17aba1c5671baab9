"""What every act on pages means, in plain torch: float32 inside, float64 kept.

Whole pages are rows of bytes, uint8 [n, format.bytes]. A slot is named by its page's offset in the arena, in units of
ALIGN bytes, and its number in the page. An offset below 0 names none, and the entry does nothing.
"""

import torch
from torch import Tensor

from workbench_kernels.pages.layout import ALIGN, GAINS, HEADER, SLOTS, PageFormat, header

USED = 9  # byte of the header


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
    """Codes at a width, int32 of x's shape; step and zero broadcast against x.

    The 8-bit code rounded once more. The gains are odd, so this is the code of direct rounding: both stages together
    err by at most half a step of the width.
    """
    level = ((x.float() - zero.float()) / step.float()).clamp(0, 255)
    return coarser((level + 0.5).int(), 1, GAINS[bits])


def coarser(codes: Tensor, gain: int, to_gain: int) -> Tensor:
    """Codes of steps of one gain, rounded to those of a larger one."""
    ratio = to_gain // gain
    return (codes + ratio // 2).div(ratio, rounding_mode="floor")


def planar(codes: Tensor, bits: int) -> Tensor:
    """int codes [..., D] -> uint8 [..., D * bits / 8]."""
    parts = codes.unflatten(-1, (8 // bits, -1))
    shifts = torch.arange(8 // bits, device=codes.device)[:, None] * bits
    return (parts << shifts).sum(-2).to(torch.uint8)


def unplanar(rows: Tensor, bits: int) -> Tensor:
    """uint8 [..., W] -> int32 codes [..., 8 W / bits]."""
    shifts = torch.arange(8 // bits, device=rows.device)[:, None] * bits
    return ((rows.int()[..., None, :] >> shifts) & (2**bits - 1)).flatten(-2)


def pack(k: Tensor, v: Tensor, positions: Tensor, used: Tensor, form: PageFormat, birth: int = 0) -> Tensor:
    """Pages of one kind, uint8 [n, form.bytes].

    k: [n, SLOTS, D]; v: [n, SLOTS, Dv]; positions: int [n, SLOTS]; used: int [n], slots from `used` on are empty and
    take no part in the steps.
    """
    n = len(k)
    page = k.new_zeros(n, form.bytes, dtype=torch.uint8)
    live = torch.arange(SLOTS, device=k.device) < used[:, None]
    page[:, :HEADER] = header(form, used, birth).view(torch.uint8)
    page[:, HEADER : form.scale_k] = positions.to(torch.int32).contiguous().view(torch.uint8)
    for x, bits, scales, codes, end, axis in (
        (k, form.bits_k, form.scale_k, form.codes_k, form.codes_v, -2),
        (v.unflatten(-1, (-1, form.group)), form.bits_v, form.scale_v, form.codes_v, form.bytes, -1),
    ):
        if bits not in GAINS:
            stored = torch.where(live.view(n, SLOTS, *[1] * (x.ndim - 2)), x, 0)
            page[:, codes:end] = stored.to(form.element(bits)).reshape(n, -1).view(torch.uint8)
            continue
        absent = ~live.view(n, SLOTS, *[1] * (x.ndim - 2))
        low = x.float().masked_fill(absent, torch.inf).amin(axis, keepdim=True)
        high = x.float().masked_fill(absent, -torch.inf).amax(axis, keepdim=True)
        empty = low == torch.inf  # no live slot
        step, zero = steps(low.masked_fill(empty, 0), high.masked_fill(empty, 0))
        packed = planar(to_codes(x, step, zero, bits).masked_fill(absent, 0).reshape(n, SLOTS, -1), bits)
        both = torch.stack([step.reshape(n, -1), zero.reshape(n, -1)], 1).reshape(n, -1)
        page[:, scales : scales + 2 * both.shape[1]] = both.view(torch.uint8)
        page[:, codes:end] = packed.reshape(n, -1)
    return page


def unpack(page: Tensor, form: PageFormat) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pages uint8 [n, form.bytes] -> k [n, SLOTS, D] and v [n, SLOTS, Dv] in float32 (float64 for RAW float64),
    positions int64 [n, SLOTS], live bool [n, SLOTS]."""
    n = len(page)
    mask = page[:, :4].contiguous().view(torch.int32)
    live = (mask >> torch.arange(SLOTS, device=page.device)) & 1 == 1
    places = page[:, HEADER : form.scale_k].contiguous().view(torch.int32).long()
    out = []
    for bits, gain_at, scales, codes, end, width in (
        (form.bits_k, 5, form.scale_k, form.codes_k, form.codes_v, form.head_dim),
        (form.bits_v, 7, form.scale_v, form.codes_v, form.bytes, form.value_dim),
    ):
        body = page[:, codes:end]
        if bits not in GAINS:
            x = body.contiguous().view(form.element(bits)).view(n, SLOTS, width)
            out.append(x if x.dtype == torch.float64 else x.float())
            continue
        count = width if gain_at == 5 else SLOTS * (width // form.group)
        step, zero = (
            page[:, scales : scales + 4 * count].contiguous().view(torch.float16).float().view(n, 2, -1).unbind(1)
        )
        step = step * page[:, gain_at].float()[:, None]
        body = body.unflatten(1, (SLOTS, -1))
        x = step.new_empty(n, SLOTS, 8 // bits, body.shape[2])
        for i in range(8 // bits):
            high = body >> (i * bits) if i else body
            x[:, :, i] = high & (2**bits - 1) if (i + 1) * bits < 8 else high
        shape = (n, 1, -1, 1) if gain_at == 5 else (n, SLOTS, -1, 1)  # a step per channel, or per slot and group
        x = x.view(n, SLOTS, count if gain_at == 5 else count // SLOTS, -1)
        out.append(x.mul_(step.view(shape)).add_(zero.view(shape)).view(n, SLOTS, width))
    return out[0], out[1], places, live


def demote(page: Tensor, form: PageFormat, to: PageFormat) -> Tensor:
    """Pages uint8 [n, form.bytes] -> the same pages at smaller widths, uint8 [n, to.bytes]; steps and zeros stay."""
    n = len(page)
    out = torch.cat([page[:, : form.codes_k], page.new_empty(n, to.bytes - to.codes_k)], 1)
    out[:, :HEADER].view(torch.int32)[:, 1] = header(to, torch.zeros(1))[:, 1]
    for bits, start, end, small, low, high in (
        (form.bits_k, form.codes_k, form.codes_v, to.bits_k, to.codes_k, to.codes_v),
        (form.bits_v, form.codes_v, form.bytes, to.bits_v, to.codes_v, to.bytes),
    ):
        rows = page[:, start:end]
        if bits != small:
            codes = unplanar(rows.reshape(n, SLOTS, -1), bits)
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


def at(offsets: Tensor, slots: Tensor, start: int, row: int) -> Tensor:
    """Byte indices [..., row] of each slot's row in the section that begins at `start`."""
    return (offsets.long() * ALIGN + start + slots.long() * row)[..., None] + torch.arange(row, device=offsets.device)


def write(arena: Tensor, index: Tensor, values: Tensor) -> None:
    arena[index] = values.contiguous().view(torch.uint8)


def set_live(arena: Tensor, offsets: Tensor, slots: Tensor, live: bool) -> None:
    """Set or clear live bits; what is set was used."""
    keep = offsets >= 0
    page, entry = offsets[keep].long().unique(return_inverse=True)
    named = torch.zeros(len(page), SLOTS, dtype=torch.bool, device=arena.device)
    named[entry, slots[keep].long()] = True
    slot = torch.arange(SLOTS, device=arena.device)
    mask = (named.long() << slot).sum(-1).to(torch.int32)
    words = arena.view(torch.int32)
    words[page * 4] = words[page * 4] | mask if live else words[page * 4] & ~mask
    if live:
        used = ((slot + 1) * named).amax(-1).to(torch.uint8)
        arena[page * ALIGN + USED] = arena[page * ALIGN + USED].maximum(used)


def gather(arena: Tensor, offsets: Tensor, slots: Tensor, form: PageFormat):
    """k [..., D], v [..., Dv] in float32 (float64 for RAW float64), positions int64 [...], live bool [...]."""
    page, entry = offsets.clamp_min(0).unique(return_inverse=True)
    found = [x[entry, slots.clamp(0, SLOTS - 1).long()] for x in unpack(fetch(arena, page, form), form)]
    return tuple(x.masked_fill((offsets < 0)[(...,) + (None,) * (x.ndim - offsets.ndim)], 0) for x in found)


def scatter(arena, k, v, rows, positions, offsets, slots, form: PageFormat) -> None:
    """k [Hk, S, D], v [Hk, S, Dv], rows [A], positions [A] -> slots named by offsets and slots [Hk, A]."""
    keep = (rows >= 0) & (offsets >= 0)
    head, entry = keep.nonzero(as_tuple=True)
    page, slot = offsets[keep], slots[keep]
    for x, bits, start, row in ((k, form.bits_k, form.codes_k, form.row_k), (v, form.bits_v, form.codes_v, form.row_v)):
        write(arena, at(page, slot, start, row), x[head, rows[entry].long()].to(form.element(bits)))
    write(arena, at(page, slot, HEADER, 4), positions[entry].to(torch.int32)[:, None])
    set_live(arena, page, slot, True)


def move(arena, offsets, slots, to_offsets, to_slots, form: PageFormat, sides, numbers, to_numbers) -> None:
    """Entries of any shape; sides: float32 [pages, SLOTS] tensors, numbers and to_numbers: their rows, like offsets."""
    keep = (offsets >= 0) & (to_offsets >= 0) & ((offsets != to_offsets) | (slots != to_slots))
    here, slot, there, to_slot = offsets[keep], slots[keep], to_offsets[keep], to_slots[keep]
    for start, row in ((HEADER, 4), (form.codes_k, form.row_k), (form.codes_v, form.row_v)):
        write(arena, at(there, to_slot, start, row), arena[at(here, slot, start, row)])
    for side in sides:
        side[to_numbers[keep].long(), to_slot.long()] = side[numbers[keep].long(), slot.long()]
    set_live(arena, here, slot, False)
    set_live(arena, there, to_slot, True)


def merge(arena, offsets, slots, weights, to_offsets, to_slots, own, form: PageFormat) -> None:
    """offsets, slots, weights [M, L] -> to_offsets, to_slots, own [M]; float32 inside, float64 kept."""
    there = to_offsets >= 0
    page, slot = to_offsets.clamp_min(0), to_slots.clamp(0, SLOTS - 1)
    weights = torch.where(offsets >= 0, weights, 0)
    sources, target = gather(arena, offsets, slots, form), gather(arena, page, slot, form)
    for x, y, bits, start, row in (
        (sources[0], target[0], form.bits_k, form.codes_k, form.row_k),
        (sources[1], target[1], form.bits_v, form.codes_v, form.row_v),
    ):
        mixed = y * own[:, None].to(y.dtype)
        for i in range(offsets.shape[1]):
            mixed = mixed + x[:, i] * weights[:, i, None].to(y.dtype)
        write(arena, at(page, slot, start, row)[there], mixed[there].to(form.element(bits)))
    evict(arena, torch.where(there[:, None], offsets, -1), slots)


def evict(arena: Tensor, offsets: Tensor, slots: Tensor) -> None:
    """Clear live bits; entries of any shape."""
    set_live(arena, offsets, slots, False)


def regroup(arena, offsets, slots, used, form: PageFormat, fresh: Tensor) -> tuple[Tensor, Tensor]:
    """Pages uint8 [n, form.bytes] of the slots named by offsets and slots [n, SLOTS], and bool [n]: keys coded anew.

    fresh: the same slots unpacked and packed again. A slot's values carry their own steps, so their codes are copied
    always; the codes of keys where all slots of a page come from pages with the same key steps, else `fresh` stands.
    """
    n = len(offsets)
    live = torch.arange(SLOTS, device=arena.device) < used[:, None]
    offsets = torch.where(live, offsets, offsets[:, :1]).clamp_min(0)
    out = fresh.clone()

    def copy(start: int, row: int, keep: Tensor) -> None:
        end = start + SLOTS * row
        rows = (arena[at(offsets, slots.clamp(0, SLOTS - 1), start, row)] * live[..., None]).flatten(1)
        out[:, start:end] = torch.where(keep[:, None], rows, out[:, start:end])

    always = torch.ones(n, dtype=torch.bool, device=arena.device)
    copy(form.codes_v, form.row_v, always)
    if form.bits_v in GAINS:
        size = 2 * (form.value_dim // form.group)
        steps = slice(form.scale_v, form.scale_v + SLOTS * size)
        absent = out[:, steps].clone()  # slots that hold nothing keep the steps that packing gives them
        copy(form.scale_v, size, always)
        copy(form.scale_v + SLOTS * size, size, always)
        alive = live.repeat_interleave(size, 1)
        out[:, steps] = torch.where(alive, out[:, steps], absent)
    shared = always
    if form.bits_k in GAINS:
        steps = arena[at(offsets, torch.zeros_like(slots), form.scale_k, 4 * form.head_dim)]  # [n, SLOTS, 4 D]
        shared = (steps == steps[:, :1]).all(-1).all(-1)
        end = form.scale_k + 4 * form.head_dim
        out[:, form.scale_k : end] = torch.where(shared[:, None], steps[:, 0], out[:, form.scale_k : end])
    copy(form.codes_k, form.row_k, shared)
    return out, ~shared


# -- rotation -------------------------------------------------------------------------------------------------------


def rotate(k: Tensor, origin: Tensor, target: Tensor, inv_freq: Tensor) -> Tensor:
    """k [Hk, n, D]; origin, target [Hk, n] or [n]; inv_freq [F]. See the public function."""
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    angle = (target.long() - origin.long())[..., None].to(wide) * inv_freq.to(wide)
    cos, sin = angle.cos(), angle.sin()
    half = len(inv_freq)
    x, y, rest = k[..., :half].to(wide), k[..., half : 2 * half].to(wide), k[..., 2 * half :]
    return torch.cat([(x * cos - y * sin).to(k.dtype), (y * cos + x * sin).to(k.dtype), rest], -1)


def rotate_pages(page: Tensor, form: PageFormat, targets: Tensor, inv_freq: Tensor) -> Tensor:
    """Pages uint8 [n, form.bytes] of raw or 16-bit keys -> the same with keys at targets [n, SLOTS]."""
    n = len(page)
    out = page.clone()
    origin = page[:, HEADER : form.scale_k].contiguous().view(torch.int32)
    k = page[:, form.codes_k : form.codes_v].contiguous().view(form.element(form.bits_k)).view(n, SLOTS, -1)
    out[:, HEADER : form.scale_k] = targets.to(torch.int32).contiguous().view(torch.uint8)
    out[:, form.codes_k : form.codes_v] = rotate(k, origin, targets, inv_freq).reshape(n, -1).view(torch.uint8)
    return out

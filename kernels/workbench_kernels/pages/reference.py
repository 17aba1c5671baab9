"""What packing means, in plain torch. Pages are rows of bytes: uint8 [n, format.bytes]."""

import torch

from workbench_kernels.pages.layout import GAINS, HEADER, RAW, SLOTS, PageFormat

__all__ = ["pack", "unpack"]


def steps(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored half-precision (step, zero) of the 8-bit grid over [low, high], so that every value lies on or inside.

    The zero is rounded down and the step up; codes are computed from what is stored, and then the half-step bound is
    exact. A constant group gets the smallest positive step.
    """
    zero = low.half()
    zero = torch.where(zero.float() > low, torch.nextafter(zero, zero.new_tensor(-torch.inf)), zero)
    wide = (high.float() - zero.float()) / 255
    step = wide.half()
    step = torch.where(step.float() < wide, torch.nextafter(step, step.new_tensor(torch.inf)), step)
    return step.clamp_min(torch.finfo(torch.float16).smallest_normal), zero


def to_codes(x: torch.Tensor, step: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes at a width, int32 of x's shape; step and zero broadcast against x."""
    grid = step.float() * GAINS[bits]
    return ((x.float() - zero.float()) / grid).round().clamp(0, 2**bits - 1).int()


def planar(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """int codes [..., D] -> uint8 [..., D * bits / 8]."""
    parts = codes.unflatten(-1, (8 // bits, -1))
    shifts = torch.arange(8 // bits, device=codes.device)[:, None] * bits
    return (parts << shifts).sum(-2).to(torch.uint8)


def unplanar(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [..., W] -> int32 codes [..., 8 W / bits]."""
    shifts = torch.arange(8 // bits, device=rows.device)[:, None] * bits
    return ((rows.int()[..., None, :] >> shifts) & (2**bits - 1)).flatten(-2)


def pack(
    k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor, used: torch.Tensor, form: PageFormat, birth: int = 0
) -> torch.Tensor:
    """Pages of one kind, uint8 [n, form.bytes].

    k: [n, SLOTS, D]; v: [n, SLOTS, Dv]; positions: int [n, SLOTS]; used: int [n], slots from `used` on are empty and
    take no part in the steps.
    """
    n = len(k)
    page = k.new_zeros(n, form.bytes, dtype=torch.uint8)
    live = torch.arange(SLOTS, device=k.device) < used[:, None]
    mask = (live.long() << torch.arange(SLOTS, device=k.device)).sum(-1)
    header = torch.zeros(n, HEADER // 4, dtype=torch.int64, device=k.device)
    header[:, 0] = mask
    header[:, 1] = (
        form.bits_k | GAINS.get(form.bits_k, 0) << 8 | form.bits_v << 16 | GAINS.get(form.bits_v, 0) << 24
    )
    header[:, 2] = used.long() << 8
    header[:, 3] = birth
    page[:, :HEADER] = words(header)
    page[:, HEADER : form.scale_k] = words(positions.long() & 0xFFFFFFFF)
    for x, bits, scales, codes, end, axis in (
        (k, form.bits_k, form.scale_k, form.codes_k, form.codes_v, -2),
        (v.unflatten(-1, (-1, form.group)), form.bits_v, form.scale_v, form.codes_v, form.bytes, -1),
    ):
        if bits not in GAINS:
            stored = torch.where(live.view(n, SLOTS, *[1] * (x.ndim - 2)), x, 0)
            stored = stored.to(form.dtype if bits == RAW else torch.float16)
            page[:, codes:end] = stored.reshape(n, -1).view(torch.uint8)
            continue
        absent = ~live.view(n, SLOTS, *[1] * (x.ndim - 2))
        low = x.float().masked_fill(absent, torch.inf).amin(axis, keepdim=True)
        high = x.float().masked_fill(absent, -torch.inf).amax(axis, keepdim=True)
        empty = low.isinf() & (low > 0)
        step, zero = steps(low.masked_fill(empty, 0), high.masked_fill(empty, 0))
        packed = planar(to_codes(x, step, zero, bits).masked_fill(absent, 0).reshape(n, SLOTS, -1), bits)
        both = torch.stack([step.reshape(n, -1), zero.reshape(n, -1)], 1).reshape(n, -1)
        page[:, scales : scales + 2 * both.shape[1]] = both.view(torch.uint8)
        page[:, codes:end] = packed.reshape(n, -1)
    return page


def unpack(page: torch.Tensor, form: PageFormat) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pages uint8 [n, form.bytes] -> k [n, SLOTS, D] and v [n, SLOTS, Dv] in float32 (float64 for RAW float64),
    positions int64 [n, SLOTS], live bool [n, SLOTS]."""
    n = len(page)
    mask = numbers(page[:, :4])[:, 0]
    live = (mask[:, None] >> torch.arange(SLOTS, device=page.device)) & 1 == 1
    places = page[:, HEADER : form.scale_k].contiguous().view(torch.int32).long()
    out = []
    for bits, gain_at, scales, codes, end, width in (
        (form.bits_k, 5, form.scale_k, form.codes_k, form.codes_v, form.head_dim),
        (form.bits_v, 7, form.scale_v, form.codes_v, form.bytes, form.value_dim),
    ):
        body = page[:, codes:end].contiguous()
        if bits not in GAINS:
            x = body.view(form.dtype if bits == RAW else torch.float16).view(n, SLOTS, width)
            out.append(x if x.dtype == torch.float64 else x.float())
            continue
        count = width if gain_at == 5 else SLOTS * (width // form.group)
        step, zero = page[:, scales : scales + 4 * count].contiguous().view(torch.float16).float().view(n, 2, -1).unbind(1)
        if gain_at == 5:
            step, zero = step[:, None, :], zero[:, None, :]
        else:
            step, zero = (t.view(n, SLOTS, -1).repeat_interleave(form.group, -1) for t in (step, zero))
        gain = page[:, gain_at].float().view(n, 1, 1)
        out.append(unplanar(body.view(n, SLOTS, -1), bits).float() * gain * step + zero)
    return out[0], out[1], places, live


def words(values: torch.Tensor) -> torch.Tensor:
    """int64 [n, m] of 32-bit words -> uint8 [n, 4 m], little-endian."""
    shifts = torch.arange(0, 32, 8, device=values.device)
    return ((values[..., None] >> shifts) & 255).to(torch.uint8).flatten(-2)


def numbers(rows: torch.Tensor) -> torch.Tensor:
    """uint8 [n, 4 m] -> int64 [n, m], unsigned."""
    shifts = torch.arange(0, 32, 8, device=rows.device)
    return (rows.long().unflatten(-1, (-1, 4)) << shifts).sum(-1)

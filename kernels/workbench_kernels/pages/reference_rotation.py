"""Moving rotated keys to other positions, in plain torch: float32 inside, float64 kept."""

import torch

from workbench_kernels.pages.layout import HEADER, SLOTS, PageFormat

__all__ = ["rotate", "rotate_pages"]


def rotate(k: torch.Tensor, origin: torch.Tensor, target: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """k [Hk, n, D]; origin, target [Hk, n] or [n]; inv_freq [F]. See the public function."""
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    angle = (target.long() - origin.long())[..., None].to(wide) * inv_freq.to(wide)
    cos, sin = angle.cos(), angle.sin()
    half = len(inv_freq)
    x, y, rest = k[..., :half].to(wide), k[..., half : 2 * half].to(wide), k[..., 2 * half :]
    return torch.cat([(x * cos - y * sin).to(k.dtype), (y * cos + x * sin).to(k.dtype), rest], -1)


def rotate_pages(page: torch.Tensor, form: PageFormat, targets: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """Pages uint8 [n, form.bytes] of raw or 16-bit keys -> the same with keys at targets [n, SLOTS]."""
    n = len(page)
    out = page.clone()
    origin = page[:, HEADER : form.scale_k].contiguous().view(torch.int32)
    k = page[:, form.codes_k : form.codes_v].contiguous().view(form.element(form.bits_k)).view(n, SLOTS, -1)
    out[:, HEADER : form.scale_k] = targets.to(torch.int32).contiguous().view(torch.uint8)
    out[:, form.codes_k : form.codes_v] = rotate(k, origin, targets, inv_freq).reshape(n, -1).view(torch.uint8)
    return out

"""Weights as codes of a few bits in groups of 32 inputs: weight = low + scale · code, in float32.

What GGUF's types Q4_0, Q4_1 and Q8_0 say (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), so a file of
these is read without loss; other weights can be rounded to such numbers.
"""

import torch

GROUP = 32


def codes_of(weight: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Float32 [outputs, inputs] -> bits, codes int32 [outputs, groups, 32], scale and low [outputs, groups]; None where
    the weights are no such numbers."""
    if weight.shape[1] % GROUP or not len(weight):
        return None
    groups = weight.unflatten(1, (-1, GROUP)).flatten(0, 1)
    for form in (_four, _eight):
        if form(groups[:: len(groups) // 1000 + 1]) and (found := form(groups)):
            return found[0], *(part.unflatten(0, (len(weight), -1)) for part in found[1:])
    return None


def rounded(weight: torch.Tensor, bits: int = 4) -> torch.Tensor:
    """The nearest weights [..., whole groups] with 2^bits values between the least and the largest of every group."""
    groups = weight.float().unflatten(-1, (-1, GROUP))
    low, high = groups.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    near = low + scale * ((groups - low) / scale.clamp_min(1e-30)).round()
    return near.flatten(-2).to(weight.dtype)


def _four(groups: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """The largest code of a group may be any from 1 on: 15 most often."""
    low, high = groups.aminmax(dim=-1)
    scale, codes = torch.zeros_like(low), torch.zeros_like(groups, dtype=torch.int32)
    left = torch.arange(len(groups), device=groups.device)
    for largest in range(15, 0, -1):
        good, code, step = _steps(groups[left], low[left], high[left], largest)
        scale[left[good]], codes[left[good]] = step[good], code[good]
        left = left[~good]
        if not len(left):
            return 4, codes, scale, low
    return None


def _eight(groups: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Whole multiples of the largest over 127; or else 256 steps from the least to the largest."""
    low, high = groups.aminmax(dim=-1)
    step = torch.maximum(high, -low) / 127
    code = (groups / step.clamp_min(1e-30)[:, None]).round_()
    if _equal(groups, step[:, None] * code, groups.abs()).all():
        return 8, code.int() + 127, step, -127 * step
    good, code, step = _steps(groups, low, high, 255)
    return (8, code, step, low) if good.all() else None


def _steps(
    groups: torch.Tensor, low: torch.Tensor, high: torch.Tensor, largest: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which groups have their least and largest weight that many steps apart, the others whole steps between: bool
    [groups]; their codes, and the step."""
    step = (high - low) / largest
    code = ((groups - low[:, None]) / step.clamp_min(1e-30)[:, None]).round_()
    size = groups.abs() + low.abs()[:, None] + code / largest * (low.abs() + high.abs())[:, None]
    return _equal(groups, low[:, None] + step[:, None] * code, size), code.int(), step


def _equal(groups: torch.Tensor, near: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """[groups] bool: off by no more than float32 rounds numbers of that size."""
    return ((groups - near).abs() <= 4 * torch.finfo(torch.float32).eps * size).all(-1)

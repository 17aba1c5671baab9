"""Moving rotated keys to other positions, in Triton: a program takes 32 keys of one head."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.pages.kernel_common import Rows

KEYS = tl.constexpr(32)  # of a program


class Channels(NamedTuple):
    """Constants: a row's channels, pairs that turn, both tiles, of pairs and of the channels that are copied."""

    size: int
    half: int
    block: int
    rest_block: int

    @classmethod
    def of(cls, size: int, inv_freq: Tensor) -> "Channels":
        half = len(inv_freq)
        return cls(size, half, *(triton.next_power_of_2(n) for n in (half, max(size - 2 * half, 1))))


@triton.jit
def rotate_rows(out_ptr, in_ptr, out_stride, in_stride, delta, inv_freq_ptr, there, channels: tl.constexpr):
    """Channels f and f + half turn by delta * inv_freq[f]; those from 2 half on are copied."""
    row = tl.arange(0, there.shape[0])[:, None]
    pair = tl.arange(0, channels.block)
    mask = there[:, None] & (pair < channels.half)[None, :]
    frequency = tl.load(inv_freq_ptr + pair, mask=pair < channels.half, other=0.0).to(tl.float32)
    angle = delta.to(tl.float32)[:, None] * frequency[None, :]
    cos, sin = tl.cos(angle), tl.sin(angle)
    x = tl.load(in_ptr + row * in_stride + pair[None, :], mask=mask, other=0.0).to(tl.float32)
    y = tl.load(in_ptr + row * in_stride + channels.half + pair[None, :], mask=mask, other=0.0).to(tl.float32)
    at = out_ptr + row * out_stride + pair[None, :]
    tl.store(at, (x * cos - y * sin).to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(at + channels.half, (y * cos + x * sin).to(out_ptr.dtype.element_ty), mask=mask)
    if 2 * channels.half < channels.size:
        rest = 2 * channels.half + tl.arange(0, channels.rest_block)
        mask = there[:, None] & (rest < channels.size)[None, :]
        x = tl.load(in_ptr + row * in_stride + rest[None, :], mask=mask, other=0.0)
        tl.store(out_ptr + row * out_stride + rest[None, :], x, mask=mask)


@triton.jit
def rotate_kernel(out_ptr, k, origin, target, inv_freq_ptr, n_keys, CHANNELS: tl.constexpr):
    """out [n_heads, n_keys, D]; k: `Rows` of the same; origin, target: [n_heads, n_keys] and the stride of heads."""
    head = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0).to(tl.int64) * KEYS
    key = start + tl.arange(0, KEYS)
    there = key < n_keys
    old = tl.load(origin[0] + head * origin[1] + key, mask=there, other=0).to(tl.int64)
    delta = tl.load(target[0] + head * target[1] + key, mask=there, other=0).to(tl.int64) - old
    out_ptr += (head * n_keys + start) * CHANNELS.size
    k_ptr = k.data + head * k.outer + start * k.inner
    rotate_rows(out_ptr, k_ptr, CHANNELS.size, k.inner, delta, inv_freq_ptr, there, CHANNELS)


@on_its_device
def rotate(k: Tensor, origin: Tensor, target: Tensor, inv_freq: Tensor) -> Tensor:
    """See the public function; grid (blocks of 32 keys, heads)."""
    heads, keys, size = k.shape
    k, origin, target = (t if t.stride(-1) == 1 else t.contiguous() for t in (k, origin, target))
    out = torch.empty(k.shape, dtype=k.dtype, device=k.device)
    if out.numel():
        places = ((t, t.stride(0) if t.ndim == 2 else 0) for t in (origin, target))
        held = (out, Rows(k, *k.stride()[:2]), *places, inv_freq.contiguous(), keys)
        rotate_kernel[(triton.cdiv(keys, KEYS.value), heads)](*held, CHANNELS=Channels.of(size, inv_freq))
    return out

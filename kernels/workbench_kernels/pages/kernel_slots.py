"""Evicting slots in Triton. Entries of one page lie in several programs, so live masks change by atomic operations."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.dispatch import on_its_device

ENTRIES = tl.constexpr(256)  # of a program


@triton.jit
def evict_kernel(words_ptr, offsets_ptr, slots_ptr, n_entries):
    """words_ptr: int32 view of the arena; offsets, slots: [n_entries], an offset below 0 names no slot."""
    entry = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    offset = tl.load(offsets_ptr + entry, mask=entry < n_entries, other=-1).to(tl.int64)
    slot = tl.load(slots_ptr + entry, mask=entry < n_entries, other=0).to(tl.int32)
    one = tl.full(slot.shape, 1, tl.int32)
    tl.atomic_and(words_ptr + offset * 4 + slot // 32, ~(one << (slot % 32)), mask=offset >= 0)


@on_its_device
def evict(arena: Tensor, offsets: Tensor, slots: Tensor) -> None:
    """See the public function."""
    if entries := offsets.numel():
        lists = (offsets.contiguous(), slots.contiguous())
        evict_kernel[(triton.cdiv(entries, ENTRIES.value),)](arena.view(torch.int32), *lists, entries)

"""Evicting slots of pages, by its invariants and against the torch reference."""

import pytest
import torch

from tests.kernels.interpreter import needs_interpreter
from tests.kernels.test_pages import arena_for, assert_guards, broken
from workbench_kernels import pages
from workbench_kernels.pages import ALIGN, PageFormat, reference


def filled(size: int, device: str, used: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An arena of three pages of `size` slots, and where they are."""
    form = PageFormat(32, 32, 4, 2, 16, slots=size)
    arena, offsets = arena_for(form, 3, device)
    k, v = torch.randn(2, 3, size, 32, generator=torch.Generator().manual_seed(size))
    places = torch.arange(3 * size).view(3, size)
    page = reference.pack(k, v, places, torch.full((3,), used), form).to(device)
    reference.put(arena, offsets, form, page)
    assert_guards(arena, offsets, form)
    return arena, offsets


def live(arena: torch.Tensor, offsets: torch.Tensor) -> list[set[int]]:
    masks = [int.from_bytes(bytes(arena[at * ALIGN :][:8].tolist()), "little") for at in offsets.tolist()]
    return [{slot for slot in range(64) if mask >> slot & 1} for mask in masks]


@pytest.mark.parametrize("size", [32, 64])
def test_evicting_clears_bits_alone(size, device):
    """Of any kind of page; the last slot is the sign of a word; naming a slot twice or one already dead is harmless."""
    for act in ("torch", "triton"):
        arena, offsets = filled(size, device, used=size - 12)
        before = arena.clone()
        named = offsets[torch.tensor([[0, 0, 2], [0, 1, 2]], device=device)]
        named[1, 2] = -1
        slots = torch.tensor([[0, size - 13, size - 1], [0, 7, 5]], device=device)
        pages.evict(arena, named, slots, implementation=act)
        alive = set(range(size - 12))
        assert live(arena, offsets) == [alive - {0, size - 13}, alive - {7}, alive]
        masks = (offsets.long()[:, None] * ALIGN + torch.arange(8, device=device)).flatten()
        arena[masks] = before[masks]
        assert torch.equal(arena, before)
        pages.evict(arena, offsets[:0], slots[0, :0], implementation=act)  # nothing at all


@needs_interpreter
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("~(one << (slot % 32))", "~(one << ((slot ^ 1) % 32))"),
        ("offset * 4 + slot // 32", "offset * 4 + slot // 64"),
        ("mask=entry < n_entries, other=-1", "mask=entry < n_entries - 1, other=-1"),
    ],
    ids=["bit", "word", "end"],
)
def test_equality_sees_a_kernel_that_is_off_by_one(old, new, tmp_path):
    found = []
    for module in (reference, broken(tmp_path, "kernel_slots", old, new)):
        arena, offsets = filled(64, "cpu", 64)
        module.evict(arena, offsets[[2, 2, 1]], torch.tensor([4, 9, 40]))
        found.append(arena)
    assert not torch.equal(*found)


def test_what_does_not_fit_is_refused():
    arena, offsets = filled(32, "cpu", 32)
    with pytest.raises(ValueError, match=r"evict: expected int32 or int64 indices \[3\], got torch.float32"):
        pages.evict(arena, offsets, offsets.float())
    with pytest.raises(ValueError, match="contiguous uint8 arena"):
        pages.evict(arena[::2], offsets, offsets)

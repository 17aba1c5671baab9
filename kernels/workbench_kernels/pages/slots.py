"""Public functions over single slots: gather, scatter, move, compact, merge, evict."""

from collections.abc import Sequence

import torch

from workbench_kernels.pages import reference, reference_slots
from workbench_kernels.pages.layout import SLOTS, PageFormat
from workbench_kernels.pages.support import backend, check_arena, check_names, check_stored, raw_dtypes
from workbench_kernels.pages.whole import pack

__all__ = ["compact", "evict", "gather", "merge", "move", "scatter"]


def gather(
    arena: torch.Tensor,
    form: PageFormat,
    offsets: torch.Tensor,
    slots: torch.Tensor,
    dtype: torch.dtype | None = None,
    *,
    implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Dense rows of slots anywhere in pages of one kind; zeros where an offset is below 0.

    offsets, slots: int [...]; dtype as for `unpack`. Returns k [..., D], v [..., Dv], positions int64 [...] and live
    bool [...].
    """
    check_arena("gather", arena)
    check_names("gather", arena, offsets, slots)
    asked = () if dtype is None else (dtype,)
    kernel = backend("read", arena.device, *raw_dtypes(form), *asked, implementation=implementation)
    if kernel is not None:
        return kernel.gather(arena, offsets, slots, form, dtype or torch.float32)
    k, v, positions, live = reference_slots.gather(arena, offsets, slots, form)
    return k.to(dtype or k.dtype), v.to(dtype or v.dtype), positions, live


def scatter(
    arena: torch.Tensor,
    form: PageFormat,
    k: torch.Tensor,
    v: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    offsets: torch.Tensor,
    slots: torch.Tensor,
    *,
    implementation: str = "auto",
) -> None:
    """Append accepted rows to every head's open pages: keys, values, positions, live bits and the count of used slots.

    Parameters
    ----------
    form: raw or 16-bit keys and values; rows are converted to what a page stores.
    k: [Hk, S, D]; v: [Hk, S, Dv]: staged rows.
    rows: int [A], which of the S rows, below 0 for none; positions: int [A], in tokens.
    offsets, slots: int [Hk, A], where each goes. Two entries must not name one slot.
    """
    check_arena("scatter", arena)
    check_stored("scatter", form)
    heads, staged = k.shape[0], k.shape[1]
    if k.shape != (heads, staged, form.head_dim) or v.shape != (heads, staged, form.value_dim):
        raise ValueError(
            f"scatter: expected k [Hk, S, {form.head_dim}] and v [Hk, S, {form.value_dim}], "
            f"got {list(k.shape)} and {list(v.shape)}"
        )
    if not (k.device == v.device == arena.device):
        raise ValueError(f"scatter: expected rows on {arena.device}, got {k.device} and {v.device}")
    check_names("scatter", arena, rows, positions, shape=(rows.numel(),))
    check_names("scatter", arena, offsets, slots, shape=(heads, rows.numel()))
    kernel = backend("slots", arena.device, implementation=implementation)
    (kernel or reference_slots).scatter(arena, k, v, rows, positions, offsets, slots, form)


def move(
    arena: torch.Tensor,
    form: PageFormat,
    offsets: torch.Tensor,
    slots: torch.Tensor,
    to_offsets: torch.Tensor,
    to_slots: torch.Tensor,
    sides: Sequence[torch.Tensor] = (),
    numbers: torch.Tensor | None = None,
    to_numbers: torch.Tensor | None = None,
    *,
    implementation: str = "auto",
) -> None:
    """Move live slots between raw or 16-bit pages of one kind, bit for bit: source bits are cleared, targets' set.

    offsets, slots, to_offsets, to_slots: int [...] of one shape; an entry that goes where it is does nothing. No other
    slot may be both a source and a target, and none a target twice. sides: at most two float32 [pages, SLOTS] tensors
    (bias, score) that move along; numbers, to_numbers: int [...], the rows of each entry's pages in them.
    """
    check_arena("move", arena)
    check_stored("move", form)
    check_names("move", arena, offsets, slots, to_offsets, to_slots)
    if sides:
        if numbers is None or to_numbers is None or len(sides) > 2:
            raise ValueError("move: expected at most two side arrays, with numbers and to_numbers")
        check_names("move", arena, numbers, to_numbers, shape=tuple(offsets.shape))
        for side in sides:
            fits = side.ndim == 2 and side.shape[1] == SLOTS and side.dtype == torch.float32
            if not fits or not side.is_contiguous() or side.device != arena.device:
                raise ValueError(
                    f"move: expected contiguous float32 side arrays [pages, {SLOTS}] on {arena.device}, "
                    f"got {side.dtype} {list(side.shape)} on {side.device}"
                )
    kernel = backend("slots", arena.device, implementation=implementation)
    act = (kernel or reference_slots).move
    act(arena, offsets, slots, to_offsets, to_slots, form, tuple(sides), numbers, to_numbers)


def compact(
    arena: torch.Tensor,
    form: PageFormat,
    offsets: torch.Tensor,
    slots: torch.Tensor,
    used: torch.Tensor,
    to_offsets: torch.Tensor,
    birth: int = 0,
    *,
    implementation: str = "auto",
) -> torch.Tensor:
    """Collect slots of pages of any one kind, coded ones too, into n whole pages of that kind.

    Values keep their codes and steps always. Keys keep theirs where all slots of a page come from pages with the same
    key steps (as a rule from one page); else they are unpacked and packed again, which adds an error of up to half a
    new step: the return value says where.

    Parameters
    ----------
    offsets, slots: int [n, SLOTS], what slot j of page i shall hold, for j < used[i]; used: int [n].
    to_offsets: int [n], where the pages go. They may be among the sources: everything is read first.

    Returns bool [n], True where a page's keys were coded anew. Live bits of the sources stay as they are.
    """
    check_arena("compact", arena)
    n = len(used)
    check_names("compact", arena, used, to_offsets, shape=(n,))
    check_names("compact", arena, offsets, slots, shape=(n, SLOTS))
    live = torch.arange(SLOTS, device=arena.device) < used[:, None]
    named = torch.where(live, offsets, -1)
    k, v, positions, _ = gather(arena, form, named, slots, implementation=implementation)
    fresh = pack(k, v, positions, used, form, birth=birth, check=False, implementation=implementation)
    page, anew = reference_slots.regroup(arena, offsets, slots, used, form, fresh)
    reference.put(arena, to_offsets, form, page)
    return anew


def merge(
    arena: torch.Tensor,
    form: PageFormat,
    offsets: torch.Tensor,
    slots: torch.Tensor,
    weights: torch.Tensor,
    to_offsets: torch.Tensor,
    to_slots: torch.Tensor,
    own: torch.Tensor,
    *,
    implementation: str = "auto",
) -> None:
    """Weighted merges of slots: target = own * target + sum of weights * sources, keys and values, in float32.

    Weights are taken as they are; a mean needs weights that sum to 1. The target keeps its position, the sources' live
    bits are cleared.

    Parameters
    ----------
    form: raw or 16-bit keys and values.
    offsets, slots: int [M, L], the sources of M merges; weights: float [M, L].
    to_offsets, to_slots: int [M]; own: float [M], the weight of what a target holds. No target may be a source of the
        same call or a target twice; below 0 the merge does nothing.
    """
    check_arena("merge", arena)
    check_stored("merge", form)
    m = len(to_offsets)
    check_names("merge", arena, offsets, slots, shape=(m, offsets.shape[-1]))
    check_names("merge", arena, to_offsets, to_slots, shape=(m,))
    if weights.shape != offsets.shape or own.shape != (m,) or not (weights.device == own.device == arena.device):
        raise ValueError(
            f"merge: expected weights {list(offsets.shape)} and own weights [{m}] on {arena.device}, "
            f"got {list(weights.shape)} and {list(own.shape)}"
        )
    kernel = backend("slots", arena.device, *raw_dtypes(form), implementation=implementation)
    (kernel or reference_slots).merge(arena, offsets, slots, weights, to_offsets, to_slots, own, form)


def evict(arena: torch.Tensor, offsets: torch.Tensor, slots: torch.Tensor, *, implementation: str = "auto") -> None:
    """Clear the live bits of slots, in pages of any kind; offsets, slots: int [...]. Nothing else changes."""
    check_arena("evict", arena)
    check_names("evict", arena, offsets, slots)
    kernel = backend("slots", arena.device, implementation=implementation)
    (kernel or reference_slots).evict(arena, offsets, slots)

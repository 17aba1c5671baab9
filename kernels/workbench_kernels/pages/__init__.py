"""The work on packed pages: pack, read, demote, and the acts on their slots.

An *arena* is a one-dimensional uint8 tensor of many pages. A page is named by its offset in units of 16 bytes, `ALIGN`,
a slot by its page's offset and its number 0..31. Names are integer tensors on the arena's device. Entries of slot lists
with an offset below 0 do nothing, so that lists can have a fixed length. Nothing is copied to the host, except where
`check` asks for it. `layout` says what lies where in a page.

Every function takes `implementation`: `triton`, `torch`, or `auto`, which takes Triton on a GPU where it can. `choose`
says which and why. All raise ValueError where shapes, dtypes or the kind of page do not fit. Where Triton is asked for
and cannot run, they raise RuntimeError with the reason.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench_kernels.pages import checks, reference
from workbench_kernels.pages.checks import backend, check_arena, check_names, check_stored, choose, rows_as_arena
from workbench_kernels.pages.layout import ALIGN, BITS, GAINS, RAW, SLOTS, PageFormat, header, ledger

__all__ = [
    "ALIGN", "BITS", "GAINS", "RAW", "SLOTS", "PageFormat", "blank", "choose", "compact", "demote", "evict", "gather",
    "ledger", "merge", "move", "pack", "rotate", "rotate_pages", "scatter", "unpack",
]  # fmt: skip

Dense = tuple[Tensor, Tensor, Tensor, Tensor]


def blank(arena: Tensor, offsets: Tensor, form: PageFormat, birth: int = 0) -> None:
    """Open pages [n] for `scatter`: a header without live slots. Everything else in them stays as it is."""
    check_arena("blank", arena)
    check_names("blank", arena, offsets, shape=(offsets.numel(),))
    words = header(form, torch.zeros_like(offsets), birth)
    arena.view(torch.int32).view(-1, ALIGN // 4)[offsets.long()] = words


def pack(
    k: Tensor, v: Tensor, positions: Tensor, used: Tensor, form: PageFormat, arena: Tensor | None = None,
    offsets: Tensor | None = None, birth: int = 0, *, check: bool = True, implementation: str = "auto",
) -> Tensor:  # fmt: skip
    """Write full or partly filled pages, quantised as `form` says; both implementations give the same bytes.

    Keys have one step per channel of a page, values one per slot and group of channels, asymmetric. The 8-bit grid
    covers the live values; its step and zero are stored in half precision. Codes are computed from what is stored:
    |x - x̂| <= gain * step / 2 up to rounding in float32. RAW and, for float16 inputs, 16 are bit-exact.

    Parameters
    ----------
    k: [n, SLOTS, D]; v: [n, SLOTS, Dv]; of any floating dtype.
    positions: int [n, SLOTS], in tokens; used: int [n], slots from `used` on are empty: zero rows that take no part.
    arena, offsets [n]: where the pages go, which must not overlap; without them the pages are new rows.
    birth: the round of the header.
    check: refuse live values that are not finite or lie beyond half range (65504) at any width but RAW. This copies
        one flag to the host; without it such values spoil the group of channels they lie in, silently.

    Returns the arena, or pages uint8 [n, form.bytes].
    """
    n = len(k)
    checks.check_rows("pack", k, v, form, (n, SLOTS), k.device)
    out, where, offsets = checks.destination("pack", arena, form, offsets, n, k.device, "an arena and offsets")
    check_names("pack", where, positions, shape=(n, SLOTS))
    check_names("pack", where, used, shape=(n,))
    if check:
        checks.check_finite("pack", k, v, used, form)
    coded = [x.dtype for x, bits in ((k, form.bits_k), (v, form.bits_v)) if bits in GAINS]  # others are bit patterns
    kernel = backend("pack", k.device, *coded, implementation=implementation)
    if kernel is not None:
        kernel.pack(k, v, positions, used, form, where, offsets, birth)
    else:
        reference.put(where, offsets, form, reference.pack(k, v, positions, used, form, birth))
    return out


def unpack(
    pages: Tensor, form: PageFormat, offsets: Tensor | None = None, dtype: torch.dtype | None = None, *,
    implementation: str = "auto",
) -> Dense:  # fmt: skip
    """Dense rows of pages, of live and dead slots alike.

    pages: uint8 [n, form.bytes], or an arena with offsets [n]; dtype: float32 (None; float64 for RAW float64),
    float16 or bfloat16. Returns k [n, SLOTS, D], v [n, SLOTS, Dv], positions int64 [n, SLOTS], live bool [n, SLOTS].
    """
    arena, offsets = rows_as_arena("unpack", pages, form, offsets)
    return _read(arena, form, offsets, None, dtype, implementation)


def demote(
    pages: Tensor, form: PageFormat, to: PageFormat, offsets: Tensor | None = None, out: Tensor | None = None,
    out_offsets: Tensor | None = None, *, implementation: str = "auto",
) -> Tensor:  # fmt: skip
    """Coded pages at smaller widths, in code space: 8 to 4 to 2 bits, keys and values apart.

    The codes are those of packing the original values at the smaller width, header aside from the widths, positions,
    steps and zeros are copied. A width may stay as it is, also RAW or 16.

    pages: uint8 [n, form.bytes], or an arena with offsets [n]. to: `form` with other widths. out, out_offsets [n]:
    where the smaller pages go, which must overlap none of the pages read; without them they are new rows.

    Returns out, or pages uint8 [n, to.bytes].
    """
    same = ("head_dim", "value_dim", "group", "dtype")
    if any(getattr(form, name) != getattr(to, name) for name in same):
        raise ValueError("demote: expected formats that differ in their widths only")
    for name, high, low in (("keys", form.bits_k, to.bits_k), ("values", form.bits_v, to.bits_v)):
        if high != low and not (high in GAINS and low in GAINS and low < high):
            raise ValueError(f"demote: {name} go from 8 to 4 to 2 bits or stay, got {high} to {low} (0 = raw)")
    arena, offsets = rows_as_arena("demote", pages, form, offsets)
    out, where, out_offsets = checks.destination("demote", out, to, out_offsets, len(offsets), arena.device)
    kernel = backend("read", arena.device, implementation=implementation)
    if kernel is not None:
        kernel.demote(arena, form, to, offsets, where, out_offsets)
    else:
        reference.put(where, out_offsets, to, reference.demote(reference.fetch(arena, offsets, form), form, to))
    return out


def gather(
    arena: Tensor, form: PageFormat, offsets: Tensor, slots: Tensor, dtype: torch.dtype | None = None, *,
    implementation: str = "auto",
) -> Dense:  # fmt: skip
    """Dense rows of slots anywhere in pages of one kind; zeros where an offset is below 0.

    offsets, slots: int [...]; dtype as for `unpack`. Returns k [..., D], v [..., Dv], positions int64 [...] and live
    bool [...].
    """
    check_arena("gather", arena)
    check_names("gather", arena, offsets, slots)
    return _read(arena, form, offsets, slots, dtype, implementation)


def _read(arena, form, offsets, slots, dtype, implementation) -> Dense:
    """Dense rows of slots, or of whole pages."""
    asked = () if dtype is None else (dtype,)
    kernel = backend("read", arena.device, *checks.raw_dtypes(form), *asked, implementation=implementation)
    if kernel is not None:
        return kernel.read(arena, form, offsets, slots, dtype or torch.float32)
    if slots is None:
        k, v, positions, live = reference.unpack(reference.fetch(arena, offsets, form), form)
    else:
        k, v, positions, live = reference.gather(arena, offsets, slots, form)
    return k.to(dtype or k.dtype), v.to(dtype or v.dtype), positions, live


def scatter(
    arena: Tensor, form: PageFormat, k: Tensor, v: Tensor, rows: Tensor, positions: Tensor, offsets: Tensor,
    slots: Tensor, *, implementation: str = "auto",
) -> None:  # fmt: skip
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
    checks.check_rows("scatter", k, v, form, tuple(k.shape[:2]), arena.device)
    check_names("scatter", arena, rows, positions, shape=(rows.numel(),))
    check_names("scatter", arena, offsets, slots, shape=(len(k), rows.numel()))
    kernel = backend("slots", arena.device, implementation=implementation)
    (kernel or reference).scatter(arena, k, v, rows, positions, offsets, slots, form)


def move(
    arena: Tensor, form: PageFormat, offsets: Tensor, slots: Tensor, to_offsets: Tensor, to_slots: Tensor,
    sides: Sequence[Tensor] = (), numbers: Tensor | None = None, to_numbers: Tensor | None = None, *,
    implementation: str = "auto",
) -> None:  # fmt: skip
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
    act = (kernel or reference).move
    act(arena, offsets, slots, to_offsets, to_slots, form, tuple(sides), numbers, to_numbers)


def compact(
    arena: Tensor, form: PageFormat, offsets: Tensor, slots: Tensor, used: Tensor, to_offsets: Tensor, birth: int = 0,
    *, implementation: str = "auto",
) -> Tensor:  # fmt: skip
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
    page, anew = reference.regroup(arena, offsets, slots, used, form, fresh)
    reference.put(arena, to_offsets, form, page)
    return anew


def merge(
    arena: Tensor, form: PageFormat, offsets: Tensor, slots: Tensor, weights: Tensor, to_offsets: Tensor,
    to_slots: Tensor, own: Tensor, *, implementation: str = "auto",
) -> None:  # fmt: skip
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
    kernel = backend("slots", arena.device, *checks.raw_dtypes(form), implementation=implementation)
    (kernel or reference).merge(arena, offsets, slots, weights, to_offsets, to_slots, own, form)


def evict(arena: Tensor, offsets: Tensor, slots: Tensor, *, implementation: str = "auto") -> None:
    """Clear the live bits of slots, in pages of any kind; offsets, slots: int [...]. Nothing else changes."""
    check_arena("evict", arena)
    check_names("evict", arena, offsets, slots)
    kernel = backend("slots", arena.device, implementation=implementation)
    (kernel or reference).evict(arena, offsets, slots)


def rotate(k: Tensor, origin: Tensor, target: Tensor, inv_freq: Tensor, *, implementation: str = "auto") -> Tensor:
    """Keys baked at one position, turned to another by the unit rotation of the difference; in float32.

    A new tensor is returned so that the caller keeps k and its origin: moves that start at the origin every time never
    add up their rounding, 200 successive ones in bfloat16 cost about 12 %.

    Parameters
    ----------
    k: [Hk, n, D], rotated by halves (channel f pairs with f + F, as in Llama); channels from 2 F on are not rotated.
    origin, target: int [Hk, n] or [n], in tokens; where k was baked and where it shall be.
    inv_freq: [F] in radians per token, those k was baked with, without any scale of cosines and sines.
    """
    if k.ndim != 3 or not k.is_floating_point():
        raise ValueError(f"rotate: expected floating keys [Hk, n, D], got {k.dtype} {list(k.shape)}")
    for names in (origin, target):
        shape = tuple(k.shape[:2]) if names.ndim == 2 else (k.shape[1],)
        check_names("rotate", k, names, shape=shape)
    checks.check_frequencies("rotate", inv_freq, k.shape[2], k.device)
    kernel = backend("rotation", k.device, k.dtype, implementation=implementation)
    return (kernel or reference).rotate(k, origin, target, inv_freq)


def rotate_pages(
    pages: Tensor, form: PageFormat, targets: Tensor, inv_freq: Tensor, offsets: Tensor | None = None,
    out: Tensor | None = None, out_offsets: Tensor | None = None, *, implementation: str = "auto",
) -> Tensor:  # fmt: skip
    """Copies of pages with their keys turned from the stored positions to others; see `rotate`.

    The pages read stay what they are, the origin of any later move. pages: uint8 [n, form.bytes], or an arena with
    offsets [n]; keys raw or 16-bit. targets: int [n, SLOTS]. out, out_offsets [n]: where the copies go, which must
    overlap none of the pages read; without them they are new rows. Returns out, or pages uint8 [n, form.bytes].
    """
    check_stored("rotate_pages", form, values=False)
    arena, offsets = rows_as_arena("rotate_pages", pages, form, offsets)
    check_names("rotate_pages", arena, targets, shape=(len(offsets), SLOTS))
    checks.check_frequencies("rotate_pages", inv_freq, form.head_dim, arena.device)
    out, where, out_offsets = checks.destination("rotate_pages", out, form, out_offsets, len(offsets), arena.device)
    kernel = backend("rotation", arena.device, *checks.raw_dtypes(form), implementation=implementation)
    if kernel is not None:
        kernel.rotate_pages(arena, form, offsets, targets, inv_freq, where, out_offsets)
    else:
        page = reference.rotate_pages(reference.fetch(arena, offsets, form), form, targets, inv_freq)
        reference.put(where, out_offsets, form, page)
    return out

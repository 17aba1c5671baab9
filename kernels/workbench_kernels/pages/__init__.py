"""The work on packed pages: pack, read, demote, evict, and turning keys.

An *arena* is a one-dimensional uint8 tensor of many pages. A page is named by its offset in units of 16 bytes, `ALIGN`,
a slot by its page's offset and its number in it. Names are integer tensors on the arena's device. Entries of slot lists
with an offset below 0 do nothing, so that lists can have a fixed length. Nothing is copied to the host, except where
`check` asks for it. `layout` says what lies where in a page.

Every function takes `implementation`: `triton`, `torch`, or `auto`, which takes Triton on a GPU where it can. `choose`
says which and why. All raise ValueError where shapes, dtypes or the kind of page do not fit. Where Triton is asked for
and cannot run, they raise RuntimeError with the reason.
"""

import torch
from torch import Tensor

from workbench_kernels.pages import checks, reference
from workbench_kernels.pages.checks import backend, check_arena, check_names, choose, rows_as_arena
from workbench_kernels.pages.layout import ALIGN, BITS, GAINS, PAGE_SIZES, RAW, PageFormat, ledger

__all__ = [
    "ALIGN", "BITS", "GAINS", "PAGE_SIZES", "RAW", "PageFormat", "choose", "demote", "evict", "gather", "ledger",
    "pack", "rotate", "unpack",
]  # fmt: skip

Dense = tuple[Tensor, Tensor, Tensor, Tensor]


def pack(
    k: Tensor, v: Tensor, positions: Tensor, used: Tensor, form: PageFormat, arena: Tensor | None = None,
    offsets: Tensor | None = None, *, check: bool = True, implementation: str = "auto",
) -> Tensor:  # fmt: skip
    """Write full or partly filled pages, quantised as `form` says; both implementations give the same bytes.

    Keys have one step per channel of a page, values one per slot and group of channels, asymmetric. The 8-bit grid
    covers the live values; its step and zero are stored in half precision. Codes are computed from what is stored:
    |x - x̂| <= gain * step / 2 up to rounding in float32. RAW and, for float16 inputs, 16 are bit-exact.

    Parameters
    ----------
    k: [n, slots, D]; v: [n, slots, Dv]; of any floating dtype.
    positions: int [n, slots], in tokens; used: int [n], slots from `used` on are empty: zero rows that take no part.
    arena, offsets [n]: where the pages go, which must not overlap; without them the pages are new rows.
    check: refuse live values that are not finite or lie beyond half range (65504) at any width but RAW. This copies
        one flag to the host; without it such values spoil the group of channels they lie in, silently.

    Returns the arena, or pages uint8 [n, form.bytes].
    """
    n = len(k)
    checks.check_rows("pack", k, v, form, (n, form.slots), k.device)
    check_names("pack", k, positions, shape=(n, form.slots))
    check_names("pack", k, used, shape=(n,))
    if check:
        checks.check_finite("pack", k, v, used, form)
    coded = [x.dtype for x, bits in ((k, form.bits_k), (v, form.bits_v)) if bits in GAINS]  # others are bit patterns
    kernel = backend("pack", k.device, *coded, implementation=implementation)
    if kernel is None and arena is None and offsets is None:
        return reference.pack(k, v, positions, used, form)
    out, where, offsets = checks.destination("pack", arena, form, offsets, n, k.device, "an arena and offsets")
    if kernel is not None:
        kernel.pack(k, v, positions, used, form, where, offsets)
    else:
        reference.put(where, offsets, form, reference.pack(k, v, positions, used, form))
    return out


def unpack(
    pages: Tensor, form: PageFormat, offsets: Tensor | None = None, dtype: torch.dtype | None = None, *,
    implementation: str = "auto",
) -> Dense:  # fmt: skip
    """Dense rows of pages, of live and dead slots alike.

    pages: uint8 [n, form.bytes], or an arena with offsets [n]; dtype: float32 (None; float64 for RAW float64),
    float16 or bfloat16. Returns k [n, slots, D], v [n, slots, Dv], positions int64 [n, slots], live bool [n, slots].
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
    same = ("head_dim", "value_dim", "group", "dtype", "slots")
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

"""Public functions over whole pages: blank, pack, unpack, demote."""

import torch

from workbench_kernels.pages import reference
from workbench_kernels.pages.layout import ALIGN, GAINS, RAW, SLOTS, PageFormat, header
from workbench_kernels.pages.support import backend, check_arena, check_names, raw_dtypes, rows_as_arena

__all__ = ["blank", "demote", "pack", "unpack"]

HALF_RANGE = torch.finfo(torch.float16).max


def blank(arena: torch.Tensor, offsets: torch.Tensor, form: PageFormat, birth: int = 0) -> None:
    """Open pages [n] for `scatter`: a header without live slots. Everything else in them stays as it is."""
    check_arena("blank", arena)
    check_names("blank", arena, offsets, shape=(offsets.numel(),))
    words = header(form, torch.zeros_like(offsets), birth)
    arena.view(torch.int32).view(-1, ALIGN // 4)[offsets.long()] = words


def pack(
    k: torch.Tensor,
    v: torch.Tensor,
    positions: torch.Tensor,
    used: torch.Tensor,
    form: PageFormat,
    arena: torch.Tensor | None = None,
    offsets: torch.Tensor | None = None,
    birth: int = 0,
    *,
    check: bool = True,
    implementation: str = "auto",
) -> torch.Tensor:
    """Write full or partly filled pages, quantised as `form` says; both implementations give the same bytes.

    Keys have one step per channel of a page, values one per slot and group of channels, asymmetric. The 8-bit grid
    covers the live values, its step and zero are stored in half precision, and codes are computed from what is
    stored: |x - x̂| <= gain * step / 2 up to rounding in float32. RAW and, for float16 inputs, 16 are bit-exact.

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
    for name, x, size in (("k", k, form.head_dim), ("v", v, form.value_dim)):
        if x.shape != (n, SLOTS, size) or not x.is_floating_point() or x.device != k.device:
            raise ValueError(
                f"pack: expected floating {name} [{n}, {SLOTS}, {size}] on {k.device}, "
                f"got {x.dtype} {list(x.shape)} on {x.device}"
            )
    if (arena is None) != (offsets is None):
        raise ValueError("pack: expected an arena and offsets, or neither")
    out = torch.zeros(n, form.bytes, dtype=torch.uint8, device=k.device) if arena is None else arena
    where, offsets = rows_as_arena("pack", out, form, offsets)
    check_names("pack", where, positions, shape=(n, SLOTS))
    check_names("pack", where, used, offsets, shape=(n,))
    if check:
        _refuse_wild(k, v, used, form)
    coded = [x.dtype for x, bits in ((k, form.bits_k), (v, form.bits_v)) if bits in GAINS]  # others are bit patterns
    kernel = backend("pack", k.device, *coded, implementation=implementation)
    if kernel is not None:
        kernel.pack(k, v, positions, used, form, where, offsets, birth)
    else:
        reference.put(where, offsets, form, reference.pack(k, v, positions, used, form, birth))
    return out


def unpack(
    pages: torch.Tensor,
    form: PageFormat,
    offsets: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    *,
    implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Dense rows of pages, of live and dead slots alike.

    pages: uint8 [n, form.bytes], or an arena with offsets [n]; dtype: float32 (None; float64 for RAW float64),
    float16 or bfloat16. Returns k [n, SLOTS, D], v [n, SLOTS, Dv], positions int64 [n, SLOTS], live bool [n, SLOTS].
    """
    arena, offsets = rows_as_arena("unpack", pages, form, offsets)
    asked = () if dtype is None else (dtype,)
    kernel = backend("read", arena.device, *raw_dtypes(form), *asked, implementation=implementation)
    if kernel is not None:
        return kernel.unpack(arena, form, offsets, dtype or torch.float32)
    k, v, positions, live = reference.unpack(reference.fetch(arena, offsets, form), form)
    return k.to(dtype or k.dtype), v.to(dtype or v.dtype), positions, live


def demote(
    pages: torch.Tensor,
    form: PageFormat,
    to: PageFormat,
    offsets: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    out_offsets: torch.Tensor | None = None,
    *,
    implementation: str = "auto",
) -> torch.Tensor:
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
    if (out is None) != (out_offsets is None):
        raise ValueError("demote: expected out and out_offsets, or neither")
    if out is None:
        out = torch.zeros(len(offsets), to.bytes, dtype=torch.uint8, device=arena.device)
    where, out_offsets = rows_as_arena("demote", out, to, out_offsets)
    check_names("demote", arena, out_offsets, shape=(len(offsets),))
    kernel = backend("read", arena.device, implementation=implementation)
    if kernel is not None:
        kernel.demote(arena, form, to, offsets, where, out_offsets)
    else:
        reference.put(where, out_offsets, to, reference.demote(reference.fetch(arena, offsets, form), form, to))
    return out


def _refuse_wild(k: torch.Tensor, v: torch.Tensor, used: torch.Tensor, form: PageFormat) -> None:
    live = (torch.arange(SLOTS, device=k.device) < used[:, None])[..., None]
    narrow = [x for x, bits in ((k, form.bits_k), (v, form.bits_v)) if bits != RAW]
    wild = [(~(x.abs() <= HALF_RANGE) & live).any() for x in narrow]
    if wild and bool(torch.stack(wild).any()):
        raise ValueError(f"pack: expected finite values within ±{HALF_RANGE:g}; pack them RAW")

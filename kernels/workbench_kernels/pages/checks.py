"""Dispatch and checks that the public functions share."""

import importlib

import torch
from torch import Tensor

from workbench_kernels.dispatch import Choice, decide, refuse_dtypes
from workbench_kernels.pages.layout import ALIGN, RAW, PageFormat

HALF_RANGE = torch.finfo(torch.float16).max


def choose(device: torch.device | str, *dtypes: torch.dtype, implementation: str = "auto") -> Choice:
    """What would run on a device, `triton` or `torch`, and why.

    dtypes: the floating dtypes at work, those of the tensors and of RAW pages. Raises ValueError for an unknown
    implementation, RuntimeError where Triton is asked for and cannot run.
    """
    return decide(torch.device(device).type, lambda: refuse_dtypes("something is", *dtypes), implementation, "page")


def backend(part: str, device: torch.device, *dtypes: torch.dtype, implementation: str):
    """The Triton module of a part of the package, or None where torch runs."""
    if choose(device, *dtypes, implementation=implementation).name == "torch":
        return None
    return importlib.import_module(f"workbench_kernels.pages.kernel_{part}")


def check_arena(what: str, arena: Tensor) -> None:
    if arena.dtype != torch.uint8 or arena.ndim != 1 or not arena.is_contiguous():
        raise ValueError(
            f"{what}: expected a contiguous uint8 arena [bytes], got {arena.dtype} {list(arena.shape)}"
            f"{'' if arena.is_contiguous() else ' with gaps'}"
        )
    if len(arena) % ALIGN or arena.data_ptr() % ALIGN:
        raise ValueError(f"{what}: expected an arena that starts and ends at multiples of {ALIGN} bytes")


def check_names(what: str, arena: Tensor, *tensors: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Offsets, slots, positions and the like: integers of one shape on the arena's device."""
    shape = tuple(tensors[0].shape) if shape is None else shape
    for tensor in tensors:
        if tensor.dtype not in (torch.int32, torch.int64) or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{what}: expected int32 or int64 indices {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
            )
        if tensor.device != arena.device:
            raise ValueError(f"{what}: expected indices on {arena.device}, got {tensor.device}")


def raw_dtypes(form: PageFormat) -> tuple[torch.dtype, ...]:
    return (form.dtype,) if RAW in (form.bits_k, form.bits_v) else ()


def rows_as_arena(what: str, pages: Tensor, form: PageFormat, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """An arena and offsets, where pages may be rows uint8 [n, form.bytes] without offsets."""
    if offsets is None:
        if pages.ndim != 2 or pages.shape[1] != form.bytes or not pages.is_contiguous():
            raise ValueError(
                f"{what}: expected pages uint8 [n, {form.bytes}] or an arena with offsets, got {list(pages.shape)}"
            )
        offsets = torch.arange(len(pages), device=pages.device) * (form.bytes // ALIGN)
        pages = pages.view(-1)
    check_arena(what, pages)
    check_names(what, pages, offsets, shape=(offsets.numel(),))
    return pages, offsets


def destination(what, out, form: PageFormat, offsets, n: int, device, names="out and out_offsets"):
    """(out, its bytes as an arena, offsets [n]) of pages to write; new rows uint8 [n, form.bytes] where out is None."""
    if (out is None) != (offsets is None):
        raise ValueError(f"{what}: expected {names}, or neither")
    if out is None:
        out = torch.zeros(n, form.bytes, dtype=torch.uint8, device=device)
    where, offsets = rows_as_arena(what, out, form, offsets)
    check_names(what, where, offsets, shape=(n,))
    if where.device != torch.device(device):
        raise ValueError(f"{what}: expected pages to write on {device}, got {where.device}")
    return out, where, offsets


def check_rows(what: str, k: Tensor, v: Tensor, form: PageFormat, shape: tuple[int, ...], device) -> None:
    """Floating k [*shape, D] and v [*shape, Dv] on the device."""
    for name, x, size in (("k", k, form.head_dim), ("v", v, form.value_dim)):
        if x.shape != (*shape, size) or not x.is_floating_point() or x.device != device:
            raise ValueError(
                f"{what}: expected floating {name} {[*shape, size]} on {device}, "
                f"got {x.dtype} {list(x.shape)} on {x.device}"
            )


def check_finite(what: str, k: Tensor, v: Tensor, used: Tensor, form: PageFormat) -> None:
    """Live values that half precision can hold, at any width but RAW."""
    narrow = [x for x, bits in ((k, form.bits_k), (v, form.bits_v)) if bits != RAW and len(x)]
    if k.is_cpu and all(low >= -HALF_RANGE and high <= HALF_RANGE for low, high in (x.aminmax() for x in narrow)):
        return
    live = (torch.arange(form.slots, device=k.device) < used[:, None])[..., None]
    wild = [(~(x.abs() <= HALF_RANGE) & live).any() for x in narrow]
    if wild and bool(torch.stack(wild).any()):
        raise ValueError(f"{what}: expected finite values within ±{HALF_RANGE:g}; pack them RAW")


def check_frequencies(what: str, inv_freq: Tensor, size: int, device: torch.device) -> None:
    if inv_freq.ndim != 1 or not 0 < 2 * len(inv_freq) <= size or inv_freq.device != device:
        got = f"{list(inv_freq.shape)} on {inv_freq.device}"
        raise ValueError(f"{what}: expected 1 to {size // 2} frequencies on {device}, got {got}")

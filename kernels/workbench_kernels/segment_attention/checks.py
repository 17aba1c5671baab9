"""Which implementation runs, and input checks: one line that says what was expected and what came."""

from collections.abc import Iterable, Sequence

import torch

from workbench_kernels.dispatch import Choice, decide, refuse_dtypes
from workbench_kernels.pages.layout import SLOTS, PageFormat

__all__ = ["check_dense", "check_mass", "check_merge", "check_pages", "check_staged_mask", "choose"]


def choose(
    *tensors: torch.Tensor, arena: torch.Tensor | None = None, dtypes: Iterable[torch.dtype] = (),
    sizes: Iterable[int] = (), implementation: str = "auto",
) -> Choice:  # fmt: skip
    """What would compute a call on these tensors.

    tensors: queries, and keys, values or outputs where the call has them as tensors; the last dimension of each is a
    head size. arena: the bytes of the pages, where there are pages. dtypes, sizes: further dtypes and head sizes, as
    what raw means in those pages and how wide their values are.
    implementation: `triton`, `torch`, or `auto`, which takes Triton on a GPU where it can.

    Raises ValueError for another implementation, RuntimeError with the reason where Triton is asked for and cannot run.
    """
    kind = tensors[0].device.type
    return decide(kind, lambda: _refusal(tensors, arena, dtypes, sizes), implementation, "query")


def _refusal(tensors, arena, dtypes, sizes) -> str | None:
    if odd := refuse_dtypes("the input is", *(tensor.dtype for tensor in tensors), *dtypes):
        return odd
    for size in (*(tensor.shape[-1] for tensor in tensors), *sizes):
        if size % 16 or not 16 <= size <= 256:
            return f"it takes head sizes in multiples of 16 up to 256, got {size}"
    if arena is not None and not arena.is_contiguous():
        return "it takes a contiguous arena"
    if arena is not None and arena.data_ptr() % 16:
        return "it takes an arena that starts at a multiple of 16 bytes"
    return None


def check_dense(name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """q [R, H, D], k [Hk, n, D], v [Hk, n, Dv] of one dtype on one device."""
    if q.ndim != 3 or k.ndim != 3 or v.ndim != 3:
        raise ValueError(
            f"{name}: expected q [R, H, D], k [Hk, n, D] and v [Hk, n, Dv], "
            f"got {list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        )
    if k.shape[:2] != v.shape[:2] or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"{name}: q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} differ in "
            f"{'head size' if q.shape[2] != k.shape[2] else 'KV heads or number of keys'}"
        )
    _check_heads(name, q, k.shape[0])
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"{name}: expected one floating dtype, got q {q.dtype}, k {k.dtype}, v {v.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(f"{name}: expected one device, got q {q.device}, k {k.device}, v {v.device}")


def check_staged_mask(name: str, mask: torch.Tensor | str | None, rows: int, keys: int) -> None:
    """None, "causal", bool [R, S] or int32 words [R, ceil(S / 32)]."""
    if isinstance(mask, torch.Tensor):
        width = {torch.bool: keys, torch.int32: -(-keys // 32)}.get(mask.dtype)
        if mask.shape != (rows, width):
            raise ValueError(
                f"{name}: expected a bool mask [{rows}, {keys}] or int32 words [{rows}, {-(-keys // 32)}], "
                f"got {mask.dtype} {list(mask.shape)}"
            )
    elif mask not in (None, "causal"):
        raise ValueError(f"{name}: expected the mask None, 'causal' or a tensor, got {mask!r}")
    elif mask == "causal" and rows > keys:
        raise ValueError(f"{name}: expected causal rows to be among the keys, got {rows} rows and {keys} keys")


def check_pages(
    name: str, q, arena, table, count, *, value_dim, group, raw, tau, bias, numbers, positions, window
) -> None:
    """q [R, H, D], arena uint8 [bytes], table int32 [Hk, P], count int32 [Hk], and the options of pages."""
    if q.ndim != 3 or not q.is_floating_point():
        raise ValueError(f"{name}: expected floating q [R, H, D], got {q.dtype} {list(q.shape)}")
    if arena.ndim != 1 or arena.dtype != torch.uint8:
        raise ValueError(f"{name}: expected a uint8 arena [bytes], got {arena.dtype} {list(arena.shape)}")
    if table.ndim != 2 or count.shape != table.shape[:1] or not table.dtype == count.dtype == torch.int32:
        raise ValueError(
            f"{name}: expected an int32 table [Hk, P] and int32 counts [Hk], "
            f"got {table.dtype} {list(table.shape)} and {count.dtype} {list(count.shape)}"
        )
    _check_heads(name, q, table.shape[0])
    PageFormat(q.shape[2], value_dim, group=group, dtype=raw)  # raises where the head sizes or the group do not fit
    if not tau > 0:
        raise ValueError(f"{name}: expected a positive tau, got {tau}")
    pairs = ("bias and page numbers", bias, numbers), ("row positions and a window", positions, window)
    for pair, one, other in pairs:
        if (one is None) != (other is None):
            raise ValueError(f"{name}: expected {pair} together, got one of them")
    if bias is not None and not bias.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous bias, got one with gaps")
    shapes = ("bias", bias, (*(() if bias is None else bias.shape[:1]), SLOTS)), ("page numbers", numbers, table.shape)
    for what, tensor, shape in (*shapes, ("row positions", positions, q.shape[:1])):
        dtype = torch.float32 if what == "bias" else torch.int32
        if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype):
            raise ValueError(
                f"{name}: expected {str(dtype).removeprefix('torch.')} {what} {list(shape)}, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
    others = [t for t in (arena, table, count, bias, numbers, positions) if t is not None]
    if any(t.device != q.device for t in others):
        raise ValueError(f"{name}: expected one device, got {sorted({str(t.device) for t in (q, *others)})}")


def check_mass(name: str, q: torch.Tensor, lse: torch.Tensor, reduce: str, last: int | None) -> None:
    """lse [R, H], a known reduction, and a number of last rows within R."""
    if lse.shape != q.shape[:2]:
        raise ValueError(f"{name}: expected log-sum-exps {list(q.shape[:2])}, got {list(lse.shape)}")
    if reduce not in ("sum", "max", "row"):
        raise ValueError(f"{name}: expected reduce 'sum', 'max' or 'row', got {reduce!r}")
    if last is not None and not 1 <= last <= q.shape[0]:
        raise ValueError(f"{name}: expected last in [1, {q.shape[0]}], got {last}")


def check_merge(outs: Sequence[torch.Tensor], lses: Sequence[torch.Tensor], sigma: Sequence[float] | None) -> None:
    """One log-sum-exp and one positive sigma for each output, all of one shape."""
    if not len(outs):
        raise ValueError("merge: expected at least one segment, got none")
    if len(outs) != len(lses) or (sigma is not None and len(sigma) != len(outs)):
        counts = f"{len(outs)} outputs, {len(lses)} log-sum-exps, {'no' if sigma is None else len(sigma)} sigmas"
        raise ValueError(f"merge: expected one log-sum-exp (and sigma) for each output, got {counts}")
    for j, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        if out.ndim != 3 or out.shape != outs[0].shape or lse.shape != out.shape[:2]:
            raise ValueError(
                f"merge: expected outputs [R, H, Dv] of one shape with log-sum-exps [R, H], "
                f"got {list(out.shape)} with {list(lse.shape)} in segment {j} and {list(outs[0].shape)} in segment 0"
            )
    if sigma is not None and not all(s > 0 for s in sigma):
        raise ValueError(f"merge: expected positive sigmas, got {list(sigma)}")


def _check_heads(name: str, q: torch.Tensor, kv_heads: int) -> None:
    if kv_heads == 0 or q.shape[1] % kv_heads:
        raise ValueError(f"{name}: expected query heads in a multiple of the KV heads, got {q.shape[1]} and {kv_heads}")

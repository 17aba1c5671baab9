"""Which implementation runs, and input checks: one line that says what was expected and what came."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workbench_kernels.dispatch import Choice, decide, refuse_dtypes
from workbench_kernels.pages.layout import PageFormat


class PageOptions(NamedTuple):
    """How pages are attended.

    value_dim, group, raw: Dv (None: D), channels that share a value step, what raw width means (None: q's dtype).
    slots: of a page.
    bias, numbers: float32 [pages, slots] added to the scores of slots, and int32 [Hk, P], the row of it for each entry.
    positions, window: int32 [R] and w; a row sees the slots whose position is more than its own minus w.
    """

    value_dim: int | None = None
    group: int = 32
    raw: torch.dtype | None = None
    bias: Tensor | None = None
    numbers: Tensor | None = None
    positions: Tensor | None = None
    window: int | None = None
    slots: int = 32

    def of(self, q: Tensor) -> "PageOptions":
        """With what is None by default taken from the queries."""
        return self._replace(value_dim=self.value_dim or q.shape[-1], raw=self.raw or q.dtype)


def choose(
    *tensors: Tensor, arena: Tensor | None = None, dtypes=(), sizes=(), slots: int = 32, implementation: str = "auto"
) -> Choice:
    """What would compute a call on these tensors.

    tensors: queries, and keys, values or outputs where the call has them as tensors; the last dimension of each is a
    head size. arena: the bytes of the pages, where there are pages. dtypes, sizes: further dtypes and head sizes, as
    what raw means in those pages and how wide their values are. slots: of a page.
    implementation: `triton`, `torch`, or `auto`, which takes Triton on a GPU where it can.

    Raises ValueError for another implementation, RuntimeError with the reason where Triton is asked for and cannot run.
    """
    kind = tensors[0].device.type
    return decide(kind, lambda: _refusal(tensors, arena, dtypes, sizes, slots), implementation, "query")


def _refusal(tensors, arena, dtypes, sizes, slots) -> str | None:
    if odd := refuse_dtypes("the input is", *(tensor.dtype for tensor in tensors), *dtypes):
        return odd
    for size in (*(tensor.shape[-1] for tensor in tensors), *sizes):
        if size % 16 or not 16 <= size <= 256:
            return f"it takes head sizes in multiples of 16 up to 256, got {size}"
    widest = max((*(tensor.shape[-1] for tensor in tensors), *sizes))
    most = 64 if torch.float32 in [tensor.dtype for tensor in tensors] else 128
    if slots > 32 and widest > most:  # a block of every GPU from sm80 on has 99 KiB of shared memory
        return f"it takes pages of {slots} slots up to a head size of {most} in this dtype, got {widest}"
    if arena is not None and not arena.is_contiguous():
        return "it takes a contiguous arena"
    if arena is not None and arena.data_ptr() % 16:
        return "it takes an arena that starts at a multiple of 16 bytes"
    return None


def check_dense(name: str, q: Tensor, k: Tensor, v: Tensor) -> None:
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


def check_staged_mask(name: str, mask: Tensor | str | None, rows: int, keys: int) -> None:
    """None, "causal", bool [R, S] or int32 words [R, ceil(S / 32)]."""
    if isinstance(mask, Tensor):
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


def check_live(q: Tensor, base: Tensor, words: Tensor, staged: int, capacity: int) -> None:
    """base int32 [1], words int32 [R, ceil(staged / 32)], and no more staged rows than there is room for."""
    if not 0 <= staged <= capacity:
        raise ValueError(f"attend_live: expected staged rows in [0, {capacity}], got {staged}")
    for name, tensor, shape in (("base", base, (1,)), ("words", words, (len(q), -(-staged // 32)))):
        if tensor.shape != shape or tensor.dtype != torch.int32 or tensor.device != q.device:
            raise ValueError(
                f"attend_live: expected int32 {name} {list(shape)} on {q.device}, "
                f"got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )


def check_pages(name: str, q: Tensor, arena: Tensor, table: Tensor, count: Tensor, options: PageOptions) -> None:
    """q [R, H, D], arena uint8 [bytes], table int32 [Hk, P], count int32 [Hk], and the options of pages."""
    bias, numbers, positions = options.bias, options.numbers, options.positions
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
    # raises where the head sizes or the group do not fit
    PageFormat(q.shape[2], options.value_dim, group=options.group, dtype=options.raw, slots=options.slots)
    pairs = ("bias and page numbers", bias, numbers), ("row positions and a window", positions, options.window)
    for pair, one, other in pairs:
        if (one is None) != (other is None):
            raise ValueError(f"{name}: expected {pair} together, got one of them")
    if bias is not None and not bias.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous bias, got one with gaps")
    for what, tensor, shape, dtype in (
        ("bias", bias, (*(() if bias is None else bias.shape[:1]), options.slots), torch.float32),
        ("page numbers", numbers, table.shape, torch.int32),
        ("row positions", positions, q.shape[:1], torch.int32),
    ):
        if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype):
            raise ValueError(
                f"{name}: expected {str(dtype).removeprefix('torch.')} {what} {list(shape)}, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
    others = [t for t in (arena, table, count, bias, numbers, positions) if t is not None]
    if any(t.device != q.device for t in others):
        raise ValueError(f"{name}: expected one device, got {sorted({str(t.device) for t in (q, *others)})}")


def check_mass(name: str, q: Tensor, lse: Tensor) -> None:
    if lse.shape != q.shape[:2]:
        raise ValueError(f"{name}: expected log-sum-exps {list(q.shape[:2])}, got {list(lse.shape)}")


def check_merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> None:
    """One log-sum-exp for each output, all of one shape."""
    if not len(outs) or len(outs) != len(lses):
        raise ValueError(f"merge: expected as many log-sum-exps as outputs, got {len(lses)} and {len(outs)}")
    for j, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        if out.ndim != 3 or out.shape != outs[0].shape or lse.shape != out.shape[:2]:
            raise ValueError(
                f"merge: expected outputs [R, H, Dv] of one shape with log-sum-exps [R, H], "
                f"got {list(out.shape)} with {list(lse.shape)} in segment {j} and {list(outs[0].shape)} in segment 0"
            )


def _check_heads(name: str, q: Tensor, kv_heads: int) -> None:
    if kv_heads == 0 or q.shape[1] % kv_heads:
        raise ValueError(f"{name}: expected query heads in a multiple of the KV heads, got {q.shape[1]} and {kv_heads}")

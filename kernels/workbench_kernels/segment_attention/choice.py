"""Which implementation runs: Triton on a GPU where it can, torch everywhere else."""

from collections.abc import Iterable

import torch

from workbench_kernels.dispatch import Choice, decide

__all__ = ["Choice", "choose"]

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def choose(
    *tensors: torch.Tensor,
    arena: torch.Tensor | None = None,
    dtypes: Iterable[torch.dtype] = (),
    sizes: Iterable[int] = (),
    implementation: str = "auto",
) -> Choice:
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
    for dtype in (*(tensor.dtype for tensor in tensors), *dtypes):
        if dtype not in TRITON_DTYPES:
            return f"it computes in float32, and the input is {str(dtype).removeprefix('torch.')}"
    for size in (*(tensor.shape[-1] for tensor in tensors), *sizes):
        if size % 16 or not 16 <= size <= 256:
            return f"it takes head sizes in multiples of 16 up to 256, got {size}"
    if arena is not None and not arena.is_contiguous():
        return "it takes a contiguous arena"
    if arena is not None and arena.data_ptr() % 16:
        return "it takes an arena that starts at a multiple of 16 bytes"
    return None

"""Which implementation runs: Triton on a GPU where it can, torch everywhere else."""

import importlib.util
import os
from collections.abc import Iterable
from typing import NamedTuple

import torch

__all__ = ["Choice", "choose"]

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Choice(NamedTuple):
    """What computes a call, `triton` or `torch`, and why."""

    name: str
    reason: str


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
    if implementation not in ("auto", "triton", "torch"):
        raise ValueError(f"implementation: expected 'auto', 'triton' or 'torch', got {implementation!r}")
    if implementation == "torch":
        return Choice("torch", "asked for")
    if implementation == "auto" and tensors[0].device.type != "cuda":
        return Choice("torch", f"the tensors are on {tensors[0].device.type!r}")
    reason = _refusal(tensors, arena, dtypes, sizes)
    if reason is None:
        return Choice("triton", "asked for" if implementation == "triton" else "the tensors are on 'cuda'")
    if implementation == "auto":
        return Choice("torch", reason)
    raise RuntimeError(f"the Triton kernel cannot run: {reason}; use implementation='torch'")


def _refusal(tensors, arena, dtypes, sizes) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it has wheels for Linux only)"
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
    if tensors[0].device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the tensors are on {tensors[0].device.type!r} and its interpreter is off (TRITON_INTERPRET=1)"
    return None

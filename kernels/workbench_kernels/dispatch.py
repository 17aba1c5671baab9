"""Which implementation runs, decided in one place: Triton on a GPU where it can, torch everywhere else; and where."""

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import NamedTuple

import torch

VARIABLE = "WORKBENCH_KERNELS"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Choice(NamedTuple):
    """What computes a call, `triton` or `torch`, and why."""

    name: str
    reason: str


def decide(kind: str, refusal: Callable[[], str | None], implementation: str = "auto", what: str = "input") -> Choice:
    """What would compute a call on a device of that kind ("cuda", "cpu", …).

    refusal: says why this kernel cannot take this call, or None; asked only where the kernel is wanted.
    implementation: `triton`, `torch`, or `auto`: what the environment variable WORKBENCH_KERNELS says, else Triton on a
    GPU where it can. `triton` from the environment still falls back to torch where a kernel refuses.

    Raises ValueError for another implementation, RuntimeError with the reason where Triton is asked for and cannot run.
    """
    wish = os.environ.get(VARIABLE, "auto") if implementation == "auto" else implementation
    if wish not in ("auto", "triton", "torch"):
        where = "implementation" if implementation != "auto" else VARIABLE
        raise ValueError(f"{where}: expected 'auto', 'triton' or 'torch', got {wish!r}")
    if wish == "torch":
        return Choice("torch", "asked for")
    if wish == "auto" and kind != "cuda":
        return Choice("torch", f"the {what} is on {kind!r}")
    reason = _missing(kind, what) or refusal()
    if reason is None:
        return Choice("triton", "asked for" if wish == "triton" else f"the {what} is on 'cuda'")
    if implementation == "auto":
        return Choice("torch", reason)
    raise RuntimeError(f"the Triton kernel cannot run: {reason}; use implementation='torch'")


def refuse_dtypes(what: str, *dtypes: torch.dtype) -> str | None:
    """Why a kernel that computes in float32 cannot take these, or None."""
    odd = [str(dtype).removeprefix("torch.") for dtype in dtypes if dtype not in DTYPES]
    return f"it computes in float32, and {what} {odd[0]}" if odd else None


def _missing(kind: str, what: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it has wheels for Linux only)"
    if kind != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the {what} is on {kind!r} and its interpreter is off (TRITON_INTERPRET=1)"
    return None


def on_its_device(launcher: Callable) -> Callable:
    """The launcher, with the device of its first tensor made the current one while it runs.

    Triton launches on the current device, wherever the tensors lie. Tensors are looked for among the positional
    arguments and in tuples there; on a CPU nothing is done.
    """

    @functools.wraps(launcher)
    def launched(*args, **kwargs):
        parts = (part for argument in args for part in (argument if isinstance(argument, tuple) else (argument,)))
        device = next(part.device for part in parts if isinstance(part, torch.Tensor))
        if device.type != "cuda":
            return launcher(*args, **kwargs)
        with torch.cuda.device(device):
            return launcher(*args, **kwargs)

    return launched

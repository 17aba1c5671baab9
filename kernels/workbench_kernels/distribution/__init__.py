"""Statistics of next-token laws: log-sum-exp, entropy, varentropy, best token and the top k, row by row.

The Triton kernel reads each row of logits once; the torch reference defines what it must give.
"""

import importlib.util
import os
from typing import NamedTuple

import torch

from workbench_kernels.distribution import reference

__all__ = ["Statistics", "choose", "statistics"]

TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Statistics(NamedTuple):
    """Figures of R rows of logits.

    Attributes
    ----------
    lse: [R] log-sum-exp of the logits, in nats; log p = logits - lse.
    entropy: [R] in nats.
    varentropy: [R] variance of the surprisal, in nats squared.
    argmax: [R] int64, the most probable token; the lowest id wins a tie.
    top_values, top_ids: [R, k] largest logits and their ids, lowest id first among equals.
    implementation: `triton` or `torch`, what computed the figures.
    """

    lse: torch.Tensor
    entropy: torch.Tensor
    varentropy: torch.Tensor
    argmax: torch.Tensor
    top_values: torch.Tensor
    top_ids: torch.Tensor
    implementation: str


def statistics(logits: torch.Tensor, k: int = 0, implementation: str = "auto") -> Statistics:
    """Figures of the laws softmax(logits), in float32 (float64 for float64 logits).

    Parameters
    ----------
    logits: [R, V] with V >= 1; -inf marks tokens that are cut. A row that holds NaN or +inf, or nothing but -inf, is
        no law: its entropy and varentropy are NaN.
    k: how many top candidates to return, 0 for none.
    implementation: `triton`, `torch`, or `auto`, which takes Triton on a GPU where it can.

    Raises ValueError where the logits or k do not fit, RuntimeError with the reason where Triton is asked for and
    cannot run.
    """
    if logits.ndim != 2 or not logits.shape[1] or not logits.is_floating_point():
        raise ValueError(f"statistics: expected floating logits [R, V], got {logits.dtype} {list(logits.shape)}")
    if not 0 <= k <= logits.shape[1]:
        raise ValueError(f"statistics: expected k in [0, {logits.shape[1]}], got {k}")
    chosen = choose(logits, implementation)
    if chosen == "triton":
        from workbench_kernels.distribution import kernel

        figures = kernel.statistics(logits)
    else:
        figures = reference.statistics(logits)
    return Statistics(*figures, *reference.top_k(logits, k), chosen)


def choose(logits: torch.Tensor, implementation: str = "auto") -> str:
    """`triton` or `torch`: what would compute these logits' statistics. Raises as `statistics` does."""
    if implementation not in ("auto", "triton", "torch"):
        raise ValueError(f"implementation: expected 'auto', 'triton' or 'torch', got {implementation!r}")
    if implementation == "torch" or (implementation == "auto" and logits.device.type != "cuda"):
        return "torch"
    reason = _refusal(logits)
    if reason is None:
        return "triton"
    if implementation == "auto":
        return "torch"
    raise RuntimeError(f"the Triton kernel cannot run: {reason}; use implementation='torch'")


def _refusal(logits: torch.Tensor) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (it has wheels for Linux only)"
    if logits.dtype not in TRITON_DTYPES:
        return f"it computes in float32, and the logits are {str(logits.dtype).removeprefix('torch.')}"
    if logits.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the logits are on {logits.device.type!r} and its interpreter is off (TRITON_INTERPRET=1)"
    return None

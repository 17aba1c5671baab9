"""Every kernel beside its torch reference on one small shape: `python -m workbench_kernels.selftest cpu | cuda`.

It prints a line of JSON per operation. A kernel that ends the process leaves the lines before it. Set
TRITON_INTERPRET=1 where there is no GPU.
"""

from collections.abc import Callable, Iterable, Iterator

import torch

from workbench_kernels.selftest.operations import MIXED, OPERATIONS, Call, Operation

__all__ = ["MIXED", "OPERATIONS", "Call", "Operation", "check", "check_all", "compare"]


def compare(got: Iterable[torch.Tensor], want: Iterable[torch.Tensor]) -> float:
    """The largest |got - want| / max(1, |want|); infinite where shapes, integers, infinities or NaNs differ."""
    worst = 0.0
    for left, right in zip(got, want, strict=True):
        if left.shape != right.shape:
            return float("inf")
        if not right.is_floating_point():
            worst = worst if torch.equal(left.long(), right.long()) else float("inf")
            continue
        left, right = left.double(), right.double()
        finite = right.isfinite()
        same = torch.equal(finite, left.isfinite()) and torch.equal(
            left[~finite].nan_to_num(nan=0.5), right[~finite].nan_to_num(nan=0.5)
        )
        scaled = ((left - right).abs() / right.abs().clamp_min(1))[finite]
        worst = max(worst, scaled.max().item() if scaled.numel() else 0.0, 0.0 if same else float("inf"))
    return worst


def check(
    prepare: Callable[..., Call], device: str, dtype: torch.dtype = torch.float32, **shape
) -> tuple[float, float]:
    """The error of Triton (of SDPA, for attention) beside the reference on equal inputs, and its tolerance."""
    results = []
    for how in ("triton", "torch"):
        call = prepare(device, dtype, **shape)
        out = call.run(how)
        results.append(call.read() if call.read else out)
    return compare(*results), call.tolerance


def check_all(device: str) -> Iterator[dict]:
    """A row for every operation: error, tolerance and whether it passed; a message where it raised."""
    for name, prepare in OPERATIONS.items():
        row = {"operation": name, "passed": False, "error": None, "tolerance": None, "message": ""}
        try:
            error, tolerance = check(prepare, device)
            row |= {"passed": error <= tolerance, "tolerance": tolerance}
            row |= {"error": error} if error < float("inf") else {"message": "integers, infinities or NaNs differ"}
        except Exception as error:  # whatever a kernel raises is its row's result
            row["message"] = f"{type(error).__name__}: {error}".splitlines()[0]
        yield row

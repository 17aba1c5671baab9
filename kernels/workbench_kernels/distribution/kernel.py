"""Statistics of a law in one streaming pass over each row of logits.

With m the largest logit so far and x the others, three sums carry everything: s = Σ e^(x-m), a = Σ e^(x-m) (x-m) and
b = Σ e^(x-m) (x-m)². A new maximum m' = m - d rescales them (d <= 0): s' = f s, a' = f (a + d s),
b' = f (b + 2 d a + d² s) with f = e^d. At the end lse = m + log s, entropy = log s - a/s, varentropy = b/s - (a/s)².
"""

import torch
import triton
import triton.language as tl

__all__ = ["statistics"]


@triton.jit
def statistics_fwd_kernel(
    lse_ptr,  # [n_rows] float32
    entropy_ptr,  # [n_rows] float32
    varentropy_ptr,  # [n_rows] float32
    argmax_ptr,  # [n_rows] int64
    logits_ptr,  # [n_rows, n_cols]
    logits_row_stride,
    n_cols,
    BLOCK_SIZE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    best = tl.full((), float("-inf"), tl.float32)
    best_id = tl.full((), 0, tl.int32)
    s = tl.full((), 0.0, tl.float32)
    a = tl.full((), 0.0, tl.float32)
    b = tl.full((), 0.0, tl.float32)
    for start in range(0, n_cols, BLOCK_SIZE):
        col_offsets = start + tl.arange(0, BLOCK_SIZE)
        mask = col_offsets < n_cols
        x = tl.load(logits_ptr + row * logits_row_stride + col_offsets, mask=mask, other=float("-inf")).to(tl.float32)
        tile_best = tl.max(x, axis=0)
        best_id = tl.where(tile_best > best, start + tl.argmax(x, axis=0, tie_break_left=True), best_id)
        new_best = tl.maximum(best, tile_best)
        # -inf minus -inf is NaN: rows that begin with cut tokens have no maximum yet, and then the sums are 0
        d = tl.where(best == float("-inf"), 0.0, best - new_best)
        f = tl.exp(d)
        cut = x == float("-inf")
        y = tl.where(cut, 0.0, x - new_best)
        w = tl.where(cut, 0.0, tl.exp(y))
        b = f * (b + 2 * d * a + d * d * s) + tl.sum(w * y * y, axis=0)
        a = f * (a + d * s) + tl.sum(w * y, axis=0)
        s = f * s + tl.sum(w, axis=0)
        best = new_best
    mean = a / s
    tl.store(lse_ptr + row, best + tl.log(s))
    tl.store(entropy_ptr + row, tl.log(s) - mean)
    tl.store(varentropy_ptr + row, b / s - mean * mean)
    tl.store(argmax_ptr + row, best_id.to(tl.int64))


def block_size(n_cols: int) -> int:
    """Columns a program reads at a time: a whole small row, else 4096."""
    return min(max(triton.next_power_of_2(n_cols), 16), 4096)


def statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch one program per row of logits [R, V]; rows may be strided, columns must lie side by side."""
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    rows, cols = logits.shape
    lse, entropy, varentropy = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(3))
    argmax = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows:
        statistics_fwd_kernel[(rows,)](
            lse, entropy, varentropy, argmax, logits, logits.stride(0), cols, BLOCK_SIZE=block_size(cols)
        )
    return lse, entropy, varentropy, argmax

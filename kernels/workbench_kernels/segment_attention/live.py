"""Attention over the live part of a preallocated run whose length is known to the device alone."""

import torch

from workbench_kernels.segment_attention.checks import check_dense
from workbench_kernels.segment_attention.dense import attend_dense

__all__ = ["attend_live"]


def attend_live(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, base: torch.Tensor, words: torch.Tensor, staged: int,
    scale: float, splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Attention of R rows over the live slots of a run, in Triton, without asking the device how many there are.

    q: [R, H, D]; k: [Hk, capacity, D]; v: [Hk, capacity, Dv], strided views allowed. base: int32 [1] on the device,
    slots every row sees; base + staged <= capacity is the caller's to keep. words: int32 [R, ceil(staged / 32)], what
    each row sees of the `staged` slots behind them (`mask_words`, `ancestor_words`). splits: into how many parts the
    keys are cut (None: by the capacity). Returns out [R, H, Dv] and lse [R, H] in float32; out 0 and lse -inf for a row
    that sees nothing.

    `choose(q, v)` tells beforehand whether Triton can run it. Raises ValueError where shapes, dtypes or devices do not
    fit.
    """
    check_dense("attend_live", q, k, v)
    rows, capacity = len(q), k.shape[1]
    if not 0 <= staged <= capacity:
        raise ValueError(f"attend_live: expected staged rows in [0, {capacity}], got {staged}")
    for name, tensor, shape in (("base", base, (1,)), ("words", words, (rows, -(-staged // 32)))):
        if tensor.shape != shape or tensor.dtype != torch.int32 or tensor.device != q.device:
            raise ValueError(
                f"attend_live: expected int32 {name} {list(shape)} on {q.device}, "
                f"got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
            )
    return attend_dense(q, k, v, scale, words, splits, base, staged)

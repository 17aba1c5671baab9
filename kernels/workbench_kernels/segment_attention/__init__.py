"""Attention over one segment of keys, and the exact merge of segments.

Attention over a set of keys is a pair (output, log-sum-exp), and the pairs of disjoint sets merge into the pair of
their union. `attend` gives the pair of one segment, `merge` puts pairs together.
"""

from collections.abc import Sequence

import torch

from workbench_kernels.segment_attention import reference

__all__ = ["attend", "merge"]


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    mask: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of R query rows over the n keys of one segment.

    Parameters
    ----------
    q: [R, H, D]; H is a multiple of the KV heads Hk, query head h reads KV head h // (H / Hk).
    k: [Hk, n, D]; v: [Hk, n, Dv]; n may be 0.
    scale: factor on the scores before the softmax, as a rule D ** -0.5.
    mask: [R, n] bool, True where a row may see a key; None lets every row see all of them.
    bias: [n] or [Hk, n], added to the scaled scores (log m makes a key count m times).

    Returns
    -------
    out [R, H, Dv] and lse [R, H] in nats, in float32 (float64 for float64 inputs). A row that sees no key has out 0
    and lse -inf.

    Raises ValueError where shapes, dtypes or devices do not fit.
    """
    _check(q, k, v, mask, bias)
    return reference.attend(q, k, v, scale, mask, bias)


def merge(
    outs: Sequence[torch.Tensor], lses: Sequence[torch.Tensor], sigma: Sequence[float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair of the union of disjoint segments, from their pairs.

    Segment j weighs exp(sigma_j * lse_j) in the result; sigma_j = 1 everywhere (None) is exact attention.

    outs: tensors [R, H, Dv]; lses: tensors [R, H], -inf where a segment is empty for a row; sigma: one positive number
    per segment. Returns out [R, H, Dv] and lse [R, H] in the widest of the dtypes given, at least float32.

    Raises ValueError where the numbers or shapes of the parts do not fit.
    """
    if not len(outs):
        raise ValueError("merge: expected at least one segment, got none")
    if len(outs) != len(lses) or (sigma is not None and len(sigma) != len(outs)):
        counts = f"{len(outs)} outputs, {len(lses)} log-sum-exps" + (
            f", {len(sigma)} sigmas" if sigma is not None else ""
        )
        raise ValueError(f"merge: expected one log-sum-exp (and sigma) for each output, got {counts}")
    for j, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        if out.ndim != 3 or out.shape != outs[0].shape or lse.shape != out.shape[:2]:
            raise ValueError(
                f"merge: expected outputs [R, H, Dv] of one shape with log-sum-exps [R, H], "
                f"got {list(out.shape)} with {list(lse.shape)} in segment {j} and {list(outs[0].shape)} in segment 0"
            )
    if sigma is not None and not all(s > 0 for s in sigma):
        raise ValueError(f"merge: expected positive sigmas, got {list(sigma)}")
    return reference.merge(outs, lses, sigma)


def _check(q, k, v, mask, bias) -> None:
    if q.ndim != 3 or k.ndim != 3 or v.ndim != 3:
        raise ValueError(
            f"attend: expected q [R, H, D], k [Hk, n, D] and v [Hk, n, Dv], "
            f"got {list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        )
    if k.shape[:2] != v.shape[:2] or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"attend: q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} differ in "
            f"{'head size' if q.shape[2] != k.shape[2] else 'KV heads or number of keys'}"
        )
    if k.shape[0] == 0 or q.shape[1] % k.shape[0]:
        raise ValueError(
            f"attend: expected query heads in a multiple of the KV heads, got {q.shape[1]} and {k.shape[0]}"
        )
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"attend: expected one floating dtype, got q {q.dtype}, k {k.dtype}, v {v.dtype}")
    if not q.device == k.device == v.device:
        raise ValueError(f"attend: expected one device, got q {q.device}, k {k.device}, v {v.device}")
    n = k.shape[1]
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (q.shape[0], n)):
        raise ValueError(f"attend: expected a bool mask [{q.shape[0]}, {n}], got {mask.dtype} {list(mask.shape)}")
    if bias is not None and bias.shape not in ((n,), (k.shape[0], n)):
        raise ValueError(f"attend: expected a bias [{n}] or [{k.shape[0]}, {n}], got {list(bias.shape)}")

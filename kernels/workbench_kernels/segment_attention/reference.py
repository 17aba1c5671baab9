"""What segment attention means, in plain torch: float32 inside, float64 kept."""

from collections.abc import Sequence

import torch

__all__ = ["attend", "merge"]


def attend(q, k, v, scale, mask=None, bias=None) -> tuple[torch.Tensor, torch.Tensor]:
    """q [R, H, D] over k [Hk, n, D], v [Hk, n, Dv] -> out [R, H, Dv], lse [R, H]. See the public function."""
    rows, heads, size = q.shape
    kv_heads, n, _ = k.shape
    group = heads // kv_heads
    q, k, v = (_wide(tensor) for tensor in (q, k, v))
    grouped = q.view(rows, kv_heads, group, size).permute(1, 2, 0, 3).reshape(kv_heads, group * rows, size)
    scores = (grouped @ k.transpose(1, 2)).view(kv_heads, group, rows, n) * scale
    if bias is not None:
        scores = scores + bias.to(scores.dtype).expand(kv_heads, n)[:, None, None]
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    lse = scores.logsumexp(-1)  # [Hk, G, R]; -inf for a row that sees nothing
    weights = (scores - _finite(lse)[..., None]).exp()
    out = weights.view(kv_heads, group * rows, n) @ v  # [Hk, G * R, Dv]
    out = out.view(kv_heads, group, rows, v.shape[2]).permute(2, 0, 1, 3).reshape(rows, heads, v.shape[2])
    return out, lse.permute(2, 0, 1).reshape(rows, heads)


def merge(
    outs: Sequence[torch.Tensor], lses: Sequence[torch.Tensor], sigma: Sequence[float] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs (out [R, H, Dv], lse [R, H]) -> the pair of the union. See the public function."""
    stacked = torch.stack([_wide(lse) for lse in lses])  # [segments, R, H]
    if sigma is not None:
        stacked = stacked * stacked.new_tensor(list(sigma))[:, None, None]
    lse = stacked.logsumexp(0)
    weights = (stacked - _finite(lse)).exp()
    return sum(w[..., None] * _wide(out) for w, out in zip(weights, outs, strict=True)), lse


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _finite(lse: torch.Tensor) -> torch.Tensor:
    """-inf, the sign of an empty row, as 0, so that -inf minus -inf never happens."""
    return lse.masked_fill(lse == -torch.inf, 0.0)

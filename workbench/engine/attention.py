"""Attention as a merge of segments: each gives (output, log-sum-exp), and the pairs merge exactly.

One rectangular run, the common case, is one SDPA call; anything else goes segment by segment through the kernels
package and is merged there.
"""

import torch
import torch.nn.functional as F

from workbench.cache.store import Segment
from workbench_kernels import segment_attention

__all__ = ["attend"]


def attend(q: torch.Tensor, segments: list[Segment], scale: float) -> torch.Tensor:
    """q: [1, H, R, D] -> [1, H, R, Dv]; H is a multiple of the segments' KV heads (grouped-query attention)."""
    if len(segments) == 1:
        only = segments[0]
        return F.scaled_dot_product_attention(
            q, only.k[None], only.v[None], attn_mask=only.mask, is_causal=only.causal, scale=scale, enable_gqa=True
        )
    rows = q[0].transpose(0, 1)
    pairs = [segment_attention.attend(rows, s.k, s.v, scale, mask=_mask(s, len(rows))) for s in segments]
    out, _ = segment_attention.merge([out for out, _ in pairs], [lse for _, lse in pairs])
    return out.to(q.dtype).transpose(0, 1)[None]


def _mask(segment: Segment, rows: int) -> torch.Tensor | None:
    if not segment.causal:
        return segment.mask
    return torch.ones(rows, segment.k.shape[1], dtype=torch.bool, device=segment.k.device).tril()

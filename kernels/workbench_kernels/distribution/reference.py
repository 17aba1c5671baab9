"""What the statistics of a law mean, in plain torch: float32 inside, float64 kept."""

import torch

__all__ = ["statistics", "top_k"]


def statistics(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """logits [R, V] -> log-sum-exp, entropy, varentropy, argmax, each [R]. See the public function."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    lse = logits.logsumexp(-1, keepdim=True)
    log_p = logits - lse
    p = log_p.exp()
    surprisal = -log_p.masked_fill(log_p == -torch.inf, 0.0)  # where p is 0, any finite number will do
    entropy = (p * surprisal).sum(-1, keepdim=True)
    varentropy = (p * (surprisal - entropy).square()).sum(-1)
    best = (logits == logits.amax(-1, keepdim=True)).int().argmax(-1)  # argmax of 0s and 1s: the first 1
    return lse[:, 0], entropy[:, 0], varentropy, best


def top_k(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest logits of each row and their ids, both [R, k]; a stable sort keeps the lowest id first."""
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    return values[:, :k], ids[:, :k]

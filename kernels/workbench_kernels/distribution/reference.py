"""What the figures of a distribution and the seeded draw from it mean, in plain torch: float32 inside, float64 kept."""

from functools import lru_cache
from math import log

import torch
from torch import Tensor

from workbench_kernels.noise import gumbel


def statistics(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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


def sound_rows(logits: Tensor) -> Tensor:
    """[R] bool: rows without NaN or +inf that keep at least one token."""
    return (logits < torch.inf).all(-1) & (logits > -torch.inf).any(-1)


def sample(logits, temperature, top_k, top_p, min_p, seed, positions) -> tuple[Tensor, ...]:
    """-> token, p, kept, lse, entropy, threshold, threshold_id, each [R]. See the public function."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nothing = (-1, torch.nan, 0, torch.nan, torch.nan, torch.nan, -1)
    rows = [
        _sample_row(row, temperature, top_k, top_p, min_p, seed, position) if sound else nothing
        for row, sound, position in zip(logits, sound_rows(logits).tolist(), positions.tolist(), strict=True)
    ]
    dtypes = (torch.int64, logits.dtype, torch.int64, logits.dtype, logits.dtype, logits.dtype, torch.int64)
    columns = list(zip(*rows, strict=True)) or [()] * 7
    return tuple(torch.tensor(c, dtype=d, device=logits.device) for c, d in zip(columns, dtypes, strict=True))


def _sample_row(logits, temperature, top_k, top_p, min_p, seed, position) -> tuple[float, ...]:
    values, ids = logits.sort(descending=True, stable=True)
    filtered = temperature == 0 or not top_k == top_p == min_p is None
    kept = values > -torch.inf  # along the order; every filter keeps a prefix of it
    if temperature == 0:
        kept[1:] = False
        temperature = 1.0
    z = values / temperature
    weights = (z - z[0]).double().exp()
    if top_k is not None:
        kept &= values >= values[min(top_k, len(values)) - 1]
    if top_p is not None and top_p < 1:
        reached = (weights * kept).cumsum(0)
        kept &= reached - weights < top_p * reached[-1]
    if min_p:
        kept &= z >= z[0] + (log32(min_p) if z.dtype == torch.float32 else log(min_p))
    n = int(kept.sum())
    log_p = z[:n].double() - z[:n].double().logsumexp(0)
    noise = gumbel(seed, "target", position, ids[:n])
    perturbed = z[:n].double() + noise
    drawn = int(torch.where(perturbed == perturbed.max(), ids[:n], len(ids)).min())
    log_p_drawn = log_p[ids[:n] == drawn][0]
    entropy = -(log_p.exp() * log_p).sum()
    lse = z[:n].double().logsumexp(0)
    if not filtered:
        return drawn, log_p_drawn.exp().item(), n, lse.item(), entropy.item(), -torch.inf, len(ids) - 1
    return drawn, log_p_drawn.exp().item(), n, lse.item(), entropy.item(), values[n - 1].item(), int(ids[n - 1])


@lru_cache
def log32(value: float) -> float:
    """The logarithm as float32 computes it; -inf at 0."""
    return torch.tensor(value, dtype=torch.float32).log().item()

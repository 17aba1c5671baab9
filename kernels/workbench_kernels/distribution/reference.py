"""What the figures of a law and the keyed draw from it mean, in plain torch: float32 inside, float64 kept."""

from functools import lru_cache
from math import log

import torch

__all__ = ["gumbel", "launch_key", "log32", "sample", "statistics", "top_k", "uniform"]

MASK = (1 << 64) - 1
GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
PURPOSES = {"target": 1, "draft": 2, "accept": 3, "residual": 4}


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
    """The k largest logits of each row and their ids, both [R, k]; NaN and -1 for a row that is no law."""
    values, ids = logits.sort(dim=-1, descending=True, stable=True)  # stable: the lowest id first
    lawless = ~law_rows(logits)[:, None]
    return values[:, :k].masked_fill(lawless, torch.nan), ids[:, :k].masked_fill(lawless, -1)


def law_rows(logits: torch.Tensor) -> torch.Tensor:
    """[R] bool: rows without NaN or +inf that keep at least one token."""
    return (logits < torch.inf).all(-1) & (logits > -torch.inf).any(-1)


def sample(
    logits: torch.Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    seed: int,
    positions: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """-> token, p, kept, lse, entropy, threshold, threshold_id, each [R]. See the public function."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nothing = (-1, torch.nan, 0, torch.nan, torch.nan, torch.nan, -1)
    rows = [
        _sample_row(row, temperature, top_k, top_p, min_p, seed, position) if law else nothing
        for row, law, position in zip(logits, law_rows(logits).tolist(), positions.tolist(), strict=True)
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


# -- keyed noise -------------------------------------------------------------------------------------------------------


def mix(value: int) -> int:
    """SplitMix64's finaliser."""
    value &= MASK
    value = ((value ^ (value >> 30)) * FIRST) & MASK
    value = ((value ^ (value >> 27)) * SECOND) & MASK
    return value ^ (value >> 31)


def signed(value: int) -> int:
    """The int64 with the bits of a uint64."""
    return value - (1 << 64) if value >> 63 else value


def launch_key(seed: int, purpose: str) -> int:
    """int64 key of (seed, purpose), the part of a draw's key that does not depend on its position."""
    return signed(mix(mix(seed + GOLDEN) + PURPOSES[purpose] * GOLDEN))


def position_key(seed: int, purpose: str, position: int) -> int:
    return mix(launch_key(seed, purpose) + (position + 1) * GOLDEN)


def uniform(seed: int, purpose: str, position: int, index: int) -> float:
    """The `index`-th number in (0, 1) of a purpose at a position."""
    return ((mix(position_key(seed, purpose, position) + (index + 1) * GOLDEN) >> 12) + 0.5) * 2.0**-52


def gumbel(seed: int, purpose: str, position: int, ids: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise for token ids, float64: −log(−log(uniform(…, index=id)))."""

    def shift(value: torch.Tensor, count: int) -> torch.Tensor:
        return (value >> count) & ((1 << (64 - count)) - 1)  # torch shifts arithmetically

    value = (ids.to(torch.int64) + 1) * signed(GOLDEN) + signed(position_key(seed, purpose, position))
    value = (value ^ shift(value, 30)) * signed(FIRST)
    value = (value ^ shift(value, 27)) * signed(SECOND)
    value = value ^ shift(value, 31)
    return -torch.log(-torch.log((shift(value, 12).to(torch.float64) + 0.5) * 2.0**-52))

"""K-SEQ at one node, in plain torch and float64: k draws from one distribution q are tested against another, p.

Draws are tested in order. Draw x passes with probability min(1, p(x) / (rho q(x))). With beta = sum_x min(q, p/rho),
some draw passes with probability A = 1 - (1 - beta)^k. Where none does, the token comes from
norm(p - min(q, p/rho) A/beta). The output then follows p exactly, for any rho between rho* and k; rho* is the root of
1 - (1 - beta(rho))^k = rho beta(rho) in [1, k], and accepts most.

Source: "SpecTr: Fast Speculative Decoding via Optimal Transport" (arXiv 2310.15141), k-sequential selection. The
residual is what the output needs to follow p.
"""

import torch
from torch import Tensor

BITS = 24  # rho* is found on 2^24 steps of [1, k], rounded up: any rho above it is exact too
SLACK = 1e-14  # of a sum over the vocabulary, where the two sides of the equation are the same number
EMPTY = 1e-12  # a residual of less mass is float noise: p itself serves


def kseq_rho(p: Tensor, q: Tensor, k: int) -> float:
    """The smallest divisor rho, up to 6e-8 (k - 1), that makes k tests of draws from q exact for p; both [V], sum 1."""
    p, q = p.double(), q.double()
    low, high = 0, 2**BITS if k > 1 else 0
    while high - low > 1:
        middle = (low + high) // 2
        rho = 1 + (k - 1) * middle / 2**BITS
        mass = float(torch.minimum(rho * q, p).sum())  # rho beta
        if _any_passes(mass / rho, k) <= mass + SLACK:
            high = middle
        else:
            low = middle
    return 1 + (k - 1) * high / 2**BITS


def kseq_node(p: Tensor, q: Tensor, tokens: list[int], us: list[float]) -> tuple[int | None, Tensor]:
    """Test k tokens, drawn independently from q, against p, one uniform number each.

    p, q: [V], sum 1. Repeats are tested too: to skip one is biased. Returns the place of the first that passes, or
    None, and float64 [V], the distribution the token is drawn from where none does. Raises ValueError without tokens
    or where the numbers are not as many.
    """
    if not tokens or len(tokens) != len(us):
        raise ValueError(f"kseq_node: expected one number for each of 1 or more tokens, got {len(us)}, {len(tokens)}")
    p, q = p.double(), q.double()
    rho = kseq_rho(p, q, len(tokens))
    place = next((i for i, x in enumerate(tokens) if us[i] * rho * q[x] < p[x]), None)
    return place, _residual(p, q, rho, len(tokens))


def _any_passes(beta: float, k: int) -> float:
    return 1 - (1 - beta) ** k


def _residual(p: Tensor, q: Tensor, rho: float, k: int) -> Tensor:
    taken = torch.minimum(q, p / rho)
    beta = float(taken.sum())
    rest = (p - taken * (_any_passes(beta, k) / max(beta, 1e-300))).clamp_min(0)
    return rest / rest.sum() if (1 - beta) ** k >= EMPTY else p

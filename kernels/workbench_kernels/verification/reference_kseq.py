"""What K-SEQ verification means, in plain torch and float64: k iid draws from one law q, tested against a law p.

Draws are tested in order: x passes with probability min(1, p(x) / (rho q(x))). With beta = sum_x min(q, p/rho), one of
the k passes with probability A = 1 - (1 - beta)^k, and where none does the token is drawn from
norm(p - min(q, p/rho) A/beta). That is a law, and what comes out has the law p exactly, iff rho >= rho*, the root of
1 - (1 - beta(rho))^k = rho beta(rho) in [1, k]; rho* itself accepts most.

Sources: "SpecTr: Fast Speculative Decoding via Optimal Transport" (k-sequential selection); the residual follows from
the law that it has to complete.
"""

import torch

from workbench_kernels.distribution.reference import uniform
from workbench_kernels.verification.reference import (
    ACCEPTED,
    BONUS,
    PARENT_REJECTED,
    PRUNED,
    RATIO,
    REJECTED,
    RESIDUAL,
    SIBLING_WON,
    TARGET,
    draw,
)

__all__ = ["kseq_node", "kseq_rho", "verify"]

BITS = 24  # rho* is found on 2^24 steps of [1, k], rounded up: any rho above it is exact too
SLACK = 1e-14  # of a sum over the vocabulary, where the two sides of the equation are the same number
EMPTY = 1e-12  # a residual of less mass is float noise: p itself serves


def kseq_rho(p: torch.Tensor, q: torch.Tensor, k: int) -> float:
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


def kseq_node(p: torch.Tensor, q: torch.Tensor, tokens: list[int], us: list[float]) -> tuple[int | None, torch.Tensor]:
    """Test k tokens, drawn independently from q, against p, one uniform number each.

    p, q: [V], sum 1. All draws are tested, repeats too: to skip one is biased. Returns (place of the first that passes
    or None, [V] float64 law that the token is drawn from where none does). Raises ValueError without tokens or where
    the numbers are not as many.
    """
    if not tokens or len(tokens) != len(us):
        raise ValueError(f"kseq_node: expected one number for each of 1 or more tokens, got {len(us)}, {len(tokens)}")
    p, q = p.double(), q.double()
    rho = kseq_rho(p, q, len(tokens))
    place = next((i for i, x in enumerate(tokens) if us[i] * rho * q[x] < p[x]), None)
    return place, _residual(p, q, rho, len(tokens))


def _any_passes(beta: float, k: int) -> float:
    return 1 - (1 - beta) ** k


def _residual(p: torch.Tensor, q: torch.Tensor, rho: float, k: int) -> torch.Tensor:
    taken = torch.minimum(q, p / rho)
    beta = float(taken.sum())
    rest = (p - taken * (_any_passes(beta, k) / max(beta, 1e-300))).clamp_min(0)
    return rest / rest.sum() if (1 - beta) ** k >= EMPTY else p


def verify(scores: torch.Tensor, tree, chains: torch.Tensor, proposals: torch.Tensor, seed: int) -> tuple:
    """scores: [B, N, V] log-weights of the target; tree: tokens, parents, depths, rows [B, N], positions [B]; chains:
    [B, K, D] nodes. -> path, length, token, source, fates, reasons, rhos [B, N], us [B, K, D], ratios [B, K, D]."""
    trees, count, _ = scores.shape
    path = torch.full((trees, count), -1, dtype=torch.int32)
    fates, reasons = torch.zeros_like(path), torch.zeros_like(path)
    rhos = torch.full((trees, count), torch.nan, dtype=torch.float64)
    us = torch.full(chains.shape, torch.nan, dtype=torch.float64)
    ratios = us.clone()
    length, source = torch.zeros(trees, dtype=torch.int32), torch.zeros(trees, dtype=torch.int32)
    token = torch.zeros(trees, dtype=torch.int64)
    columns = [column.tolist() for column in tree]
    for b, held in enumerate(chains.tolist()):
        tokens, parents, depths, rows, position = (column[b] for column in columns)
        drawn = {node for chain in held for node in chain}
        for node in range(1, count):
            if parents[node] >= 0:
                fates[b, node] = PARENT_REJECTED if node in drawn else PRUNED
        for node in range(count):
            found = draws(held, parents, depths, node)
            if found:
                p, q = scores[b, node].softmax(-1), proposals[rows[node]].double().softmax(-1)
                rhos[b, node] = kseq_rho(p, q, len(found))
        node, walked = 0, []
        while True:
            place, found = position + depths[node], draws(held, parents, depths, node)
            p, won, law = scores[b, node].softmax(-1), None, scores[b, node].softmax(-1)
            if found:
                q = proposals[rows[node]].double().softmax(-1)
                numbers = [uniform(seed, "accept", place, i) for i in range(len(found))]
                won, law = kseq_node(p, q, [tokens[child] for _, child in found], numbers)
            for i, (chain, child) in enumerate(found):
                if won is None or i <= won:
                    us[b, chain, depths[node]] = numbers[i]
                    ratios[b, chain, depths[node]] = p[tokens[child]] / (rhos[b, node] * q[tokens[child]])
            for child in {child for _, child in found}:
                first = next(i for i, (_, other) in enumerate(found) if other == child)
                lost = won is None or first < won
                fates[b, child] = REJECTED if lost else SIBLING_WON
                reasons[b, child] = RATIO if lost else 0
            if won is None:
                break
            node = found[won][1]
            fates[b, node], reasons[b, node] = ACCEPTED, 0
            walked.append(node)
        source[b] = RESIDUAL if found else BONUS if walked else TARGET
        token[b] = draw(law.log(), "residual", seed, place)
        length[b] = len(walked)
        path[b, : len(walked)] = torch.tensor(walked, dtype=torch.int32)
    parts = (path, length, token, source, fates, reasons, rhos, us, ratios)
    return tuple(part.to(scores.device) for part in parts)


def draws(chains: list[list[int]], parents: list[int], depths: list[int], node: int) -> list[tuple[int, int]]:
    """(chain, child) of every draw made after a node, repeats included."""
    depth = depths[node]
    found = [(i, chain[depth]) for i, chain in enumerate(chains) if depth < len(chain)]
    return [(i, child) for i, child in found if child >= 0 and parents[child] == node]

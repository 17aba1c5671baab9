"""K-SEQ: of several chains drawn independently from one distribution, take the first token that passes a shared
test.

Draw x of k passes with probability min(1, p(x) / (rho q(x))). With beta = sum_x min(q, p/rho), some draw passes with
probability A = 1 - (1 - beta)^k. Where none does, the token comes from norm(p - min(q, p/rho) A/beta). The output then
follows p exactly, for any rho between rho* and k; rho* is the root of 1 - (1 - beta(rho))^k = rho beta(rho) in [1, k],
and accepts most.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from workbench.declare import register
from workbench.engine.distribution import Distribution
from workbench.engine.sampling import Sampling
from workbench.speculation.tree import DraftTree
from workbench.speculation.verifiers.base import Outcome, Verifier, untested
from workbench.speculation.verifiers.match import descend
from workbench.speculation.verifiers.rejection import sample
from workbench_kernels.noise import reference as noise

BITS = 24  # rho* is found on 2^24 steps of [1, k], rounded up: any rho above it is exact too
SLACK = 1e-14  # of a sum over the vocabulary, where the two sides of the equation are the same number
EMPTY = 1e-12  # a residual of less mass is float noise: p itself serves


@register("verifier", "kseq")
@dataclass(frozen=True)
class KSeq(Verifier):
    """Test the next tokens of the k chains that still agree, in order: accept x with probability min(1, p(x)/(ρ q(x))).

    ρ is the smallest divisor for which the residual is a distribution, found by bisection; if none passes, the token is
    drawn from that residual. After an acceptance only the chains that agree go on. Needs independent chains (shape
    `chains`) from a drafter with distributions. At temperature 0 it is greedy exact match. Source: "SpecTr: Fast
    Speculative Decoding via Optimal Transport" (https://arxiv.org/abs/2310.15141; the residual is reconstructed, and
    checked by exact enumeration).
    """

    needs = frozenset({"rows", "independent"})

    def guarantee(self, sampling: Sampling) -> str:
        return "exact" if sampling.greedy else "distribution"

    def verify(
        self, dist: Distribution, tree: DraftTree, position: int, seed: int, choose: Callable[[int, int], int]
    ) -> Outcome:
        if dist.greedy:
            return descend(tree, position, choose)
        fates, reasons, us = untested(tree)
        node, path = 0, []
        while True:
            place, p, won = position + tree.depths[node], dist.probs(node), None
            drawn = tree.draws.get(node, [])
            if drawn:
                numbers = [noise.uniform(seed, "accept", place, i) for i in range(len(drawn))]
                q = tree.rows[node].double().softmax(-1)
                won, p = kseq_node(p, q, [tree.tokens[child] for child in drawn], numbers)
                for child, u in zip(drawn[:won] if won is not None else drawn, numbers, strict=False):
                    fates[child], reasons[child], us[child] = "rejected", "ratio", u
            if won is None:
                source = "residual" if drawn else "bonus" if path else "target"
                return Outcome(path, sample(p, seed, place), source, fates, reasons, us)
            for child in drawn[won + 1 :]:
                if fates[child] == "parent_rejected":
                    fates[child] = "sibling_won"
            node = drawn[won]
            fates[node], reasons[node], us[node] = "accepted", None, numbers[won]
            path.append(node)


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


def _residual(p: torch.Tensor, q: torch.Tensor, rho: float, k: int) -> torch.Tensor:
    taken = torch.minimum(q, p / rho)
    beta = float(taken.sum())
    rest = (p - taken * (_any_passes(beta, k) / max(beta, 1e-300))).clamp_min(0)
    return rest / rest.sum() if (1 - beta) ** k >= EMPTY else p

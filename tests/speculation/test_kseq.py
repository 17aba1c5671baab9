"""K-SEQ is exact: every draft and every outcome enumerated over five tokens at one node."""

import itertools
import random

import pytest
import torch

from workbench.speculation.verifiers import kseq
from workbench.speculation.verifiers.kseq import kseq_node, kseq_rho

VOCAB = 5


def distributions(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random p and q [5]; some tokens without mass, sometimes p = q or no common token."""
    draw = random.Random(seed)

    def one() -> torch.Tensor:
        weights = [draw.random() ** 2 if draw.random() > 0.15 else 0.0 for _ in range(VOCAB)]
        weights[draw.randrange(VOCAB)] += 0.1
        return torch.tensor(weights, dtype=torch.float64) / sum(weights)

    p = one()
    return p, p.clone() if seed % 10 == 9 else one()


def outcomes(p: torch.Tensor, q: torch.Tensor, k: int):
    """(probability, tokens drawn, place that is accepted or None, residual) of all that can happen at a node.

    What runs is `kseq_node` itself, at uniform numbers just below or above where each test changes its mind.
    """
    rho = kseq.kseq_rho(p, q, k)
    passing = [min(1.0, (p[x] / (rho * q[x])).item()) if q[x] > 0 else 0.0 for x in range(VOCAB)]
    for tokens in itertools.product(range(VOCAB), repeat=k):
        weight = float(torch.stack([q[x] for x in tokens]).prod())
        above = [passing[x] + (1 - passing[x]) * 1e-9 for x in tokens]
        for won in range(k + 1) if weight else ():
            chance = weight
            for x in tokens[:won]:
                chance *= 1 - passing[x]
            if won < k:
                chance *= passing[tokens[won]]
            if chance:
                us = above if won == k else [*above[:won], passing[tokens[won]] * (1 - 1e-9), *above[won + 1 :]]
                place, residual = kseq_node(p, q, list(tokens), us)
                assert place == (None if won == k else won)
                yield chance, tokens, place, residual


def output(p: torch.Tensor, q: torch.Tensor, k: int) -> torch.Tensor:
    total = torch.zeros(VOCAB, dtype=torch.float64)
    for chance, tokens, place, residual in outcomes(p, q, k):
        if place is None:
            total += chance * residual
        else:
            total[tokens[place]] += chance
    return total


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return 0.5 * (first - second).abs().sum().item()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_token_that_comes_out_has_the_targets_distribution(k):
    for seed in range(60):
        p, q = distributions(seed)
        assert distance(output(p, q, k), p) < 1e-12, seed


def test_rho_is_the_root_and_lies_where_it_should():
    """At rho the tests are exact, a step of the search below they are not; 1 for one draw; at most k."""
    for seed, k in itertools.product(range(60), (1, 2, 3, 8)):
        p, q = distributions(seed)
        rho = kseq_rho(p, q, k)

        def over(rho: float, p=p, q=q, k=k) -> float:
            beta = float(torch.minimum(q, p / rho).sum())
            return 1 - (1 - beta) ** k - rho * beta

        assert 1 <= rho <= k and over(rho) <= 1e-13
        below = rho - (k - 1) / 2**24
        assert below <= 1 or over(below) > -1e-13


def test_more_draws_accept_more():
    """The mean chance that some draw passes: 0.47 for one, and growing; never below that of the best single test."""
    chances = []
    for k in (1, 2, 3):
        total = 0.0
        for seed in range(60):
            p, q = distributions(seed)
            rho = kseq_rho(p, q, k)
            total += 1 - (1 - float(torch.minimum(q, p / rho).sum())) ** k
        chances.append(total / 60)
    assert chances[0] + 0.05 < chances[1] and chances[1] + 0.02 < chances[2]


def test_a_smaller_divisor_is_biased(monkeypatch):
    """rho = 1 with two draws: the enumeration finds what is wrong with it."""
    monkeypatch.setattr(kseq, "kseq_rho", lambda p, q, k: 1.0)
    distances = [distance(output(*pair, 2), pair[0]) for pair in map(distributions, range(20))]
    assert max(distances) > 0.05 and sum(found > 1e-3 for found in distances) > 10


def test_skipping_repeated_draws_is_biased():
    """To test two equal draws as one, with the divisor of one test: what comes out follows another distribution."""
    distances = []
    for seed in range(20):
        p, q = distributions(seed)
        total = torch.zeros(VOCAB, dtype=torch.float64)
        single = list(outcomes(p, q, 1))
        for chance, tokens, place, residual in outcomes(p, q, 2):
            if tokens[0] != tokens[1]:
                if place is None:
                    total += chance * residual
                else:
                    total[tokens[place]] += chance
        for token in range(VOCAB):
            for chance, (drawn,), place, residual in single:
                if drawn == token:
                    if place is None:
                        total += chance * q[token] * residual
                    else:
                        total[token] += chance * q[token]
        distances.append(distance(total, p))
    assert max(distances) > 0.03


@pytest.mark.parametrize("us", [[], [0.5, 0.5]], ids=["none", "too-many"])
def test_one_number_for_each_of_one_or_more_tokens(us):
    with pytest.raises(ValueError, match="expected one number for each of 1 or more tokens"):
        kseq_node(*distributions(0), [0][: len(us)], us)

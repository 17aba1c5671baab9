"""K-SEQ is exact: every draft and every outcome enumerated over five tokens, one node and chains of two levels."""

import itertools
import random

import pytest
import torch

from tests.speculation.enumerate_tree import Choice, runs
from workbench_kernels import verification
from workbench_kernels.verification import kseq_node, kseq_rho, reference_kseq

VOCAB = 5


def laws(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random p and q [5]; some tokens without mass, sometimes p = q or no common token."""
    draw = random.Random(seed)

    def law() -> torch.Tensor:
        weights = [draw.random() ** 2 if draw.random() > 0.15 else 0.0 for _ in range(VOCAB)]
        weights[draw.randrange(VOCAB)] += 0.1
        return torch.tensor(weights, dtype=torch.float64) / sum(weights)

    p = law()
    return p, p.clone() if seed % 10 == 9 else law()


def outcomes(p: torch.Tensor, q: torch.Tensor, k: int):
    """(probability, tokens drawn, place that is accepted or None, residual) of all that can happen at a node.

    What runs is `kseq_node` itself, at uniform numbers just below or above where each test changes its mind.
    """
    rho = reference_kseq.kseq_rho(p, q, k)
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


def output_law(p: torch.Tensor, q: torch.Tensor, k: int) -> torch.Tensor:
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
def test_the_token_that_comes_out_has_the_targets_law(k):
    for seed in range(60):
        p, q = laws(seed)
        assert distance(output_law(p, q, k), p) < 1e-12, seed


def test_rho_is_the_root_and_lies_where_it_should():
    """At rho the tests are exact, a step of the search below they are not; 1 for one draw; at most k."""
    for seed, k in itertools.product(range(60), (1, 2, 3, 8)):
        p, q = laws(seed)
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
            p, q = laws(seed)
            rho = kseq_rho(p, q, k)
            total += 1 - (1 - float(torch.minimum(q, p / rho).sum())) ** k
        chances.append(total / 60)
    assert chances[0] + 0.05 < chances[1] and chances[1] + 0.02 < chances[2]


def test_a_smaller_divisor_is_biased(monkeypatch):
    """rho = 1 with two draws: the enumeration finds what is wrong with it."""
    monkeypatch.setattr(reference_kseq, "kseq_rho", lambda p, q, k: 1.0)
    distances = [distance(output_law(*pair, 2), pair[0]) for pair in map(laws, range(20))]
    assert max(distances) > 0.05 and sum(found > 1e-3 for found in distances) > 10


def test_skipping_repeated_draws_is_biased():
    """To test two equal draws as one, with the divisor of one test: the law that comes out is another."""
    distances = []
    for seed in range(20):
        p, q = laws(seed)
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


# -- chains ---------------------------------------------------------------------------------------------------------

WORDS, LEVELS, CHAINS = 3, 2, 2


def chain_law(seed: int, monkeypatch, skip: bool = False) -> float:
    """Distance of the law of the first three tokens from the target's, by every way two chains of two tokens can go.

    What runs is `verify_chains`; the uniform numbers of `kseq_node` and the last draw are replaced. skip: repeats of a
    token at a node are left out of the chains, as a tree without multiplicities would.
    """
    generator = torch.Generator().manual_seed(seed)
    prefixes = [prefix for n in range(LEVELS + 1) for prefix in itertools.product(range(WORDS), repeat=n)]
    rows = torch.rand(2, len(prefixes), WORDS, generator=generator, dtype=torch.float64).square() + 0.01
    p, q = (dict(zip(prefixes, half / half.sum(-1, keepdim=True), strict=True)) for half in rows)
    total = torch.zeros([WORDS] * (LEVELS + 1), dtype=torch.float64)
    last: list[torch.Tensor] = []
    turn: list[Choice] = []
    honest = kseq_node

    def decided(p, q, tokens, us):
        rho, us = kseq_rho(p, q, len(tokens)), []
        for token in tokens:
            threshold = min(1.0, (p[token] / (rho * q[token])).item())
            passes = turn[0]([threshold, 1 - threshold]) == 0
            us.append(threshold * (1 - 1e-9) if passes else threshold + (1 - threshold) * 1e-9)
            if passes:
                break
        return honest(p, q, tokens, us + [0.5] * (len(tokens) - len(us)))

    def recorded(scores, *_):
        last.append(scores.exp())
        return 0

    def experiment(choice: Choice):
        turn[:] = [choice]
        nodes, at = {(): 0}, [()] * CHAINS
        chains = torch.full((1, CHAINS, LEVELS), -1)
        for level, c in itertools.product(range(LEVELS), range(CHAINS)):
            if len(at[c]) == level:
                prefix = (*at[c], choice(q[at[c]].tolist()))
                if skip and prefix in nodes:
                    continue
                chains[0, c, level] = nodes.setdefault(prefix, len(nodes))
                at[c] = prefix
        held = list(nodes)
        got = verification.verify_chains(
            torch.stack([p[prefix].log() for prefix in held])[None],
            torch.tensor([[0, *(prefix[-1] for prefix in held[1:])]]),
            torch.tensor([[-1, *(nodes[prefix[:-1]] for prefix in held[1:])]]),
            torch.tensor([[len(prefix) for prefix in held]]),
            torch.tensor([5]), chains, torch.stack([q[prefix].log() for prefix in held]),
            torch.arange(len(held))[None], implementation="torch",
        )  # fmt: skip
        return held[int(got.path[0].max())] if got.length[0] else (), last.pop()

    def continued(prefix: tuple) -> torch.Tensor:
        """The target's law of the tokens after a prefix, up to the full length."""
        if len(prefix) > LEVELS:
            return torch.ones((), dtype=torch.float64)
        return torch.stack([mass * continued((*prefix, token)) for token, mass in enumerate(p[prefix])])

    with monkeypatch.context() as patch:
        patch.setattr(reference_kseq, "kseq_node", decided)
        patch.setattr(reference_kseq, "draw", recorded)
        for weight, (path, law) in runs(experiment):
            for token, mass in enumerate(law):
                total[(*path, token)] += weight * mass * continued((*path, token))
    return distance(total, continued(()))


@pytest.mark.parametrize("seed", range(3))
def test_chains_that_agree_go_on_together_and_stay_exact(seed, monkeypatch):
    assert chain_law(seed, monkeypatch) < 1e-12


def test_chains_without_their_repeats_are_biased(monkeypatch):
    assert chain_law(0, monkeypatch, skip=True) > 1e-3

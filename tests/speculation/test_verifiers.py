"""Verifiers by exact enumeration on random typed trees; the same enumeration must fail what is known to be biased."""

import itertools
import random

import pytest
import torch

import workbench as wb
from tests.speculation import enumerate_tree
from tests.speculation.enumerate_tree import (
    Instance,
    continued,
    distance,
    instance,
    output_distribution,
    runs,
    target_distribution,
)
from workbench.engine.distribution import Distribution
from workbench.engine.settings import Settings
from workbench.errors import BadInput
from workbench.speculation import DIST, POINT, DraftTree
from workbench.speculation.verifiers import rejection
from workbench_kernels.noise import reference as noise
from workbench_kernels.verification import reference

BOUND = 1e-12


def verify(dist: Distribution, tree: DraftTree):
    return wb.Rejection().verify(dist, tree, 5, 0, None)


@pytest.mark.parametrize("chunk", range(8))
def test_rejection_is_exact_on_random_typed_trees(chunk, monkeypatch):
    """200 random instances: the first tokens follow the target's distribution to the last bits."""
    for seed in range(25 * chunk, 25 * chunk + 25):
        case = instance(seed)
        found = output_distribution(case, verify, monkeypatch)
        assert abs(found.sum().item() - 1) < BOUND
        assert distance(found, target_distribution(case)) < BOUND, f"instance {seed}"


def test_the_instances_cover_what_they_should():
    """Every kind of node, siblings, doubles of drawn tokens, chains of three, distributions with zeros and p = q all
    occur."""
    cases = [instance(seed) for seed in range(200)]
    draws = [n for case in cases for n, _ in case.plan.values()]
    points = [tokens for case in cases for _, tokens in case.plan.values()]
    assert {1, 2, 3} <= set(draws) and {1, 2} <= set(map(len, points))
    assert any(len(set(tokens)) < len(tokens) for tokens in points)
    assert sum(case.depth == 3 and case.plan[(0, 0)][0] > 0 for case in cases) > 5
    assert sum(n > 0 and len(tokens) > 0 for case in cases for n, tokens in case.plan.values()) > 100
    assert any((dist == 0).any() for case in cases for dist in case.p.values())
    assert any(torch.equal(case.p[k], case.q[k]) for case in cases for k in case.p)


def chains(seed: int) -> Instance:
    """Up to three independent chains of up to two tokens over three to five tokens."""
    case = instance(seed)
    draw = random.Random(seed)
    case.chains, case.depth = draw.choice([(1, 2), (2, 1), (2, 2), (3, 1)])
    return case if case.depth <= max(map(len, case.p)) else chains(seed + 1000)


@pytest.mark.parametrize("chunk", range(3))
@pytest.mark.parametrize("verifier", [wb.Rejection(), wb.KSeq()], ids=["recursive", "kseq"])
def test_independent_chains_are_exact_under_both_verifiers(verifier, chunk, monkeypatch):
    for seed in range(20 * chunk, 20 * chunk + 20):
        case = chains(seed)
        found = output_distribution(case, lambda dist, tree: verifier.verify(dist, tree, 5, 0, None), monkeypatch)
        assert abs(found.sum().item() - 1) < BOUND
        assert distance(found, target_distribution(case)) < BOUND, f"instance {seed}"


@pytest.mark.parametrize("chunk", range(2))
def test_point_match_is_exact_on_random_typed_trees(chunk, monkeypatch):
    for seed in range(20 * chunk, 20 * chunk + 20):
        case = instance(seed)
        found = output_distribution(
            case, lambda dist, tree: wb.PointMatch().verify(dist, tree, 5, 0, None), monkeypatch
        )
        assert distance(found, target_distribution(case)) < BOUND, f"instance {seed}"


# -- negative controls: the same enumeration finds the bias --------------------------------------------------------


def one_level(seed: int, draws: int, points: tuple[int, ...] = ()) -> Instance:
    """One level over five tokens, distributions without zeros."""
    generator = torch.Generator().manual_seed(seed)
    tokens = [(), *itertools.product(range(5), repeat=1)]
    dists = [torch.rand(5, generator=generator, dtype=torch.float64) ** 2 + 0.01 for _ in range(2 * len(tokens))]
    dists = [dist / dist.sum() for dist in dists]
    plan = {prefix: (draws, points) if not prefix else (0, ()) for prefix in tokens}
    p, q = (dict(zip(tokens, dists[start::2], strict=True)) for start in (0, 1))
    return Instance(5, 1, p, q, plan, budget=3)


def worst(monkeypatch, judge, draws: int, points: tuple[int, ...] = ()) -> float:
    cases = [one_level(seed, draws, points) for seed in range(6)]
    return max(distance(output_distribution(case, judge, monkeypatch), target_distribution(case)) for case in cases)


@pytest.mark.parametrize(("draws", "points"), [(1, ()), (2, ()), (3, ()), (0, (1, 1, 4)), (2, (1, 4))], ids=str)
def test_the_controls_pass_without_a_fault(draws, points, monkeypatch):
    assert worst(monkeypatch, verify, draws, points) < BOUND


def test_without_the_residual_step_it_is_biased(monkeypatch):
    monkeypatch.setattr(reference, "residual", lambda p, q: p)
    assert worst(monkeypatch, verify, 1) > 0.01


def test_without_renormalising_the_proposal_it_is_biased(monkeypatch):
    """Later siblings tested with the original row."""
    monkeypatch.setattr(rejection, "without", lambda logq, token: logq)
    assert worst(monkeypatch, verify, 2) > 0.01


def test_testing_siblings_in_another_order_is_biased(monkeypatch):
    def by_probability(self, node):
        found = [i for i, parent in enumerate(self.parents) if parent == node]
        return sorted(found, key=lambda i: -self.rows[node][self.tokens[i]].item())

    monkeypatch.setattr(DraftTree, "children", by_probability)
    assert worst(monkeypatch, verify, 2) > 0.01


def test_dropping_a_draw_for_its_point_double_is_biased(monkeypatch):
    """Where a POINT sibling holds the token, the DIST sample must be what stays."""

    def points_first(self, node):
        found = [i for i, parent in enumerate(self.parents) if parent == node]
        points = [i for i in found if self.kinds[i] == POINT]
        held = {self.tokens[i] for i in points}
        return [i for i in found if self.kinds[i] == DIST and self.tokens[i] not in held] + points

    monkeypatch.setattr(DraftTree, "children", points_first)
    assert worst(monkeypatch, verify, 1, (1,)) > 0.01


def worst_of_chains(monkeypatch, judge, count: int) -> float:
    cases = [one_level(seed, 0) for seed in range(6)]
    for case in cases:
        case.chains = count
    return max(distance(output_distribution(case, judge, monkeypatch), target_distribution(case)) for case in cases)


def kseq(dist: Distribution, tree: DraftTree):
    return wb.KSeq().verify(dist, tree, 5, 0, None)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("judge", [verify, kseq])
def test_the_controls_on_chains_pass_without_a_fault(judge, count, monkeypatch):
    assert worst_of_chains(monkeypatch, judge, count) < BOUND


@pytest.mark.parametrize("judge", [verify, kseq])
def test_skipping_repeated_draws_is_biased(judge, monkeypatch):
    def once(dist: Distribution, tree: DraftTree):
        tree.draws = {node: list(dict.fromkeys(drawn)) for node, drawn in tree.draws.items()}
        return judge(dist, tree)

    assert worst_of_chains(monkeypatch, once, 2) > 0.01


def test_a_divisor_of_one_is_biased_for_two_draws(monkeypatch):
    monkeypatch.setattr("workbench.speculation.verifiers.kseq.kseq_rho", lambda p, q, k: 1.0)
    monkeypatch.setattr(enumerate_tree, "kseq_rho", lambda p, q, k: 1.0)
    assert worst_of_chains(monkeypatch, kseq, 2) > 0.01
    assert worst_of_chains(monkeypatch, kseq, 1) < BOUND


@pytest.mark.parametrize("count", [2, 3])
def test_the_distinct_ones_of_independent_draws_are_draws_without_replacement(count, monkeypatch):
    """Read that way, with the row renormalised after each, they are exact too: how many there are tells nothing."""

    def distinct(dist: Distribution, tree: DraftTree):
        tree.draws = {}
        return verify(dist, tree)

    assert worst_of_chains(monkeypatch, distinct, count) < BOUND


def test_throwing_the_mismatch_away_is_biased(monkeypatch):
    """Compare with a draw of the target's, then draw again on a mismatch: over-weights what was drafted."""

    def forgetful(dist: Distribution, tree: DraftTree):
        p = dist.probs(0)
        for child in tree.children(0):
            accepted, _ = rejection.accept(p, None, tree.tokens[child], 0.5)
            if accepted:
                last = dist.probs(child)
                rejection.sample(last, 0, 6)
                return rejection.Outcome([child], 0, "bonus", [], [])
        rejection.sample(p, 0, 5)  # p again, not what the mismatch left
        return rejection.Outcome([], 0, "target", [], [])

    assert worst(monkeypatch, forgetful, 0, (2,)) > 0.01


# -- the parts ---------------------------------------------------------------------------------------------------------


def test_the_test_is_strict():
    """u = 0⁺ with p(x) = 0 rejects; q(x) tiny never divides; equal distributions always accept, up to float noise."""
    p = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert not rejection.accept(p, torch.tensor([1.0, 0.0], dtype=torch.float64), 0, 5e-324)[0]
    assert not rejection.accept(p, None, 0, 5e-324)[0]
    assert rejection.accept(p, None, 1, 1 - 2**-53)[0]
    tiny = torch.tensor([1e-300, 1.0], dtype=torch.float64)
    assert rejection.accept(p, tiny, 1, 0.999)[0]
    dist = torch.rand(5000, dtype=torch.float64).softmax(-1)
    noisy = (dist.float() * (1 + 1e-7)).double()
    for u in (0.1, 0.9, 1 - 2**-53):
        assert rejection.accept(dist, noisy / noisy.sum(), 17, u)[0]


@pytest.mark.parametrize("temperature", [1e-3, 0.05, 1.0])
def test_trees_at_very_low_temperatures_stay_finite(temperature, toy):
    """Later siblings may have no mass left in float64: their row must still be a distribution, not 0 / 0."""
    decoder = wb.Speculative(drafter=wb.DraftModel("toy-draft"), shape=wb.FixedTree((4, 2)), verifier=wb.Rejection())
    for seed in range(10):
        trace = wb.decode(toy, [0, 1], decoder, temperature=temperature, seed=seed, max_new_tokens=6)
        assert len(trace.token_ids) == 6
        if temperature == 1e-3:
            assert trace.token_ids == wb.decode(toy, [0, 1], max_new_tokens=6).token_ids


def random_tree(draw: random.Random, vocab: int, kind: str | None = None) -> DraftTree:
    tree = DraftTree([0])
    row = torch.rand(vocab, dtype=torch.float64).log_softmax(-1)
    for _ in range(draw.randint(0, 9)):
        parent = draw.randrange(len(tree))
        tree.add(parent, draw.randrange(vocab), kind or draw.choice([DIST, POINT]), 0.5, "test")
        tree.rows.setdefault(parent, row)
    return tree


@pytest.mark.parametrize("verifier", ["seeded", "greedy", "point", "rejection", "typical"])
def test_every_node_meets_one_fate_and_the_path_is_what_was_accepted(verifier):
    """On 300 random trees: fates follow the walk, and the path is a path."""
    draw = random.Random(verifier)
    members = {"seeded": wb.SeededMatch(), "greedy": wb.Greedy(), "rejection": wb.Rejection()}
    members |= {"point": wb.PointMatch(), "typical": wb.Typical(epsilon=0.2)}
    for seed in range(300):
        tree = random_tree(draw, 4)
        rows = torch.rand(len(tree), 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
        dist = Distribution(rows.log_softmax(-1), rows.log_softmax(-1), [()] * len(tree), greedy=verifier == "greedy")
        out = members[verifier].verify(
            dist, tree, 9, seed, lambda row, at, dist=dist, seed=seed: dist.choose(row, seed, at)
        )
        assert [n for n in range(1, len(tree)) if out.fates[n] == "accepted"] == sorted(out.path)
        assert all(tree.parents[n] == before for n, before in zip(out.path, [0, *out.path], strict=False))
        tested = {child for node in range(len(tree)) for child in tree.children(node)}
        for node in range(1, len(tree)):
            fate, alive = out.fates[node], tree.parents[node] in (0, *out.path)
            if node not in tested:
                assert fate == "pruned"
            elif not alive:
                assert fate == "parent_rejected"
            else:
                assert fate in ("accepted", "rejected", "sibling_won")
            assert (out.reasons[node] is not None) == (fate == "rejected")
        ends = bool(tree.children([0, *out.path][-1]))
        expected = "residual" if ends else "bonus" if out.path else "target"
        assert out.source == (expected if verifier == "rejection" else "target" if ends or not out.path else "bonus")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_seeded_walk_spells_what_a_plain_decoder_would(temperature):
    """Whatever the tree holds, path and token are the seeded choices along it; enumerated over all short trees."""
    vocab = 3
    for a, b, c in itertools.product(range(vocab), repeat=3):
        tree = DraftTree([0])
        first = tree.add(0, a, POINT, None, "test")
        tree.add(0, b, POINT, None, "test")
        tree.add(first, c, POINT, None, "test")
        rows = torch.rand(4, vocab, generator=torch.Generator().manual_seed(a + 3 * b + 9 * c), dtype=torch.float64)
        dist = wb.Sampling(temperature=temperature).dist(rows * 2, lambda row: [])
        for seed in range(40):
            out = wb.SeededMatch().verify(
                dist, tree, 7, seed, lambda r, at, dist=dist, seed=seed: dist.choose(r, seed, at)
            )
            node, spelled = 0, []
            while True:
                token = dist.choose(node, seed, 7 + len(spelled))
                spelled.append(token)
                children = {tree.tokens[i]: i for i in reversed(tree.children(node))}
                if token not in children:
                    break
                node = children[token]
            assert [tree.tokens[n] for n in out.path] + [out.token] == spelled


@pytest.mark.parametrize("seed", range(20))
def test_seeded_verification_is_exact_for_any_drafts(seed):
    """Enumerating the noise (as the distribution of the argmax at each position), any tree gives the target's
    distribution."""
    case = instance(seed)
    total = torch.zeros([case.vocab] * (case.depth + 1), dtype=torch.float64)

    def experiment(choice):
        tree, prefixes = case.tree(lambda weights: max(range(len(weights)), key=weights.__getitem__))
        drawn: dict[tuple, int] = {}

        def choose(row: int, position: int) -> int:
            assert position == 3 + len(prefixes[row])
            prefix = prefixes[row]
            if prefix not in drawn:
                drawn[prefix] = choice(case.p[prefix].tolist())
            return drawn[prefix]

        out = wb.SeededMatch().verify(None, tree, 3, 0, choose)
        return (*prefixes[[0, *out.path][-1]], out.token)

    for weight, emitted in runs(experiment):
        total[emitted] += weight * continued(case, emitted)
    assert distance(total, target_distribution(case)) < BOUND


def test_one_uniform_per_test_and_none_shared(monkeypatch):
    """Acceptance, residual and draft noise have purposes of their own; siblings have numbers of their own."""
    asked = []
    monkeypatch.setattr(rejection.noise, "uniform", lambda *key: asked.append(key) or 1 - 2**-53)
    tree = random_tree(random.Random(3), 4, DIST)
    rows = torch.rand(len(tree), 4, dtype=torch.float64).log_softmax(-1)
    verify(Distribution(rows, rows, [()] * len(tree)), tree)
    assert len(asked) == len(set(asked)) > 0
    assert {key[1] for key in asked} == {"accept"}
    assert {"target", "draft", "accept", "residual"} <= set(noise.PURPOSES)


def test_greedy_needs_temperature_zero():
    with pytest.raises(BadInput, match="needs temperature 0"):
        wb.Greedy().check(Settings(sampling=wb.Sampling(temperature=0.5)))
    wb.Greedy().check(Settings())

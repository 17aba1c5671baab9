"""Exact enumeration: every draft draw and every acceptance outcome of a typed tree, with its probability.

The production verifier is what runs: only its two sources of chance are replaced, the uniform numbers (by one just
below or just above the production test's own threshold) and the final draw (its distribution is recorded instead).
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from workbench.engine.distribution import Distribution
from workbench.speculation import DIST, POINT, DraftTree
from workbench.speculation.verifiers import kseq, match, rejection
from workbench.speculation.verifiers.kseq import kseq_node, kseq_rho

Choice = Callable[[list[float]], int]


def runs(experiment: Callable[[Choice], object]) -> Iterator[tuple[float, object]]:
    """(probability, result) of every way an experiment can go; it asks `choice(weights)` at each turn."""
    scripts: list[list[int]] = [[]]
    while scripts:
        script = scripts.pop()
        taken: list[int] = []
        weight = 1.0

        def choice(weights: list[float], script=script, taken=taken) -> int:
            nonlocal weight
            if len(taken) < len(script):
                picked = script[len(taken)]
            else:
                picked, *others = [i for i, w in enumerate(weights) if w > 0]
                scripts.extend([*taken, other] for other in others)
            taken.append(picked)
            weight *= weights[picked]
            return picked

        result = experiment(choice)
        yield weight, result


@dataclass
class Instance:
    """A random problem: distributions for every prefix, and who drafts what where.

    plan: prefix -> (number of DIST draws, tokens of POINT nodes), fixed before anything is drawn. budget: the most
    draws of one tree, spent in the order nodes were appended (so a node's share depends on what its elders drew).
    chains: instead of all that, so many independent chains of `depth` tokens each.
    """

    vocab: int
    depth: int
    p: dict[tuple, torch.Tensor]
    q: dict[tuple, torch.Tensor]
    plan: dict[tuple, tuple[int, tuple[int, ...]]]
    budget: int
    chains: int = 0

    def tree(self, choice: Choice) -> tuple[DraftTree, list[tuple]]:
        """Draw one tree by the plan: DIST children without replacement from q, POINT children as they are."""
        if self.chains:
            return self._chains(choice)
        tree, prefixes, left = DraftTree([0]), [()], self.budget
        for node in itertools.count():
            if node >= len(tree):
                return tree, prefixes
            prefix = prefixes[node]
            if len(prefix) >= self.depth:
                continue
            draws, points = self.plan[prefix]
            rest = self.q[prefix].clone()
            draws = min(draws, left, int((rest > 0).sum()))
            left -= draws
            if draws:
                tree.rows[node] = rest.log()
            for _ in range(draws):
                token = choice((rest / rest.sum()).tolist())
                tree.add(node, token, DIST, rest[token].item(), "test")
                prefixes.append((*prefix, token))
                rest[token] = 0
            for token in points:
                tree.add(node, token, POINT, None, "test")
                prefixes.append((*prefix, token))

    def _chains(self, choice: Choice) -> tuple[DraftTree, list[tuple]]:
        tree, prefixes = DraftTree([0]), [()]
        for _ in range(self.chains):
            node = 0
            for _ in range(self.depth):
                q = self.q[prefixes[node]]
                tree.rows[node] = q.log()
                token = choice(q.tolist())
                child = next((i for i in tree.children(node) if tree.tokens[i] == token), None)
                if child is None:
                    child = tree.add(node, token, DIST, q[token].item(), "test")
                    prefixes.append((*prefixes[node], token))
                tree.draws[node] = [*tree.draws.get(node, []), child]
                node = child
        return tree, prefixes


def instance(seed: int) -> Instance:
    """Chains, stars and trees of depth at most 3 over 4 or 5 tokens; some distributions with zeros, some equal (p =
    q)."""
    draw = random.Random(seed)
    vocab, depth = draw.choice([4, 4, 5]), draw.choice([1, 2, 2, 3])
    kind = draw.choice(["dist", "dist", "point", "mixed", "mixed"])
    plan, p, q = {}, {}, {}

    def dist() -> torch.Tensor:
        weights = [draw.random() ** 2 if draw.random() > 0.15 else 0.0 for _ in range(vocab)]
        weights[draw.randrange(vocab)] += 0.1
        return torch.tensor(weights, dtype=torch.float64) / sum(weights)

    for length in range(depth + 1):
        for prefix in itertools.product(range(vocab), repeat=length):
            p[prefix] = dist()
            q[prefix] = p[prefix].clone() if draw.random() < 0.1 else dist()
            draws = 0 if kind == "point" else draw.choice([1, 1, 2, 3])
            points = 0 if kind == "dist" else draw.choice([0, 1, 2])
            # POINT tokens repeat and double DIST siblings at will
            plan[prefix] = (draws, tuple(draw.randrange(vocab) for _ in range(points)))
    return Instance(vocab, depth, p, q, plan, budget=draw.choice([3, 3, 4]) if vocab == 4 else 3)


def output_distribution(case: Instance, verify: Callable, monkeypatch) -> torch.Tensor:
    """[V] * (depth + 1) distribution of the first depth + 1 tokens: rounds that emit fewer go on by the target's own
    distribution."""
    total = torch.zeros([case.vocab] * (case.depth + 1), dtype=torch.float64)
    production_test = rejection.accept
    turn: dict[str, Choice] = {}

    def decided(p, q, token, u):
        """The production test at a uniform number just below or above where it changes its mind."""
        threshold = min(1.0, (p[token] if q is None else p[token] / q[token]).item())
        sure = production_test(p, q, token, 1.0 - 2.0**-53)
        if sure[0]:  # accepted whatever u is: also where p and q differ by float noise alone
            return sure
        if threshold <= 0:
            return production_test(p, q, token, 2.0**-53)
        if turn["choice"]([threshold, 1.0 - threshold]) == 0:
            found = production_test(p, q, token, threshold * (1 - 1e-9))
            assert found[0]
        else:
            found = production_test(p, q, token, threshold + (1 - threshold) * 1e-9)
            assert not found[0]
        return found

    def decided_kseq(p, q, tokens, us):
        """The production test of each draw in turn, just below or just above its threshold."""
        rho, numbers = kseq_rho(p, q, len(tokens)), []
        for token in tokens:
            threshold = min(1.0, (p[token] / (rho * q[token])).item())
            passes = threshold > 0 and turn["choice"]([threshold, 1.0 - threshold]) == 0
            numbers.append(threshold * (1 - 1e-9) if passes else threshold + (1 - threshold) * 1e-9)
            if passes:
                break
        found = kseq_node(p, q, tokens, numbers + [1.0] * (len(tokens) - len(numbers)))
        assert found[0] == (len(numbers) - 1 if passes else None)
        return found

    def decided_draw(scores, seed, purpose, position):
        assert purpose == "match"
        return turn["choice"](scores.exp().tolist())

    dists: list[torch.Tensor] = []

    def recorded(p, seed, position):
        dists.append(p)
        return 0

    def experiment(choice: Choice):
        turn["choice"] = choice
        tree, prefixes = case.tree(choice)
        rows = torch.stack([case.p[prefix] for prefix in prefixes]).log()
        dist = Distribution(rows, rows, [()] * len(rows))
        dists.clear()
        outcome = verify(dist, tree)
        path = tuple(tree.tokens[node] for node in outcome.path)
        assert prefixes[[0, *outcome.path][-1]] == path
        if not dists:  # the last token came by a choice of its own
            dists.append(torch.nn.functional.one_hot(torch.tensor(outcome.token), case.vocab).double())
        assert len(dists) == 1
        return path, dists[0]

    with monkeypatch.context() as patched:
        patched.setattr(rejection, "accept", decided)
        patched.setattr(rejection, "sample", recorded)
        patched.setattr(kseq, "sample", recorded)
        patched.setattr(kseq, "kseq_node", decided_kseq)
        patched.setattr(match, "draw", decided_draw)
        for weight, (path, last) in runs(experiment):
            spread(case, total, path, weight * last)
    return total


def spread(case: Instance, total: torch.Tensor, path: tuple, last: torch.Tensor) -> None:
    """Add the distribution `last` of the token after `path`, continued by the target's distribution to full length."""
    for token, mass in enumerate(last.tolist()):
        if mass:
            total[(*path, token)] += mass * continued(case, (*path, token))


def continued(case: Instance, prefix: tuple) -> torch.Tensor:
    """Distribution of the tokens after a prefix up to the full length, by the target alone."""
    if len(prefix) == case.depth + 1:
        return torch.ones((), dtype=torch.float64)
    return torch.stack([p * continued(case, (*prefix, t)) for t, p in enumerate(case.p[prefix].tolist())])


def target_distribution(case: Instance) -> torch.Tensor:
    return continued(case, ())


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """Total variation."""
    return 0.5 * (first - second).abs().sum().item()

"""Counted runs against the distribution that they should follow: chi-square tests, and how small a difference they
would show.

Two views of the same question. `Texts` counts whole texts, whose exact distribution plain decoding gives prefix by
prefix: fit for few tokens a place. `Places` counts, at every place, what came against plain decoding's distribution
after the run's own prefix, over the whole vocabulary and any length: differences between runs and distributions are
martingales there, so their sum, divided by its own covariance, is a chi-square whatever the prefixes were.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from workbench.engine.distribution import Distribution

Prefix = tuple[int, ...]
RARE = 5  # cells expected less often are pooled
STEADY = 20  # variance of a count from which on its distribution is taken for a normal one
EXACT = 8  # ranks of a token that are cells of their own; those behind share cells of doubling size
KNOWN, BACK = 12, 6  # tokens that are cells of their own; places back
GROUPS = 4  # cells before a place that are told apart: the first ones, and all others


@dataclass(frozen=True)
class Found:
    """What a test found. tv: of the counts; noise: what a perfect decoder would show on average; detectable: the least
    total variation that shows in 19 of 20 tests."""

    p_value: float
    tv: float
    noise: float
    detectable: float
    cells: int
    kl: float = math.nan


def p_value(statistic: float, degrees: int) -> float:
    """Chance that a chi-square of so many degrees of freedom is larger; 1 where there are none."""
    if degrees < 1:
        return 1.0
    return float(torch.special.gammaincc(*torch.tensor([degrees, max(statistic, 0.0)], dtype=torch.float64) / 2))


def detectable(runs: int, degrees: int, significance: float) -> float:
    """The total variation from which on a difference, wherever it lies, shows in 19 of 20 tests.

    A difference of total variation d adds at least 4·runs·d² to the mean of the statistic (Cauchy-Schwarz); the
    statistic is taken for normal, with the mean and variance of a noncentral chi-square.
    """
    if degrees < 1 or not runs:
        return 1.0
    low, high = float(degrees), 10.0 * degrees + 1000
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(middle, degrees) > significance else (low, middle)
    excess, z = high - degrees, 1.645
    shift = excess + 2 * z**2 + z * math.sqrt(4 * excess + 4 * z**2 + 2 * degrees)  # shift − z·√(2k + 4·shift) = excess
    return min(1.0, 0.5 * math.sqrt(shift / runs))


class Texts:
    """Counts of whole texts over cells whose probabilities are known exactly.

    A cell is a text, or the beginning of those that have too little chance to be told apart in so many runs.
    """

    def __init__(
        self,
        dist: Callable[[Prefix], Distribution],
        length: int,
        runs: int,
        tie: float,
        over: Callable[[Prefix], bool] = lambda prefix: False,
    ):
        """dist(prefix): plain decoding's, the last row after it. tie: nats by which rounding may cut a token off.
        over(prefix): whether a text ends there."""
        self.cells: dict[Prefix, float] = {}
        self.found: Counter = Counter()
        self._same: dict[Prefix, Prefix] = {}  # tokens at the edge of the support -> the least likely one inside
        queue: list[tuple[Prefix, float]] = [((), 1.0)]
        while queue:
            prefix, mass = queue.pop()
            if len(prefix) == length or mass * runs < 4 * RARE or over(prefix):
                self.cells[prefix] = mass
                continue
            here = dist(prefix)
            last = len(here) - 1
            probs = here.probs(last)
            inside = probs.nonzero()[:, 0].tolist()
            least = min(inside, key=probs.__getitem__)
            self._same |= {(*prefix, token): (*prefix, least) for token in edge(here, last, tie)}
            queue += [((*prefix, token), mass * float(probs[token])) for token in inside]

    def add(self, text: Sequence[int]) -> None:
        cell: Prefix = ()
        for token in text:
            if cell in self.cells:
                break
            cell = (*cell, token)
            cell = self._same.get(cell, cell)
        self.found[cell] += 1

    def test(self, significance: float) -> Found:
        """Pearson's; cells expected less than five times are pooled, impossible ones must not occur."""
        n, found = self.found.total(), self.found
        shares = {cell: count / n for cell, count in found.items()}
        tv = 0.5 * sum(abs(shares.get(cell, 0) - self.cells.get(cell, 0)) for cell in {*shares, *self.cells})
        kl = sum(s * math.log(s / self.cells[c]) if self.cells.get(c) else math.inf for c, s in shares.items())
        noise = 0.5 * sum(math.sqrt(2 * p * (1 - p) / (math.pi * n)) for p in self.cells.values())
        pairs = [(found[cell], n * p) for cell, p in self.cells.items()]
        seen = [pair for pair in pairs if pair[1] >= RARE]
        rare = [pair for pair in pairs if pair[1] < RARE]
        if wanted := sum(wanted for _, wanted in rare):
            seen.append((sum(count for count, _ in rare), wanted))
        chance = p_value(sum((count - wanted) ** 2 / wanted for count, wanted in seen), len(seen) - 1)
        if any(cell not in self.cells for cell in found):
            chance = 0.0
        return Found(chance, tv, noise, detectable(n, len(seen) - 1, significance), len(self.cells), kl)


class Places:
    """Counts of tokens place by place, each against plain decoding's distribution after its own prefix.

    Tokens fall in cells in three ways: by their rank in that distribution, by what they are (the likeliest ones of the
    first run), and by how far back in the text they came last. Each way is tested at every place, for every place by
    the cell before it, and for all tokens together.
    """

    def __init__(self, prompt: Sequence[int], tie: float, length: int):
        self.prompt, self.tie, self.length, self.impossible = list(prompt), tie, length, 0
        self.runs: list[list[tuple[torch.Tensor, torch.Tensor]]] = []  # a way: [length] cells, [length, cells] chances
        self._known: torch.Tensor | None = None

    def add(self, text: Sequence[int], dist: Distribution) -> None:
        """A run's text with the distributions before each of its tokens."""
        probs, ids = dist.scores.double().softmax(-1), torch.tensor(list(text), device=dist.scores.device)
        ordered, index = probs.sort(descending=True, stable=True)
        places = (index == ids[:, None]).nonzero()[:, 1]
        for row, token in enumerate(text):
            if probs[row, token] == 0:  # taken for the least likely one inside
                places[row] = (probs[row] > 0).sum() - 1
                self.impossible += token not in edge(dist, row, self.tie)
        taken = index.gather(1, places[:, None])[:, 0]
        if self._known is None:
            self._known = probs.sum(0).topk(min(KNOWN, probs.shape[1])).indices
        known = (self._known.expand(len(text), -1), _before(self.prompt, text).to(taken.device))
        ways = [_by_rank(ordered, places), *(_among(probs, taken, ids) for ids in known)]
        self.runs.append([self._padded(*way) for way in ways])

    def _padded(self, cells: torch.Tensor, chances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Behind the end of a text that is shorter than others, what is certain."""
        missing = self.length - len(cells)
        certain = chances.new_zeros(missing, chances.shape[1])
        certain[:, 0] = 1
        return torch.cat([cells, cells.new_zeros(missing)]), torch.cat([chances, certain])

    def test(self, significance: float) -> Found:
        """The least p-value of all tests, times their number; of tv the largest at one place."""
        ways = [[torch.stack(parts) for parts in zip(*runs, strict=True)] for runs in zip(*self.runs, strict=True)]
        n, length, cells = ways[0][1].shape
        tests = [one for cells, chances in ways for one in _tests(cells, chances)]
        chance = min(1.0, len(tests) * min(p_value(*one) for one in tests))
        counts, chances = torch.nn.functional.one_hot(ways[0][0], cells).double(), ways[0][1]
        apart = 0.5 * (counts - chances).sum(0).abs().sum(-1) / n  # [length]
        noise = 0.5 * ((chances * (1 - chances)).sum(0) * 2 / math.pi).sqrt().sum(-1) / n
        most = int(apart.argmax())
        bound = detectable(n, max(degrees for _, degrees in tests[:length]), significance / len(tests))
        return Found(0.0 if self.impossible else chance, float(apart[most]), float(noise[most]), bound, cells)


def _by_rank(ordered: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cells of ranks 1, 2, … 8, up to 16, up to 32, … and their chances; `ordered`: probabilities, largest first."""
    ends = list(range(1, min(EXACT, ordered.shape[1]) + 1))
    while ends[-1] < ordered.shape[1]:
        ends.append(min(2 * ends[-1], ordered.shape[1]))
    sums = ordered.cumsum(-1)[:, [end - 1 for end in ends]]
    cells = torch.bucketize(places, torch.tensor(ends, device=places.device), right=True)
    return cells.cpu(), sums.diff(dim=-1, prepend=sums.new_zeros(len(sums), 1)).cpu()


def _among(probs: torch.Tensor, taken: torch.Tensor, known: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A cell for every column of known ids [length, k] (-1: none), and one for all other tokens."""
    chances = probs.gather(1, known.clamp_min(0)).masked_fill(known < 0, 0)
    same = taken[:, None] == known
    cells = torch.where(same.any(1), same.int().argmax(1), known.shape[1])
    return cells.cpu(), torch.cat([chances, 1 - chances.sum(1, keepdim=True)], 1).cpu()


def _before(prompt: list[int], text: Sequence[int]) -> torch.Tensor:
    """[length, BACK] the tokens before each place, the last first; -1 for those that came again since."""
    rows = []
    for at in range(len(text)):
        last = [*prompt[-BACK:], *text[:at]][::-1][:BACK]
        first = [token if token not in last[:i] else -1 for i, token in enumerate(last)]
        rows.append(first + [-1] * (BACK - len(last)))
    return torch.tensor(rows)


def edge(dist: Distribution, row: int, tie: float) -> list[int]:
    """Tokens that are cut, yet so near the least likely one kept that rounding may have decided it."""
    kept = dist.scores[row] > -torch.inf
    near = dist.raw[row] >= dist.raw[row][kept].min() - tie
    if dist.allowed is not None:
        near &= dist.allowed[0][row]
    return (near & ~kept).nonzero()[:, 0].tolist()


def _tests(cells: torch.Tensor, chances: torch.Tensor) -> Iterator[tuple[float, int]]:
    """(statistic, degrees) of every place; of every place but the first, by the cell before it; of all tokens."""
    length = cells.shape[1]
    for at in range(length):
        yield _quadratic(cells[:, at], chances[:, at])
    for at in range(1, length):
        before = cells[:, at - 1].clamp_max(GROUPS - 1)
        parts = [_quadratic(cells[before == group, at], chances[before == group, at]) for group in range(GROUPS)]
        yield sum(statistic for statistic, _ in parts), sum(degrees for _, degrees in parts)
    yield _quadratic(cells.flatten(), chances.flatten(0, 1))


def _quadratic(cells: torch.Tensor, chances: torch.Tensor) -> tuple[float, int]:
    """dᵀC⁻¹d of tokens [n] against their chances [n, cells], and its degrees of freedom; unsteady cells are pooled."""
    groups: list[list[int]] = [[]]
    for cell in range(chances.shape[1]):
        groups[-1].append(cell)
        if _variance(chances, groups[-1]) >= STEADY:
            groups.append([])
    while len(groups) > 1 and _variance(chances, groups[-1]) < STEADY:
        groups[-2:] = [groups[-2] + groups[-1]]
    if len(groups) < 2:
        return 0.0, 0
    p = torch.stack([chances[:, group].sum(1) for group in groups], 1)
    seen = torch.tensor([sum(int((cells == cell).sum()) for cell in group) for group in groups], dtype=torch.float64)
    apart = seen - p.sum(0)
    covariance = torch.diag(p.sum(0)) - p.T @ p
    rank = int(torch.linalg.matrix_rank(covariance, hermitian=True, rtol=1e-9))
    return float(apart @ torch.linalg.pinv(covariance, hermitian=True, rtol=1e-9) @ apart), rank


def _variance(chances: torch.Tensor, cells: list[int]) -> float:
    p = chances[:, cells].sum(1)
    return float((p * (1 - p)).sum())

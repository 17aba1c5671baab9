"""Tens of thousands of seeds at the price of the different ways they decide.

A run depends on its seed through decisions alone: which entry of a noisy row is largest, whether a uniform number is
below a threshold. A round runs for one seed; at every decision the same expression is worked out for all seeds that
came this far, and those that decide alike go along. The others wait, and one of each other way runs the round in its
turn. So each seed ends where a run of its own would have ended. Noise put to any other use than a decision raises
TypeError.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from workbench.decoders import Decoder
from workbench.rounds import State
from workbench_kernels.distribution import native
from workbench_kernels.noise import reference as noise

__all__ = ["Crowd"]


class Crowd:
    """The seeds first, first + 1, … and, while one of them runs, those that have decided as it did."""

    def __init__(self, first: int, count: int, vocabulary: int):
        self.seeds = torch.arange(first, first + count)
        self.ids = torch.arange(vocabulary)
        self.members, self.running, self.taken, self.known = torch.arange(count), first, 0, 0
        self._waiting: list[tuple[State, torch.Tensor, int]] = []
        self._tables: dict[tuple, torch.Tensor] = {}
        self._single = noise.gumbel, noise.uniform

    def run(self, decoder: Decoder, start: State) -> Counter:
        """How many seeds came to each text, decoding from a state onwards."""
        texts: Counter = Counter()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(noise, "gumbel", self.gumbel)
            patch.setattr(native, "code_for", lambda rows: None)  # which would make noise of its own
            patch.setattr(noise, "uniform", self.uniform)
            self._waiting = [(start, self.members, 0)]
            while self._waiting:
                self._before, self.members, self.known = self._waiting.pop()
                self.running, self.taken = int(self.seeds[self.members[0]]), 0
                state = self._before.fork()
                state.settings = replace(state.settings, seed=self.running)
                decoder.step(state)
                if state.ended:
                    texts[tuple(state.new_tokens)] += len(self.members)
                else:
                    self._waiting.append((state, self.members, 0))
        return texts

    def decide(self, outcomes: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """What the running seed decides; outcomes(members) gives a row for each, and who differs waits."""
        self.taken += 1
        if self.taken <= self.known or len(self.members) == 1:  # they are known to agree
            return outcomes(self.members[:1])[0]
        found = outcomes(self.members)
        codes = found.view(len(found), -1).to(torch.int64) @ len(self.ids) ** torch.arange(found[0].numel())
        for other in set(codes.tolist()) - {int(codes[0])}:
            self._waiting.append((self._before, self.members[codes == other], self.taken))
        self.members = self.members[codes == codes[0]]
        return found[0]

    def gumbel(
        self, seed: int, purpose: str, position: int, ids: torch.Tensor, branch: int = 0, hypothesis: int = 0
    ) -> "Noise":
        """In the place of `noise.gumbel`."""
        assert seed == self.running and not hypothesis
        return Noise(self, self._table(purpose, position, branch), ids)

    def uniform(self, seed: int, purpose: str, position: int, index: int = 0) -> "Uniform":
        """In the place of `noise.uniform`."""
        assert seed == self.running
        return Uniform(self, self._table(purpose, position, None, index))

    def _table(self, purpose: str, position: int, branch: int | None, index: int = 0) -> torch.Tensor:
        """[n, V] Gumbel noise of all seeds, or [n] uniforms where `branch` is None, by the hash of one seed's."""
        key = purpose, position, branch, index
        if key not in self._tables:
            keys, golden = self.seeds, torch.tensor(noise.signed(noise.GOLDEN))  # whose products wrap around
            for word in (1, noise.PURPOSES[purpose], position + 1, *([branch] if branch else [])):
                keys = noise.finalise(keys + word * golden)
            if branch is None:
                bits = noise.shift(noise.finalise(keys + (index + 1) * golden), 12)
                table = (bits.double() + 0.5) * 2.0**-52
            else:
                table = noise.gumbel_of(keys[:, None] + (self.ids + 1) * golden)
            gumbel, uniform = self._single
            for row in (0, -1):
                where = int(self.seeds[row]), purpose, position
                alone = uniform(*where, index) if branch is None else gumbel(*where, self.ids, branch)
                assert (table[row] == alone).all(), key
            self._tables[key] = table
        return self._tables[key]


class Noise:
    """Gumbel noise that wants to be added to a row and asked for the place of the largest."""

    def __init__(self, crowd: Crowd, table: torch.Tensor, ids: torch.Tensor, row: torch.Tensor | None = None):
        self.crowd, self.table, self.ids, self.row = crowd, table, ids, row

    @classmethod
    def __torch_function__(cls, function, types, arguments, options=None) -> "Noise":
        row, noise = arguments
        if function is not torch.Tensor.add or noise.row is not None:
            raise TypeError(f"noise of a crowd: {function.__name__} decides nothing")
        return Noise(noise.crowd, noise.table, noise.ids, row)

    def _perturbed(self, members: torch.Tensor) -> torch.Tensor:
        return self.row + self.table[members][:, self.ids]

    def argmax(self) -> torch.Tensor:
        return self.crowd.decide(lambda members: self._perturbed(members).argmax(-1))

    def topk(self, count: int) -> torch.return_types.topk:
        order = self.crowd.decide(lambda members: self._perturbed(members).topk(count).indices)
        return torch.return_types.topk((order, order))


class Uniform:
    """A number in (0, 1), perhaps times something, that wants to be compared with a threshold."""

    def __init__(self, crowd: Crowd, values: torch.Tensor, factor: float = 1.0):
        self.crowd, self.values, self.factor = crowd, values, factor

    def __mul__(self, factor: torch.Tensor) -> "Uniform":
        return Uniform(self.crowd, self.values, self.factor * float(factor))

    def __lt__(self, threshold: torch.Tensor) -> bool:
        return bool(self.crowd.decide(lambda members: self.values[members] * self.factor < threshold))

"""Copy on from a place in a source that the output seems to follow, for rewriting and editing."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from workbench.declare import register, setting
from workbench.engine.text import Detokenizer
from workbench.rounds import Round, State
from workbench.speculation.drafters.base import Drafter
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedLength
from workbench.speculation.tree import DraftTree

NAME = "input_guided"


@register("drafter", NAME)
@dataclass(frozen=True)
class InputGuided(Drafter):
    """The output is taken for a rewriting of a source: draft the source from a pointer on, as long as drafts stand.

    After a mismatch decode plainly until the last tokens of the output (1, 2, … `align`, until the place is the only
    one) occur in the source; go on behind them. The source is the prompt, or the part of it between two marks. Nodes
    are POINT. Source: "Lossless Acceleration for Seq2seq Generation with Aggressive Decoding"
    (https://arxiv.org/abs/2205.10350; https://github.com/microsoft/unilm, folder `decoding`; the rule for re-alignment
    is reconstructed: of several places the first behind the last pointer is taken). Departure: the paper's other half,
    generalised aggressive decoding with a non-autoregressive drafter and relaxed verification, is not here.
    """

    align: int = setting(3, ge=1, le=16, unit="tokens", help="output tokens that find the place again, at most")
    begin: str = setting(
        "", trust="visitor", help="mark in the prompt after which the source begins (empty: at its start)"
    )
    end: str = setting("", trust="visitor", help="mark in the prompt before which the source ends (empty: at its end)")

    gives = frozenset()

    def default_shape(self) -> DraftShape:
        return FixedLength(16)

    def propose(self, state: State, r: Round, shape: DraftShape, depth: int, seeded: bool) -> DraftTree:
        memory = self._memory(state)
        place, length = memory["place"], len(state.tokens)
        if memory["length"] != length or not memory["aligned"]:
            output = state.tokens[state.prompt_length :][-self.align :]
            found = realign(state.tokens[slice(*memory["source"])], output, place, self.align) if output else 0
            place, memory = (place if found is None else found), memory | {"aligned": found is not None}
        state.memory[NAME] = memory | {"place": place, "length": length}
        ahead = state.tokens[slice(*memory["source"])][place : place + min(depth, shape.budget)]
        ahead = ahead if memory["aligned"] else []
        return self.chain(state, shape, ahead, depth)

    def on_verified(
        self, state: State, r: Round, tree: DraftTree, path: list[int], logits: torch.Tensor | None
    ) -> None:
        memory = state.memory[NAME]
        place, (start, stop) = memory["place"] + len(path), memory["source"]
        follows = memory["aligned"] and start + place < stop and state.tokens[start + place] == state.tokens[-1]
        state.memory[NAME] = memory | {"place": place + follows, "aligned": follows, "length": len(state.tokens)}

    def _memory(self, state: State) -> dict[str, Any]:
        """source: where it begins and ends in the prompt; place: what is drafted next; aligned: the output follows the
        source there; length: of the text this was noted for."""
        if NAME in state.memory:
            return state.memory[NAME]
        return {"source": self._source(state), "place": 0, "aligned": False, "length": -1}

    def _source(self, state: State) -> tuple[int, int]:
        """The tokens of the prompt that lie between the marks; all of them where a mark is not there."""
        tokenizer, count = state.runners["target"].model.tokenizer, state.prompt_length
        if tokenizer is None or not (self.begin or self.end):
            return 0, count
        texts = Detokenizer(tokenizer)
        parts = [texts.push(token) for token in state.tokens[:count]]
        text, ends = "".join(parts), list(accumulate(map(len, parts)))
        at = text.find(self.begin)
        low = at + len(self.begin) if self.begin and at >= 0 else 0
        high = text.find(self.end, low) if self.end else -1
        return sum(e <= low for e in ends), count if high < 0 else sum(e <= high for e in ends)


def realign(source: Sequence[int], output: list[int], after: int, most: int) -> int | None:
    """The place in `source` behind the last tokens of `output`: of 1, 2, … `most` of them, until there is only one such
    place; of several the first from `after` on (else the first). None where the last token does not occur.

    >>> realign((7, 1, 8, 1, 9), [3, 8, 1], after=0, most=3)
    4
    >>> realign((7, 1, 8, 1, 9), [1], after=3, most=3)
    4
    """
    ends = [i for i, token in enumerate(source) if token == output[-1]]
    for m in range(2, min(most, len(output)) + 1):
        if len(ends) <= 1:
            break
        ends = [i for i in ends if i >= m - 1 and source[i - m + 1] == output[-m]] or ends
    return next((i + 1 for i in ends if i + 1 >= after), ends[0] + 1) if ends else None

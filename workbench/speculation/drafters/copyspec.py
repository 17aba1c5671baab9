"""Copy what followed the last occurrence of the current ending."""

from dataclasses import dataclass

import numpy as np

from workbench.declare import register, setting
from workbench.rounds import Round, State
from workbench.speculation.drafters.base import Drafter
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedLength
from workbench.speculation.tree import DraftTree


@register("drafter", "copyspec")
@dataclass(frozen=True)
class CopySpec(Drafter):
    """If the last `ngram` tokens occurred before, draft what followed them there; else draft nothing.

    Costs no forward pass and keeps no memory: the copy is a function of the tokens alone. Nodes are POINT. Source:
    "CopySpec: Accelerating LLMs with Speculative Copy-and-Paste Without Compromising Quality"
    (https://arxiv.org/abs/2502.08923; https://github.com/RazvanDu/CopySpec). Departures: the latest occurrence by
    default (theirs: the first), and at temperature > 0 the verifier's exact test (theirs compares the filtered
    probability with 1, which accepts at temperature 0 only).
    """

    ngram: int = setting(3, ge=1, le=32, unit="tokens", help="length of the ending that must have occurred before")
    occurrence: str = setting("latest", choices=("latest", "first"), help="which earlier occurrence to copy from")

    gives = frozenset()

    def default_shape(self) -> DraftShape:
        return FixedLength(10)

    def propose(self, state: State, r: Round, shape: DraftShape, depth: int, seeded: bool) -> DraftTree:
        copied = find_copy(state.tokens, self.ngram, min(depth, shape.budget), self.occurrence)
        return self.chain(state, shape, copied, depth)


def find_copy(tokens: list[int], ngram: int, length: int, occurrence: str = "latest") -> list[int]:
    """What followed an earlier occurrence of the last `ngram` tokens, at most `length` tokens.

    >>> find_copy([1, 2, 3, 4, 9, 1, 2, 3], ngram=3, length=2)
    [4, 9]
    >>> find_copy([5, 5, 5, 5], ngram=2, length=3)
    [5]
    """
    if len(tokens) <= ngram:
        return []
    ids = np.asarray(tokens, dtype=np.int64)
    ending = ids[-ngram:]
    starts = len(ids) - ngram  # an occurrence must end before the text does
    match = ids[:starts] == ending[0]
    for offset in range(1, ngram):
        match &= ids[offset : starts + offset] == ending[offset]
    found = match.nonzero()[0]
    if not len(found):
        return []
    follows = int(found[-1 if occurrence == "latest" else 0]) + ngram
    return tokens[follows : follows + length]

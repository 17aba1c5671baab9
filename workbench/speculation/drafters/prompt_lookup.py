"""Copy what followed an earlier occurrence of the current ending, tried from long endings to short ones."""

from dataclasses import dataclass

from workbench.declare import register, setting
from workbench.rounds import Round, State
from workbench.speculation.drafters.base import Drafter
from workbench.speculation.drafters.copyspec import find_copy
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedLength
from workbench.speculation.tree import DraftTree


@register("drafter", "prompt_lookup")
@dataclass(frozen=True)
class PromptLookup(Drafter):
    """Look the last `ngram` tokens up in the text so far, then the last `ngram` − 1, … 1; draft what followed them.

    Costs no forward pass and keeps no memory. Nodes are POINT. Source: "Prompt Lookup Decoding"
    (https://github.com/apoorvumang/prompt-lookup-decoding; the same rule in transformers' `prompt_lookup_num_tokens`,
    https://huggingface.co/docs/transformers/main/en/assisted_decoding). Departure: the latest occurrence can be chosen
    as well (theirs: the first).
    """

    ngram: int = setting(3, ge=1, le=32, unit="tokens", help="longest ending looked up")
    occurrence: str = setting("first", choices=("first", "latest"), help="which earlier occurrence to copy from")

    gives = frozenset()

    def default_shape(self) -> DraftShape:
        return FixedLength(10)

    def propose(self, state: State, r: Round, shape: DraftShape, depth: int, seeded: bool) -> DraftTree:
        length, copied = min(depth, shape.budget), []
        for ngram in range(self.ngram, 0, -1):
            copied = copied or find_copy(state.tokens, ngram, length, self.occurrence)
        return self.chain(state, shape, copied, depth)

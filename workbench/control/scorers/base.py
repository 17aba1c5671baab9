"""What every scorer shares: values for hypotheses, so that a search can choose among them."""

import math
from collections.abc import Sequence
from typing import Any

from workbench.declare import Declared
from workbench.engine.model import LanguageModel
from workbench.engine.settings import Settings
from workbench.engine.text import decode
from workbench.errors import BadInput, shown
from workbench.values import plain, read_float


class Scorer(Declared):
    """Base of all scorers: `score` gives each hypothesis of a round a number, the higher the better.

    Forwards that a scorer runs are of phase `score`, and are dropped. Some texts may go on, others have ended.
    """

    family = "scorer"

    def check(self, lm: LanguageModel, settings: Settings) -> None:
        """Raise BadInput, before any work, where this cannot score what the model writes."""

    def score(self, r: Any, hypotheses: Sequence[Any]) -> Sequence[float]:
        """r: the `Round`; hypotheses: n of its `Hypothesis`. n numbers."""
        raise NotImplementedError

    def rank(self, r: Any, hypotheses: Sequence[Any]) -> None:
        """Make the values the hypotheses' scores. Raises BadInput where they are not a finite number for each."""
        found = self.score(r, hypotheses)
        values = found.tolist() if hasattr(found, "tolist") else found
        values = [read_float((), plain(value)) for value in values] if isinstance(values, list | tuple) else []
        if len(values) != len(hypotheses) or not all(value is not None and math.isfinite(value) for value in values):
            raise BadInput(
                f"scorer {self.declared_name}: expected {len(hypotheses)} finite numbers, got {shown(found)}"
            )
        for one, value in zip(hypotheses, values, strict=True):
            one.score = value


def text_of(r: Any, hypothesis: Any) -> str:
    """The new text of a hypothesis, that of the run included."""
    return decode(r.state.runners["target"].model.tokenizer, hypothesis.state.new_tokens)


def length_of(hypothesis: Any) -> int:
    """The tokens that its search has put behind the text."""
    count, link = 0, hypothesis.known
    while link is not None:
        count, link = count + 1, link[1]
    return count

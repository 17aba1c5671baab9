"""The model's own opinion of a text: its log-probability."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.control.scorers.base import Scorer, length_of
from workbench.declare import register, setting


@register("scorer", "log_probability")
@dataclass(frozen=True)
class LogProbability(Scorer):
    """The log-probability (nats) of a hypothesis's tokens under the next-token distribution, their sum or their mean.

    A mean does not favour short texts. Source: scores of sequences in the beam search
    of transformers (https://github.com/huggingface/transformers), without its power of the length.
    """

    by: str = setting("sum", choices=("sum", "mean"), help="of the text, or per token")

    def score(self, r: Any, hypotheses: Sequence[Any]) -> list[float]:
        return [one.logp / (length_of(one) if self.by == "mean" else 1) for one in hypotheses]

"""A reward function of one's own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from workbench.control.scorers.base import Scorer, text_of
from workbench.declare import register, setting
from workbench.errors import BadInput, shown


def _read(function: Any) -> Callable[[str], float] | None:
    if function is not None and (not callable(function) or isinstance(function, type)):
        raise BadInput(f"Reward(function=…): expected a callable (new text) -> number, got {shown(function)}")
    return function


@register("scorer", "reward")
@dataclass(frozen=True)
class Reward(Scorer):
    """What a Python function says of a hypothesis's new text: `Reward(lambda text: -len(text))`.

    It is called for every hypothesis that is compared, so in `beam` at every token; best a pure function of the text.
    Inspired by the outcome rewards that rerank samples in "Training Verifiers to Solve Math Word Problems"
    (https://arxiv.org/abs/2110.14168; https://github.com/openai/grade-school-math), without a trained verifier.
    """

    trust = "owner"
    function: Callable[[str], float] | None = setting(
        None, kind="object", trust="owner", read=_read, help="(new text) -> number; given in Python alone"
    )

    def check(self, lm: Any, settings: Any) -> None:
        if self.function is None:
            raise BadInput("reward: expected a function, which Python alone can give: Reward(function)")

    def score(self, r: Any, hypotheses: Sequence[Any]) -> list[float]:
        return [self.function(text_of(r, one)) for one in hypotheses]

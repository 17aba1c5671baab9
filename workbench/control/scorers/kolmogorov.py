"""The KoLMogorov test: a text is a program, and the shorter one that writes the item is the better."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from workbench.control.scorers import programs
from workbench.control.scorers.base import Scorer, text_of
from workbench.declare import register, setting
from workbench.errors import BadInput


@register("scorer", "kolmogorov")
@dataclass(frozen=True)
class Kolmogorov(Scorer):
    """1 where a hypothesis's program writes exactly `item`, minus its bits over those of the item, 8 a number.

    −1 for every other text; with `exact=False` a wrong program gets the share of the item that it begins with in place
    of 1. The language and its bounds are `workbench.control.scorers.programs`: nothing that a text says is run.

    Source: "The KoLMogorov Test: Compression by Code Generation" (https://arxiv.org/abs/2503.13992).
    Departures: the functions are theirs in kind, not by name, and bits those of a uniform prior; no flag bit.
    """

    item: tuple[int, ...] = setting((0, 1, 2, 3, 4, 5, 6, 7), ge=0, le=255, help="the numbers to write, 0 to 255")
    exact: bool = setting(True, help="nothing but the item itself counts")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < len(self.item) <= programs.LENGTH:
            raise BadInput(f"Kolmogorov(item=…): expected 1 to {programs.LENGTH} numbers, got {len(self.item)}")

    def score(self, r: Any, hypotheses: Sequence[Any]) -> list[float]:
        return [self.value(text_of(r, one)) for one in hypotheses]

    def value(self, text: str) -> float:
        """The score of a text."""
        found = programs.run(text)
        if found is None or (self.exact and found[0] != [*self.item]):
            return -1.0
        written, bits = found
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(written, self.item, strict=False)))
        return same / max(len(written), len(self.item)) - bits / (8 * len(self.item))

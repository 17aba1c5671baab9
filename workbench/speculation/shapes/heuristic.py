"""Draft more after a full success, less after anything else."""

from dataclasses import dataclass
from typing import Any

from workbench.declare import register, setting
from workbench.errors import BadInput
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import DraftTree


@register("shape", "heuristic")
@dataclass(frozen=True)
class HeuristicLength(DraftShape):
    """A chain of K tokens; K grows by 2 when a whole draft was accepted, else shrinks by 1, never below 1.

    K is kept in the decoding state, so it lives and forks with the run. A round without a draft leaves it alone.
    Source: the assisted generation of transformers (`num_assistant_tokens_schedule="heuristic"`;
    https://huggingface.co/docs/transformers/main/en/assisted_decoding). Departure: an upper bound, `max_length`.
    """

    start: int = setting(5, ge=1, le=64, unit="tokens", help="tokens drafted in the first round")
    max_length: int = setting(20, ge=1, le=64, unit="tokens", help="tokens drafted at most")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start > self.max_length:
            raise BadInput(f"HeuristicLength: start={self.start} lies above max_length={self.max_length}")

    @property
    def budget(self) -> int:
        return self.max_length

    def length(self, memory: dict[str, Any]) -> int:
        return min(self.max_length, memory.get("heuristic", self.start))

    def ask(self, tree: DraftTree, memory: dict[str, Any]) -> list[tuple[int, int]]:
        return [(len(tree) - 1, 1)] if len(tree) <= self.length(memory) else []

    def observe(self, memory: dict[str, Any], tree: DraftTree, accepted: int) -> None:
        if (drafted := len(tree) - 1) > 0:
            step = 2 if accepted == drafted else -1
            memory["heuristic"] = min(self.max_length, max(1, self.length(memory) + step))

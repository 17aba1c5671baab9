"""A confidence stop whose threshold follows how well the drafts fare."""

from dataclasses import dataclass
from typing import Any

from workbench.declare import register, setting
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import DraftTree


@register("shape", "adaptive_confidence")
@dataclass(frozen=True)
class AdaptiveConfidence(DraftShape):
    """A chain that ends after the first token whose row had its largest probability below a threshold that adapts.

    m, a running mean of the rounds' acceptance, is held at `goal`: below it the threshold rises by `step`, above it
    falls, and stays where all `max_length` drafts were accepted; both changes are smoothed. Source: "Draft & Verify:
    Lossless Large Language Model Acceleration via Self-Speculative Decoding" (https://arxiv.org/abs/2309.08168;
    https://github.com/dilab-zju/self-speculative-decoding). Departures: the threshold stays where all `max_length`
    drafts were accepted (theirs: where `max_length` were drafted); acceptance is that of tested drafts (theirs: of all
    drafted), since how many are drafted behind a rejected one depends on tokens that nobody tested, and sampling would
    then no longer be exact."""

    max_length: int = setting(8, ge=1, le=64, unit="tokens", help="tokens drafted at most")
    start: float = setting(0.8, ge=0, le=1, help="first threshold")
    goal: float = setting(0.9, ge=0, le=1, help="acceptance to hold")
    step: float = setting(0.01, ge=0, le=1, help="change of the threshold in a round, before smoothing")

    needs = frozenset({"confidence"})

    @property
    def budget(self) -> int:
        return self.max_length

    def ask(self, tree: DraftTree, memory: dict[str, Any]) -> list[tuple[int, int]]:
        last = len(tree) - 1
        threshold, _ = memory.get(self.declared_name, (self.start, self.goal))
        if last >= self.max_length:
            return []
        if last > 0 and tree.confidence[tree.parents[last]] < threshold:
            tree.stop_reason = "confidence"
            return []
        return [(last, 1)]

    def observe(self, memory: dict[str, Any], tree: DraftTree, accepted: int) -> None:
        tested = min(accepted + 1, len(tree) - 1)
        if not tested:
            return
        threshold, mean = memory.get(self.declared_name, (self.start, self.goal))
        mean = 0.5 * mean + 0.5 * accepted / tested
        change = self.step if mean < self.goal else 0.0 if accepted == self.max_length else -self.step
        threshold = 0.9 * threshold + 0.1 * min(1.0, max(0.0, threshold + change))
        memory[self.declared_name] = (threshold, mean)

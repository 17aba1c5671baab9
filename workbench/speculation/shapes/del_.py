"""Choose the exit layer and the draft length by what the last rounds' text says about every exit."""

from dataclasses import dataclass
from typing import Any

from workbench.declare import register, setting
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import DraftTree


@register("shape", "del")
@dataclass(frozen=True)
class Del(DraftShape):
    """A chain from the exit l and up to the length d that promise the most tokens per layer run,
    (1 − aᵈ⁺¹)/(1 − a) / (d·l + L), a being the acceptance expected of drafts from l; it ends early where the exit's
    confidence falls below a threshold.

    a is a running mean over shadow tokens: what each exit would have drafted at every position that became text,
    compared with the target there. No exit may be worth it: then nothing is drafted. Source: "DEL: Context-Aware
    Dynamic Exit Layer for Efficient Self-Speculative Decoding" (https://arxiv.org/abs/2504.05598;
    https://github.com/hoenza/DEL; reconstructed from the abstract: the mean's decay, and the threshold, here midway
    between the exit's mean confidence where it agreed with the target and where it did not). Departures: shadow tokens
    count at all verified positions (theirs: up to the first mismatch); when sampling they count by the overlap of the
    two distributions; `overhead`, and d may be 0.
    """

    max_length: int = setting(8, ge=1, le=64, unit="tokens", help="tokens drafted at most")
    decay: float = setting(0.9, ge=0, lt=1, help="weight that a round's shadow tokens keep in the next round")
    overhead: float = setting(
        0.0, ge=0, unit="layers", help="cost of a draft beyond its layers: adapter, head and drawing (0: the paper's)"
    )

    needs = frozenset({"confidence", "exits"})

    @property
    def budget(self) -> int:
        return self.max_length

    def exit(self, memory: dict[str, Any]) -> int | None:
        """The number of layers to draft from, or None where nothing is known yet."""
        return memory["del"]["exit"] if "del" in memory else None

    def ask(self, tree: DraftTree, memory: dict[str, Any]) -> list[tuple[int, int]]:
        last = len(tree) - 1
        plan = memory.get("del", {"length": self.max_length, "threshold": 0.0})
        if last >= min(plan["length"], self.max_length):
            tree.stop_reason = "budget" if last else "no exit pays"
            return []
        if last > 0 and tree.confidence[tree.parents[last]] < plan["threshold"]:
            tree.stop_reason = "confidence"
            return []
        return [(last, 1)]

    def observe(self, memory: dict[str, Any], tree: DraftTree, accepted: int) -> None:
        seen = memory.pop("exits", None)
        if seen is None:
            return
        before, table = memory.get("del", {}).get("table", {}), {}
        for exit, agreed in seen["agreed"].items():
            sure = seen["confidence"][exit]
            fresh = (
                len(agreed),
                sum(agreed),
                sum(a * c for a, c in zip(agreed, sure, strict=True)),
                sum((1 - a) * c for a, c in zip(agreed, sure, strict=True)),
            )
            table[exit] = tuple(
                self.decay * old + new for old, new in zip(before.get(exit, (0.0,) * 4), fresh, strict=True)
            )
        plans = [
            (self.gain(table[exit], exit, d, seen["layers"]), -d, exit)
            for exit in table
            for d in range(self.max_length + 1)
        ]
        _, length, exit = max(plans)
        count, hits, right, wrong = table[exit]
        threshold = (right / max(hits, 1e-6) + wrong / max(count - hits, 1e-6)) / 2
        memory["del"] = {"exit": exit, "length": -length, "threshold": threshold, "table": table}

    def gain(self, figures: tuple[float, ...], exit: int, length: int, layers: int) -> float:
        """Expected tokens per layer run."""
        count, hits, *_ = figures
        rate = hits / count
        return sum(rate**i for i in range(length + 1)) / (length * (exit + self.overhead) + layers)

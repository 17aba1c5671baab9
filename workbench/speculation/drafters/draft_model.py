"""A separate, smaller model drafts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench.cache import Stack, as_stack
from workbench.declare import register, setting
from workbench.engine.loading import companion
from workbench.engine.model import LanguageModel
from workbench.speculation.drafters.base import RowDrafter
from workbench.speculation.growth import Growth
from workbench.speculation.tree import DraftTree

if TYPE_CHECKING:
    from workbench.decoders.base import RoundLog, State

__all__ = ["DraftModel"]


@register("drafter", "draft_model")
@dataclass(frozen=True)
class DraftModel(RowDrafter):
    """A language model with the target's vocabulary drafts under the run's own sampling settings.

    Its cache holds committed tokens only; a round's nodes are staged, level by level, and the accepted ones that were
    fed are kept. Sources: "Fast Inference from Transformers via Speculative Decoding" (arXiv 2211.17192); "Accelerating
    Large Language Model Decoding with Speculative Sampling" (arXiv 2302.01318).
    """

    model: str = setting("embedded-draft", model=True, help="the draft model: name, hub id or directory")
    cache: Stack | None = setting(None, family="cache", help="the draft's cache stack (default: every token as it is)")

    has_features = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", as_stack(self.cache))
        super().__post_init__()

    @property
    def by_text(self) -> bool:
        return self.cache is None  # a stack acts where a round begins, not where a draft has come to

    def lanes(self, lm: LanguageModel) -> dict[str, LanguageModel]:
        return {"draft": companion(lm, self.model)}

    def caches(self) -> dict[str, Stack | None]:
        return {"draft": self.cache}

    def reach(self, state: "State") -> int:
        lane = state.lanes["draft"]
        if not lane.reads(state.pending):
            return 0  # an id the draft does not have is not drafted on
        return min(lane.model.context - len(state.tokens), lane.room(len(state.tokens)) + 1)  # leaves are not fed

    def logits(self, growth: Growth, nodes: list[int]) -> torch.Tensor:
        if 0 in nodes:
            full = growth.log.settings.level == "full"
            logits = growth.log.advance("draft", "all" if full else "last").logits  # the root is committed
            growth.overread(logits[:-1], range(growth.base + 2 - len(logits), growth.base + 1))
            return logits[-1:]
        tokens = [growth.tree.tokens[node] for node in nodes]
        mask = growth.visible(nodes, [*growth.fed[1:], *nodes])
        if growth.features is None:
            return growth.log.forward("draft", tokens, growth.positions(nodes), mask).logits
        out = growth.log.forward("draft", tokens, growth.positions(nodes), mask, want=("hidden",))
        growth.features |= zip(nodes, out.hidden, strict=True)
        return out.logits

    def drafted(self, state: "State", growth: Growth) -> None:
        state.memory["fed"] = tuple(growth.fed[1:])

    def settle(
        self, state: "State", log: "RoundLog", tree: DraftTree, path: list[int], logits: torch.Tensor | None
    ) -> None:
        fed = state.memory.pop("fed")
        log.commit("draft", [fed.index(node) for node in path if node in fed])

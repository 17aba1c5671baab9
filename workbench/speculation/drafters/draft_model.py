"""A separate, smaller model drafts."""

from dataclasses import dataclass

import torch

from workbench.cache import Stack, as_stack
from workbench.declare import register, setting
from workbench.engine.model import LanguageModel
from workbench.models.loading import companion
from workbench.rounds import Round, State
from workbench.speculation.drafters.base import RowDrafter
from workbench.speculation.tree import DraftTree
from workbench.speculation.tree_builder import TreeBuilder


@register("drafter", "draft_model")
@dataclass(frozen=True)
class DraftModel(RowDrafter):
    """A language model with the target's vocabulary drafts under the run's own sampling settings.

    Its cache holds committed tokens only; a round's nodes are staged, level by level, and the accepted ones that were
    fed are kept. Sources: "Fast Inference from Transformers via Speculative Decoding"
    (https://arxiv.org/abs/2211.17192); "Accelerating Large Language Model Decoding with Speculative Sampling"
    (https://arxiv.org/abs/2302.01318).
    """

    model: str = setting("embedded-draft", model=True, help="the draft model: name, hub id or directory")
    cache: Stack | None = setting(None, family="cache", help="the draft's cache stack (default: every token as it is)")

    gives = RowDrafter.gives | {"features"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", as_stack(self.cache))
        super().__post_init__()

    @property
    def by_text(self) -> bool:
        return self.cache is None  # a stack acts where a round begins, not where a draft has come to

    def runners(self, lm: LanguageModel) -> dict[str, LanguageModel]:
        return {"draft": companion(lm, self.model)}

    def caches(self) -> dict[str, Stack | None]:
        return {"draft": self.cache}

    def max_depth(self, state: State) -> int:
        runner = state.runners["draft"]
        if not runner.reads(state.pending):
            return 0  # an id the draft does not have is not drafted on
        return min(
            runner.model.context - len(state.tokens), runner.rows_left(len(state.tokens)) + 1
        )  # leaves are not fed

    def logits(self, builder: TreeBuilder, nodes: list[int]) -> torch.Tensor:
        if 0 in nodes:
            full = builder.round.settings.level == "full"
            logits = builder.round.advance("draft", "all" if full else "last").logits  # the root is committed
            builder.overread(logits[:-1], range(builder.base + 2 - len(logits), builder.base + 1))
            return logits[-1:]
        tokens = [builder.tree.tokens[node] for node in nodes]
        mask = builder.visible(nodes, [*builder.expanded[1:], *nodes])
        if builder.features is None:
            return builder.round.forward("draft", tokens, builder.positions(nodes), mask).logits
        out = builder.round.forward("draft", tokens, builder.positions(nodes), mask, want=("hidden",))
        builder.features |= zip(nodes, out.hidden, strict=True)
        return out.logits

    def drafted(self, state: State, builder: TreeBuilder) -> None:
        state.memory["expanded"] = tuple(builder.expanded[1:])

    def on_verified(
        self, state: State, r: Round, tree: DraftTree, path: list[int], logits: torch.Tensor | None
    ) -> None:
        fed = state.memory.pop("expanded")
        r.commit("draft", [fed.index(node) for node in path if node in fed])

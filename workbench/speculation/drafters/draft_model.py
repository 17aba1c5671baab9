"""A separate, smaller model drafts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench.cache import Stack, as_stack
from workbench.declare import register, setting
from workbench.engine.distribution import draw
from workbench.engine.loading import companion
from workbench.engine.model import LanguageModel
from workbench.speculation.drafters.base import Drafter
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree import DIST, POINT, DraftTree

if TYPE_CHECKING:
    from workbench.decoders.base import RoundLog, State

__all__ = ["DraftModel"]


@register("drafter", "draft_model")
@dataclass(frozen=True)
class DraftModel(Drafter):
    """A language model with the target's vocabulary drafts under the run's own sampling settings.

    Its cache holds committed tokens only; a round's nodes are staged, level by level, and the accepted ones that were
    fed are kept. Sources: "Fast Inference from Transformers via Speculative Decoding"; "Accelerating Large Language
    Model Decoding with Speculative Sampling".
    """

    model: str = setting("embedded-draft", help="the draft model: name, hub id or directory")
    cache: Stack | None = setting(None, family="cache", help="the draft's cache stack (default: every token as it is)")

    has_rows = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", as_stack(self.cache))
        super().__post_init__()

    def lanes(self, lm: LanguageModel) -> dict[str, LanguageModel]:
        return {"draft": companion(lm, self.model)}

    def caches(self) -> dict[str, Stack | None]:
        return {"draft": self.cache}

    def propose(self, state: "State", log: "RoundLog", shape: DraftShape, depth: int, coupled: bool) -> DraftTree:
        tree = DraftTree([state.pending])
        base = len(state.tokens) - 1
        lane = state.lanes["draft"]
        depth = min(depth, lane.model.context - len(state.tokens), lane.room(base + 1) + 1)  # leaves are not fed
        grow = _Growth(self, state, log, tree, coupled, shape.needs_confidence)
        while asked := [(parent, m) for parent, m in shape.ask(tree) if tree.depths[parent] < depth]:
            grow.feed([parent for parent, _ in asked])
            for parent, count in asked:
                grow.children(parent, count, base + tree.depths[parent] + 1)
        state.memory["fed"] = tuple(grow.fed)
        return tree

    def settle(self, state: "State", log: "RoundLog", tree: DraftTree, path: list[int]) -> None:
        fed = state.memory.pop("fed")
        log.commit("draft", [fed.index(node) for node in path if node in fed])


class _Growth:
    """One draft under way: which nodes the draft model has read, and its law after each."""

    def __init__(
        self, drafter: DraftModel, state: "State", log: "RoundLog", tree: DraftTree, coupled: bool, sure: bool
    ):
        self.name = drafter.declared_name
        self.state, self.log, self.tree, self.coupled = state, log, tree, coupled
        self.sure = sure  # the shape reads confidences
        self.fed: list[int] = []  # nodes staged in the draft's cache, in order; the root is committed
        self.vocab = state.lanes["target"].model.vocab_size
        self.greedy = log.settings.sampling.greedy

    def feed(self, nodes: list[int]) -> None:
        """Run the draft over nodes it has not read and keep their laws."""
        state, tree = self.state, self.tree
        if 0 in nodes:
            logits = self.log.advance("draft").logits
            new = [0]
        else:
            new = nodes
            base = len(state.tokens) - 1
            staged = self.fed + new
            mask = None if tree.is_chain else tree.ancestors()[new][:, staged]
            positions = [base + tree.depths[n] for n in new]
            tokens = [tree.tokens[n] for n in new]
            logits = self.log.forward("draft", tokens, positions, mask).logits
            self.fed = staged
        law = self.log.law(logits, lambda row: state.tokens + [tree.tokens[n] for n in tree.path(new[row])])
        if self.sure:
            tree.confidence |= zip(new, law.raw.amax(-1).exp().tolist(), strict=True)
        for row, node in enumerate(new):
            tree.raw[node] = _fit(law.raw[row], self.vocab)
            tree.rows[node] = _fit(law.scores[row], self.vocab)

    def children(self, parent: int, count: int, position: int) -> None:
        """Append `count` children: the best ones at temperature 0, else keyed draws without replacement."""
        row, seed = self.tree.rows[parent], self.log.settings.seed
        if self.greedy:
            tokens = [int(row.argmax())] if count == 1 else row.topk(min(count, len(row))).indices.tolist()
        else:
            drawn = draw(row, seed, "target" if self.coupled else "draft", position, count)
            tokens = [drawn] if count == 1 else drawn
        kind = POINT if self.greedy or self.coupled else DIST
        probs = self.tree.raw[parent] if self.greedy else row
        for token in tokens:
            self.tree.add(parent, token, kind, probs[token].exp().item(), self.name)


def _fit(row: torch.Tensor, size: int) -> torch.Tensor:
    """A row of log-probabilities on the target's vocabulary size (models pad their embeddings differently)."""
    if len(row) == size:
        return row
    if len(row) > size:
        return row[:size].log_softmax(-1)
    return torch.cat([row, row.new_full((size - len(row),), -torch.inf)])

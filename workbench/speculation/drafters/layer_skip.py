"""The target itself drafts, with some of its layers left out."""

import math
from dataclasses import dataclass

import torch

from workbench.declare import register, setting
from workbench.engine.model import LanguageModel
from workbench.errors import BadInput
from workbench.rounds import State
from workbench.speculation.drafters.base import RowDrafter
from workbench.speculation.shapes.adaptive import AdaptiveConfidence
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.tree_builder import TreeBuilder


@register("drafter", "layer_skip")
@dataclass(frozen=True)
class LayerSkip(RowDrafter):
    """Draft with the target's own layers but for those in `skip`; nothing is trained and nothing else is held.

    Drafted rows lie behind the target's cache, so they attend to what the whole target made of the text; they are
    dropped before the tree is scored. The output is the target's for any skip set; `search_skip` finds one. This is
    Draft & Verify; the paper named LayerSkip, early exit with the target's own head, is `Kangaroo(weights=None)`.
    Source: "Draft & Verify: Lossless Large Language Model Acceleration via Self-Speculative Decoding"
    (https://arxiv.org/abs/2309.08168; https://github.com/dilab-zju/self-speculative-decoding). Departures: whole layers
    are left out (theirs: attention and MLP apart), and the search is greedy removal (theirs: Bayesian optimisation).
    """

    skip: tuple[int, ...] = setting((), ge=0, help="layers to leave out; empty: a share of them")
    share: float = setting(
        0.5, ge=0, lt=1, help="of the layers, left out evenly between first and last, where `skip` is empty"
    )

    def default_shape(self) -> DraftShape:
        return AdaptiveConfidence()

    def check(self, lm: LanguageModel) -> None:
        if not set(self.skip) < set(range(lm.layers)):
            raise BadInput(f"LayerSkip(skip={list(self.skip)}): {lm.name!r} has layers 0 to {lm.layers - 1}; keep one")
        lm.check_layers()

    def kept(self, layers: int) -> list[int]:
        """The layers that draft, of so many."""
        skip = set(self.skip or evenly(layers, math.ceil(self.share * layers)))
        return [layer for layer in range(layers) if layer not in skip]

    def logits(self, builder: TreeBuilder, nodes: list[int]) -> torch.Tensor:
        tokens = [builder.tree.tokens[node] for node in nodes]
        mask = builder.visible(nodes, [*builder.expanded, *nodes])
        kept = self.kept(builder.state.runners["target"].model.layers)
        return builder.round.forward(
            "target", tokens, builder.positions(nodes), mask, phase="draft", layers=kept
        ).logits

    def drafted(self, state: State, builder: TreeBuilder) -> None:
        state.runners["target"].store.discard()


def evenly(layers: int, count: int) -> list[int]:
    """`count` layers, evenly spaced between the first and the last, which stay.

    >>> evenly(8, 4)
    [1, 3, 4, 6]
    """
    middle = layers - 2
    count = min(count, middle)
    return [1 + (2 * i + 1) * middle // (2 * count) for i in range(count)]

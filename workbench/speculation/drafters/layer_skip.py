"""The target itself drafts, with some of its layers left out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from workbench.declare import register, setting
from workbench.engine.model import LanguageModel
from workbench.errors import BadInput
from workbench.speculation.drafters.base import RowDrafter, check_layers
from workbench.speculation.shapes.adaptive import AdaptiveConfidence
from workbench.speculation.shapes.base import DraftShape
from workbench.speculation.shapes.fixed import FixedLength
from workbench.speculation.tree_builder import TreeBuilder

if TYPE_CHECKING:
    from workbench.decoders.base import State

__all__ = ["LayerSkip", "search_skip"]


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
        check_layers(lm)

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

    def drafted(self, state: "State", builder: TreeBuilder) -> None:
        state.runners["target"].store.discard()


def evenly(layers: int, count: int) -> list[int]:
    """`count` layers, evenly spaced between the first and the last, which stay.

    >>> evenly(8, 4)
    [1, 3, 4, 6]
    """
    middle = layers - 2
    count = min(count, middle)
    return [1 + (2 * i + 1) * middle // (2 * count) for i in range(count)]


def search_skip(lm: LanguageModel, prompts: Sequence[str], tokens: int = 32, length: int = 4) -> tuple[int, ...]:
    """Layers to leave out when drafting for a target: greedy removal, measured on a few prompts.

    From the whole stack on, the layer goes whose absence leaves the most tokens per layer run, (1 − αᵈ⁺¹)/(1 − α) /
    (d·kept + L) at the best d up to `length`, where α is the share of tested drafts that was accepted in greedy
    decoding of `tokens` tokens. The best set on the way is the answer; it takes about L²/2 short runs.
    """
    from workbench.api import decode
    from workbench.decoders.speculative import Speculative

    def gain(skip: tuple[int, ...]) -> float:
        decoder = Speculative(drafter=LayerSkip(skip=skip), shape=FixedLength(length))
        fates = [fate for p in prompts for fate in decode(lm, p, decoder, max_new_tokens=tokens).drafts["fate"]]
        accepted, rejected = fates.count("accepted"), fates.count("rejected")
        return per_layer(accepted / max(1, accepted + rejected), lm.layers - len(skip), lm.layers, length)

    skip: tuple[int, ...] = ()
    found = [(0.0, skip)]
    while len(skip) < lm.layers - 1:
        tried = [tuple(sorted((*skip, layer))) for layer in range(lm.layers) if layer not in skip]
        best, skip = max((gain(one), one) for one in tried)
        found.append((best, skip))
    return max(found)[1]


def per_layer(rate: float, drafting: float, layers: int, most: int) -> float:
    """Expected tokens per layer run, at the best draft length up to `most`: acceptance `rate` at every depth,
    `drafting` layers for each draft, `layers` to verify them all."""
    return max(sum(rate**i for i in range(d + 1)) / (d * drafting + layers) for d in range(1, most + 1))

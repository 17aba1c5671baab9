"""Medusa's and Hydra's heads: one head a depth, over the target's final hidden state.

They learn from the target's own distribution after each token (soft labels), not from the token that came: the optimum
is the same, with less noise. Their figures are top-1 agreement with the target by depth, along held-out text.
"""

from collections.abc import Callable, Iterator

import torch

from workbench.speculation.drafters.hydra import HydraHeads
from workbench.speculation.drafters.medusa import MedusaHeads
from workbench.training.data import Batch, width_of
from workbench.training.fit import HEADS, Part

DEPTHS = 4
WEIGHT = 0.8  # of each further depth in the loss (Medusa)


def medusa() -> Part:
    """Heads that each see the target's state alone."""
    return _part(MedusaHeads, lambda module, batch: list(module(batch.hidden[:, :-DEPTHS])))


def hydra() -> Part:
    """Heads that see the tokens drafted before theirs, too."""

    def states_of(module: HydraHeads, batch: Batch) -> list[torch.Tensor]:
        windows = batch.embedded[:, 1:].unfold(1, DEPTHS, 1).transpose(-1, -2)  # [B, length, DEPTHS, width]
        return [module(batch.hidden[:, :-DEPTHS], windows[:, :, : depth + 1]) for depth in range(DEPTHS)]

    return _part(HydraHeads, states_of)


def _part(make: type[torch.nn.Module], states_of: Callable) -> Part:
    """states_of(module, batch): per depth, 0 first, what the target's head reads of the token depth + 1 places on."""

    def depths(module: torch.nn.Module, batch: Batch) -> Iterator[tuple[torch.Tensor, slice]]:
        for depth, states in enumerate(states_of(module, batch), start=1):
            yield states, slice(depth, depth + states.shape[1])

    def loss(module: torch.nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        losses = [batch.cross_entropy(states, batch.probs[:, at]) for states, at in depths(module, batch)]
        return sum(WEIGHT**d * loss for d, loss in enumerate(losses)) / sum(WEIGHT**d for d in range(DEPTHS))

    def figures(module: torch.nn.Module, batch: Batch) -> dict[str, float]:
        found = enumerate(depths(module, batch), start=1)
        return {f"top-1 at depth {depth}": batch.agreement(states, at) for depth, (states, at) in found}

    return Part(make, lambda lm: {"width": width_of(lm), "heads": DEPTHS}, loss, figures, HEADS)

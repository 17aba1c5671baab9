"""Kangaroo's adapters.

The loss is the paper's, cross-entropy with the target's own distribution; the optimiser is ours.
"""

from typing import Any

import torch

from workbench.models.adapter import TransformersModel
from workbench.speculation.drafters.kangaroo import Adapters
from workbench.speculation.heads.modules import causal
from workbench.training.data import Batch, width_of
from workbench.training.fit import Part, Recipe


def kangaroo() -> Part:
    """Adapters behind a quarter and behind half of the target's layers, both trained in one pass."""
    return Part(Adapters, shape, loss, figures, Recipe(tokens=450_560, muon_rate=0.02, adam_rate=5e-3))


def shape(lm: TransformersModel) -> dict[str, Any]:
    width = width_of(lm)
    exits = sorted({max(1, lm.layers // 4), max(1, lm.layers // 2)})
    heads = width // lm.head_dim
    return {"exits": exits, "width": width, "heads": heads, "kv_heads": min(lm.kv_heads, heads)}


def hidden(module: Adapters, batch: Batch) -> list[torch.Tensor]:
    """[B, T, width] per exit: what the head reads."""
    positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
    pairs = zip(module.exits, module.adapters, strict=True)
    return [adapter(batch.states[exit], positions, causal) for exit, adapter in pairs]


def loss(module: Adapters, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    return sum(batch.cross_entropy(states, batch.probs) for states in hidden(module, batch)) / len(module.exits)


def figures(module: Adapters, batch: Batch) -> dict[str, float]:
    """Agreement of each exit's best token with the target's, and overlap of the two distributions; `bare`: without
    adapter."""
    found, norm = {}, batch.lm.final_norm
    for exit, states in zip(module.exits, hidden(module, batch), strict=True):
        overlap = torch.minimum(batch.head(states).log_softmax(-1), batch.dist).exp().sum(-1)
        found[f"top-1 at exit {exit}"] = batch.agreement(states)
        found[f"overlap at exit {exit}"] = overlap.mean().item()
        found[f"bare top-1 at exit {exit}"] = batch.agreement(norm(batch.states[exit]))
    return found

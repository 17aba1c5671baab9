"""The parts that draft from the target's final hidden state: Medusa, Hydra, EAGLE, and EAGLE with FSPAD's sampling.

All four learn from the target's own distribution after each token (soft labels), not from the token that came: the
optimum is the same, with less noise. Their figures are top-1 agreement with the target by depth, along held-out text.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from workbench.models.adapter import TransformersModel
from workbench.speculation.drafters.eagle import EagleLayer
from workbench.speculation.drafters.hydra import HydraHeads
from workbench.speculation.drafters.medusa import MedusaHeads
from workbench.training.data import Batch, width_of
from workbench.training.fit import Part, Recipe

__all__ = ["EAGLE", "FSPAD", "HYDRA", "MEDUSA"]

DEPTHS = 4
WEIGHT = 0.8  # of each further depth in the loss (Medusa)
PASSES = 2  # depth of EAGLE's recursion in training
FEATURES = 0.5  # weight of EAGLE's feature loss beside the cross-entropy
RECIPE = Recipe(tokens=800_000, batch=1024, muon_rate=0.02, adam_rate=4e-3)


def heads_shape(lm: TransformersModel) -> dict[str, Any]:
    return {"width": width_of(lm), "heads": DEPTHS}


def medusa_states(module: MedusaHeads, batch: Batch) -> list[torch.Tensor]:
    return list(module(batch.hidden[:, :-DEPTHS]))


def hydra_states(module: HydraHeads, batch: Batch) -> list[torch.Tensor]:
    hidden = batch.hidden[:, :-DEPTHS]
    windows = batch.embedded[:, 1:].unfold(1, DEPTHS, 1).transpose(-1, -2)  # [B, length, DEPTHS, width]
    return [module(hidden, windows[:, :, : depth + 1]) for depth in range(DEPTHS)]


def ahead(states: list[torch.Tensor]) -> list[slice]:
    """Per depth d, the places d + 1 tokens after each of the states."""
    return [slice(depth + 1, depth + 1 + states[0].shape[1]) for depth in range(DEPTHS)]


def heads_loss(states_of: Callable, module: torch.nn.Module, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    states = states_of(module, batch)
    losses = [batch.cross_entropy(s, batch.probs[:, at]) for s, at in zip(states, ahead(states), strict=True)]
    return sum(WEIGHT**d * loss for d, loss in enumerate(losses)) / sum(WEIGHT**d for d in range(DEPTHS))


def heads_figures(states_of: Callable, module: torch.nn.Module, batch: Batch) -> dict[str, float]:
    states = states_of(module, batch)
    pairs = enumerate(zip(states, ahead(states), strict=True), start=1)
    return {f"top-1 at depth {depth}": batch.agreement(s, at) for depth, (s, at) in pairs}


def eagle_shape(sampling: bool, lm: TransformersModel) -> dict[str, Any]:
    config = lm.model.config.get_text_config()
    return {
        "width": width_of(lm),
        "heads": max(1, config.num_attention_heads),
        "kv_heads": lm.kv_heads,
        "inner": int(config.intermediate_size),
        "sampling": sampling,
    }


def eagle_loss(module: EagleLayer, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    """SmoothL1 of the features and cross-entropy with the target's distribution, at every depth of a short recursion;
    the true features are noised, and some windows begin without any (as after a change of drafters)."""
    true = batch.hidden
    rows, length, _ = true.shape
    scale = true.std().item()
    noise = (torch.rand(true.shape, generator=generator, device=true.device) - 0.5) * 0.2 * scale
    luck = torch.rand(rows, generator=generator, device=true.device)
    start = torch.where(luck < 0.1, luck * 10 * length / 2, 0)
    unknown = torch.arange(length, device=true.device) < start[:, None]
    read = (true + noise).masked_fill(unknown[..., None], 0)
    total = torch.zeros((), device=true.device)
    for depth, (features, states) in enumerate(unrolled(module, batch, read, PASSES)):
        drift = F.smooth_l1_loss(features[:, depth:] / scale, true[:, depth:] / scale)
        total = total + FEATURES * drift + batch.cross_entropy(states[:, depth:], batch.probs[:, depth:])
    return total / PASSES


def eagle_figures(module: EagleLayer, batch: Batch) -> dict[str, float]:
    found = enumerate(unrolled(module, batch, batch.hidden, DEPTHS))
    return {f"top-1 at depth {d + 1}": batch.agreement(s[:, d:], slice(d, None)) for d, (_, s) in found}


def unrolled(module: EagleLayer, batch: Batch, features: torch.Tensor, depths: int) -> list[tuple[torch.Tensor, ...]]:
    """Drafting from every place of the text at once: per depth d, 0 first, (features, states for the head) after each
    token, [B, T, width], where the features before the last d tokens are the module's own.

    So row t attends to rows made of true features up to t − d, and to those of the d passes after them.
    """
    positions = torch.arange(features.shape[1], device=features.device)
    back = positions[:, None] - positions[None, :]
    keys: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    found = []
    for depth in range(depths):
        seen = torch.cat([back >= depth, *(back == depth - own for own in range(1, depth + 1))], -1)
        seen[:depth, 0] = True  # rows that begin before the text: they see something, and are used by nobody

        def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor = seen) -> torch.Tensor:
            keys.append(k)
            values.append(v)
            k, v = (torch.cat(parts, 2) for parts in (keys, values))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)

        pairs = torch.cat([F.pad(features, (0, 0, 1, -1)), batch.embedded], -1)  # each feature beside the next token
        features, states = module(pairs, positions, attend)
        found.append((features, states))
    return found


MEDUSA, HYDRA = (
    Part(make, heads_shape, partial(heads_loss, states), partial(heads_figures, states), RECIPE)
    for make, states in ((MedusaHeads, medusa_states), (HydraHeads, hydra_states))
)
EAGLE, FSPAD = (
    Part(EagleLayer, partial(eagle_shape, sampling), eagle_loss, eagle_figures, replace(RECIPE, tokens=1_000_000))
    for sampling in (False, True)
)

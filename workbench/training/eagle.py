"""EAGLE's layer, which drafts features one after the other, and the same with FSPAD's sampling.

It learns from the target's own distribution after each token (soft labels), not from the token that came. Its figures
are top-1 agreement with the target by depth, along held-out text.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from workbench.models.adapter import TransformersModel
from workbench.speculation.drafters.eagle import EagleLayer
from workbench.training.data import Batch, width_of
from workbench.training.fit import HEADS, Part

DEPTHS = 4
PASSES = 2  # depth of the recursion in training
FEATURES = 0.5  # weight of the feature loss beside the cross-entropy


def eagle(sampling: bool = False) -> Part:
    """A layer over the target's features and the tokens that came after them."""

    def shape(lm: TransformersModel) -> dict[str, Any]:
        config = lm.model.config.get_text_config()
        heads, inner = max(1, config.num_attention_heads), int(config.intermediate_size)
        facts = {"width": width_of(lm), "heads": heads, "kv_heads": lm.kv_heads, "inner": inner}
        return facts | {"sampling": sampling}

    return Part(EagleLayer, shape, loss, figures, replace(HEADS, tokens=1_000_000))


def fspad() -> Part:
    """EAGLE's layer with FSPAD's sampling of features."""
    return eagle(sampling=True)


def loss(module: EagleLayer, batch: Batch, generator: torch.Generator) -> torch.Tensor:
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


def figures(module: EagleLayer, batch: Batch) -> dict[str, float]:
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

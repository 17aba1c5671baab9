"""The parts that draft from the target's final hidden state: Medusa, Hydra, EAGLE, and EAGLE with FSPAD's sampling.

All four learn from the target's own distribution after each token (soft labels), not from the token that came: the
optimum is the same, with less noise. Their figures are top-1 agreement with the target by depth, along held-out text.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from workbench.models.adapter import TransformersModel
from workbench.speculation.heads.modules import Eagle, Hydra, Medusa
from workbench.training.data import Batch
from workbench.training.fit import Part, Recipe

__all__ = ["EAGLE", "FSPAD", "HYDRA", "MEDUSA"]

DEPTHS = 4
WEIGHT = 0.8  # of each further depth in the loss (Medusa)
PASSES = 2  # depth of EAGLE's recursion in training
FEATURES = 0.5  # weight of EAGLE's feature loss beside the cross-entropy
RECIPE = Recipe(tokens=800_000, batch=1024, muon_rate=0.02, adam_rate=4e-3)


def width_of(lm: TransformersModel) -> int:
    return lm.model.get_input_embeddings().weight.shape[1]


def shifted(tokens: torch.Tensor, depth: int, length: int) -> torch.Tensor:
    """[B, length, ...]: what lies `depth` places after each of the first `length`."""
    return tokens[:, depth : depth + length]


def medusa_states(module: Medusa, batch: Batch) -> list[torch.Tensor]:
    length = batch.tokens.shape[1] - DEPTHS
    return list(module(batch.hidden[:, :length]))


def hydra_states(module: Hydra, batch: Batch) -> list[torch.Tensor]:
    length = batch.tokens.shape[1] - DEPTHS
    windows = batch.embedded[:, 1:].unfold(1, DEPTHS, 1).transpose(-1, -2)[:, :length]  # [B, length, DEPTHS, width]
    return [module(batch.hidden[:, :length], windows[:, :, : depth + 1]) for depth in range(DEPTHS)]


def heads_loss(states: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    length = states[0].shape[1]
    losses = [batch.cross_entropy(state, shifted(batch.probs, d + 1, length)) for d, state in enumerate(states)]
    return sum(WEIGHT**d * loss for d, loss in enumerate(losses)) / sum(WEIGHT**d for d in range(DEPTHS))


def heads_figures(states: list[torch.Tensor], batch: Batch) -> dict[str, float]:
    length = states[0].shape[1]
    hits = [(batch.head(s).argmax(-1) == shifted(batch.best, d + 1, length)) for d, s in enumerate(states)]
    return {f"top-1 at depth {d + 1}": hit.float().mean().item() for d, hit in enumerate(hits)}


def eagle_loss(module: Eagle, batch: Batch, generator: torch.Generator) -> torch.Tensor:
    """SmoothL1 of the features and cross-entropy with the target's distribution, at every depth of a short recursion;
    the true features are noised, and some windows begin without any (as after a change of drafters)."""
    true = batch.hidden
    rows, length, _ = true.shape
    scale = true.std().item()
    noise = (torch.rand(true.shape, generator=generator, device=true.device) - 0.5) * 0.2 * scale
    luck = torch.rand(rows, generator=generator, device=true.device)
    start = torch.where(luck < 0.1, luck * 10 * length / 2, 0)
    unknown = torch.arange(length, device=true.device) < start[:, None]
    total = torch.zeros((), device=true.device)
    for depth, (features, states) in enumerate(
        unrolled(module, batch, (true + noise).masked_fill(unknown[..., None], 0), PASSES)
    ):
        drift = F.smooth_l1_loss(features[:, depth:] / scale, true[:, depth:] / scale)
        total = total + FEATURES * drift + batch.cross_entropy(states[:, depth:], batch.probs[:, depth:])
    return total / PASSES


def eagle_figures(module: Eagle, batch: Batch) -> dict[str, float]:
    found = {}
    for depth, (_, states) in enumerate(unrolled(module, batch, batch.hidden, DEPTHS)):
        hits = batch.head(states[:, depth:]).argmax(-1) == batch.best[:, depth:]
        found[f"top-1 at depth {depth + 1}"] = hits.float().mean().item()
    return found


def unrolled(module: Eagle, batch: Batch, features: torch.Tensor, depths: int) -> list[tuple[torch.Tensor, ...]]:
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


def eagle_shape(sampling: bool) -> Any:
    def shape(lm: TransformersModel) -> dict[str, Any]:
        width, heads = width_of(lm), max(1, lm.model.config.get_text_config().num_attention_heads)
        inner = lm.model.config.get_text_config().intermediate_size
        return {
            "width": width,
            "heads": heads,
            "kv_heads": lm.kv_heads,
            "inner": int(inner),
            "sampling": sampling,
        }

    return shape


def heads_shape(lm: TransformersModel) -> dict[str, Any]:
    return {"width": width_of(lm), "heads": DEPTHS}


MEDUSA = Part(
    make=Medusa,
    shape=heads_shape,
    loss=lambda module, batch, generator: heads_loss(medusa_states(module, batch), batch),
    figures=lambda module, batch: heads_figures(medusa_states(module, batch), batch),
    recipe=RECIPE,
)
HYDRA = Part(
    make=Hydra,
    shape=heads_shape,
    loss=lambda module, batch, generator: heads_loss(hydra_states(module, batch), batch),
    figures=lambda module, batch: heads_figures(hydra_states(module, batch), batch),
    recipe=RECIPE,
)
EAGLE, FSPAD = (
    Part(
        make=Eagle,
        shape=eagle_shape(sampling),
        loss=eagle_loss,
        figures=eagle_figures,
        recipe=replace(RECIPE, tokens=1_000_000),
    )
    for sampling in (False, True)
)

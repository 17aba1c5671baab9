"""Turning stored keys to other positions, for models whose keys turn with position at fixed frequencies."""

from typing import Any

import torch

from workbench.errors import Unsupported

SHIFT = 7  # tokens, of the trial


class Rotation:
    """The unit rotation of rotary embeddings in the half-split layout. frequencies: [d] radians per token, d pairs.

    A unit rotation: models that scale their rotary factors have scaled the stored key already.
    """

    def __init__(self, frequencies: torch.Tensor):
        self.frequencies = tuple(frequencies.tolist())

    def rotation(self, k: torch.Tensor, tokens: int | torch.Tensor) -> torch.Tensor:
        """Keys [..., D] as they would lie `tokens` further on; channels behind the first 2 d do not turn. tokens: one
        number for all, or those of rows [R] of keys [..., R, D]."""
        angle = torch.tensor(self.frequencies, dtype=torch.float64, device=k.device)
        angle = angle * (tokens[:, None] if isinstance(tokens, torch.Tensor) else tokens)
        wide = torch.promote_types(k.dtype, torch.float32)
        cos, sin, n = angle.cos().to(wide), angle.sin().to(wide), len(self.frequencies)
        first, second, rest = k.to(wide).split([n, n, k.shape[-1] - 2 * n], -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1).to(k.dtype)


@torch.inference_mode()
def rotation_of(lm: Any, what: str, instead: str) -> Rotation:
    """The rotation of a model's keys. Raises Unsupported where its stored keys do not turn so: `what` needs it.

    Tried on the model: the keys of one token alone depend on its position by the rotation only.
    """
    frequencies = lm.rotary_frequencies()
    refusal = f"{what} needs keys that turn with position; those of {lm.name!r} do not: use {instead}"
    if frequencies is None:
        raise Unsupported(refusal)
    rotation = Rotation(frequencies)
    here, there = lm.new_store(), lm.new_store()
    for store, position in ((here, 0), (there, SHIFT)):
        lm.forward([1 % lm.vocab_size], [position], store)
    tolerance = 1e-3 if lm.dtype in (torch.float32, torch.float64) else 5e-2
    for layer in range(lm.layers):
        (at_start,), (shifted,) = (store.segments(layer) for store in (here, there))
        first, second = at_start.k.float(), shifted.k.float()
        if (rotation.rotation(first, SHIFT) - second).abs().max() > tolerance * second.abs().max():
            raise Unsupported(refusal)
    return rotation

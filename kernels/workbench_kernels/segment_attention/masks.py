"""Who sees whom among rows in flight, one bit a pair: int32 words [R, ceil(S / 32)], bit j % 32 of word j // 32."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

__all__ = ["ancestor_words", "mask_words", "words_mask"]


def mask_words(mask: torch.Tensor) -> torch.Tensor:
    """bool [R, S], True where row r sees key j -> int32 words [R, ceil(S / 32)]."""
    bits = F.pad(mask.long(), (0, -mask.shape[1] % 32)).unflatten(1, (-1, 32))
    return (bits << torch.arange(32, device=mask.device)).sum(-1).to(torch.int32)


def words_mask(words: torch.Tensor, keys: int) -> torch.Tensor:
    """The inverse: int32 words [R, ceil(S / 32)] and S -> bool [R, S]."""
    bits = words[..., None] >> torch.arange(32, dtype=torch.int32, device=words.device)
    return (bits & 1).flatten(1)[:, :keys] == 1


def ancestor_words(parents: Sequence[int], device: torch.device | str = "cpu") -> torch.Tensor:
    """Words of a draft tree: every node sees itself and its ancestors.

    parents: the parent of each of n nodes, -1 for a root; a parent comes before its children. Returns int32
    [n, ceil(n / 32)]. Raises ValueError where a parent does not come first.
    """
    seen = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if not -1 <= parent < node:
            raise ValueError(f"ancestor_words: expected the parent of node {node} in [-1, {node}), got {parent}")
        if parent >= 0:
            seen[node] |= seen[parent]
    return mask_words(seen).to(device)

"""Rows and positions on the device."""

from collections.abc import Sequence
from functools import lru_cache

import torch


def index(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Positions or rows as an int64 tensor, copied to the device once for all layers of a forward; not to be written
    to."""
    return _index(tuple(numbers), device)


@lru_cache(maxsize=64)
def _index(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=torch.long, device=device)

"""What both training loops share: a schedule of the rate, and a file from which a stopped training goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["Checkpoint", "rate_share"]


@dataclass(frozen=True)
class Checkpoint:
    """A model and its optimizers in `file`; `facts` (the recipe, the shape) tell one training from another."""

    file: Path
    model: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    facts: dict[str, Any]

    def resume(self) -> int:
        """Load what the file holds, where there is one, and return the steps that were done.

        Raises SystemExit where it holds another training.
        """
        if not self.file.exists():
            return 0
        state = torch.load(self.file, weights_only=True, map_location=next(self.model.parameters()).device)
        if state["facts"] != self.facts:
            raise SystemExit(
                f"{self.file} was made by another recipe: {state['facts']}; use another folder, or remove it"
            )
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        return state["step"]

    def keep(self, step: int) -> None:
        """Write all of it; a file that was there stays whole until the new one is."""
        state = {"model": self.model.state_dict(), "optimizers": [each.state_dict() for each in self.optimizers]}
        torch.save({**state, "step": step, "facts": self.facts}, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)


def rate_share(step: int, steps: int, warmup: int, decay_share: float) -> float:
    """Share of the full rate: warm-up, plateau, then a linear decay to 2 % over `decay_share` of the steps."""
    start = steps * (1 - decay_share)
    left = 1 - max(0.0, step - start) / max(1.0, steps - start)
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * left)

"""The embedded draft, distilled from the target.

It is trained on the full next-token distribution of the target's first stage (KL, temperature 1), mixed with the text
itself. Source: distillation of drafters (DistillSpec).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from workbench.training.stage import Stage, checkpoint


def draft() -> Stage:
    """The embedded draft, distilled from the target's first stage."""
    return Distilled(width=128, layers=3, heads=4, kv_heads=2, hidden=352, tokens=6_500_000, full_share=0.1, distil=0.8)


@dataclass(frozen=True, kw_only=True)
class Distilled(Stage):
    """A stage that learns from the target's first one. distil: the teacher's weight in the loss."""

    distil: float

    @torch.no_grad()
    def begin(self, model: Any, work: Path) -> Any:
        """Give the draft the teacher's token geometry: the leading principal directions of its embeddings."""
        teacher = checkpoint("target", work)[0].to(model.device).eval().requires_grad_(False)
        left, sizes, _ = torch.linalg.svd(teacher.get_input_embeddings().weight.float(), full_matrices=False)
        narrow = model.get_input_embeddings().weight
        width = narrow.shape[1]
        narrow.copy_(left[:, :width] * sizes[:width])
        return teacher

    def loss(self, model: Any, teacher: Any, batch: torch.Tensor) -> torch.Tensor:
        """Cross-entropy per token in nats, mixed with KL(target ‖ draft)."""
        logits = model(batch[:, :-1], use_cache=False).logits.flatten(0, 1).float()
        with torch.no_grad():
            dist = teacher(batch[:, :-1], use_cache=False).logits.flatten(0, 1).float().log_softmax(-1)
        divergence = F.kl_div(logits.log_softmax(-1), dist, log_target=True, reduction="batchmean")
        return (1 - self.distil) * F.cross_entropy(logits, batch[:, 1:].flatten()) + self.distil * divergence

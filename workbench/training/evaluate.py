"""Figures of the embedded models on held-out text: loss, top-1, agreement, and copying from far back."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from workbench.training.target import encode

__all__ = ["agreement", "long_copy", "loss_and_accuracy"]

WINDOWS, LENGTH = 64, 512


def windows(work: Path) -> torch.Tensor:
    """[WINDOWS, LENGTH + 1] held-out tokens, evenly spread, no overlap."""
    data = encode("held-out", work)
    step = (len(data) - LENGTH - 1) // WINDOWS
    return torch.from_numpy(np.stack([data[i * step :][: LENGTH + 1] for i in range(WINDOWS)]).astype(np.int64))


@torch.inference_mode()
def loss_and_accuracy(model, work: Path) -> dict[str, float]:
    """Mean loss in nats per token and top-1 accuracy, teacher-forced."""
    losses, hits = [], []
    for part in windows(work).split(8):
        logits = model(part[:, :-1], use_cache=False).logits.float().flatten(0, 1)
        losses.append(F.cross_entropy(logits, part[:, 1:].flatten()).item())
        hits.append((logits.argmax(-1) == part[:, 1:].flatten()).float().mean().item())
    return {"loss (nats per token)": math.fsum(losses) / len(losses), "top-1": math.fsum(hits) / len(hits)}


@torch.inference_mode()
def agreement(draft, target, work: Path) -> float:
    """Share of held-out positions, teacher-forced, where both models have the same most probable token."""
    same = []
    for part in windows(work).split(8):
        ours, theirs = (m(part[:, :-1], use_cache=False).logits.argmax(-1) for m in (draft, target))
        same.append((ours == theirs).float().mean().item())
    return math.fsum(same) / len(same)


@torch.inference_mode()
def long_copy(model, work: Path, distances=(64, 256, 512, 1024, 1536, 1900), spans: int = 24) -> dict[int, float]:
    """Top-1 on the second half of a held-out span of 64 tokens that is repeated `distance` tokens later.

    The span is shuffled, so that it can be told only by copying.
    """
    data = encode("held-out", work).astype(np.int64)
    rng = np.random.default_rng(0)
    result = {}
    for distance in distances:
        rows = []
        for _ in range(spans):
            start = int(rng.integers(0, len(data) - distance - 64))
            piece = data[start : start + distance + 64].copy()
            piece[:64] = rng.permutation(piece[:64])
            piece[distance:] = piece[:64]
            rows.append(piece)
        hits = []
        for part in torch.from_numpy(np.stack(rows)).split(4):
            logits = model(part[:, :-1], use_cache=False).logits[:, -32:]
            hits.append((logits.argmax(-1) == part[:, -32:]).float().mean().item())
        result[distance] = math.fsum(hits) / len(hits)
    return result

"""Trained stages as the shipped models: bf16 safetensors, config, and a card with figures on held-out text."""

import json
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from workbench.training import corpus
from workbench.training.parts import STAGES
from workbench.training.stage import Stage, checkpoint, encode

STAGES_OF = {"target": ("target", "target-long"), "draft": ("draft",)}
WINDOWS, LENGTH = 64, 512

CARD = Path(__file__).with_name("model.md")


@torch.inference_mode()
def measured(model, work: Path, target: Any = None) -> dict[str, float]:
    """Over held-out windows, evenly spread and apart, teacher-forced: mean loss in nats per token and top-1 accuracy;
    with a target, how often both models have the same most probable token, too."""
    data = encode("held-out", work)
    step = (len(data) - LENGTH - 1) // WINDOWS
    windows = torch.from_numpy(np.stack([data[i * step :][: LENGTH + 1] for i in range(WINDOWS)]).astype(np.int64))
    found: dict[str, list[float]] = defaultdict(list)
    for part in windows.split(8):
        logits, wanted = model(part[:, :-1], use_cache=False).logits.float().flatten(0, 1), part[:, 1:].flatten()
        found["loss (nats per token)"].append(F.cross_entropy(logits, wanted).item())
        found["top-1"].append((logits.argmax(-1) == wanted).float().mean().item())
        if target is not None:
            theirs = target(part[:, :-1], use_cache=False).logits.flatten(0, 1).argmax(-1)
            found["top-1 agreement with the target"].append((logits.argmax(-1) == theirs).float().mean().item())
    return {name: fmean(values) for name, values in found.items()}


@torch.inference_mode()
def long_copy(model, work: Path, distances=(64, 256, 512, 1024, 1536, 1900), spans: int = 24) -> dict[str, float]:
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
        result[f"top-1 on a repeated span, {distance} tokens back"] = fmean(hits)
    return result


def export(work: Path) -> None:
    """Export both models from the checkpoints in `work`; raises FileNotFoundError where one is missing."""
    models = {}
    for name, stages in STAGES_OF.items():
        model, step = checkpoint(stages[-1], work)
        model.to(torch.bfloat16).save_pretrained(corpus.HERE / name, safe_serialization=True)
        models[name] = model.float().eval(), step
    target = models["target"][0]
    for name, (model, step) in models.items():
        figures = measured(model, work, target) if name == "draft" else measured(model, work) | long_copy(model, work)
        write_card(name, model, step, figures, work)


def describe(stage: Stage) -> str:
    return (
        f"- {stage.steps:,} steps in windows of {stage.window} tokens, the last {stage.full_share:.0%} of them at"
        f" {stage.context}; rotary base {stage.rope_theta:,.0f}; repeated spans in {stage.copies:.0%} of the windows of"
        " over 512 tokens"
    )


def write_card(name: str, model, step: int, figures: dict[str, float], work: Path) -> None:
    *before, last = (STAGES[stage] for stage in STAGES_OF[name])
    stages = [*before, replace(last, tokens=step * last.batch)]
    distil = getattr(last, "distil", 0.0)
    loss = f" Loss: {distil:g}·KL(target ‖ draft) + {1 - distil:g}·cross-entropy."
    facts = {
        **asdict(last),
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
        "python": corpus.LISTING.read_text().splitlines()[0].lstrip("# ").removesuffix(" standard library"),
        "train_tokens": len(encode("train", work)),
        "held_tokens": len(encode("held-out", work)),
        "called": " then ".join(f"`{stage}`" for stage in STAGES_OF[name]),
        "tokens": sum(stage.steps * stage.batch for stage in stages),
        "stages": "\n".join(map(describe, stages)),
        "distilled": loss if distil else "",
        "rows": "\n".join(f"| {key} | {value:.3f} |" for key, value in figures.items()),
    }
    notes = work / f"notes-{name}.md"  # what the recipe alone does not tell about this run
    folder = corpus.HERE / name
    card = CARD.read_text(encoding="utf-8").format(**facts)
    (folder / "README.md").write_text(card + (notes.read_text() if notes.exists() else ""))
    (folder / "figures.json").write_text(json.dumps({k: round(v, 4) for k, v in figures.items()}, indent=1) + "\n")
    print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))

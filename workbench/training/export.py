"""Write trained checkpoints as the shipped models: bf16 safetensors, config, and a card with measured figures."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from workbench.training import corpus
from workbench.training.evaluate import agreement, long_copy, loss_and_accuracy
from workbench.training.target import RECIPES, Recipe, build, encode

__all__ = ["export"]

STAGES = {"target": ("target", "target-long"), "draft": ("draft",)}

CARD = """---
license: apache-2.0
language: code
library_name: transformers
---
# Embedded {name} model

A {parameters:.2f} M-parameter Llama ({layers} layers, width {width}, {heads} heads on {kv_heads} KV heads, context
{context}), trained from scratch so that the workbench runs without a network. It writes Python that looks like the
standard library; it knows nothing else and is not meant to be useful beyond experiments with decoding.

**Data.** The source of the {python} standard library (PSF-2.0), {train_tokens:,} tokens; file list with hashes in
`../corpus.txt`; the held-out modules and their tests ({held_tokens:,} tokens) were never trained on.

**Recipe.** `python -m workbench.training.target`, {called}; Muon on matrices, AdamW on
embeddings and norms; {tokens:,} tokens seen in steps of {batch:,}.{distil}

{stages}

**Measured, on held-out text, bf16 weights computed in fp32.**

| figure | value |
|---|---|
{rows}
"""


def export(work: Path) -> None:
    """Export both models from the checkpoints in `work`; raises FileNotFoundError where one is missing."""
    models = {}
    for name, stages in STAGES.items():
        state = torch.load(work / f"{stages[-1]}.pt", weights_only=True, map_location="cpu")
        model = build(RECIPES[stages[-1]])
        model.load_state_dict(state["model"])
        model.to(torch.bfloat16).save_pretrained(corpus.HERE / name, safe_serialization=True)
        models[name] = model.float().eval(), state
    for name, (model, state) in models.items():
        figures = dict(loss_and_accuracy(model, work))
        if name == "draft":
            figures["top-1 agreement with the target"] = agreement(model, models["target"][0], work)
        else:
            for distance, share in long_copy(model, work).items():
                figures[f"top-1 on a repeated span, {distance} tokens back"] = share
        write_card(name, model, state, figures, work)


def describe(stage: Recipe) -> str:
    return (
        f"- {stage.steps:,} steps in windows of {stage.window} tokens, the last {stage.full_share:.0%} of them at"
        f" {stage.context}; rotary base {stage.rope_theta:,.0f}; repeated spans in {stage.copies:.0%} of the windows of"
        " over 512 tokens"
    )


def write_card(name: str, model, state: dict, figures: dict[str, float], work: Path) -> None:
    *before, recipe = (RECIPES[stage] for stage in STAGES[name])
    stages = [*before, replace(recipe, tokens=state["step"] * recipe.batch)]
    rows = "\n".join(f"| {key} | {value:.3f} |" for key, value in figures.items())
    distil = (
        f" Loss: {recipe.distil:g}·KL(target ‖ draft) + {1 - recipe.distil:g}·cross-entropy." if recipe.distil else ""
    )
    facts = {
        **asdict(recipe),
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
        "python": corpus.LISTING.read_text().splitlines()[0].lstrip("# ").removesuffix(" standard library"),
        "train_tokens": len(encode("train", work)),
        "held_tokens": len(encode("held-out", work)),
        "called": " then ".join(f"`{stage}`" for stage in STAGES[name]),
        "tokens": sum(stage.steps * stage.batch for stage in stages),
        "stages": "\n".join(map(describe, stages)),
        "distil": distil,
        "rows": rows,
    }
    notes = work / f"notes-{name}.md"  # what the recipe alone does not tell about this run
    folder = corpus.HERE / name
    (folder / "README.md").write_text(CARD.format(**facts) + (notes.read_text() if notes.exists() else ""))
    (folder / "figures.json").write_text(json.dumps({k: round(v, 4) for k, v in figures.items()}, indent=1) + "\n")
    print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))

"""The card of a folder of trained parts, written from what their files say of themselves."""

import json
from pathlib import Path

from safetensors import safe_open

TEXT = """---
license: apache-2.0
language: code
---
# Trained parts of {targets}

Small modules over the hidden states of one target, for the drafters, shapes and verifiers that need training. Stored
in fp16; each file names its target, with a probe of it, and is refused by any other.

**Data.** Windows of 256 tokens: three quarters are beginnings of 64 corpus tokens continued by the target itself, a
third each at temperature 0, 0.8 and 1; the others are corpus text throughout (see `workbench/training/corpus.py`).
Held-out windows are made the same way from modules that nobody was trained on.

**Recipe.** `python -m workbench.training PART --target NAME --out DIR`: Muon on matrices, AdamW on
everything else, bf16 products on a CPU. Losses: see `workbench/training/`.

| part | size | tokens seen | per step | rates (Muon, AdamW) |
|---|---|---|---|---|
{parts}

**Measured on held-out windows.** Agreement is with the target's most probable token, teacher-forced.

| part | figure | value |
|---|---|---|
{figures}
"""


def card(folder: Path) -> str:
    """The text for all *.safetensors in a folder."""
    parts, figures, targets = [], [], set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata()
        facts = json.loads(metadata["facts"])
        recipe = facts["recipe"]
        targets.add(metadata["target"])
        size = f"{file.stat().st_size / 1e6:.2f} MB"
        rates = f"{recipe['muon_rate']:g}, {recipe['adam_rate']:g}"
        parts.append(f"| {metadata['kind']} | {size} | {facts['tokens']:,} | {recipe['batch']:,} | {rates} |")
        figures += [f"| {metadata['kind']} | {name} | {value:.3f} |" for name, value in facts["held-out"].items()]
    named = " and ".join(f"`{name}`" for name in sorted(targets))
    return TEXT.format(targets=named, parts="\n".join(parts), figures="\n".join(figures))


def write_card(folder: Path) -> Path:
    """Write README.md beside the parts."""
    file = folder / "README.md"
    file.write_text(card(folder))
    return file

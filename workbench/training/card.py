"""The card of a folder of trained parts, written from what their files say of themselves."""

import json
from pathlib import Path

from safetensors import safe_open

TEXT = Path(__file__).with_name("parts.md")


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
    return TEXT.read_text(encoding="utf-8").format(targets=named, parts="\n".join(parts), figures="\n".join(figures))


def write_card(folder: Path) -> Path:
    """Write README.md beside the parts."""
    file = folder / "README.md"
    file.write_text(card(folder))
    return file

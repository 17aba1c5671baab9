"""What the campaigns on keeping a run share: short runs of several decoders, what must hold of them, and the report."""

import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

import workbench as wb
from tests.table import DECODERS
from workbench.engine.toy import ToyModel
from workbench.provenance import versions

__all__ = ["ARMS", "check", "reference", "report", "session"]

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PROMPT = [0, 1, 2, 3, 1, 2]
DRAFT = "campaign-draft"
ARMS = {  # name -> decoder of the table, level
    "plain": ("autoregressive", "default"),
    "chain, off": ("speculative", "off"),
    "tree, full": ("speculative-tree", "full"),
    "pearl": ("pearl", "default"),
    "mirostat": ("mirostat", "default"),
}
_found: dict[tuple[str, int], list[int]] = {}


def session(arm: str, tokens: int = 30, **options: Any) -> wb.Session:
    """A run of its own, always the same under one name."""
    name, level = ARMS[arm]
    wb.register_model(DRAFT, ToyModel(vocab_size=4, seed=11, sharpness=1.0, context=4096))
    target = ToyModel(vocab_size=4, seed=7, sharpness=1.2, context=4096)
    settings = {"max_new_tokens": tokens, "seed": 5, "temperature": DECODERS[name].temperature, "level": level}
    return wb.Session(target, PROMPT, DECODERS[name].make(DRAFT), **settings, **options)


def reference(arm: str, tokens: int = 30) -> list[int]:
    """The ids of that run, undisturbed."""
    if (arm, tokens) not in _found:
        one = session(arm, tokens)
        one.run()
        _found[arm, tokens] = one.trace.token_ids
    return _found[arm, tokens]


def check(one: wb.Session, path: Path, ids: list[int]) -> None:
    """Nothing lost, nothing twice: session, trace and file agree, and hold these ids."""
    log = one.trace.log
    rounds = [event["round"] for event in log if event["type"] == "round"]
    assert rounds == list(range(len(rounds))), "rounds are missing or doubled"
    assert one.trace.token_ids == one.state.new_tokens == ids, "the text differs"
    assert one.text_from(0, one.length) == one.trace.text
    kept = wb.Trace.load(path)
    assert kept.dropped == [] and kept.log == log, "the file differs from what is acknowledged"
    assert not list(path.parent.glob(".*.tmp")), "something is left over"


def report(name: str, about: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows and keep them with their conditions."""
    for row in rows:
        print("  ".join(f"{key}: {value}" for key, value in row.items()))
    machine = f"{platform.system()} {platform.machine()}"
    facts = {"about": about, "date": str(date.today()), "machine": machine, "versions": versions()}
    path = RESULTS / f"trust-{name}.json"
    path.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")

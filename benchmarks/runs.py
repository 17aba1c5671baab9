"""What the benchmarks of decoding share: their options, timed runs, intervals over prompts, results with conditions."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import bootstrap

import workbench as wb
from benchmarks.device import clock, conditions

LOOPS = 0.3  # share of repeated 4-grams beyond which a text counts as a loop

Record = dict[str, Any]


def options(doc: str, **defaults: int | str) -> argparse.ArgumentParser:
    """A parser of `--out` and of options by their defaults."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    parser.add_argument("--out", type=Path)
    return parser


def prompts(count: int) -> list[str]:
    return [row["prompt"] for row in wb.held_out_prompts(count)]


def ours(lm, prompt: list[int], decoder: wb.Decoder | None, **settings: Any) -> Record:
    """A run of a decoder: seconds, text, and counts, which are 0 at level `off`."""
    start = clock(lm.device)
    trace = wb.decode(lm, prompt, decoder, **settings)
    seconds, summary = clock(lm.device) - start, trace.summary()
    return {
        "seconds": seconds,
        "text": trace.token_ids,
        "forwards": summary["target_forwards"] or 0,
        "drafted": summary["num_draft_tokens"] or 0,
        "accepted": summary["num_accepted_tokens"] or 0,
        "draft_ms": float(trace.rounds["draft_ms"].fillna(0).sum()),
        "repeated": summary["repeated_4gram_share"] or 0.0,
    }


def theirs(lm, prompt: list[int], tokens: int, **how: Any) -> Record:
    """`model.generate`, greedy. The forward over the prompt counts: it gives a token."""
    ids = torch.tensor([prompt], device=lm.device)
    calls: list[int] = []
    handle = lm.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        start = clock(lm.device)
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, **how)
        seconds = clock(lm.device) - start
    finally:
        handle.remove()
    text = out[0, len(prompt) :].tolist()
    return {"seconds": seconds, "text": text, "forwards": len(calls), "drafted": 0, "accepted": 0, "draft_ms": 0.0}


def keep(best: dict[str, Record], name: str, record: Record) -> None:
    """The fastest run of an arm; `steady` only if every run of it gave one text."""
    old = best.get(name, {**record, "steady": True})
    steady = old["steady"] and old["text"] == record["text"]
    best[name] = {**min(old, record, key=lambda run: run["seconds"]), "steady": steady}


def same(base: Record, found: Record) -> bool:
    return found["steady"] and base["text"] == found["text"]


def ratio(base: Sequence[Record], found: Sequence[Record]) -> float:
    """Of times per token, summed over prompts."""
    return float(_ratio(*_sums(base, found)))


def interval(base: Sequence[Record], found: Sequence[Record]) -> list[float]:
    """95 % of bootstrapped ratios, prompts drawn with replacement."""
    if len(base) < 2:
        return [ratio(base, found)] * 2
    data = _sums(base, found)
    how = {"paired": True, "vectorized": True, "n_resamples": 2000, "method": "percentile", "rng": 0}
    return list(map(float, bootstrap(data, _ratio, **how).confidence_interval))


def _sums(base: Sequence[Record], found: Sequence[Record]) -> list[np.ndarray]:
    """Seconds and tokens of both by prompt."""
    return [
        np.array(column, dtype=float)
        for runs in (base, found)
        for column in ([r["seconds"] for r in runs], [len(r["text"]) for r in runs])
    ]


def _ratio(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
    seconds, tokens, other_seconds, other_tokens = (column.sum(axis) for column in columns)
    return seconds / tokens / (other_seconds / other_tokens)


def finish(lm, rows: list[dict], out: Path | None, shown: int = 0, **facts: Any) -> None:
    """Print the rows after the first `shown`, and write all of them where `--out` says."""
    rows[:] = [{name: _rounded(value) for name, value in row.items()} for row in rows]
    for row in rows[shown:]:
        print(row)
    if out:
        facts = {**conditions(lm.device), "dtype": str(lm.dtype).removeprefix("torch."), **facts}
        out.write_text(json.dumps({"conditions": facts, "rows": rows}, indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value

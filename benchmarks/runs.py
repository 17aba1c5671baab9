"""What the benchmarks of decoding share: their options, interleaved timed runs, intervals, results with conditions."""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

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


def ids(lm, count: int, length: int) -> list[list[int]]:
    """Texts of so many tokens, cut from the held-out prompts, one behind the other."""
    text = [token for prompt in prompts(50) for token in lm.tokenizer.encode(prompt)]
    return [text[at * length : (at + 1) * length] for at in range(count)]


def ours(lm, decoder: wb.Decoder | None, prompt: list[int], seed: int, **settings: Any) -> Record:
    """A run of a decoder: seconds, text, and counts, which are 0 at level `off`."""
    start = clock(lm.device)
    trace = wb.decode(lm, prompt, decoder, seed=seed, **settings)
    seconds, summary = clock(lm.device) - start, trace.summary()
    return {
        "seconds": seconds,
        "text": trace.token_ids,
        "forwards": summary["target_forwards"] or 0,
        "drafted": summary["num_draft_tokens"] or 0,
        "accepted": summary["num_accepted_tokens"] or 0,
        "recording_ms": summary["recording_ms"],
        "draft_ms": float(trace.rounds["draft_ms"].fillna(0).sum()),
        "repeated": summary["repeated_4gram_share"] or 0.0,
    }


def theirs(lm, tokens: int, prompt: list[int], seed: int, **how: Any) -> Record:
    """`model.generate`, greedy, whatever the seed. The forward over the prompt counts: it gives a token."""
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


def interleaved(
    arms: Mapping[str, Callable[[list[int], int], Record]], prompts: Iterable[list[int]], repeats: int, what: str
) -> dict[str, list[Record]]:
    """arm -> its fastest run of every prompt, all arms in turn; a prompt's number is the seed of its runs.

    A record is `steady` if every run of it gave one text.
    """
    rows: dict[str, list[Record]] = {name: [] for name in arms}
    for number, prompt in enumerate(tqdm(prompts, desc=what)):
        found = [{name: run(prompt, number) for name, run in arms.items()} for _ in range(repeats)]
        for name in arms:
            runs = [one[name] for one in found]
            steady = all(run["text"] == runs[0]["text"] for run in runs)
            rows[name].append(min(runs, key=lambda run: run["seconds"]) | {"steady": steady})
    return rows


def counted(found: Sequence[Record]) -> dict[str, float | None]:
    """Tokens per forward of the target and acceptance, pooled."""
    tokens = sum(len(record["text"]) for record in found)
    forwards, drafted, accepted = (sum(r[name] for r in found) for name in ("forwards", "drafted", "accepted"))
    return {"tokens_per_target_forward": tokens / forwards, "acceptance": accepted / drafted if drafted else None}


def same(base: Record, found: Record) -> bool:
    return found["steady"] and base["text"] == found["text"]


def ratio(base: Sequence[Record], found: Sequence[Record]) -> float:
    """Of times per token, summed over prompts."""
    return float(_ratio(*_sums(base, found)))


def interval(base: Sequence[Record], found: Sequence[Record]) -> list[float]:
    """95 % of bootstrapped ratios, prompts drawn with replacement."""
    from scipy.stats import bootstrap

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
    rows[:] = [{name: rounded(value) for name, value in row.items()} for row in rows]
    for row in rows[shown:]:
        print(row)
    if out:
        write(out, {**conditions(lm.device), "dtype": str(lm.dtype).removeprefix("torch."), **facts}, rows)


def write(out: Path, facts: dict[str, Any], rows: list[dict]) -> None:
    """Rows under the conditions they were measured with."""
    out.write_text(json.dumps({"conditions": facts, "rows": rows}, indent=1) + "\n")


def rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return round(value, 3 if abs(value) > 0.1 else 6) if isinstance(value, float) else value

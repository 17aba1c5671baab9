"""Speed of the decoders beside `model.generate`, in one process, interleaved; medians over prompts.

    python benchmarks/decoding.py [--prompts 20] [--tokens 128] [--repeats 3] [--out benchmarks/results/decoding.json]

Every arm decodes the same held-out prompts greedily with the embedded target. A figure is the ratio of
`model.generate`'s time to the arm's on the same prompt (whole call, prefill included), each the best of `repeats`
interleaved runs. Text equality with `model.generate` is checked on every run: no ratio is printed for an arm that
differs.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

import workbench as wb
from workbench.provenance import device_name, versions

ARMS = {
    "plain, level off": (wb.Autoregressive(), "off"),
    "plain, level default": (wb.Autoregressive(), "default"),
    "plain, level full": (wb.Autoregressive(), "full"),
    "draft model, K=2": (wb.Speculative(shape=wb.FixedLength(2)), "default"),
    "draft model, K=4": (wb.Speculative(shape=wb.FixedLength(4)), "default"),
    "draft model, confidence stop": (wb.Speculative(shape=wb.ConfidenceStop()), "default"),
    "draft model, tree 2·2·1·1": (wb.Speculative(shape=wb.FixedTree((2, 2, 1, 1))), "default"),
    "CopySpec, 10": (wb.Speculative(drafter=wb.CopySpec()), "default"),
    "CopySpec, 10, level off": (wb.Speculative(drafter=wb.CopySpec()), "off"),
}


def measure(lm, prompts: list[str], tokens: int, repeats: int) -> dict[str, list[dict]]:
    """Per arm and prompt: seconds, tokens, target forwards, share of repeated 4-grams."""
    rows: dict[str, list[dict]] = {name: [] for name in ["model.generate", *ARMS]}
    for prompt in tqdm(prompts, desc="prompts"):
        inputs = lm.tokenizer(prompt, return_tensors="pt").to(lm.device)
        best: dict[str, dict] = {}
        for _ in range(repeats):
            start = clock(lm)
            out = lm.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
            seconds = clock(lm) - start
            reference = out[0, inputs.input_ids.shape[1] :].tolist()
            keep(best, "model.generate", {"seconds": seconds, "tokens": len(reference)})
            for name, (decoder, level) in ARMS.items():
                start = clock(lm)
                trace = wb.decode(lm, prompt, decoder, max_new_tokens=tokens, level=level)
                seconds = clock(lm) - start
                summary = trace.summary()
                keep(
                    best,
                    name,
                    {
                        "seconds": seconds,
                        "tokens": len(trace.token_ids),
                        "same": trace.token_ids == reference,
                        "target_forwards": summary["target_forwards"],
                        "drafted": summary["num_draft_tokens"],
                        "accepted": summary["num_accepted_tokens"],
                        "repeated": summary["repeated_4gram_share"],
                    },
                )
        for name, row in best.items():
            rows[name].append(row)
    return rows


def clock(lm) -> float:
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def keep(best: dict, name: str, row: dict) -> None:
    """The fastest run of an arm, with `same` only if every run was the same."""
    old = best.get(name)
    row["same"] = row.get("same", True) and (old is None or old["same"])
    if old is not None and old["seconds"] < row["seconds"]:
        row["seconds"] = old["seconds"]
    best[name] = row


def table(rows: dict[str, list[dict]]) -> list[dict]:
    base = rows["model.generate"]
    out = []
    for name, found in rows.items():
        ratios = sorted(b["seconds"] / r["seconds"] for b, r in zip(base, found, strict=True))
        entry = {"arm": name, "ms_per_token": statistics.median(1000 * r["seconds"] / r["tokens"] for r in found)}
        if all(r["same"] for r in found):
            quarter = len(ratios) // 4
            entry |= {"speedup": statistics.median(ratios), "quartiles": [ratios[quarter], ratios[-1 - quarter]]}
            calm = [
                b["seconds"] / r["seconds"] for b, r in zip(base, found, strict=True) if (r.get("repeated") or 0) <= 0.3
            ]
            entry |= {
                "speedup_without_loops": statistics.median(calm) if calm else None,
                "prompts_without_loops": len(calm),
            }
        if found[0].get("target_forwards"):  # not logged at level off
            forwards, drafted = (sum(r[k] or 0 for r in found) for k in ("target_forwards", "drafted"))
            entry["tokens_per_target_forward"] = sum(r["tokens"] for r in found) / forwards
            entry["acceptance"] = sum(r["accepted"] or 0 for r in found) / drafted if drafted else None
            entry["repeated_4gram_share"] = statistics.mean(r["repeated"] for r in found)
        out.append({k: round(v, 3) if isinstance(v, float) else v for k, v in entry.items()})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lm = wb.load("embedded", device=options.device)
    prompts = [row["prompt"] for row in wb.held_out_prompts(options.prompts)]
    wb.decode(lm, prompts[0], wb.Speculative(), max_new_tokens=16)  # warm up
    rows = table(measure(lm, prompts, options.tokens, options.repeats))
    conditions = {
        "device": device_name(lm.device),
        "dtype": str(lm.dtype).removeprefix("torch."),
        "versions": versions(),
        "prompts": options.prompts,
        "tokens": options.tokens,
        "repeats": options.repeats,
    }
    for row in rows:
        print(row)
    if options.out:
        options.out.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Acceptance of the embedded draft under the embedded target at K = 4, greedy and at temperature 0.8.

    python benchmarks/acceptance.py [--prompts 50] [--tokens 128] [--out benchmarks/results/acceptance.json]

Pooled over held-out prompts; beside every figure the share of repeated 4-grams in the text, since small models loop
when decoded greedily and loops are easy to draft. "calm" rows leave out prompts whose text repeats more than 30 % of
its 4-grams.
"""

import argparse
import json
from pathlib import Path
from statistics import mean

from tqdm import tqdm

import workbench as wb
from workbench.provenance import versions

ARMS = {
    "greedy": (wb.SeededMatch(), 0.0),
    "T = 0.8, seeded": (wb.SeededMatch(), 0.8),
    "T = 0.8, rejection": (wb.Rejection(), 0.8),
}


def pooled(summaries: list[dict]) -> dict:
    """Pooled acceptance of some runs; positions are 1-based depths of the chain."""
    drafted = sum(s["num_draft_tokens"] for s in summaries)
    drafts = sum(s["num_drafts"] for s in summaries)
    accepted = sum(s["num_accepted_tokens"] for s in summaries)
    by_position = [
        sum(
            (s["acceptance_by_position"][k] if k < len(s["acceptance_by_position"]) else 0) * s["num_drafts"]
            for s in summaries
        )
        / drafts
        for k in range(4)
    ]
    return {
        "prompts": len(summaries),
        "acceptance": round(accepted / drafted, 3),
        "mean_acceptance_length": round(
            sum(s["mean_acceptance_length"] * s["num_drafts"] for s in summaries) / drafts, 3
        ),
        "acceptance_by_position": [round(value, 3) for value in by_position],
        "tokens_per_target_forward": round(
            sum(s["tokens"] for s in summaries) / sum(s["target_forwards"] for s in summaries), 3
        ),
        "repeated_4gram_share": round(mean(s["repeated_4gram_share"] for s in summaries), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lm = wb.load("embedded")
    prompts = [row["prompt"] for row in wb.held_out_prompts(options.prompts)]
    rows = []
    for name, (verifier, temperature) in ARMS.items():
        decoder = wb.Speculative(shape=wb.FixedLength(4), verifier=verifier)
        found = [
            wb.decode(lm, prompt, decoder, max_new_tokens=options.tokens, temperature=temperature, seed=i).summary()
            for i, prompt in enumerate(tqdm(prompts, desc=name))
        ]
        rows.append({"arm": name, **pooled(found)})
        calm = [s for s in found if s["repeated_4gram_share"] <= 0.3]
        if calm:
            rows.append({"arm": f"{name}, calm", **pooled(calm)})
    for row in rows:
        print(row)
    if options.out:
        conditions = {
            "versions": versions(),
            "tokens": options.tokens,
            "K": 4,
            "models": ["embedded", "embedded-draft"],
        }
        options.out.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

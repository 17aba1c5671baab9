"""Acceptance of the embedded draft under the embedded target at K = 4, greedy and at temperature 0.8.

    python benchmarks/acceptance.py [--prompts 50] [--tokens 128] [--out benchmarks/results/acceptance.json]

Pooled over held-out prompts; beside every figure the share of repeated 4-grams in the text, since small models loop
when decoded greedily and loops are easy to draft. "calm" rows leave out prompts whose text repeats more than 30 % of
its 4-grams.
"""

from statistics import mean

from tqdm import tqdm

import workbench as wb
from benchmarks.runs import LOOPS, finish, options, prompts

DEPTH = 4
ARMS = {
    "greedy": (wb.SeededMatch(), 0.0),
    "T = 0.8, seeded": (wb.SeededMatch(), 0.8),
    "T = 0.8, rejection": (wb.Rejection(), 0.8),
}


def pooled(summaries: list[dict]) -> dict:
    """Pooled acceptance of some runs; positions are 1-based depths of the chain."""

    def total(name: str) -> int:
        return sum(s[name] for s in summaries)

    def per_draft(value) -> float:
        return sum(value(s) * s["num_drafts"] for s in summaries) / total("num_drafts")

    return {
        "prompts": len(summaries),
        "acceptance": total("num_accepted_tokens") / total("num_draft_tokens"),
        "mean_acceptance_length": per_draft(lambda s: s["mean_acceptance_length"]),
        "acceptance_by_position": [
            per_draft(lambda s, k=k: dict(enumerate(s["acceptance_by_position"])).get(k, 0)) for k in range(DEPTH)
        ],
        "tokens_per_target_forward": total("tokens") / total("target_forwards"),
        "repeated_4gram_share": mean(s["repeated_4gram_share"] for s in summaries),
    }


def main() -> None:
    given = options(__doc__, prompts=50, tokens=128).parse_args()
    lm, rows = wb.load("embedded"), []
    for name, (verifier, temperature) in ARMS.items():
        decoder = wb.Speculative(shape=wb.FixedLength(DEPTH), verifier=verifier)
        found = [
            wb.decode(lm, prompt, decoder, max_new_tokens=given.tokens, temperature=temperature, seed=i).summary()
            for i, prompt in enumerate(tqdm(prompts(given.prompts), desc=name))
        ]
        rows.append({"arm": name, **pooled(found)})
        if calm := [s for s in found if s["repeated_4gram_share"] <= LOOPS]:
            rows.append({"arm": f"{name}, calm", **pooled(calm)})
    finish(lm, rows, given.out, tokens=given.tokens, K=DEPTH, models=["embedded", "embedded-draft"])


if __name__ == "__main__":
    main()

"""Speed of the decoders beside `model.generate`, in one process, interleaved; medians over prompts.

    python benchmarks/decoding.py [--prompts 20] [--tokens 128] [--repeats 3] [--out benchmarks/results/decoding.json]

Every arm decodes the same held-out prompts greedily with the embedded target. A figure is the ratio of
`model.generate`'s time to the arm's on the same prompt (whole call, prefill included), each the best of `repeats`
interleaved runs. Text equality with `model.generate` is checked on every run: no ratio is printed for an arm that
differs.
"""

from statistics import mean, median

from tqdm import tqdm

import workbench as wb
from benchmarks.runs import LOOPS, Record, finish, keep, options, ours, prompts, same, theirs

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
STOCK = "model.generate"


def measure(lm, texts: list[str], tokens: int, repeats: int) -> dict[str, list[Record]]:
    """Per arm, the fastest run of every prompt."""
    rows: dict[str, list[Record]] = {name: [] for name in [STOCK, *ARMS]}
    for text in tqdm(texts, desc="prompts"):
        prompt, best = lm.tokenizer.encode(text), {}
        for _ in range(repeats):
            keep(best, STOCK, theirs(lm, prompt, tokens))
            for name, (decoder, level) in ARMS.items():
                keep(best, name, ours(lm, prompt, decoder, max_new_tokens=tokens, level=level))
        for name, record in best.items():
            rows[name].append(record)
    return rows


def table(rows: dict[str, list[Record]]) -> list[dict]:
    base, out = rows[STOCK], []
    for name, found in rows.items():
        entry = {"arm": name, "ms_per_token": median(1000 * r["seconds"] / len(r["text"]) for r in found)}
        if all(map(same, base, found)):
            ratios = [b["seconds"] / r["seconds"] for b, r in zip(base, found, strict=True)]
            calm = [x for x, r in zip(ratios, found, strict=True) if r.get("repeated", 0) <= LOOPS]
            quarter, ordered = len(ratios) // 4, sorted(ratios)
            entry |= {"speedup": median(ratios), "quartiles": [ordered[quarter], ordered[-1 - quarter]]}
            entry |= {"speedup_without_loops": median(calm) if calm else None, "prompts_without_loops": len(calm)}
        if name != STOCK and found[0]["forwards"]:  # not logged at level off
            drafted = sum(r["drafted"] for r in found)
            entry["tokens_per_target_forward"] = sum(len(r["text"]) for r in found) / sum(r["forwards"] for r in found)
            entry["acceptance"] = sum(r["accepted"] for r in found) / drafted if drafted else None
            entry["repeated_4gram_share"] = mean(r["repeated"] for r in found)
        out.append(entry)
    return out


def main() -> None:
    given = options(__doc__, prompts=20, tokens=128, repeats=3, device="cpu").parse_args()
    lm, texts = wb.load("embedded", device=given.device), prompts(given.prompts)
    wb.decode(lm, texts[0], wb.Speculative(), max_new_tokens=16)  # warm up
    rows = table(measure(lm, texts, given.tokens, given.repeats))
    finish(lm, rows, given.out, prompts=given.prompts, tokens=given.tokens, repeats=given.repeats)


if __name__ == "__main__":
    main()

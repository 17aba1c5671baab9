"""Speed of the decoders beside `model.generate`, in one process, interleaved; medians over prompts.

    python benchmarks/decoding.py [--prompts 20] [--tokens 128] [--repeats 3] [--out benchmarks/results/decoding.json]

Every arm decodes the same held-out prompts greedily with the embedded target. A figure is the ratio of
`model.generate`'s time to the arm's on the same prompt (whole call, prefill included), each the best of `repeats`
interleaved runs. `recording_ms_per_token` is what logging took of that, by the trace's own account. Text equality with
`model.generate` is checked on every run: no ratio is printed for an arm that differs.
"""

from functools import partial
from statistics import mean, median

import workbench as wb
from benchmarks.runs import LOOPS, Record, counted, finish, interleaved, options, ours, prompts, same, theirs

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
        if name != STOCK:
            entry["recording_ms_per_token"] = median(r["recording_ms"] / len(r["text"]) for r in found)
        if name != STOCK and found[0]["forwards"]:  # not logged at level off
            entry |= counted(found) | {"repeated_4gram_share": mean(r["repeated"] for r in found)}
        out.append(entry)
    return out


def main() -> None:
    given = options(__doc__, prompts=20, tokens=128, repeats=3, device="cpu").parse_args()
    lm, texts = wb.load("embedded", device=given.device), prompts(given.prompts)
    wb.decode(lm, texts[0], wb.Speculative(), max_new_tokens=16)  # warm up
    arms = {STOCK: partial(theirs, lm, given.tokens)} | {
        name: partial(ours, lm, decoder, max_new_tokens=given.tokens, level=level)
        for name, (decoder, level) in ARMS.items()
    }
    rows = interleaved(arms, list(map(lm.tokenizer.encode, texts)), given.repeats, "prompts")
    finish(lm, table(rows), given.out, prompts=given.prompts, tokens=given.tokens, repeats=given.repeats)


if __name__ == "__main__":
    main()

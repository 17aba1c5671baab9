"""Beam search beside that of transformers: the same texts, the time and the bytes of both.

    python benchmarks/beams.py [--prompts 20] [--tokens 48] [--repeats 3] [--out benchmarks/results/beams.json]

On the embedded target and held-out prompts, both ways in turn; seconds of all prompts, the least of `repeats`; the most
bytes of keys and values that either held for a prompt, free slots included.
"""

import time

import torch

import workbench as wb
from benchmarks.runs import finish, options


def ours(lm, ids: list[int], beams: int, tokens: int) -> tuple[list[int], int]:
    trace = wb.decode(lm, ids, wb.Beam(beams=beams), max_new_tokens=tokens)
    return trace.token_ids, int(trace.rounds["cache_bytes"].max())


def theirs(lm, ids: list[int], beams: int, tokens: int) -> tuple[list[int], int]:
    rows = torch.tensor([ids])
    out = lm.model.generate(rows, attention_mask=torch.ones_like(rows), num_beams=beams, do_sample=False,
                            max_new_tokens=tokens, pad_token_id=0, return_dict_in_generate=True)  # fmt: skip
    layers = out.past_key_values.layers
    text = out.sequences[0, len(ids) :].tolist()
    end = next((i + 1 for i, token in enumerate(text) if token in lm.eos_ids), len(text))
    return text[:end], sum(x.untyped_storage().nbytes() for layer in layers for x in (layer.keys, layer.values))


def main() -> None:
    given = options(__doc__, prompts=20, tokens=48, repeats=3).parse_args()
    lm = wb.load("embedded")
    prompts = [lm.tokenizer.encode(row["prompt"]) for row in wb.held_out_prompts(given.prompts)]
    rows = []
    for beams in (4, 8):
        best, found = {}, {}
        for _ in range(given.repeats):
            for way in (ours, theirs):
                start = time.perf_counter()
                found[way] = [way(lm, ids, beams, given.tokens) for ids in prompts]
                best[way] = min(best.get(way, 1e9), time.perf_counter() - start)
        new = sum(len(text) for text, _ in found[ours])
        same = sum(a[0] == b[0] for a, b in zip(found[ours], found[theirs], strict=True))
        rows.append({"beams": beams, "same_texts": same, "ms_per_token": 1000 * best[ours] / new,
                     "transformers_ms_per_token": 1000 * best[theirs] / new,
                     "ratio": best[theirs] / best[ours], "most_bytes": max(size for _, size in found[ours]),
                     "transformers_most_bytes": max(size for _, size in found[theirs])})  # fmt: skip
    finish(lm, rows, given.out, prompts=given.prompts, tokens=given.tokens, repeats=given.repeats)


if __name__ == "__main__":
    main()

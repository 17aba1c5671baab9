"""The speculation catalogue on one clock: every drafter and shape beside plain decoding, tuned chains and transformers.

    python benchmarks/speculation.py [--prompts 16] [--tokens 128] [--repeats 2] [--arms 'NAME;NAME']
                                     [--modes greedy,seeded,rejection,copy,span] [--out FILE]

Modes: `greedy` and `seeded` (T = 0.8) decode held-out prompts; `rejection` (T = 0.8) is for the methods that draw from
distributions; `copy` is greedy on prompts that begin their own first lines again; `span` is greedy on prompts that
begin a span of 128 shuffled tokens again, so that the text is a copy and no loop. All arms of a mode run in one
process, interleaved prompt by prompt; an arm's time on a prompt is the best of `repeats` runs (whole call, prefill
included). A speed-up is the ratio of summed times, with a 95 % interval by bootstrap over prompts; rows come for all
prompts, for those whose plain text loops (more than 30 % of its 4-grams repeat) and for the calm ones; `over_tuned` is
the ratio to the fixed length that was fastest on them. No speed-up is given for an arm whose text differs where it must
not. The arms `…, corpus` look things up in the embedded target's training text, without the held-out modules; reading
it is not timed.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

import workbench as wb
from workbench.provenance import device_name, versions
from workbench.training import corpus

LOOPS = 0.3
CHAINS = (1, 2, 3, 4, 6)


CHAIN_ARMS = [f"draft model, fixed {k}" for k in CHAINS]


def chain(length: int) -> dict:
    return {"shape": wb.FixedLength(length)}


# name -> parts of wb.Speculative; the drafter is the embedded draft model where none is named
SHAPES = {
    **{name: chain(k) for name, k in zip(CHAIN_ARMS, CHAINS, strict=True)},
    "draft model, heuristic": {"shape": wb.HeuristicLength()},
    "draft model, confidence": {"shape": wb.ConfidenceStop()},
    "draft model, confidence 20": {"shape": wb.ConfidenceStop(20, 0.4)},  # transformers' own rule and its defaults
    "draft model, adaptive confidence": {"shape": wb.AdaptiveConfidence()},
    "draft model, SpecDec++": {"shape": wb.SpecDec()},
    "draft model, RSD-C 2·2·1": {"shape": wb.FixedTree((2, 2, 1))},
    "draft model, RSD-S": {"shape": wb.StochasticBeam()},
    "draft model, DySpec": {"shape": wb.DySpec()},
    "draft model, Sequoia": {"shape": wb.Sequoia()},
    "draft model, EAGLE-2 tree": {"shape": wb.Eagle2(max_nodes=12, width=4, depth=4)},
}
MODEL_FREE = {
    "CopySpec": {"drafter": wb.CopySpec()},
    "prompt lookup": {"drafter": wb.PromptLookup()},
    "input-guided": {"drafter": wb.InputGuided()},
    "Token Recycling": {"drafter": wb.TokenRecycling()},
    "ADED": {"drafter": wb.ADED()},
    "suffix retrieval": {"drafter": wb.SuffixRetrieval()},
    "Jacobi": {"drafter": wb.Jacobi()},
}
TRAINED = {
    "Medusa": {"drafter": wb.Medusa()},
    "Hydra": {"drafter": wb.Hydra()},
    "EAGLE": {"drafter": wb.Eagle()},
    "FSPAD": {"drafter": wb.Eagle(variant="fspad")},
    "Kangaroo": {"drafter": wb.Kangaroo()},
    "Kangaroo, fixed 2": {"drafter": wb.Kangaroo(), **chain(2)},
    "DEL": {"drafter": wb.Kangaroo(exits=(2, 4)), "shape": wb.Del()},
    "layer skipping": {"drafter": wb.LayerSkip()},
    "fuse: CopySpec, else draft model": {"drafter": wb.Fuse(wb.CopySpec(), wb.DraftModel(), mode="first")},
    "fuse: draft model and suffixes": {"drafter": wb.Fuse(wb.DraftModel(), wb.SuffixRetrieval())},
}
DISTRIBUTIONS = {
    **{name: parts for name, parts in SHAPES.items() if "EAGLE-2" not in name},
    "draft model, 2 chains, recursive": {"shape": wb.IndependentChains(count=2)},
    "draft model, 2 chains, K-SEQ": {"shape": wb.IndependentChains(count=2), "verifier": wb.KSeq()},
    "draft model, 3 chains, recursive": {"shape": wb.IndependentChains(count=3)},
    "draft model, 3 chains, K-SEQ": {"shape": wb.IndependentChains(count=3), "verifier": wb.KSeq()},
    "EAGLE, RSD-S": {"drafter": wb.Eagle(), "shape": wb.StochasticBeam()},
    "Medusa, typical (lossy)": {"drafter": wb.Medusa(), "verifier": wb.Typical()},
    "draft model, judge (lossy)": {"shape": wb.FixedLength(4), "verifier": wb.Judge()},
}
EVERYTHING = {**SHAPES, **MODEL_FREE, **TRAINED}
MODES = {
    "greedy": (EVERYTHING, wb.SeededMatch(), 0.0),
    "seeded": (EVERYTHING, wb.SeededMatch(), 0.8),
    "rejection": (DISTRIBUTIONS, wb.Rejection(), 0.8),
    "span": (MODEL_FREE, wb.SeededMatch(), 0.0),
    "copy": ({**MODEL_FREE, **TRAINED, "draft model, fixed 4": chain(4)}, wb.SeededMatch(), 0.0),
}


def with_corpus(folder: Path) -> dict[str, dict]:
    """Model-free drafters over the training text, which is written into a folder."""
    for number, text in enumerate(corpus.documents("train", strict=False)):
        (folder / f"{number:05d}.py").write_text(text)
    aded = wb.ADED(search="best", min_prob=0.1, corpus=str(folder))
    return {
        "suffix retrieval, corpus": {"drafter": wb.SuffixRetrieval(corpus=str(folder))},
        "ADED, best first, corpus": {"drafter": aded},
        "fuse: ADED, best first, and suffixes, corpus": {"drafter": wb.Fuse(aded, wb.SuffixRetrieval(shortest=1))},
    }


def arms(mode: str, only: set[str], more: dict[str, dict]) -> dict[str, wb.Decoder]:
    parts, verifier, _ = MODES[mode]
    if mode in ("greedy", "seeded"):
        parts = {**parts, **more}
    found = {name: wb.Speculative(**{"verifier": verifier, **given}) for name, given in parts.items()}
    if mode not in ("copy", "span"):
        found["draft model, PEARL"] = wb.Pearl(verifier=verifier)
    return {name: decoder for name, decoder in found.items() if not only or name in only}


def prompts(lm, mode: str, count: int) -> list[list[int]]:
    """Held-out prompts; for `copy` and `span`, with something to copy and its beginning once more."""
    texts = [row["prompt"] for row in wb.held_out_prompts(count)]
    if mode == "copy":
        tails = [text.splitlines(keepends=True)[-40:] for text in texts]
        texts = ["".join(tail) + "\n\n\n" + "".join(tail[:4]) for tail in tails]
    ids = [lm.tokenizer.encode(text) for text in texts]
    if mode == "span":
        spans = [random.Random(n).sample(sorted({*one}), min(128, len({*one}))) for n, one in enumerate(ids)]
        return [[*span, *one[-256:], *span[:16]] for span, one in zip(spans, ids, strict=True)]
    return ids


def ours(lm, prompt: list[int], decoder: wb.Decoder | None, settings: dict) -> dict:
    start = clock(lm)
    trace = wb.decode(lm, prompt, decoder, **settings)
    seconds = clock(lm) - start
    summary, rounds = trace.summary(), trace.rounds
    return {
        "seconds": seconds,
        "text": trace.token_ids,
        "forwards": summary["target_forwards"],
        "drafted": summary["num_draft_tokens"] or 0,
        "accepted": summary["num_accepted_tokens"] or 0,
        "draft_ms": float(rounds["draft_ms"].fillna(0).sum()),
        "repeated": summary["repeated_4gram_share"] or 0.0,
    }


def theirs(lm, prompt: list[int], tokens: int, **how) -> dict:
    """`model.generate`, greedy. The forward over the prompt counts: it gives a token."""
    ids = torch.tensor([prompt], device=lm.device)
    calls = []
    handle = lm.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        start = clock(lm)
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, **how)
        seconds = clock(lm) - start
    finally:
        handle.remove()
    text = out[0, len(prompt) :].tolist()
    return {"seconds": seconds, "text": text, "forwards": len(calls), "drafted": 0, "accepted": 0, "draft_ms": 0.0}


def clock(lm) -> float:
    if lm.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(lm, mode: str, options, more: dict[str, dict]) -> dict[str, list[dict]]:
    """arm -> a record per prompt, plain decoding first."""
    decoders = {"plain": None, **arms(mode, set(filter(None, options.arms.split(";"))), more)}
    for decoder in decoders.values():
        wb.decode(lm, "x = 1", decoder, max_new_tokens=8)  # warm: weights loaded, corpora read
    settings = {"max_new_tokens": options.tokens, "temperature": MODES[mode][2]}
    draft = wb.load("embedded-draft", device=options.device)
    others = {}
    if mode in ("greedy", "copy", "span"):
        others = {
            "transformers, generate": {},
            "transformers, assisted": {"assistant_model": draft.model},
            "transformers, prompt lookup": {"prompt_lookup_num_tokens": 10},
        }
    rows: dict[str, list[dict]] = {name: [] for name in [*decoders, *others]}
    for number, prompt in enumerate(tqdm(prompts(lm, mode, options.prompts), desc=mode)):
        best: dict[str, dict] = {}
        for _ in range(options.repeats):
            for name, decoder in decoders.items():
                keep(best, name, ours(lm, prompt, decoder, {**settings, "seed": number}))
            for name, how in others.items():
                keep(best, name, theirs(lm, prompt, options.tokens, **how))
        for name, record in best.items():
            rows[name].append(record)
    return rows


def keep(best: dict[str, dict], name: str, record: dict) -> None:
    if name not in best or record["seconds"] < best[name]["seconds"]:
        best[name] = record


def ratio(base: list[dict], found: list[dict]) -> float:
    """Of times per token, summed over prompts."""
    cost = [sum(r["seconds"] for r in rows) / sum(len(r["text"]) for r in rows) for rows in (base, found)]
    return cost[0] / cost[1]


def interval(base: list[dict], found: list[dict], draws: int = 2000) -> list[float]:
    """95 % of bootstrapped ratios, prompts drawn with replacement."""
    chance, size = random.Random(0), len(base)
    ratios = []
    for _ in range(draws):
        picked = [chance.randrange(size) for _ in range(size)]
        ratios.append(ratio([base[i] for i in picked], [found[i] for i in picked]))
    ratios.sort()
    return [ratios[round(0.025 * draws)], ratios[round(0.975 * draws) - 1]]


def table(mode: str, rows: dict[str, list[dict]]) -> list[dict]:
    """An entry per arm and set of prompts (all, loops, calm)."""
    plain = rows["plain"]
    sets = {"all": range(len(plain))}
    sets["loops"] = [i for i, r in enumerate(plain) if r["repeated"] > LOOPS]
    sets["calm"] = [i for i, r in enumerate(plain) if r["repeated"] <= LOOPS]
    out = []
    for name, records in rows.items():
        equal = mean(a["text"] == b["text"] for a, b in zip(plain, records, strict=True))
        for which, members in sets.items():
            if not members or (which != "all" and len(members) == len(plain)):
                continue
            base, found = ([some[i] for i in members] for some in (plain, records))
            tokens, forwards = sum(len(r["text"]) for r in found), sum(r["forwards"] for r in found)
            drafted = sum(r["drafted"] for r in found)
            plain_ms = 1000 * sum(r["seconds"] for r in base) / sum(len(r["text"]) for r in base)
            entry = {"mode": mode, "arm": name, "prompts": which, "count": len(members), "same_text": equal}
            entry["tokens_per_target_forward"] = tokens / forwards
            entry["acceptance"] = sum(r["accepted"] for r in found) / drafted if drafted else None
            entry["drafted_per_round"] = drafted / forwards
            entry["draft_cost"] = sum(r["draft_ms"] for r in found) / forwards / plain_ms  # plain tokens per round
            if equal == 1 or mode == "rejection":
                entry["speedup"], entry["interval"] = ratio(base, found), interval(base, found)
                tuned = [[rows[k][i] for i in members] for k in CHAIN_ARMS if k in rows]
                if tuned:
                    entry["over_tuned"] = min(ratio(one, found) for one in tuned)
            out.append({k: _rounded(v) for k, v in entry.items()})
    return out


def _rounded(value):
    if isinstance(value, list):
        return [round(v, 3) for v in value]
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--arms", default="", help="names, by semicolons (default: all)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lm = wb.load("embedded", device=options.device)
    with tempfile.TemporaryDirectory() as folder:
        run(lm, options, with_corpus(Path(folder)))


def run(lm, options, more: dict[str, dict]) -> None:
    rows = []
    for mode in options.modes.split(","):
        found = table(mode, measure(lm, mode, options, more))
        for row in found:
            print(row)
        rows += found
        if options.out:  # what is done is kept
            conditions = {
                "device": device_name(lm.device),
                "dtype": str(lm.dtype).removeprefix("torch."),
                "versions": versions(),
                "prompts": options.prompts,
                "tokens": options.tokens,
                "repeats": options.repeats,
                "threads": torch.get_num_threads(),
            }
            options.out.write_text(json.dumps({"conditions": conditions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()

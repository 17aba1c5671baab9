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

import random
import tempfile
from functools import partial
from pathlib import Path
from statistics import mean

import torch

import workbench as wb
from benchmarks import runs
from benchmarks.runs import LOOPS, Record, counted, interleaved, interval, ours, ratio, same, theirs
from workbench.training import corpus

CHAINS = {f"draft model, fixed {k}": k for k in (1, 2, 3, 4, 6)}


def chain(length: int) -> dict:
    return {"shape": wb.FixedLength(length)}


# name -> parts of wb.Speculative; the drafter is the embedded draft model where none is named
SHAPES = {
    **{name: chain(k) for name, k in CHAINS.items()},
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
    texts = runs.prompts(count)
    if mode == "copy":
        tails = [text.splitlines(keepends=True)[-40:] for text in texts]
        texts = ["".join(tail) + "\n\n\n" + "".join(tail[:4]) for tail in tails]
    ids = [lm.tokenizer.encode(text) for text in texts]
    if mode == "span":
        spans = [random.Random(n).sample(sorted({*one}), min(128, len({*one}))) for n, one in enumerate(ids)]
        return [[*span, *one[-256:], *span[:16]] for span, one in zip(spans, ids, strict=True)]
    return ids


def measure(lm, mode: str, given, more: dict[str, dict]) -> dict[str, list[Record]]:
    """arm -> a record per prompt, plain decoding first."""
    decoders = {"plain": None, **arms(mode, set(filter(None, given.arms.split(";"))), more)}
    for decoder in decoders.values():
        wb.decode(lm, "x = 1", decoder, max_new_tokens=8)  # warm: weights loaded, corpora read
    settings = {"max_new_tokens": given.tokens, "temperature": MODES[mode][2]}
    found = {name: partial(ours, lm, decoder, **settings) for name, decoder in decoders.items()}
    if mode in ("greedy", "copy", "span"):
        draft = wb.load("embedded-draft", device=given.device).model
        found |= {
            "transformers, generate": partial(theirs, lm, given.tokens),
            "transformers, assisted": partial(theirs, lm, given.tokens, assistant_model=draft),
            "transformers, prompt lookup": partial(theirs, lm, given.tokens, prompt_lookup_num_tokens=10),
        }
    return interleaved(found, prompts(lm, mode, given.prompts), given.repeats, mode)


def table(mode: str, rows: dict[str, list[Record]]) -> list[dict]:
    """An entry per arm and set of prompts (all, loops, calm)."""
    plain = rows["plain"]
    loops = [i for i, r in enumerate(plain) if r["repeated"] > LOOPS]
    sets = {"all": range(len(plain)), "loops": loops, "calm": sorted({*range(len(plain))} - {*loops})}
    out = []
    for name, records in rows.items():
        equal = mean(map(same, plain, records))
        for which, members in sets.items():
            if not members or (which != "all" and len(members) == len(plain)):
                continue
            base, found = ([some[i] for i in members] for some in (plain, records))
            forwards, drafted, draft_ms = (sum(r[name] for r in found) for name in ("forwards", "drafted", "draft_ms"))
            plain_ms = 1000 * sum(r["seconds"] for r in base) / sum(len(r["text"]) for r in base)
            entry = {"mode": mode, "arm": name, "prompts": which, "count": len(members), "same_text": equal}
            entry |= counted(found) | {"drafted_per_round": drafted / forwards}
            entry["draft_cost"] = draft_ms / forwards / plain_ms  # plain tokens per round
            if equal == 1 or mode == "rejection":
                entry["speedup"], entry["interval"] = ratio(base, found), interval(base, found)
                if tuned := [[rows[k][i] for i in members] for k in CHAINS if k in rows]:
                    entry["over_tuned"] = min(ratio(one, found) for one in tuned)
            out.append(entry)
    return out


def main() -> None:
    parser = runs.options(__doc__, prompts=16, tokens=128, repeats=2, modes=",".join(MODES), device="cpu")
    parser.add_argument("--arms", default="", help="names, by semicolons (default: all)")
    given = parser.parse_args()
    lm, rows = wb.load("embedded", device=given.device), []
    facts = {name: getattr(given, name) for name in ("prompts", "tokens", "repeats")}
    facts["threads"] = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        more = with_corpus(Path(folder))
        for mode in given.modes.split(","):
            shown = len(rows)
            rows += table(mode, measure(lm, mode, given, more))
            runs.finish(lm, rows, given.out, shown, **facts)  # what is done is kept


if __name__ == "__main__":
    main()

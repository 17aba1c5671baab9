"""What a cache method leaves of a model's distributions: real bytes, KL divergence, flips, perplexity, needles.

    python benchmarks/quality.py --data FOLDER [--model smollm2] [--context 1000] [--texts 8] [--needles 10]
                                 [--arms 'PART;PART'] [--out FILE]

Nothing is decoded: the last 128 tokens of each text are read under a method as decoding of that text would read them,
after the rest as its prompt, and each distribution is compared with the one without a method. `kl_nats`: mean of
KL(full ‖ method); `flips`: share of other most probable tokens; `perplexity` of the text's own tokens; `bytes_share`:
of what the plain cache holds at the end, with all metadata. `needle`: share of codes that stand somewhere in the text
and are told when asked for, digit by digit. Intervals are 95 % bootstraps over texts. A method acts from the first
chunk of the prompt on, or (`from the end`) from the prompt's end. Goes on where --out was left; `subset.py` says what
--data holds.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap
from tqdm import tqdm

import workbench as wb
from benchmarks import subset
from benchmarks.device import conditions
from benchmarks.runs import options, rounded, write
from workbench.trace.schema import CACHE_KINDS

SCORED, CHUNK = 128, 512
SHARES = {"50 %": 0.5, "25 %": 0.25, "12.5 %": 0.125}
PLAIN = "plain"


def arms(context: int) -> Iterator[tuple[str, wb.Stack | None]]:
    """Every method at every share of the tokens or number of bits, acting at once and from the prompt's end on."""
    yield PLAIN, None
    for regime, during in (("", True), (", from the end", False)):
        for name, share in SHARES.items():
            budget = int(share * context)
            policies = {
                "StreamingLLM": wb.StreamingLLM(window=budget - 4),
                "H2O": wb.H2O(budget=budget),
                "SnapKV": wb.SnapKV(budget=budget),
                "AdaKV": wb.AdaKV(wb.SnapKV(budget=budget)),
            }
            for method, policy in policies.items():
                yield f"{method} {name}{regime}", wb.Stack(policy, during_prompt=during)
        for bits in (8, 4, 2):
            yield f"KIVI {bits} bits{regime}", wb.Stack(quantizer=wb.KIVI(bits=bits), during_prompt=during)
        yield f"MixedKIVI{regime}", wb.Stack(quantizer=wb.MixedKIVI(), during_prompt=during)


@torch.inference_mode()
def read(lm, stack: wb.Stack | None, text: list[int], scored: int) -> tuple[torch.Tensor, int]:
    """Log-probabilities [scored, V] before each of the last tokens of a text, and the bytes then held."""
    prompt = len(text) - scored
    store, rows = stack.new_store(lm, prompt) if stack else lm.new_store(), []
    while (start := store.length) < len(text) - 1:
        end = min(start + CHUNK, prompt if start < prompt else len(text) - 1, start + store.rows_left(start))
        out = lm.forward(text[start:end], range(start, end), store, logits_at="all" if end > prompt else "last")
        rows.append(out.logits if end >= prompt else out.logits[:0])
        store.commit(range(end - start))
    kinds = {name: sum(column) for name, column in store.ledger().items() if name in CACHE_KINDS}
    return torch.cat(rows).float().log_softmax(-1), sum(kinds.values()) - kinds.get("pad", 0)


def needle(lm, text: list[int], number: int, count: int) -> tuple[list[int], int]:
    """A text with a code in its midst and a question at its end, and how many tokens the answer takes."""
    code = " ".join(random.Random(number).choices("0123456789", k=5))
    encode = lm.tokenizer.encode
    fact, question, answer = encode(f"\n\nThe code of the harbour gate is {code}.\n\n"), encode(
        "\n\nThe code of the harbour gate is"), encode(f" {code}")  # fmt: skip
    room = len(text) - len(fact) - len(question) - len(answer)
    place = int(room * (number + 0.5) / count)
    return text[:place] + fact + text[place:room] + question + answer, len(answer)


def compared(lm, stack, text: list[int], plain: tuple[torch.Tensor, int]) -> dict[str, float]:
    found, size = read(lm, stack, text, SCORED)
    full, whole = plain
    own = torch.tensor(text[-SCORED:])[:, None]
    return {
        "kl_nats": (full.exp() * (full - found)).sum(-1).mean().item(),
        "flips": (full.argmax(-1) != found.argmax(-1)).float().mean().item(),
        "surprisal": -found.gather(-1, own).mean().item(),
        "bytes_share": size / whole,
    }


def row(name: str, runs: list[dict[str, float]], told: list[bool]) -> dict:
    entry: dict = {"arm": name, "texts": len(runs), "needle": sum(told) / max(1, len(told)), "needles": len(told)}
    for key in ("kl_nats", "flips", "surprisal", "bytes_share"):
        values = np.array([run[key] for run in runs])
        entry[key] = float(values.mean())
        if key != "bytes_share" and len(set(values)) > 1:
            found = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
            entry[f"{key}_interval"] = [float(found.low), float(found.high)]
    entry["perplexity"] = float(np.exp(entry.pop("surprisal")))
    if "surprisal_interval" in entry:
        entry["perplexity_interval"] = np.exp(entry.pop("surprisal_interval")).tolist()
    return {key: rounded(value) for key, value in entry.items()}


def main() -> None:
    parser = options(__doc__, model="smollm2", context=1000, texts=8, needles=10, arms="", threads=2)
    parser.add_argument("--data", type=Path, required=True, help="folder of spec_bench.jsonl and HumanEval.jsonl.gz")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lm = wb.load(given.model)
    known = {name: getattr(given, name) for name in ("model", "context", "texts", "needles", "threads")}
    facts = {**conditions(lm.device), **known, "digest": lm.describe()["digest"]}
    rows: dict[str, dict] = {}
    if given.out and given.out.exists() and (old := json.loads(given.out.read_text()))["conditions"] == facts:
        rows = {entry["arm"]: entry for entry in old["rows"]}
    texts = subset.texts(given.data, lm.tokenizer, given.context, given.texts + given.needles)
    hidden = [needle(lm, text, n, given.needles) for n, text in enumerate(texts[given.texts :])]
    texts = texts[: given.texts]
    plain = [read(lm, None, text, SCORED) for text in tqdm(texts, desc=PLAIN)]
    for name, stack in arms(given.context):
        if name in rows or not any(part in name for part in given.arms.split(";")):
            continue
        found = [compared(lm, stack, text, full) for text, full in zip(tqdm(texts, desc=name), plain, strict=True)]
        told = []
        for text, answer in hidden:
            best = read(lm, stack, text, answer)[0].argmax(-1).tolist()
            told.append(best == text[-answer:])
        rows[name] = row(name, found, told)
        print(rows[name], flush=True)
        if given.out:
            write(given.out, facts, list(rows.values()))


if __name__ == "__main__":
    main()

"""Greedy text of SmolLM2 against `model.generate`: every drafter, and under every cache method what plain decoding
spells.

`python -m tests.campaigns.real [--prompts 20] [--tokens 64]` goes on where it was stopped, prints a table and writes
its figures; it needs `workbench models get smollm2`. Trained parts are of a few steps, and the draft model is random:
whether a text is right does not depend on how good they are. Where two texts part, the row says by how many nats plain
decoding preferred its token: what two orders of summing may decide.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

import workbench as wb
from tests.speculation.test_triples import POSSIBLE
from tests.speculation.tiny import tiny_heads, tiny_target
from tests.table import DRAFTERS, POLICIES, QUANTIZERS, triple
from workbench.engine.prompt import encode_prompt
from workbench.provenance import versions
from workbench.training.acceptance import acceptance
from workbench.training.parts import PARTS

RESULT = Path(__file__).parents[2] / "benchmarks/results/real-equality.json"
DRAFT = "real-draft"
TEXTS = (
    "The lighthouse keeper wrote in his log every evening: the wind, the ships,", "A sorting algorithm is stable if",
    "def median(values):\n    ", "Once the snow had melted, the two sisters walked down to", "To make bread, you need",
    "On a mountain water boils sooner, because", "Dear Ms. Alvarez,\n\nThank you for", "In 1969, three astronauts",
    "A, B, C, D, E, F,", "Rivers carry sand and stones to the sea. The sand",
)  # fmt: skip
CHATS = (
    "What is the capital of Portugal, and what is it known for?", "Explain photosynthesis to a child of eight.",
    "Write a haiku about rain.", "List five uses for an old newspaper.", "What is 17 times 6? Show your steps.",
    "Translate into French: The library opens at nine.", "Why is the sky blue?",
    "Write a Python function that counts the vowels of a text.",
    "Summarize in one sentence: Bees collect nectar, and on their way they carry pollen from flower to flower.",
    "Give me three names for a small bakery.",
)  # fmt: skip


def prompts(lm, count: int) -> Iterator[list[int]]:
    """Text and questions in turn, the latter through the model's chat template."""
    for number in range(count):
        words = (TEXTS, CHATS)[number % 2][number // 2 % 10]
        yield encode_prompt(lm, [{"role": "user", "content": words}] if number % 2 else words)[0]


def gap(lm, prompt: list[int], wanted: list[int], found: list[int], cache) -> tuple[int, float] | None:
    """The first place where two texts part, and how far apart plain decoding had the two tokens there, in nats."""
    at = next((n for n, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        return None if len(wanted) == len(found) else (min(len(wanted), len(found)), float("inf"))
    forced = dict(enumerate(wanted[:at]))
    trace = wb.decode(lm, prompt, cache=cache, max_new_tokens=at + 1, force=forced, ignore_eos=True)
    known = dict(zip(*trace.tokens["topk_raw"].iloc[at], strict=True))
    chances = [known.get(text[at]) for text in (wanted, found)]
    return at, abs(math.log(chances[0] / chances[1])) if all(chances) else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    lm = wb.load("smollm2")
    told = {"prompts": given.prompts, "tokens": given.tokens, "model": lm.name, "versions": versions()}
    rows = {}
    if RESULT.exists() and (old := json.loads(RESULT.read_text()))["conditions"] == told:
        rows = {row["arm"]: row for row in old["rows"]}

    texts, how = list(prompts(lm, given.prompts)), {"max_new_tokens": given.tokens, "ignore_eos": True}

    def keep(arm: str, pairs: list[tuple[list[int], list[int]]], cache=None, **facts) -> None:
        apart = [found for prompt, pair in zip(texts, pairs, strict=True) if (found := gap(lm, prompt, *pair, cache))]
        equal = len(pairs) - len(apart)
        rows[arm] = {"arm": arm, "texts": len(pairs), "equal": equal, "parted_at_nats": apart, **facts}
        print(rows[arm], flush=True)
        RESULT.write_text(json.dumps({"conditions": told, "rows": list(rows.values())}, indent=1) + "\n")

    stock = []
    for prompt in texts:
        ids = torch.tensor([prompt])
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=given.tokens,
                                min_new_tokens=given.tokens, eos_token_id=None)  # fmt: skip
        stock.append(out[0, len(prompt) :].tolist())
    if "plain" not in rows:
        keep("plain", [(want, wb.decode(lm, p, **how).token_ids) for want, p in zip(stock, texts, strict=True)])
    tiny_target(DRAFT, vocabulary=lm.vocab_size, context=2048, width=32)
    with tempfile.TemporaryDirectory() as folder:
        PARTS["acceptance"] = acceptance(DRAFT)
        DRAFTERS["kangaroo"] = lambda draft, heads: wb.Kangaroo(weights=heads, exits=(7,))
        for kind in ("acceptance", "eagle", "hydra", "kangaroo", "medusa"):
            tiny_heads(lm, kind, Path(folder), steps=3)
        decoders = {}
        for number, name in enumerate(DRAFTERS):
            shapes = [shape for drafter, shape, verifier in POSSIBLE if (drafter, verifier) == (name, "seeded")]
            shape = shapes[number % len(shapes)]
            decoders[name] = shape, triple(name, shape, "seeded", DRAFT, folder)
        for name, (shape, decoder) in decoders.items():
            if name not in rows:
                traces = [wb.decode(lm, prompt, decoder, **how) for prompt in texts]
                counts = {key: int(sum(trace.rounds[key].sum() for trace in traces)) for key in ("drafted", "accepted")}
                pairs = [(want, trace.token_ids) for want, trace in zip(stock, traces, strict=True)]
                keep(name, pairs, shape=shape, **counts)
        for place, (name, member) in enumerate((POLICIES | QUANTIZERS).items()):
            if name not in rows:
                pairs, used = [], []
                for number, prompt in enumerate(texts):
                    drafter = list(decoders)[(5 * place + number) % len(decoders)]
                    plain = wb.decode(lm, prompt, cache=member, **how).token_ids
                    pairs.append((plain, wb.decode(lm, prompt, decoders[drafter][1], cache=member, **how).token_ids))
                    used.append(drafter)
                keep(name, pairs, member, drafters=sorted(set(used)))
    whole = sum(row["texts"] for row in rows.values())
    print(f"{sum(row['equal'] for row in rows.values())} of {whole} texts equal")


if __name__ == "__main__":
    main()

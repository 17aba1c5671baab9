"""What a cache stack costs on the CPU: a prompt, a token behind it, and one act of maintenance, beside the plain cache.

    python benchmarks/caches.py [--tokens 1990] [--repeats 7] [--out benchmarks/results/caches.json]

All arms in turn in one process, on the embedded target; processor seconds, the least of `repeats`. Ratios are to the
plain cache. `append`: maintenance that moves 32 new tokens to pages, behind 64 and behind `tokens` others. `kl_nats`:
mean KL divergence of the next-token distribution from the plain cache's, on eight texts of 600 tokens from token 300
on, by bits, page size and whether keys are quantized before their rotary embedding; `page_bytes`: of a token in a page.
"""

import time
from collections.abc import Callable
from itertools import product
from statistics import median

import torch

import workbench as wb
from benchmarks.runs import finish, options
from workbench.trace.schema import CACHE_KINDS

STACKS = {
    "plain": None,
    "KIVI 4, as the prompt goes in": wb.Stack(quantizer=wb.KIVI()),
    "KIVI 4, pages of 64": wb.Stack(quantizer=wb.KIVI(page_size=64, residual=64)),
    "KIVI 4, from the prompt's end": wb.Stack(quantizer=wb.KIVI(), during_prompt=False),
    "pages as they are": wb.Stack(quantizer=wb.Paged()),
    "H2O 256 + KIVI 4, from the prompt's end": wb.Stack(wb.H2O(budget=256), wb.KIVI(), during_prompt=False),
    "AdaKV(CaM 256) + MixedKIVI, from the prompt's end": wb.Stack(
        wb.AdaKV(wb.CaM(budget=256)), wb.MixedKIVI(), during_prompt=False
    ),
}
CHUNK, NEW = 512, 16


def spent(act: Callable) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start


def feed(lm, store, tokens: list[int]) -> None:
    while tokens:
        count = min(CHUNK, len(tokens), store.rows_left(store.length))
        lm.forward(tokens[:count], range(store.length, store.length + count), store)
        store.commit(range(count))
        tokens = tokens[count:]


def one(lm, stack, text: list[int]) -> dict[str, float]:
    """Seconds of a prompt and of a token behind it, and the bytes then held."""
    store = stack.new_store(lm, len(text) - NEW) if stack else lm.new_store()
    prompt = spent(lambda: feed(lm, store, text[:-NEW]))
    tokens = [spent(lambda token=token: feed(lm, store, [token])) for token in text[-NEW:]]
    kinds = {name: sum(column) for name, column in store.ledger().items() if name in CACHE_KINDS}
    return {"prompt": prompt, "token": median(tokens), "bytes": sum(kinds.values())}


@torch.inference_mode()
def append(lm, behind: int) -> float:
    """Processor ms of maintenance that moves 32 tokens to pages."""
    store = wb.Stack(quantizer=wb.KIVI()).new_store(lm, 0)
    k, times = torch.randn(lm.kv_heads, 32, lm.head_dim), []
    for start in range(0, behind + 8 * 32, 32):
        store.begin(range(start, start + 32))
        for layer in range(lm.layers):
            store.stage(layer, k, k)
        store.end()
        times.append(spent(lambda: store.commit(range(32))))
    return 1000 * min(times[-8:])


@torch.inference_mode()
def scores(lm, stack, text: list[int]) -> torch.Tensor:
    """Log-probabilities [n, V] behind every token of a text."""
    store, rows = stack.new_store(lm, 16) if stack else lm.new_store(), []
    while (start := store.length) < len(text):
        end = min(start + 64, len(text), start + store.rows_left(start))
        rows.append(lm.forward(text[start:end], range(start, end), store).logits)
        store.commit(range(end - start))
    return torch.cat(rows).double().log_softmax(-1)


def quality(lm, text: list[int]) -> list[dict]:
    texts, rows = [text[at : at + 600] for at in range(0, 4800, 600)], []
    plain = [scores(lm, None, one) for one in texts]
    for bits, size, raw in product((8, 4, 2), (32, 64), (False, True)):
        kivi = wb.KIVI(bits=bits, page_size=size, residual=64, raw_keys=raw)
        found = [scores(lm, wb.Stack(quantizer=kivi), one) for one in texts]
        kl = [(p.exp() * (p - q)).sum(-1)[300:].mean().item() for p, q in zip(plain, found, strict=True)]
        (codec,) = kivi.codecs(0, lm.head_dim, lm.head_dim, lm.dtype)
        names = {"arm": f"KIVI {bits}, pages of {size}{', raw keys' if raw else ''}"}
        rows.append(names | {"kl_nats": sum(kl) / len(kl), "page_bytes": codec.bytes / size * lm.kv_heads * lm.layers})
    return rows


def main() -> None:
    given = options(__doc__, tokens=1990, repeats=7).parse_args()
    lm = wb.load("embedded")
    text = [token for row in wb.held_out_prompts(50) for token in lm.tokenizer.encode(row["prompt"])]
    rows = quality(lm, text)
    text = (text * (given.tokens // len(text) + 1))[: given.tokens + NEW]
    found: dict[str, list[dict]] = {name: [] for name in STACKS}
    appended: dict[int, list[float]] = {64: [], given.tokens - given.tokens % 32: []}
    for _ in range(given.repeats):
        for name, stack in STACKS.items():
            found[name].append(one(lm, stack, text))
        for behind, times in appended.items():
            times.append(append(lm, behind))
    best = {name: {key: min(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}
    for name, run in best.items():
        ratios = {f"{key}_ratio": run[key] / best["plain"][key] for key in run}
        rows.append({"arm": name, "prompt_s": run["prompt"], "token_ms": 1000 * run["token"], **ratios})
    rows += [{"arm": f"append behind {behind}", "append_ms": min(times)} for behind, times in appended.items()]
    finish(lm, rows, given.out, tokens=given.tokens, repeats=given.repeats)


if __name__ == "__main__":
    main()

"""What a token costs in the model's own modules, in the functional body and in the compiled one, and what the workbench
adds to a bare loop over the functional body.

    python benchmarks/body.py [--model embedded] [--threads 1] [--context 50] [--tokens 64] [--prompts 6] [--repeats 5]

Greedy, whole calls, one text after the other, all arms in turn; the ratio of `model.generate`'s time to an arm's, with
its interval, and whether all texts are equal. With `--weights int4` (or bfloat16) the weights are first rounded to it.
"""

import time
from functools import partial

import torch
import torch.nn.functional as F

import workbench as wb
from benchmarks.runs import Record, finish, ids, interleaved, interval, options, ours, ratio, same, theirs
from workbench.cache.protocol import Segment
from workbench.engine.model import ForwardRequest
from workbench.models.adapter import TransformersModel
from workbench.models.fast import FastBody
from workbench.models.native import NativeBody

STOCK = "model.generate"


class Buffers:
    """Keys and values of a text that only grows: no cache store, nothing recorded."""

    watched = ()

    def __init__(self, layers: int, most: int):
        self.k, self.v, self.most, self.length = [None] * layers, [None] * layers, most, 0

    def stage(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> None:
        if self.k[layer] is None:
            self.k[layer], self.v[layer] = (x.new_empty(x.shape[0], self.most, x.shape[2]) for x in (k, v))
        self.rows = k.shape[1]
        self.k[layer][:, self.length : self.length + k.shape[1]] = k
        self.v[layer][:, self.length : self.length + v.shape[1]] = v

    def segments(self, layer: int, window: int | None, query: torch.Tensor | None = None) -> list[Segment]:
        seen, rows = self.length + self.rows, self.rows
        return [Segment(self.k[layer][:, :seen], self.v[layer][:, :seen], causal=rows > 1)]


def attend(store: Buffers, layer: int, q: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
    seen, rows = store.length + q.shape[2], q.shape[2]
    k, v = store.k[layer][None, :, :seen], store.v[layer][None, :, :seen]
    if rows > 1 or q.shape[1] == k.shape[1]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=rows > 1, scale=scale, enable_gqa=True)
    out = F.scaled_dot_product_attention(q.view(1, k.shape[1], -1, q.shape[3]), k, v, scale=scale)
    return out.view(q.shape)


@torch.inference_mode()
def bare(lm: TransformersModel, body: FastBody, tokens: int, prompt: list[int], seed: int) -> Record:
    """A body in the shortest loop there is."""
    start, store = time.perf_counter(), Buffers(lm.layers, len(prompt) + tokens)
    given, text = prompt, []
    while len(text) < tokens:
        rows = range(store.length, store.length + len(given))
        text.append(int(body.forward(ForwardRequest(given, rows, store, logits_at="last")).logits.argmax()))
        store.length, given = rows.stop, text[-1:]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "text": text, "forwards": 0, "drafted": 0, "accepted": 0, "draft_ms": 0.0}


def main() -> None:
    parser = options(__doc__, model="embedded", threads=1, context=50, tokens=64, prompts=6, repeats=5, weights="")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    loaded = wb.load(given.model, weights=given.weights or None)
    models = {
        name: type(name, (TransformersModel,), {"bodies": bodies})(loaded.model, loaded.tokenizer)
        for name, bodies in {"stock": (), "torch": (FastBody,), "compiled": (NativeBody, FastBody)}.items()
    }
    handles = models["torch"]._cache.layers
    parts = (models["torch"]._engine, [h.scale for h in handles], [h.window for h in handles], attend)
    given_ids = ids(loaded, given.prompts, given.context)
    arms = {STOCK: partial(theirs, loaded, given.tokens)}
    arms["bare"] = partial(bare, models["torch"], FastBody(*parts), given.tokens)
    arms["bare, compiled"] = partial(bare, models["compiled"], NativeBody(*parts), given.tokens)
    if loaded.eos_ids:  # all arms go on to the end
        arms[STOCK] = partial(theirs, loaded, given.tokens, eos_token_id=None)
    for name, lm in models.items():
        for level in ("off", "default"):
            settings = {"max_new_tokens": given.tokens, "level": level, "ignore_eos": True}
            arms[f"{name}, {level}"] = partial(ours, lm, None, **settings)
    for run in arms.values():
        run(given_ids[0][:8], 0)
    found = interleaved(arms, given_ids, given.repeats, "prompts")
    base, rows = found[STOCK], []
    for name, runs in found.items():
        rows.append({"arm": name, "ms_per_token": 1000 * sum(r["seconds"] for r in runs) / given.tokens / len(runs),
                     "over_generate": ratio(base, runs), "interval": interval(base, runs),
                     "of_bare": ratio(found["bare"], runs), "same_texts": all(map(same, base, runs))})  # fmt: skip
    facts = {name: value for name, value in vars(given).items() if name != "out"}
    finish(loaded, rows, given.out, **facts, bodies={name: lm.body for name, lm in models.items()})


if __name__ == "__main__":
    main()

"""Made-up runs for the tests of the trace and of the views: small distributions, no model."""

import math
import random
from dataclasses import replace

import pytest

from workbench.trace import Recorder, Step

LAYERS, KV_HEADS, HEAD_DIM = {"target": 8, "draft": 4}, {"target": 4, "draft": 2}, {"target": 32, "draft": 16}


def models() -> list[dict]:
    return [
        {"role": role, "name": f"tiny-{role}", "layers": LAYERS[role], "kv_heads": KV_HEADS[role],
         "head_dim": HEAD_DIM[role], "kv_bits": 32, "vocab_size": 4096, "context": 2048}
        for role in LAYERS
    ]  # fmt: skip


def run_event(**more) -> dict:
    return {
        "id": "made-up", "time": "2030-01-01T00:00:00+00:00", "device": "cpu", "models": models(),
        "decoder": {"family": "decoder", "name": "speculative", "settings": {}}, "guarantee": "exact", "verified": None,
        "sampling": {"temperature": 0.0}, "seed": 0, "prompt_ids": [5, 6, 7], "prompt_text": "def", **more,
    }  # fmt: skip


def cache_columns(role: str, length: int) -> dict:
    """The plain store: one slot per committed token, 32-bit payload."""
    n, payload = LAYERS[role], length * KV_HEADS[role] * 2 * HEAD_DIM[role] * 4
    return {
        "live_slots": [length] * n, "logical_length": [length] * n, "payload": [payload] * n, "scale": [0] * n,
        "kept": [0] * n, "evicted": [0] * n, "merged": [0] * n, "fetched": [0] * n,
        "tier": ["device"] * n, "simulated": [False] * n, "bits_nominal": [32.0] * n,
    }  # fmt: skip


def dist(draw: random.Random, size: int = 5) -> list:
    weights = sorted((draw.random() for _ in range(size)), reverse=True)
    return [[draw.randrange(4096) for _ in weights], [w / sum(weights) / 1.1 for w in weights]]


def token_columns(draw: random.Random, sources: list[str]) -> dict:
    n = len(sources)
    return {
        "token_id": [draw.randrange(4096) for _ in range(n)], "source": sources, "model": ["target"] * n,
        "entropy_raw_nats": [draw.uniform(0, 6) for _ in range(n)],
        "entropy_sampled_nats": [draw.uniform(0, 4) for _ in range(n)],
        "varentropy_nats2": [draw.uniform(0, 4) for _ in range(n)],
        "surprisal_nats": [draw.uniform(0, 4) for _ in range(n)],
        "p_raw": [draw.random() for _ in range(n)], "p_sampled": [draw.random() for _ in range(n)],
        "rank": [draw.randrange(1, 9) for _ in range(n)], "margin": [draw.random() for _ in range(n)],
        "topk_raw": [dist(draw) for _ in range(n)], "cut_by": [None] * n, "keep_size": [4096] * n,
    }  # fmt: skip


def prefill_step(prompt: int = 3) -> Step:
    """All of the prompt but its last token goes into both caches; nothing is emitted."""
    passes = {
        "phase": ["prefill", "prefill"], "model": ["target", "draft"], "rows": [prompt - 1] * 2,
        "context": [prompt - 1] * 2, "wall_ms": [2.0, 1.0], "flops": [1e6, 1e5],
        "weight_bytes": [27_600_000, 3_800_000], "kv_read_bytes": [0, 0], "kv_write_bytes": [80, 10],
        "implementation": ["sdpa"] * 2,
    }  # fmt: skip
    ms = {"draft": 1.0, "target": 2.0, "verify": 0.0, "commit": 0.1, "cache": 0.1, "total": 3.5}
    cache = {role: cache_columns(role, prompt - 1) for role in LAYERS}
    return Step("prefill", forwards=passes, ms=ms, cache=cache, context=prompt)


def chain_step(draw: random.Random, context: int, drafted: int = 4, accepted: int = 2) -> Step:
    """One round of chain drafting: `accepted` of `drafted` tokens kept, then one token from the target."""
    sources = ["draft-model"] * accepted + ["bonus" if accepted == drafted else "residual"]
    fates = ["accepted"] * accepted + ["rejected"] + ["parent_rejected"] * drafted
    drafts = {
        "node": list(range(1, drafted + 1)), "parent": list(range(drafted)), "depth": list(range(1, drafted + 1)),
        "token_id": [draw.randrange(4096) for _ in range(drafted)], "text": [" ab"] * drafted,
        "kind": ["dist"] * drafted, "drafter": ["draft-model"] * drafted, "rank": [1] * drafted,
        "q": [draw.random() for _ in range(drafted)], "p": [draw.random() for _ in range(drafted)],
        "entropy_draft_nats": [draw.uniform(0, 6) for _ in range(drafted)],
        "entropy_target_nats": [draw.uniform(0, 6) for _ in range(drafted)],
        "tv": [draw.random() for _ in range(drafted)], "kl_nats": [draw.random() for _ in range(drafted)],
        "fate": fates[:drafted], "reason": [None if f != "rejected" else "ratio" for f in fates[:drafted]],
        "u": [draw.random() for _ in range(drafted)],
    }  # fmt: skip
    passes = {
        "phase": ["draft"] * drafted + ["target"], "model": ["draft"] * drafted + ["target"],
        "rows": [1] * drafted + [drafted + 1], "context": [context + i for i in range(drafted)] + [context + drafted],
        "wall_ms": [draw.uniform(0.5, 0.7) for _ in range(drafted)] + [draw.uniform(4, 5)],
        "flops": [1_900_000] * drafted + [70_000_000], "weight_bytes": [3_800_000] * drafted + [27_600_000],
        "kv_read_bytes": [1024 * (context + i) for i in range(drafted)] + [8192 * context],
        "kv_write_bytes": [1024] * drafted + [8192 * (drafted + 1)],
        "implementation": ["sdpa"] * (drafted + 1),
    }  # fmt: skip
    emitted = accepted + 1
    return Step(
        "chain" if drafted else "plain",
        tokens=token_columns(draw, sources), drafts=drafts if drafted else {}, forwards=passes,
        ms={name: draw.uniform(0.1, 8.0) for name in ("draft", "target", "verify", "commit", "cache", "total")},
        cache={role: cache_columns(role, context + emitted - 1) for role in LAYERS},
        drafted=drafted, accepted=accepted, emitted=emitted, bonus=accepted == drafted, budget=drafted, depth=drafted,
        context=context + emitted,
    )  # fmt: skip


def record(rounds: list[tuple[int, int]], out=None, level: str = "default", **run) -> Recorder:
    """A finished prefill and one chain round for every (drafted, accepted)."""
    draw, context = random.Random(0), 3
    recorder = Recorder(run_event(**run), out=out, level=level)
    recorder.round(prefill_step())
    for drafted, accepted in rounds:
        step = chain_step(draw, context, drafted, accepted)
        context = step.context
        if level == "off":
            step.drafts, step.forwards, step.cache = {}, {}, {}
            step.tokens = {name: step.tokens[name] for name in ("token_id", "source")}
        recorder.round(replace(step, texts=[f" t{context}é"[: 4 + i] for i in range(step.emitted)]))
    return recorder


@pytest.fixture
def made_up():
    """The builders of this module, for tests: record, run_event, prefill_step, chain_step, cache_columns."""
    from types import SimpleNamespace

    return SimpleNamespace(
        record=record, run_event=run_event, prefill_step=prefill_step, chain_step=chain_step,
        cache_columns=cache_columns, nan=math.nan, models=models,
    )  # fmt: skip

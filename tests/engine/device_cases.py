"""What tests of the device round share: a small pair of models, the runs, and when two steps are the same."""

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from workbench.device import round as device

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
DRAFT = "device-round-draft"
FILTERED = {"temperature": 0.9, "top_p": 0.8, "min_p": 0.02, "top_k": 30, "seed": 4}
SAMPLINGS = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 1},
    "top_k": {"temperature": 0.8, "top_k": 3, "seed": 2},
    "top_p": {"temperature": 1.3, "top_p": 0.7, "seed": 3},
    "filters": FILTERED,
    "typical": {"temperature": 1.1, "typical_p": 0.6, "seed": 5},
}
DECODERS = {
    "plain": lambda: wb.Autoregressive(),
    "chain": lambda: speculative(wb.FixedLength(3)),
    "tree": lambda: speculative(wb.FixedTree((2, 2, 1))),
}


def speculative(shape, **parts):
    return wb.Speculative(drafter=wb.DraftModel(DRAFT), shape=shape, **parts)


def llama(noise: float = 0.0, vocabulary: int = 48, context: int = 128) -> LlamaForCausalLM:
    """Two layers with grouped heads of 16; the same weights each time, but for the noise."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.25, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * noise * parameter.std())
    return model.eval()


def steps(lm, decoder, monkeypatch, where: str, tokens: int = 24, prompt=PROMPT, **settings):
    """The steps of a run, and its final state."""
    monkeypatch.setenv(device.VARIABLE, where)
    session = wb.Session(lm, prompt, decoder, max_new_tokens=tokens, **settings)
    state, found = session.state.fork(), []
    while not state.ended:
        found.append(session.decoder.step(state))
    return found, state


def close(name: str, got, want) -> None:
    """Equal, numbers to 1e-4: both sides add the same fp32 numbers in another order."""
    if isinstance(want, dict):
        assert list(got) == list(want), f"{name}: {list(got)} for {list(want)}"
        for key, value in want.items():
            close(f"{name}.{key}", got[key], value)
    elif isinstance(want, list | tuple):
        assert len(got) == len(want), f"{name}: {got} for {want}"
        for left, right in zip(got, want, strict=True):
            close(name, left, right)
    elif isinstance(want, float):
        assert math.isclose(got, want, rel_tol=1e-4, abs_tol=1e-4), f"{name}: {got} for {want}"
    else:
        assert got == want, f"{name}: {got} for {want}"


FIELDS = ("mode", "tokens", "texts", "drafts", "drafted", "accepted", "emitted", "bonus", "stop_reason", "budget",
          "depth", "context", "figures", "decisions")  # fmt: skip


def same_steps(got, want) -> None:
    assert len(got) == len(want)
    for left, right in zip(got, want, strict=True):
        for name in FIELDS:
            close(name, getattr(left, name), getattr(right, name))
        for role, columns in right.cache.items():
            for name in ("live_slots", "logical_length", "payload", "staging"):
                assert left.cache[role][name] == columns[name], f"{role} {name}"
        passes = zip(*(step.forwards.get("model", []) for step in (left, right)), strict=True)
        assert all(a == b for a, b in passes), "other forwards"

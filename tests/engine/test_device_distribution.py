"""Whole decoders on the Triton kernels follow the distribution they guarantee: chi-square of their first two tokens.

A round on the device, as on a GPU: attention over the live slots, the fused sampler and verification, all under the
interpreter. Programs there cost a millisecond and more, hence few runs, of a model whose draft is far from it. What
does not depend on the seed is worked out once: an attention of the very same tensors, and the distribution of the same
logits. The tree's control stands for the chain's too: a chain is a tree of one child a node. A run that fails is
repeated once from another seed and pooled. Seeds come from the test's own name.
"""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

import workbench as wb
from tests.kernels.faults import broken
from workbench.device import round as device
from workbench.engine.settings import Settings
from workbench.models.adapter import wrap
from workbench_kernels import distribution, segment_attention, verification
from workbench_kernels.dispatch import VARIABLE

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="natively: tests/kernels/test_verification_law.py")
VOCAB, PROMPT, SIGNIFICANCE = 4, [3, 1, 0, 2], 1e-4


def tiny(seed: int):
    """One layer, one head, and distributions far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.4, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return wrap(LlamaForCausalLM(config).eval())


@pytest.fixture(scope="module")
def target():
    wb.register_model("device-distribution-draft", tiny(2))
    return tiny(10)


@pytest.fixture(autouse=True)
def triton_alone(monkeypatch):
    """Rounds on the device, all of their kernels in Triton."""
    monkeypatch.setenv(device.VARIABLE, "device")
    monkeypatch.setenv(VARIABLE, "triton")
    monkeypatch.setattr(device, "IMPLEMENTATION", "triton")


@pytest.fixture
def once(monkeypatch):
    """Attention and distributions that were worked out before are looked up; how often each was asked for and worked
    out."""
    known, asked = {}, {"attention": [0, 0], "distribution": [0, 0]}
    attend, sample = segment_attention.attend_live, distribution.sample

    def remembered(kind, key, compute):
        asked[kind][0] += 1
        if key not in known:
            asked[kind][1] += 1
            known[key] = compute()
        return known[key]

    def attend_once(q, k, v, base, words, staged, scale):
        end = int(base) + staged
        tensors = (q, k[:, :end], v[:, :end], words)
        key = ("attention", staged, *(tensor.numpy().tobytes() for tensor in tensors))
        return remembered("attention", key, lambda: attend(q, k, v, base, words, staged, scale))

    def distribution_once(logits, *settings, implementation):
        """Under rejection the sampler gives the distribution alone: what it draws is not used, so it is spoilt here."""
        key = "distribution", logits.numpy().tobytes()
        dist = remembered("distribution", key, lambda: sample(logits, *settings, implementation=implementation))
        return dist._replace(token=torch.zeros_like(dist.token))

    monkeypatch.setattr(segment_attention, "attend_live", attend_once)
    return asked, lambda: monkeypatch.setattr(distribution, "sample", distribution_once)


def distribution_of_two(target) -> np.ndarray:
    """[V, V] the distribution of the first two tokens, by the stock model in fp64."""
    model = LlamaForCausalLM(target.model.config).eval().double()
    model.load_state_dict(target.model.state_dict())
    with torch.inference_mode():
        texts = torch.tensor([[*PROMPT, token] for token in range(VOCAB)])
        first, second = model(texts).logits.softmax(-1)[:, -2:].unbind(1)
    return (first * torch.eye(VOCAB)).sum(1)[:, None].mul(second).numpy()


def counts(target, decoder, name: str, runs: int) -> np.ndarray:
    """[V, V] how often two tokens came up, over consecutive seeds from one that the name gives."""
    first = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])
    settings = Settings(sampling=wb.Sampling(temperature=1.0), max_new_tokens=2, level="off")
    start = decoder.start(target, PROMPT, settings)
    decoder.step(start)
    found = np.zeros([VOCAB] * 2)
    for seed in range(first, first + runs):
        state = start.fork()
        state.settings = replace(settings, seed=seed)
        while not state.ended:
            decoder.step(state)
        found[tuple(state.new_tokens)] += 1
    return found


def p_value(found: np.ndarray, dist: np.ndarray) -> float:
    """Of Pearson's chi-square; cells expected less than five times are pooled."""
    expected = dist * found.sum()
    rare = expected < 5
    cells, wanted = list(found[~rare]), list(expected[~rare])
    if rare.any():
        cells, wanted = [*cells, found[rare].sum()], [*wanted, expected[rare].sum()]
    return float(stats.chisquare(cells, wanted).pvalue)


def rejecting(shape) -> wb.Speculative:
    return wb.Speculative(drafter=wb.DraftModel("device-distribution-draft"), shape=shape, verifier=wb.Rejection())


DECODERS = {  # and runs
    "plain": (lambda: wb.Autoregressive(), 60),
    "rejection chain": (lambda: rejecting(wb.FixedLength(2)), 120),
    "rejection tree": (lambda: rejecting(wb.FixedTree((2, 1))), 160),
}


@pytest.mark.parametrize("name", DECODERS)
def test_whole_decoders_follow_the_targets_distribution(name, target, once):
    """And the Triton path is the one that was taken."""
    make, runs = DECODERS[name]
    asked, remember_distributions = once
    if name != "plain":
        remember_distributions()
    dist, found = distribution_of_two(target), counts(target, make(), f"triton {name}/1", runs)
    if p_value(found, dist) <= SIGNIFICANCE:
        found = found + counts(target, make(), f"triton {name}/2", runs)
    assert p_value(found, dist) > SIGNIFICANCE
    assert asked["attention"][0] >= runs and asked["attention"][1] > VOCAB
    assert name == "plain" or asked["distribution"][0] >= runs > asked["distribution"][1] > VOCAB
    trace = wb.decode(target, PROMPT, make(), max_new_tokens=1, temperature=1.0)
    assert trace.forwards["implementation"].iloc[-1] == "device+triton"


def test_without_the_residual_step_it_is_noticed(target, once, tmp_path, monkeypatch):
    """Half as many runs show that rejected mass was not taken away."""
    from workbench_kernels.verification import rejection

    residual = "rest = tl.maximum(p - proposal, 0.0)"
    monkeypatch.setattr(verification, "rejection", broken(rejection, residual, "rest = p", tmp_path), raising=False)
    make, runs = DECODERS[name := "rejection tree"]
    once[1]()
    assert p_value(counts(target, make(), f"triton {name}/1", runs // 2), distribution_of_two(target)) < SIGNIFICANCE

"""Whole decoders follow the distribution they guarantee: chi-square of 60 000 runs of three tokens on a model that is
known exactly.

A run that fails is repeated once from another seed and pooled. Seeds come from the test's own name.
"""

import hashlib
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import workbench as wb
from tests.decoders.crowd import Crowd
from tests.decoders.quick_toy import Lists, QuickToy, Remembered
from tests.table import speculative
from workbench.engine.settings import Settings
from workbench.models import loading
from workbench.speculation.verifiers import rejection
from workbench_kernels.verification import reference

RUNS, LENGTH, VOCAB, PROMPT = 60_000, 3, 4, [0, 1, 2, 3, 0, 1]
SIGNIFICANCE = 1e-4


@pytest.fixture(scope="module")
def quick():
    wb.register_model("quick-draft", QuickToy(vocab_size=VOCAB, seed=11, sharpness=1.0))
    return QuickToy(vocab_size=VOCAB, seed=7, sharpness=1.2)


def target_distribution(toy: wb.ToyModel, temperature: float, top_p: float) -> np.ndarray:
    """[V] * 3 probabilities of the three tokens, worked out from the table alone."""
    out = np.zeros([VOCAB] * LENGTH)
    for tokens in itertools.product(range(VOCAB), repeat=LENGTH):
        mass, text = 1.0, list(PROMPT)
        for token in tokens:
            weights = toy.dist(text).numpy() ** (1 / temperature)
            weights /= weights.sum()
            order = np.argsort(-weights)
            nucleus = order[: int(np.searchsorted(np.cumsum(weights[order]), top_p - 1e-12)) + 1]
            mass *= weights[token] / weights[nucleus].sum() if token in nucleus else 0.0
            text.append(token)
        out[tokens] = mass
    return out


def counts(toy, decoder, sampling: wb.Sampling, name: str, runs: int, crowded: bool = True) -> np.ndarray:
    """How often each text of three tokens came up, over consecutive seeds from one that the name gives.

    crowded: seeds that decide alike are run once (see `crowd.py`); else every one by itself.
    """
    first = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])
    settings = Settings(sampling=sampling, max_new_tokens=LENGTH, level="off")
    start = decoder.start(toy, PROMPT, settings)
    decoder.step(start)

    if crowded:
        found = Crowd(first, runs, VOCAB).run(decoder, start)
    else:
        found = Counter(alone(decoder, start, seed) for seed in range(first, first + runs))
    out = np.zeros([VOCAB] * LENGTH, dtype=int)
    for tokens, times in found.items():
        out[tokens] = times
    return out


def alone(decoder, start, seed: int) -> tuple[int, ...]:
    """The new tokens of one seed."""
    state = start.fork()
    state.settings = replace(state.settings, seed=seed)
    while not state.ended:
        decoder.step(state)
    return tuple(state.new_tokens)


def p_value(found: np.ndarray, dist: np.ndarray) -> float:
    """Of Pearson's chi-square; cells expected less than five times are pooled, impossible ones must be empty."""
    if found[dist == 0].any():
        return 0.0
    expected = dist * found.sum()
    rare = (expected < 5) & (dist > 0)
    cells, wanted = list(found[expected >= 5]), list(expected[expected >= 5])
    if rare.any():
        cells, wanted = [*cells, found[rare].sum()], [*wanted, expected[rare].sum()]
    return float(stats.chisquare(cells, wanted).pvalue)


DECODERS = {
    "autoregressive": (lambda: wb.Autoregressive(), 1.0, 1.0),
    "seeded chain": (lambda: speculative("quick-draft", shape=wb.FixedLength(2)), 1.0, 1.0),
    "rejection chain": (lambda: rejecting(wb.FixedLength(2)), 1.3, 0.9),
    "rejection tree": (lambda: rejecting(wb.FixedTree((2, 1))), 1.0, 1.0),
    "copied chain": (lambda: copying(), 1.4, 1.0),
}


def rejecting(shape) -> wb.Speculative:
    return speculative("quick-draft", shape=shape, verifier=wb.Rejection())


def copying() -> wb.Speculative:
    return wb.Speculative(drafter=wb.CopySpec(ngram=1), shape=wb.FixedLength(2), verifier=wb.Rejection())


@pytest.mark.parametrize("name", DECODERS)
def test_whole_decoders_follow_the_targets_distribution(name, quick):
    make, temperature, top_p = DECODERS[name]
    dist = target_distribution(quick, temperature, top_p)
    assert dist.sum() == pytest.approx(1) and (dist > 0).sum() > 20
    sampling = Remembered(temperature=temperature, top_p=top_p)
    found = counts(quick, make(), sampling, f"{name}/1", RUNS)
    if p_value(found, dist) <= SIGNIFICANCE:
        found = found + counts(quick, make(), sampling, f"{name}/2", RUNS)
    assert p_value(found, dist) > SIGNIFICANCE


@pytest.mark.parametrize("name", ["rejection chain", "rejection tree", "copied chain"])
def test_without_the_residual_step_it_is_noticed(name, quick, monkeypatch):
    """A sixth of the runs is enough to see that rejected mass was not taken away."""
    monkeypatch.setattr(reference, "residual", lambda p, q: p)
    original = rejection.accept

    def keeps(p, q, token, u):
        accepted, rest = original(p, q, token, u)
        return accepted, p if q is None else rest  # a POINT child's own residual step left out as well

    monkeypatch.setattr(rejection, "accept", keeps)
    make, temperature, top_p = DECODERS[name]
    found = counts(quick, make(), Remembered(temperature=temperature, top_p=top_p), name, RUNS // 6)
    assert p_value(found, target_distribution(quick, temperature, top_p)) < SIGNIFICANCE


@pytest.mark.parametrize("name", DECODERS)
def test_the_quick_way_gives_what_production_gives(name, quick, toy, monkeypatch):
    """A crowd on the quick model comes to the texts of the same seeds, run one by one on the store and the
    distributions that everyone else uses."""
    make, temperature, top_p = DECODERS[name]
    wb.register_model("quick-slow-draft", wb.ToyModel(vocab_size=VOCAB, seed=11, sharpness=1.0))
    fast = counts(quick, make(), Remembered(temperature=temperature, top_p=top_p), name, 120)
    monkeypatch.setitem(loading._registered, "quick-draft", wb.load("quick-slow-draft"))
    assert torch.equal(quick.table, toy.table)
    slow = counts(toy, make(), wb.Sampling(temperature=temperature, top_p=top_p), name, 120, crowded=False)
    assert (fast == slow).all() and isinstance(quick.new_store(), Lists)


def test_a_crowd_refuses_noise_that_decides_nothing():
    """Else seeds that differ in it would be taken for alike."""
    crowd = Crowd(0, 10, VOCAB)
    with pytest.raises(TypeError):
        1 - crowd.uniform(0, "accept", 3)
    with pytest.raises(TypeError):
        float(crowd.uniform(0, "accept", 3))
    with pytest.raises((TypeError, AttributeError)):
        (torch.zeros(VOCAB) + crowd.gumbel(0, "target", 3, crowd.ids)).softmax(-1)

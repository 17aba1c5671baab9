"""Sampling end to end: sixty thousand runs of two dozen triples follow the target's distribution.

The triples cover every drafter, shape and verifier that guarantees the distribution, and as many pairs of them as so
many can. On a random Llama of three words, where every text can be told apart. RSD-S puts noise to other use than a
decision, which `Crowd` cannot follow; its distribution is enumerated in `test_shapes.py`. The context ends one token
behind the text: drafts are as deep as the text is long, and not deeper.
"""

import itertools
import zlib

import numpy as np
import pytest
import torch

import workbench as wb
from tests.decoders.crowd import Crowd
from tests.decoders.test_distribution import p_value
from tests.speculation.test_triples import POSSIBLE
from tests.speculation.tiny import tiny_heads, tiny_target
from tests.table import triple
from workbench.engine.settings import Settings
from workbench.training.acceptance import acceptance
from workbench.training.parts import PARTS
from workbench_kernels.verification import reference

WORDS, LENGTH, RUNS, SIGNIFICANCE = 3, 2, 60_000, 1e-4
PROMPT = [0, 1, 2, 0, 1]
CLAIMING = [names for names in POSSIBLE if names[1] != "rsd_s" and names[2] in ("kseq", "point", "rejection")]


def cover(triples: list[tuple], most: int) -> list[tuple]:
    """Chosen one after the other, each for the most members and pairs that none before it had."""
    chosen, seen = [], set()

    def news(names: tuple) -> int:
        return len({*names, *itertools.combinations(names, 2)} - seen)

    while len(chosen) < most and max(map(news, triples)):
        best = max(triples, key=news)
        chosen.append(best)
        seen |= {*best, *itertools.combinations(best, 2)}
    return chosen


COVER = cover(CLAIMING, 24)


@pytest.fixture(scope="module")
def target():
    tiny_target("tinier-draft", seed=5, vocabulary=WORDS)
    return tiny_target("tinier", vocabulary=WORDS)


@pytest.fixture(scope="module")
def heads(target, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("heads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PARTS, "acceptance", acceptance("tinier-draft"))
        for kind in ("acceptance", "eagle", "hydra", "kangaroo", "medusa"):
            tiny_heads(target, kind, folder, steps=3)
    return str(folder)


@pytest.fixture(autouse=True)
def short(target, heads, monkeypatch):
    monkeypatch.setattr(target, "context", len(PROMPT) + LENGTH + 1)


@pytest.fixture(scope="module")
def dist(target) -> np.ndarray:
    """[V] * LENGTH exact probabilities of the first new tokens."""
    out = np.ones((WORDS,) * LENGTH)
    for depth in range(LENGTH):
        for text in itertools.product(range(WORDS), repeat=depth):
            ids = [*PROMPT, *text]
            logits = target.forward(ids, range(len(ids)), target.new_store(), logits_at="last").logits[0]
            shape = (WORDS,) + (1,) * (LENGTH - depth - 1)
            out[text] *= logits.double().softmax(-1).numpy().reshape(shape)
    return out


def counts(target, decoder, name: str, runs: int) -> np.ndarray:
    settings = Settings(sampling=wb.Sampling(temperature=1.0), max_new_tokens=LENGTH, level="off")
    start = decoder.start(target, PROMPT, settings)
    with torch.inference_mode():
        decoder.step(start)
    out = np.zeros((WORDS,) * LENGTH)
    for text, count in Crowd(zlib.crc32(name.encode()), runs, WORDS).run(decoder, start).items():
        out[text] += count
    return out


def test_the_cover_meets_every_member():
    for place in range(3):
        assert {names[place] for names in COVER} == {names[place] for names in CLAIMING}


@pytest.mark.parametrize("names", COVER, ids="-".join)
def test_whole_triples_follow_the_targets_distribution(names, target, heads, dist):
    decoder = triple(*names, "tinier-draft", heads)
    found = counts(target, decoder, "-".join(names), RUNS)
    if p_value(found, dist) <= SIGNIFICANCE:
        found = found + counts(target, decoder, "again " + "-".join(names), RUNS)
    assert p_value(found, dist) > SIGNIFICANCE


def test_without_the_residual_step_it_is_noticed(target, dist, monkeypatch):
    monkeypatch.setattr(reference, "residual", lambda p, q: p)
    found = counts(target, triple("draft_model", "tree", "rejection", "tinier-draft"), "no residual", RUNS // 6)
    assert p_value(found, dist) < SIGNIFICANCE

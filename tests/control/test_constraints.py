"""Every decoder, drafter and width of a draft keeps to a constraint, and speculative text is plain text under it."""

import itertools
import re

import numpy as np
import pytest
import torch

import workbench as wb
from tests.decoders.crowd import Crowd
from tests.decoders.quick_toy import QuickToy
from tests.decoders.test_distribution import p_value
from tests.speculation.tiny import tiny_heads, tiny_target
from tests.table import DECODERS, DRAFTERS, speculative
from workbench.control.constraints import base
from workbench.engine.settings import Settings
from workbench.models import loading

LETTERS = r"(ab|c[de]*|dd?a|e)*"  # over the five letters of a tiny model
WARM = {"temperature": 0.9, "seed": 5}
PROMPT = [0, 1, 2, 3, 4, 2, 0, 1, 2, 3]


def begins(pattern: str, text: str, letters: str, more: int = 2) -> bool:
    """Whether a text can be completed to a match with a few letters, by trying."""
    ends = ("".join(end) for size in range(more + 1) for end in itertools.product(letters, repeat=size))
    return any(re.fullmatch(pattern, text + end) for end in ends)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random Llama of five letters, whose draft is "lettered-draft", and a folder with trained parts of it."""
    draft, target, folder = tiny_target("lettered-draft", seed=5), tiny_target("lettered"), tmp_path_factory.mktemp("x")
    for kind in ("eagle", "hydra", "judge", "kangaroo", "medusa"):
        tiny_heads(target, kind, folder, steps=2)
    draft.tokenizer = target.tokenizer = wb.ToyModel(5).tokenizer
    return target, str(folder)


@pytest.fixture(scope="module")
def plain(tiny):
    """What plain decoding spells under the constraint, which it does not keep to by itself."""
    for how in ({}, WARM):
        free = wb.decode(tiny[0], PROMPT, max_new_tokens=24, **how)
        assert not begins(LETTERS, free.text, "abcde"), "this shows nothing"
    run = dict(constraint=wb.Regex(LETTERS), max_new_tokens=24)
    return [wb.decode(tiny[0], PROMPT, **run, **how) for how in ({}, WARM)]


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_every_drafter_spells_what_plain_decoding_spells_under_a_constraint(drafter, tiny, plain):
    decoder, drafted = wb.Speculative(drafter=DRAFTERS[drafter]("lettered-draft", tiny[1])), 0
    for how, wanted in zip(({}, WARM), plain, strict=True):
        trace = wb.decode(tiny[0], PROMPT, decoder, constraint=wb.Regex(LETTERS), max_new_tokens=24, **how)
        assert trace.token_ids == wanted.token_ids and begins(LETTERS, trace.text, "abcde")
        columns = ["allowed_count", "allowed_mass"]
        assert np.allclose(trace.tokens[columns], wanted.tokens[columns], atol=1e-4)
        drafted += len(trace.drafts)
    assert drafted


@pytest.mark.parametrize("verifier", ["seeded", "point", "rejection", "typical", "judge", "kseq"])
def test_drafts_outside_have_that_fate_whoever_verifies(verifier, tiny):
    """Copied drafts know nothing of a constraint; and a judge lets nothing stand that is outside."""
    target, folder = tiny
    judge = wb.Judge(threshold=0.0, weights=folder)
    parts = {"drafter": wb.PromptLookup(ngram=1), "verifier": judge if verifier == "judge" else verifier}
    if verifier == "kseq":
        parts |= {"drafter": wb.DraftModel("lettered-draft"), "shape": wb.IndependentChains(2, 3)}
    outside = 0
    for how in ({}, WARM):
        run = dict(constraint=wb.Regex(LETTERS), max_new_tokens=24, **how)
        trace = wb.decode(target, PROMPT, wb.Speculative(**parts), **run)
        assert begins(LETTERS, trace.text, "abcde")
        drafts = trace.drafts
        assert set(drafts[drafts["reason"] == "grammar"]["fate"]) <= {"rejected"}
        outside += int((drafts["reason"] == "grammar").sum())
    assert outside or verifier == "kseq"


LONG = r"(a[ac]|[bd]c|ca?d)*"  # over the four letters of the toy


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_keeps_to_it(name, toy):
    """Searches and those with distributions of their own too; lossless ones spell what plain decoding spells."""
    row = DECODERS[name]
    ways = ({}, {"temperature": row.temperature, "seed": 3}) if row.sampled else ({},)
    for how in ways:
        run = dict(constraint=wb.Regex(LONG), max_new_tokens=16, level="full", **how)
        trace = wb.decode(toy, [0, 1, 2], row.make("toy-draft"), **run)
        assert trace.token_ids and begins(LONG, trace.text, "abcd", more=3), trace.text
        counts = trace.tokens["allowed_count"]
        assert counts.between(1, 4).all() and counts.min() < 4
        if (row.sampled if how else row.greedy) in ("exact", "seeded"):
            assert trace.token_ids == wb.decode(toy, [0, 1, 2], **run).token_ids
    free = wb.decode(toy, [0, 1, 2], row.make("toy-draft"), max_new_tokens=16, **ways[-1])
    assert not begins(LONG, free.text, "abcd", more=3)


def test_without_the_mask_in_its_one_place_this_shows(toy, monkeypatch):
    """The negative control of all tests here."""
    monkeypatch.setattr(base.Masks, "rows", lambda *given: None)
    monkeypatch.setattr(base.Masks, "allowed", lambda *given: torch.ones(4, dtype=torch.bool))
    for decoder in (None, speculative("toy-draft", shape=wb.FixedTree((2, 2, 1)))):
        text = wb.decode(toy, [0, 1, 2], decoder, constraint=wb.Regex(LONG), max_new_tokens=16).text
        assert not begins(LONG, text, "abcd", more=3)


# -- distributions: exact enumeration ---------------------------------------------------------------------------------

RUNS, START, SHORT = 2_500, [0, 1, 2, 3, 0, 1], r"[abd](a|bc|[cd]d?)[a-d]*"
SPECULATIVE = {
    "chain": lambda: speculative("quick-constrained", shape=wb.FixedLength(2), verifier=wb.Rejection()),
    "tree": lambda: speculative("quick-constrained", shape=wb.FixedTree((2, 1)), verifier=wb.Rejection()),
    "copies": lambda: wb.Speculative(wb.CopySpec(ngram=1), wb.FixedLength(2), wb.Rejection()),
    "chains": lambda: speculative("quick-constrained", shape=wb.IndependentChains(2, 1), verifier=wb.KSeq()),
}


def enumerated(lm) -> np.ndarray:
    """[4, 4, 4] probabilities of three tokens under SHORT: the table of the toy, and what `re` finds."""
    out = np.zeros([4] * 3)
    for ids in itertools.product(range(4), repeat=3):
        mass, text = 1.0, ""
        for at, token in enumerate(ids):
            p = lm.dist([*START, *ids[:at]]).numpy()
            fits = np.array([begins(SHORT, text + letter, "abcd") for letter in "abcd"])
            mass, text = mass * p[token] * fits[token] / max(p[fits].sum(), 1e-300), text + "abcd"[token]
        out[ids] = mass
    return out


@pytest.mark.parametrize("name", SPECULATIVE)
def test_rejection_follows_plain_decodings_distribution_under_a_constraint(name, monkeypatch):
    monkeypatch.setitem(loading._registered, "quick-constrained", QuickToy(4, seed=11))
    lm = QuickToy(4, seed=7, sharpness=1.2)
    wanted = enumerated(lm)
    assert wanted.sum() == pytest.approx(1) and 5 < (wanted > 0).sum() < 40
    settings = Settings(
        sampling=wb.Sampling(temperature=1.0), constraint=wb.Regex(SHORT), max_new_tokens=3, level="off"
    )
    decoder, found = SPECULATIVE[name](), np.zeros([4] * 3, dtype=int)
    start = decoder.start(lm, START, settings)
    decoder.step(start)
    for first in (10**6, 10**7):  # a run that fails is repeated once, and pooled
        for ids, times in Crowd(first, RUNS, 4).run(decoder, start).items():
            found[ids] += times
        if p_value(found, wanted) > 1e-4:
            break
    assert p_value(found, wanted) > 1e-4
    free = np.ones_like(wanted) / wanted.size
    assert p_value(found, free) < 1e-4


def test_the_meter_of_losslessness_works_under_a_constraint(toy):
    """And sees a decoder that is not: one that accepts too much within the constraint."""
    run = dict(prompts=[[0, 1, 2]], tokens=6, runs=100, temperature=1.0, progress=False, constraint=wb.Regex(LONG))
    honest = wb.lossless(speculative("toy-draft", verifier=wb.Rejection()), toy, **run)
    assert honest.holds and honest.sampled == "distribution" and honest.greedy == "exact"
    seeded = wb.lossless(speculative("toy-draft"), toy, **run)
    assert seeded.holds and seeded.sampled == "seeded"
    typical = wb.Typical(epsilon=0.01, delta=0.01)
    assert wb.lossless(speculative("toy-draft", verifier=typical), toy, **run | {"runs": 300}).sampled == "lossy"
    short = wb.lossless(  # texts that end before others
        speculative("toy-draft", verifier=wb.Rejection()), toy, **run | {"constraint": wb.Regex("[ab][cd]?|[cd]a*b")}
    )
    assert short.holds and short.runs == 50

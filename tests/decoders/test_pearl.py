"""PEARL: two runners, one text. Every token is tested once, by its own distribution, whatever is pending."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

import workbench as wb
from tests.decoders.quick_toy import QuickToy, Remembered
from tests.engine.test_bytes import ledger, walk
from tests.speculation.shape_distributions import noise_at_once
from tests.speculation.test_speculative import check_caches, decoding_rounds
from tests.speculation.tiny import tiny_target
from workbench.decoders import pearl
from workbench.engine.settings import Settings
from workbench.errors import BadInput
from workbench_kernels.verification import reference

PROMPT = [1, 4, 2, 0, 3, 3, 1]
SEEDED = {"temperature": 0.8, "seed": 5}
RUNS, SIGNIFICANCE = 2500, 1e-4


@pytest.fixture(scope="module")
def tiny():
    """Five words, two layers; its draft is registered as "tiny-draft"."""
    tiny_target("tiny-draft", seed=4)
    tiny_target("tiny-short", seed=4, context=40)
    tiny_target("tiny-twin", seed=3)
    return tiny_target("tiny", seed=3)


def same_text(lm, prompt, decoder, tokens: int = 40, **settings) -> wb.Trace:
    expected = wb.decode(lm, prompt, max_new_tokens=tokens, **settings).token_ids
    trace = wb.decode(lm, prompt, decoder, max_new_tokens=tokens, **settings)
    assert trace.token_ids == expected
    rounds, own = decoding_rounds(trace), trace.tokens["source"] != "draft_model"
    assert rounds["emitted"].sum() == len(expected)
    assert rounds["accepted"].sum() == (~own).sum() and rounds["drafted"].sum() == len(trace.drafts)
    assert (trace.forwards["phase"] == "target").sum() == len(rounds)
    return trace


@pytest.mark.parametrize("settings", [{}, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("length", [1, 2, 5])
def test_pearl_spells_the_plain_text(tiny, length, settings):
    """Up to the end of the context, past the draft's, and under a cache stack on both runners."""
    same_text(tiny, PROMPT, wb.Pearl("tiny-draft", length), 100, **settings)
    same_text(tiny, PROMPT, wb.Pearl("tiny-short", length), 60, **settings)
    stack = wb.H2O(budget=44, recent=32)
    same_text(tiny, PROMPT, wb.Pearl("tiny-draft", length, cache=stack), 80, cache=stack, **settings)


@pytest.mark.parametrize("settings", [{}, SEEDED], ids=["greedy", "seeded"])
def test_caches_bytes_and_forks_at_every_round(lm, held_out, settings):
    prompt = held_out[7][-300:]
    expected = wb.decode(lm, prompt, max_new_tokens=24, **settings).token_ids
    session = wb.Session(lm, prompt, wb.Pearl(), max_new_tokens=24, **settings)
    pending = 0
    for done, _ in enumerate(session):
        state = session.state
        check_caches(state)
        held = sum(x.nbytes for x in state.memory.get("pearl", {}).values() if isinstance(x, torch.Tensor))
        assert walk(state) == ledger(state) + held == session.trace.rounds["cache_bytes"].iloc[-1]
        if held and not pending:
            pending = done
            fork = session.fork()
            list(fork)
            assert fork.state.tokens[-len(expected) :] == expected
    assert pending and session.trace.token_ids == expected


def test_an_oracle_emits_a_whole_draft_a_round(tiny):
    """Pre-verify once: one token; then post-verify only: `length` tokens for one target forward."""
    trace = same_text(tiny, PROMPT, wb.Pearl("tiny-twin", 4), 41, **SEEDED)
    assert decoding_rounds(trace)["emitted"].tolist() == [1] + [4] * 10
    events = [e["figures"] for e in trace.log if e.get("figures")]
    assert [e["verify"] for e in events] == ["pre"] + ["post"] * 10
    assert [e["pending"] for e in events] == [0] + [3] * 10 and not any(e["discarded"] for e in events)


def test_the_clock_counts_the_longer_runner(tiny):
    trace = wb.decode(tiny, PROMPT, wb.Pearl("tiny-draft", 3), max_new_tokens=20, **SEEDED)
    rejected = 0
    for figures in (e["figures"] for e in trace.log if e.get("figures")):
        busy, idle = ([figures[f"{runner}_{kind}_ms"] for runner in ("draft", "target")] for kind in ("busy", "idle"))
        assert min(busy) > 0 and min(idle) == 0 and figures["clock_ms"] == max(busy)
        assert np.allclose(np.add(busy, idle), figures["clock_ms"])
        rejected += figures["discarded"] > 0
    assert rejected
    assert pearl.clock(3.0, 5.0) == {
        "clock_ms": 5.0, "draft_busy_ms": 3.0, "target_busy_ms": 5.0, "draft_idle_ms": 2.0, "target_idle_ms": 0.0,
    }  # fmt: skip


def test_two_threads_give_what_one_gives(tiny, monkeypatch):
    """As on two devices: the same tokens, fates and forwards."""
    one = wb.decode(tiny, PROMPT, wb.Pearl("tiny-draft", 4), max_new_tokens=40, **SEEDED)
    assert not pearl.overlapping(wb.Session(tiny, PROMPT, wb.Pearl("tiny-draft")).state)
    monkeypatch.setattr(pearl, "overlapping", lambda state: True)
    two = wb.decode(tiny, PROMPT, wb.Pearl("tiny-draft", 4), max_new_tokens=40, **SEEDED)
    assert one.token_ids == two.token_ids and one.drafts["fate"].tolist() == two.drafts["fate"].tolist()
    columns = ["phase", "model", "rows", "context"]
    assert one.forwards[columns].values.tolist() == two.forwards[columns].values.tolist()


def test_ends_forced_tokens_and_other_settings_midway(tiny):
    expected = wb.decode(tiny, PROMPT, max_new_tokens=40, **SEEDED).token_ids
    decoder = wb.Pearl("tiny-twin", 4)
    for place in range(2, 10):
        eos = frozenset({expected[place]})
        ended = wb.decode(tiny, PROMPT, decoder, max_new_tokens=40, eos_ids=eos, **SEEDED)
        assert ended.token_ids == expected[: expected.index(expected[place]) + 1] and ended.end["reason"] == "eos"
    force = {3: 0, 4: 1, 11: 2}
    for verifier in (wb.SeededMatch(), wb.Rejection()):
        forced = wb.decode(tiny, PROMPT, wb.Pearl("tiny-twin", 4, verifier), max_new_tokens=20, force=force, **SEEDED)
        assert [forced.token_ids[i] for i in force] == [0, 1, 2]
    session = wb.Session(tiny, PROMPT, decoder, max_new_tokens=40, **SEEDED)
    for _ in range(4):
        session.step()
    assert session.state.memory["pearl"]
    for changes in ({"temperature": 0.0}, {"seed": 9}, {"decoder": wb.Speculative(wb.DraftModel("tiny-draft"))}):
        branch = session.fork(**changes)
        list(branch)
        plain = session.fork(**{**changes, "decoder": wb.Autoregressive()})
        list(plain)
        assert branch.state.tokens == plain.state.tokens


def test_what_does_not_go_together_is_refused():
    with pytest.raises(BadInput, match="independent chains"):
        wb.Pearl(verifier=wb.KSeq())


def distribution_of_three(toy: QuickToy) -> np.ndarray:
    """[4, 4, 4] probabilities of the next three tokens at temperature 1."""
    out = np.ones([4] * 3)
    for tokens in np.ndindex(4, 4, 4):
        text = list(PROMPT_TOY)
        for token in tokens:
            out[tokens] *= toy.dist(text)[token].item()
            text.append(token)
    return out


PROMPT_TOY = [0, 1, 2, 3, 0, 1]


def p_of_runs(target, draft_name: str, runs: int) -> float:
    settings = Settings(sampling=Remembered(temperature=1.0), max_new_tokens=3, level="off")
    decoder = wb.Pearl(draft_name, 3, wb.Rejection())
    start = decoder.start(target, PROMPT_TOY, settings)
    decoder.step(start)
    found = np.zeros([4] * 3)
    for seed in range(runs):
        state = start.fork()
        state.settings = replace(settings, seed=seed)
        while not state.ended:
            decoder.step(state)
        found[tuple(state.new_tokens)] += 1
    expected = distribution_of_three(target) * runs
    rare = expected < 5
    cells, wanted = [*found[~rare], found[rare].sum()], [*expected[~rare], expected[rare].sum()]
    return float(stats.chisquare(cells, wanted).pvalue)


def test_under_rejection_the_text_follows_the_targets_distribution(monkeypatch):
    """Over pre- and post-verify rounds; without the residual step it is noticed."""
    noise_at_once(monkeypatch)
    wb.register_model("pearl-draft", QuickToy(vocab_size=4, seed=11, sharpness=1.0))
    target = QuickToy(vocab_size=4, seed=7, sharpness=1.2)
    assert p_of_runs(target, "pearl-draft", RUNS) > SIGNIFICANCE
    monkeypatch.setattr(reference, "residual", lambda p, q: p)
    assert p_of_runs(target, "pearl-draft", 1500) < SIGNIFICANCE

"""The round of a speculative decoder: its counts, fates and caches, under drafters made to misbehave."""

import math
from dataclasses import dataclass

import pytest

import workbench as wb
from tests.table import INCOMPATIBLE, SHAPES, compositions
from workbench.speculation.tree import POINT

PROMPT = [0, 1, 2, 3, 1, 2]


@dataclass(frozen=True)
class Scripted(wb.Drafter):
    """Drafts what it is told: `plan(state)` gives the chain."""

    plan: object = None

    family, declared_name = "drafter", "scripted"

    def propose(self, state, log, shape, depth, coupled):
        tree = wb.DraftTree([state.pending])
        for token in self.plan(state)[: min(depth, shape.budget)]:
            tree.add(len(tree) - 1, token, POINT, None, self.declared_name)
        return tree


def run(toy, plan, length: int = 3, tokens: int = 20, **options) -> wb.Session:
    decoder = wb.Speculative(drafter=Scripted(plan), shape=wb.FixedLength(length))
    s = wb.Session(toy, PROMPT, decoder, max_new_tokens=tokens, **options)
    s.run()
    return s


@pytest.mark.parametrize("length", [1, 3, 7])
def test_oracle_drafter(toy, length):
    """A drafter that knows the text: ceil(N / (K + 1)) target calls, every full round with its bonus token."""
    expected = wb.decode(toy, PROMPT, max_new_tokens=20).token_ids
    s = run(toy, lambda state: (expected + [0] * 9)[len(state.new_tokens) :], length)
    summary = s.trace.summary()
    assert s.trace.token_ids == expected
    assert summary["target_forwards"] == math.ceil(20 / (length + 1))
    full = s.trace.rounds.query("mode == 'chain'").iloc[:-1]
    assert full["bonus"].all() and (full["accepted"] == length).all()


def test_always_wrong_drafter(toy):
    """Nothing stands: N target calls, one token each, the text unchanged."""
    expected = wb.decode(toy, PROMPT, max_new_tokens=20).token_ids
    s = run(toy, lambda state: [(expected[len(state.new_tokens)] + 1) % 4] * 3)
    assert s.trace.token_ids == expected and s.trace.summary()["target_forwards"] == 20
    assert set(s.trace.drafts["fate"]) == {"rejected", "parent_rejected"}
    assert set(s.trace.tokens["source"]) == {"target"}


def test_empty_drafts(toy):
    """A drafter without an idea costs nothing: plain rounds."""
    s = run(toy, lambda state: [])
    assert s.trace.token_ids == wb.decode(toy, PROMPT, max_new_tokens=20).token_ids
    assert set(s.trace.rounds["mode"]) == {"prefill", "plain"} and s.trace.drafts.empty


@pytest.mark.parametrize(("name", "decoder"), list(compositions("toy-draft")))
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_counts_fates_and_caches(toy, name, decoder, temperature):
    """Every composition: accepted + one = emitted, each node one fate, and the cache holds all but the last token."""
    if name.endswith("greedy") and temperature:
        with pytest.raises(wb.BadInput, match=INCOMPATIBLE["greedy", "sampling"]):
            wb.Session(toy, PROMPT, decoder, temperature=temperature)
        return
    s = wb.Session(toy, PROMPT, decoder, max_new_tokens=30, temperature=temperature, seed=3)
    while s.step() is not None:
        state = s.state
        assert state.lanes["target"].store.length == len(state.tokens) - 1
        assert all(lane.store.length < len(state.tokens) for lane in state.lanes.values())
    rounds = s.trace.rounds.query("mode != 'prefill'")
    body = rounds.iloc[:-1]
    assert (body["accepted"] + 1 == body["emitted"]).all()
    assert rounds["emitted"].sum() == 30 and s.trace.summary()["target_forwards"] == len(rounds)
    for _, nodes in s.trace.drafts.groupby("round"):
        accepted = set(nodes.loc[nodes["fate"] == "accepted", "node"]) | {0}
        for node in nodes.to_dict("records"):
            if node["fate"] in ("accepted", "rejected", "sibling_won"):
                assert node["parent"] in accepted
            elif node["fate"] == "parent_rejected":
                assert node["parent"] not in accepted
    if temperature == 0 or not name.endswith("rejection"):
        plain = wb.decode(toy, PROMPT, max_new_tokens=30, temperature=temperature, seed=3)
        assert s.trace.token_ids == plain.token_ids


@pytest.mark.parametrize("pair", [p for p in INCOMPATIBLE if p[0] == "copyspec"])
def test_incompatible_parts_say_why(pair):
    with pytest.raises(wb.BadInput, match=INCOMPATIBLE[pair]):
        wb.Speculative(drafter=wb.CopySpec(), shape=SHAPES[pair[1]])


def test_end_of_text_inside_an_accepted_path(toy, monkeypatch):
    """Nothing follows the end of the text: no bonus, later nodes `after_end`, caches consistent."""
    expected = wb.decode(toy, PROMPT, max_new_tokens=20).token_ids
    end = expected[6]
    at = expected.index(end)
    monkeypatch.setattr(toy, "eos_ids", frozenset([end]))
    for length in (1, 2, 5, 8):
        s = run(toy, lambda state: (expected + [0] * 9)[len(state.new_tokens) :], length)
        assert s.trace.token_ids == expected[: at + 1] and s.ended == "eos"
        assert s.state.lanes["target"].store.length == len(s.state.tokens) - 1
        s = run(toy, lambda state: expected[len(state.new_tokens) :], length, ignore_eos=True)
        assert s.trace.token_ids == expected and s.ended == "length"


def test_the_limit_does_not_shape_drafts(toy):
    """`max_new_tokens` cuts surplus tokens; what is drafted before the cut is the same without it."""
    expected = wb.decode(toy, PROMPT, max_new_tokens=20).token_ids
    long, short = (run(toy, lambda s: (expected + [0] * 9)[len(s.new_tokens) :], 5, tokens=n) for n in (20, 8))
    assert short.trace.token_ids == expected[:8]
    columns = ["round", "node", "token_id"]
    drafted = long.trace.drafts[columns]
    last = short.trace.drafts["round"].max()
    assert short.trace.drafts[columns].equals(drafted[drafted["round"] <= last])
    assert "after_end" in set(short.trace.drafts["fate"])


def test_stop_texts_and_callables(lm, held_out):
    """The run ends with the token that completes the text, whatever drafted it; the same text either way."""
    texts = wb.decode(lm, held_out[2], max_new_tokens=64).tokens["text"].tolist()
    at = next(i for i, text in enumerate(texts) if i >= 5 and text.strip() and text not in "".join(texts[:i]))
    for decoder in (None, wb.Speculative(), wb.Speculative(drafter=wb.CopySpec())):
        trace = wb.decode(lm, held_out[2], decoder, max_new_tokens=64, stop=["never written", texts[at]])
        assert trace.end["reason"] == "stop" and trace.tokens["text"].tolist() == texts[: at + 1]
        counted = wb.decode(lm, held_out[2], decoder, max_new_tokens=96, stop=lambda ids: len(ids) == 5)
        assert len(counted.token_ids) == 5 and counted.end["reason"] == "stop"


def test_forced_text_is_scored(lm, held_out):
    """`force`: every decoder emits the given ids and reports the same entropies and surprisals."""
    text = wb.decode(lm, held_out[3], max_new_tokens=24, temperature=1.0, seed=8).token_ids
    plain = wb.decode(lm, held_out[3], force=text)
    assert plain.token_ids == text
    for decoder in (wb.Speculative(), wb.Speculative(verifier=wb.Rejection()), wb.Speculative(shape=wb.FixedTree())):
        scored = wb.decode(lm, held_out[3], decoder, force=text, temperature=0.5)
        assert scored.token_ids == text
        for column in ("entropy_raw_nats", "surprisal_nats"):
            assert scored.tokens[column].to_list() == pytest.approx(plain.tokens[column].to_list(), rel=1e-4, abs=1e-4)


def test_stateful_processors_are_refused(toy):
    """One line for a processor that counts its calls, before any work; plain decoding takes it."""

    class Counting:
        def __init__(self):
            self.calls = 0

        def __call__(self, ids, scores):
            self.calls += 1
            return scores

    with pytest.raises(wb.BadInput, match="processor Counting is stateful") as caught:
        wb.decode(toy, PROMPT, wb.Speculative(drafter=wb.CopySpec()), processors=[Counting()])
    assert "\n" not in str(caught.value)
    counting = Counting()
    wb.decode(toy, PROMPT, processors=[counting], max_new_tokens=7)
    assert counting.calls == 7


def test_pure_processors_see_each_nodes_own_path(lm, held_out):
    """Repetition penalty and no-repeat n-grams of transformers: speculative output equals plain output."""
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    processors = [RepetitionPenaltyLogitsProcessor(1.2), NoRepeatNGramLogitsProcessor(3)]
    for temperature in (0.0, 0.8):
        options = {"max_new_tokens": 48, "temperature": temperature, "processors": processors, "seed": 1}
        plain = wb.decode(lm, held_out[8], **options)
        assert plain.token_ids != wb.decode(lm, held_out[8], **{**options, "processors": []}).token_ids
        for decoder in (wb.Speculative(), wb.Speculative(shape=wb.FixedTree()), wb.Speculative(drafter=wb.CopySpec())):
            assert wb.decode(lm, held_out[8], decoder, **options).token_ids == plain.token_ids

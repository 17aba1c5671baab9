"""The speculative round itself: counters, fates, ends, limits, stops and forced tokens, with scripted drafters."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

import workbench as wb
from tests.table import compositions
from workbench.engine.settings import refuse_stateful
from workbench.errors import BadInput

PROMPT = [3, 1, 2, 0, 3, 1]
DEPTH = 4


@dataclass(frozen=True)
class Scripted(wb.Drafter):
    """Drafts what a function of the tokens says: an oracle, a liar, or nobody."""

    tell: Callable[[list[int]], list[int]] = list
    declared_name = "scripted"

    def propose(self, state, r, shape, depth, seeded):
        return self.chain(state, shape, self.tell(state.tokens), depth)


@pytest.fixture(scope="module")
def model():
    """Eight tokens, a long context."""
    return wb.ToyModel(vocab_size=8, seed=5, sharpness=2.0, context=256)


def scripted(tell, verifier=None) -> wb.Speculative:
    return wb.Speculative(drafter=Scripted(tell), shape=wb.FixedLength(DEPTH), verifier=verifier or wb.SeededMatch())


def decoding_rounds(trace: wb.Trace):
    return trace.rounds[trace.rounds["mode"] != "prefill"]


SAMPLING = [dict(temperature=0.0), dict(temperature=0.9, top_p=0.95, seed=3)]


@pytest.mark.parametrize("sampling", SAMPLING, ids=["greedy", "seeded"])
@pytest.mark.parametrize("length", [1, 4, 5, 6, 37])
def test_an_oracle_needs_one_call_for_every_k_plus_one_tokens(model, sampling, length):
    text = wb.decode(model, PROMPT, max_new_tokens=length + DEPTH, **sampling).token_ids
    oracle = scripted(lambda tokens: text[len(tokens) - len(PROMPT) :])
    trace = wb.decode(model, PROMPT, oracle, max_new_tokens=length, **sampling)
    assert trace.token_ids == text[:length]
    assert len(decoding_rounds(trace)) == math.ceil(length / (DEPTH + 1))
    assert trace.summary()["target_forwards"] == math.ceil(length / (DEPTH + 1))


@pytest.mark.parametrize("sampling", SAMPLING, ids=["greedy", "seeded"])
def test_a_liar_and_a_silent_drafter_need_one_call_for_every_token(model, sampling):
    text = wb.decode(model, PROMPT, max_new_tokens=40, **sampling).token_ids
    liar = scripted(lambda tokens: [(t + 1) % 8 for t in text[len(tokens) - len(PROMPT) :]])
    trace = wb.decode(model, PROMPT, liar, max_new_tokens=30, **sampling)
    assert trace.token_ids == text[:30]
    assert len(decoding_rounds(trace)) == 30 and trace.rounds["accepted"].sum() == 0
    assert set(trace.drafts["fate"]) == {"rejected", "parent_rejected"}
    silent = wb.decode(model, PROMPT, scripted(lambda tokens: []), max_new_tokens=30, **sampling)
    assert silent.token_ids == text[:30]
    assert list(decoding_rounds(silent)["mode"]) == ["plain"] * 30 and len(silent.drafts) == 0


def test_random_drafts_change_nothing(model):
    text = wb.decode(model, PROMPT, max_new_tokens=60, temperature=1.0, seed=1).token_ids

    def babble(tokens):
        generator = torch.Generator().manual_seed(sum(tokens) + len(tokens))
        return torch.randint(8, (DEPTH,), generator=generator).tolist()

    trace = wb.decode(model, PROMPT, scripted(babble), max_new_tokens=60, temperature=1.0, seed=1)
    assert trace.token_ids == text
    assert 0 < trace.rounds["accepted"].sum() < trace.rounds["drafted"].sum()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", list(dict(compositions("toy-draft"))))
def test_counters_of_every_composition_add_up(name, temperature, toy):
    if temperature and name.endswith("greedy"):
        name = name.removesuffix("greedy") + "seeded"
    decoder = dict(compositions("toy-draft"))[name]
    trace = wb.decode(toy, [0, 1, 2, 3, 0, 1], decoder, max_new_tokens=40, temperature=temperature, seed=2)
    rounds, drafts, tokens = decoding_rounds(trace), trace.drafts, trace.tokens
    own = tokens["source"].isin(["target", "bonus", "residual"])
    assert set(tokens["source"][~own]) <= {decoder.drafter.declared_name}
    # tokens = accepted drafts + one of the target's own for every round (but a last one that was cut)
    assert rounds["accepted"].sum() == (~own).sum()
    assert rounds["emitted"].sum() == len(tokens) == 40
    assert (rounds["emitted"] - rounds["accepted"]).iloc[:-1].eq(1).all()
    assert rounds["bonus"].sum() == (tokens["source"] == "bonus").sum()
    forwards = trace.forwards
    assert (forwards["phase"] == "target").sum() == len(rounds)
    assert tokens["target_forwards"].sum() == len(rounds)
    # one row and one fate for every node
    assert len(drafts) == rounds["drafted"].sum() and not drafts.duplicated(["round", "node"]).any()
    assert drafts["fate"].isin(["accepted", "rejected", "sibling_won", "parent_rejected", "after_end"]).all()
    assert (drafts["fate"] == "accepted").sum() == rounds["accepted"].sum()
    assert (drafts["reason"].notna() == (drafts["fate"] == "rejected")).all()
    rows = forwards[forwards["phase"] == "target"]["rows"].tolist()
    assert rows == (rounds["drafted"] + 1).tolist()
    for number, group in drafts.groupby("round"):
        fate = dict(zip(group["node"], group["fate"], strict=True)) | {0: "accepted"}
        path = group[group["fate"].isin(["accepted", "after_end"])]
        for node, parent, depth in zip(group["node"], group["parent"], group["depth"], strict=True):
            assert parent < node and depth <= 4
            if fate[parent] not in ("accepted", "after_end"):
                assert fate[node] == "parent_rejected", number
        emitted = tokens[(tokens["round"] == number) & (tokens["source"] == decoder.drafter.declared_name)]
        assert path["token_id"].tolist()[: len(emitted)] == emitted["token_id"].tolist()


def fresh_logits(runner, tokens: list[int]) -> torch.Tensor:
    return runner.model.forward(tokens, range(len(tokens)), runner.model.new_store(), logits_at="last").logits


def check_caches(state) -> None:
    """Target: all tokens but the pending one; any runner: going on from its cache equals a fresh pass."""
    assert state.runners["target"].store.length == len(state.tokens) - 1
    for runner in state.fork().runners.values():
        start = runner.store.length
        assert start < len(state.tokens) and runner.store.staged == 0
        out = runner.model.forward(
            state.tokens[start:], range(start, len(state.tokens)), runner.store, logits_at="last"
        )
        assert torch.allclose(out.logits, fresh_logits(runner, state.tokens), atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("shape", [wb.FixedLength(4), wb.FixedTree((2, 2, 1)), wb.ConfidenceStop(6, 0.5)], ids=str)
def test_caches_agree_with_a_fresh_pass_after_every_round(lm, held_out, shape, temperature):
    session = wb.Session(
        lm, held_out[7][-400:], wb.Speculative(shape=shape), temperature=temperature, max_new_tokens=24
    )
    for done, _ in enumerate(session):
        if done % 3 == 0:
            check_caches(session.state)
    check_caches(session.state)


@pytest.mark.parametrize("place", range(1, 9))
def test_nothing_follows_an_end_of_text_that_was_drafted(model, place):
    """The end may lie anywhere in the accepted path, or be the target's own token."""
    text = wb.decode(model, PROMPT, max_new_tokens=20, temperature=1.0, seed=8).token_ids
    eos = text[place]
    place = text.index(eos)
    oracle = scripted(lambda tokens: text[len(tokens) - len(PROMPT) :])
    settings = dict(temperature=1.0, seed=8, max_new_tokens=16)
    session = wb.Session(model, PROMPT, oracle, eos_ids=frozenset({eos}), **settings)
    list(session)
    assert session.trace.token_ids == text[: place + 1]
    assert session.ended == session.trace.end["reason"] == "eos"
    check_caches(session.state)
    last = session.trace.drafts[session.trace.drafts["round"] == session.rounds - 1]
    after = last[last["depth"] > place % (DEPTH + 1) + 1]["fate"]
    assert set(after) <= {"after_end"}
    assert wb.decode(model, PROMPT, oracle, ignore_eos=True, **settings).token_ids == text[:16]
    more = session.fork(at=session.length, eos_ids=frozenset())
    list(more)
    assert more.trace.token_ids == text[:16]


def test_end_of_text_of_the_model_is_heeded_and_may_be_ignored():
    model = wb.ToyModel(vocab_size=4, seed=2)
    model.eos_ids = frozenset({1})
    ended = wb.decode(model, [0, 2], temperature=1.0, max_new_tokens=50)
    assert ended.token_ids.count(1) == 1 and ended.token_ids[-1] == 1 and ended.end["reason"] == "eos"
    whole = wb.decode(model, [0, 2], temperature=1.0, max_new_tokens=50, ignore_eos=True)
    assert whole.token_ids[: len(ended.token_ids)] == ended.token_ids and len(whole.token_ids) == 50


@pytest.mark.parametrize("name", ["draft_model-fixed-rejection", "draft_model-tree-seeded", "copyspec-fixed-rejection"])
def test_max_new_tokens_never_shapes_a_draft(name, toy):
    decoder = dict(compositions("toy-draft"))[name]
    settings = dict(temperature=1.0, seed=6)
    columns = ["round", "node", "parent", "token_id"]
    whole = wb.decode(toy, [0, 1, 2, 0, 1], decoder, max_new_tokens=30, **settings)
    for length in range(1, 14):
        cut = wb.decode(toy, [0, 1, 2, 0, 1], decoder, max_new_tokens=length, **settings)
        assert cut.token_ids == whole.token_ids[:length] and cut.end["reason"] == "length"
        last = cut.rounds["round"].max()
        expected = whole.drafts[whole.drafts["round"] <= last]
        assert cut.drafts[columns].values.tolist() == expected[columns].values.tolist()


@pytest.mark.parametrize("name", ["draft_model-fixed-seeded", "draft_model-tree-seeded", "copyspec-fixed-seeded"])
def test_the_context_is_filled_and_never_overrun(name, toy):
    """Drafts are cut to what fits; the last token still comes."""
    decoder = dict(compositions("toy-draft"))[name]
    expected = wb.decode(toy, [0, 1, 2], temperature=1.0, max_new_tokens=1000)
    found = wb.decode(toy, [0, 1, 2], decoder, temperature=1.0, max_new_tokens=1000)
    assert found.token_ids == expected.token_ids and len(found.token_ids) == toy.context - 3
    assert found.end["reason"] == "length"


def test_a_draft_model_with_a_shorter_context_falls_silent(toy):
    wb.register_model("toy-short", wb.ToyModel(vocab_size=4, seed=11, context=20))
    decoder = wb.Speculative(drafter=wb.DraftModel("toy-short"))
    found = wb.decode(toy, [0, 1, 2], decoder, temperature=1.0, max_new_tokens=50)
    assert found.token_ids == wb.decode(toy, [0, 1, 2], temperature=1.0, max_new_tokens=50).token_ids
    assert found.drafts.merge(found.rounds[["round", "context"]])["context"].max() < 30
    assert wb.decode(toy, [0, 1] * 15, decoder, max_new_tokens=5).rounds["drafted"].sum() == 0


# -- stops and forced tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [None, "draft_model-fixed-seeded", "draft_model-tree-seeded"])
def test_stop_texts_end_the_run_where_the_joined_text_holds_them(decoder, toy):
    decoder = decoder and dict(compositions("toy-draft"))[decoder]
    settings = dict(temperature=1.0, seed=4, max_new_tokens=40)
    text = wb.decode(toy, [0, 1], **settings).text
    stop = text[9:12]
    session = wb.Session(toy, [0, 1], decoder, stop=["zzz", stop], **settings)
    list(session)
    assert session.trace.text == text[: text.index(stop) + 3] and session.ended == "stop"
    check_caches(session.state)
    counted = wb.decode(toy, [0, 1], decoder, stop=lambda ids: len(ids) == 7, **settings)
    assert counted.text == text[:7] and counted.end["reason"] == "stop"
    # a branch from there goes on until the text comes again
    branch = session.fork(at=session.length)
    list(branch)
    again = text.find(stop, text.index(stop) + 1)
    assert branch.trace.text == (text if again < 0 else text[: again + 3])


def test_a_stop_text_of_the_prompt_alone_does_not_count(toy):
    text = wb.decode(toy, "abab", max_new_tokens=10).text
    absent = next(pair for pair in ("ab", "ba", "dd", "cc", "aa", "bb") if pair not in text)
    assert wb.decode(toy, absent * 2, stop=absent * 2, max_new_tokens=1).end["reason"] == "length"


@pytest.mark.parametrize("name", ["draft_model-fixed-rejection", "draft_model-tree-seeded", "copyspec-fixed-greedy"])
def test_forced_ids_are_scored_as_plain_decoding_scores_them(name, toy):
    decoder = dict(compositions("toy-draft"))[name]
    force = [2, 2, 1, 3, 0, 0, 1, 2, 3, 3, 1, 0]
    plain = wb.decode(toy, [0, 1], force=force)
    found = wb.decode(toy, [0, 1], decoder, force=force)
    assert found.token_ids == plain.token_ids == force
    for column in ("surprisal_nats", "entropy_raw_nats", "rank", "p_raw"):
        assert found.tokens[column].tolist() == pytest.approx(plain.tokens[column].tolist(), rel=1e-4)
    dist = [-toy.dist([0, 1, *force[:i]])[token].log().item() for i, token in enumerate(force)]
    assert plain.tokens["surprisal_nats"].tolist() == pytest.approx(dist, rel=1e-4)  # a trace keeps six digits
    assert (plain.events["type"] == "decision").sum() == len(force)


def test_forcing_some_indices_leaves_the_others_to_the_decoder(toy):
    free = wb.decode(toy, [0, 1], max_new_tokens=10, temperature=1.0).token_ids
    other = (free[4] + 1) % 4
    for decoder in (None, wb.Speculative(drafter=wb.DraftModel("toy-draft"))):
        found = wb.decode(toy, [0, 1], decoder, max_new_tokens=10, temperature=1.0, force={4: other}).token_ids
        assert found[:4] == free[:4] and found[4] == other


# -- processors ------------------------------------------------------------------------------------------------------


class Counting:
    """Stateful: every call moves it on."""

    def __init__(self):
        self.calls = 0

    def __call__(self, ids, scores):
        self.calls += 1
        return scores - self.calls * (torch.arange(scores.shape[-1]) == 0)


def closure():
    calls = []

    def count(ids, scores):
        calls.append(1)
        return scores + len(calls)

    return count


def halve(ids, scores):
    return scores / 2


@pytest.mark.parametrize("make", [Counting, closure], ids=["attribute", "closure"])
def test_stateful_processors_are_refused_under_speculation_alone(make, toy):
    decoder = wb.Speculative(drafter=wb.DraftModel("toy-draft"))
    with pytest.raises(BadInput, match="stateful") as caught:
        wb.decode(toy, [0, 1], decoder, processors=[make()])
    assert "\n" not in str(caught.value)
    assert len(wb.decode(toy, [0, 1], processors=[make()], max_new_tokens=3).token_ids) == 3
    session = wb.Session(toy, [0, 1], max_new_tokens=8)
    session.step()
    with pytest.raises(BadInput, match="stateful"):
        session.fork(decoder=decoder, processors=[make()])
    speculating = wb.Session(toy, [0, 1], decoder, max_new_tokens=8)
    speculating.step()
    with pytest.raises(BadInput, match="stateful"):
        speculating.fork(at=0, processors=[make()])


def test_trying_a_processor_leaves_it_as_it_was():
    processor = Counting()
    with pytest.raises(BadInput):
        refuse_stateful([processor], 8, torch.device("cpu"))
    assert processor.calls == 0
    refuse_stateful([halve], 8, torch.device("cpu"))


@pytest.mark.parametrize("name", ["draft_model-fixed-greedy", "draft_model-tree-seeded", "copyspec-fixed-seeded"])
def test_pure_processors_see_each_nodes_own_path(name, toy):
    """Repetition penalty and no-repeat-n-gram depend on the prefix: speculative text equals plain text with them."""
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    processors = [RepetitionPenaltyLogitsProcessor(1.4), NoRepeatNGramLogitsProcessor(4), halve]
    decoder = dict(compositions("toy-draft"))[name]
    for temperature in (0.0,) if name.endswith("greedy") else (0.0, 1.0):
        settings = dict(processors=processors, temperature=temperature, max_new_tokens=40)
        plain = wb.decode(toy, [0, 1, 2, 3], **settings)
        assert wb.decode(toy, [0, 1, 2, 3], decoder, **settings).token_ids == plain.token_ids
        assert plain.token_ids != wb.decode(toy, [0, 1, 2, 3], temperature=temperature, max_new_tokens=40).token_ids

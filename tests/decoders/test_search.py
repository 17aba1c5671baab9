"""Several ways in which a text may go on, read side by side: each is what a plain run forced to its text would be."""

import itertools
import os

import pytest
import torch
import transformers as tf

import workbench as wb
from tests.cache.conftest import PROMPT, SIZES, TERMS, feed, strong
from tests.cache.conftest import small as small  # fixtures
from tests.cache.conftest import wide as wide
from tests.engine.test_bytes import walk
from tests.rounding import close
from tests.table import commit, covered, stacks
from workbench.models.adapter import wrap
from workbench.rounds.costs import ledgers
from workbench.trace.schema import CACHE_KINDS
from workbench_kernels.noise import child_of, gumbel

CAMPAIGN = bool(os.environ.get("WORKBENCH_CAMPAIGN"))
STACKS = {None: None} | {name: stack for i, (name, stack) in enumerate(covered().items())  # alone, and a third of pairs
                         if "+" not in name or CAMPAIGN or i % 3 == commit() % 3}  # fmt: skip
GREEDY = {"max_new_tokens": 24}
LONG = [(5 * i * i + 3 * i) % 11 for i in range(150)]  # long enough for a trunk


# -- beams ------------------------------------------------------------------------------------------------------------


def tiny(kind: str):
    shape = {"vocab_size": 37, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if kind == "gpt2":
        model = tf.GPT2LMHeadModel(tf.GPT2Config(**shape, n_embd=32, n_layer=2, n_head=4, n_positions=128))
    else:
        sizes = {**SIZES, **shape, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
        sizes |= {"initializer_range": 0.3, "tie_word_embeddings": False}
        torch.manual_seed(1)
        return wrap(tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**sizes, query_pre_attn_scalar=16)).eval().double())
    return wrap(strong(model).double())


def theirs(lm, prompt: list[int], beams: int, **options) -> list[int]:
    ids = torch.tensor([prompt])
    eos = options.pop("eos", None)
    out = lm.model.generate(ids, num_beams=beams, do_sample=False, attention_mask=torch.ones_like(ids),
                            eos_token_id=eos, pad_token_id=0, **options)  # fmt: skip
    text = out[0, len(prompt) :].tolist()
    end = next((i for i, token in enumerate(text) if token in (eos or ())), len(text))
    return text[: end + 1]


STOPPING = {"auto": False, "never": "never", "always": True}


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
@pytest.mark.parametrize("beams", [2, 4, 8])
def test_beams_are_those_of_transformers(kind, beams):
    """Lengths, ends of text, penalties and rules for stopping, in double precision; some texts end, others do not."""
    lm, lengths = tiny(kind), set()
    cases = itertools.product(STOPPING, (1.0, 0.0, 2.0, -0.5), (0, 1, 3))
    for number, (stopping, penalty, ends) in enumerate(cases):
        prompt = [(number * 7 + 5 * i) % 37 for i in range(6)]
        free = wb.decode(lm, prompt, max_new_tokens=12, level="off").token_ids
        eos = [free[(3 + 2 * number + 5 * i) % 12] for i in range(ends)]  # such as come up
        decoder = wb.Beam(beams=beams, length_penalty=penalty, early_stopping=stopping)
        ours = wb.decode(lm, prompt, decoder, max_new_tokens=12, eos_ids=eos, level="off").token_ids
        known = {"early_stopping": STOPPING[stopping], "length_penalty": penalty, "max_new_tokens": 12}
        assert ours == theirs(lm, prompt, beams, eos=eos or None, **known), (stopping, penalty, eos)
        lengths.add(len(ours))
    assert 12 in lengths and len(lengths) > 2


def test_beams_of_the_embedded_model_are_those_of_transformers(lm, held_out):
    for beams, prompt in zip((4, 8), held_out[:2], strict=True):
        ids = lm.tokenizer.encode(prompt)
        ours = wb.decode(lm, ids, wb.Beam(beams=beams), max_new_tokens=16, ignore_eos=True, level="off").token_ids
        assert ours == theirs(lm, ids, beams, max_new_tokens=16)


def test_processors_see_what_those_of_transformers_see():
    lm, prompts = tiny("gemma"), [[(3 * i + n) % 37 for i in range(6)] for n in range(4)]
    given = {"max_new_tokens": 10, "processors": [tf.RepetitionPenaltyLogitsProcessor(1.8)]}
    ours = [wb.decode(lm, prompt, wb.Beam(), **given).token_ids for prompt in prompts]
    assert ours == [theirs(lm, prompt, 4, max_new_tokens=10, repetition_penalty=1.8) for prompt in prompts]
    assert ours != [theirs(lm, prompt, 4, max_new_tokens=10) for prompt in prompts]


def test_one_beam_is_greedy_and_forced_tokens_are_in_every_beam(small):
    plain = wb.decode(small, PROMPT, eos_ids=[4], **GREEDY).token_ids
    assert wb.decode(small, PROMPT, wb.Beam(beams=1), eos_ids=[4], **GREEDY).token_ids == plain
    free = wb.decode(small, PROMPT, wb.Beam(), **GREEDY).token_ids
    other = (free[3] + 1) % 11
    forced = wb.decode(small, PROMPT, wb.Beam(), force={3: other}, **GREEDY)
    assert forced.token_ids[3] == other and len(forced.token_ids) == 24
    assert [d["action"] for d in forced.log if d["type"] == "decision"] == ["force"]


def test_what_all_beams_begin_with_is_text_at_once(small):
    session = wb.Session(small, PROMPT, wb.Beam(beams=2), max_new_tokens=60)
    session.run()
    emitted = session.trace.rounds["emitted"].tolist()
    assert sum(count > 0 for count in emitted) > 2 and sum(emitted) == 60
    tokens = session.trace.tokens
    assert tokens["surprisal_nats"].notna().all() and tokens["hypothesis"].notna().all()
    plain = wb.decode(small, PROMPT, force=session.trace.token_ids, max_new_tokens=60).tokens
    assert torch.allclose(*(torch.tensor(t["surprisal_nats"].tolist()) for t in (tokens, plain)), atol=1e-3)


def test_what_beams_cannot_do_is_refused(small):
    for decoder in (wb.Beam(), wb.AdaDec()):
        with pytest.raises(wb.BadInput, match="expected temperature=0"):
            wb.Session(small, PROMPT, decoder, temperature=0.7)


# -- best of n, samples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["sum", "mean"])
def test_best_of_is_the_likeliest_of_the_lone_samples(small, by):
    given = {"temperature": 1.1, "seed": 4, "eos_ids": [4], "max_new_tokens": 12}
    lone = [wb.decode(small, PROMPT, sample=2 + i, **given) for i in range(5)]
    sums = [-trace.tokens["surprisal_nats"].sum() / (1 if by == "sum" else len(trace.token_ids)) for trace in lone]
    best = max(range(5), key=lambda i: sums[i])
    trace = wb.decode(small, PROMPT, wb.BestOf(n=5, by=by), sample=2, **given)
    assert trace.token_ids == lone[best].token_ids and len({tuple(t.token_ids) for t in lone}) > 2
    last = trace.hypotheses[trace.hypotheses["round"] == trace.rounds["round"].iloc[-1]]
    assert last["fate"].tolist() == ["won", *["pruned"] * 4]
    assert last["score"].tolist() == pytest.approx(sorted(sums, reverse=True), abs=1e-3)


@pytest.mark.parametrize("decoder", [None, wb.Speculative(drafter=wb.CopySpec())], ids=str)
@pytest.mark.parametrize("stack", [None, "h2o+kivi4", "kivi4"])
def test_samples_of_one_prompt_are_the_lone_runs(small, decoder, stack):
    given = {"temperature": 1.1, "seed": 4, "max_new_tokens": 20, "cache": dict(stacks()).get(stack)}
    many = wb.decode(small, LONG, decoder, n=4, sample=3, **given)
    lone = [wb.decode(small, LONG, decoder, sample=3 + i, **given) for i in range(4)]
    assert [t.token_ids for t in many] == [t.token_ids for t in lone] and len({tuple(t.token_ids) for t in many}) > 2
    first = [trace.forwards.iloc[0] for trace in many]
    assert all(row["sequences"] == 4 and row["phase"] == "prefill" for row in first)
    assert [row["wall_ms"] for row in first] == [first[0]["wall_ms"]] * 4


def test_samples_share_the_prompt(small):
    """Read once, and lying in one place; no committed key is copied."""
    sessions = [wb.Session(small, LONG, temperature=1.0, sample=i, max_new_tokens=6) for i in range(4)]
    sessions[0].read_prompt(sessions[1:])
    for session in sessions:
        session.run()
    trunks = [session.state.runners["target"].store.trunk for session in sessions]
    assert len({id(trunk[0]) for trunk in trunks}) == 1 and trunks[0][0][0].k.shape[1] == len(LONG) - 1
    counted: dict[int, int] = {}
    sizes = [sum(session.state.runners["target"].store.ledger(counted)["payload"]) for session in sessions]
    token = small.kv_bytes()
    assert sizes == [token * (len(LONG) + 5), *[token * 6] * 3]


def test_what_samples_cannot_have(small, tmp_path):
    with pytest.raises(wb.BadInput, match="n: expected a whole number in"):
        wb.decode(small, PROMPT, n=0)
    with pytest.raises(wb.BadInput, match="expected one prompt, got a list"):
        wb.decode(small, [PROMPT, PROMPT], n=2)
    with pytest.raises(wb.BadInput, match="several prompts or samples"):
        wb.decode(small, PROMPT, n=2, out=tmp_path / "run.wb")


# -- looking ahead -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neutral", [{"threshold": 99.0}, {"candidates": 1}, {"lookahead": 0}], ids=str)
def test_adadec_in_its_neutral_settings_is_greedy(small, neutral):
    trace = wb.decode(small, PROMPT, wb.AdaDec(**{"threshold": 0.0, **neutral}), **GREEDY)
    assert trace.token_ids == wb.decode(small, PROMPT, **GREEDY).token_ids


@pytest.mark.parametrize("name", STACKS)
def test_adadec_takes_what_lookahead_says(small, name):
    """By hand at every pause: forced runs of each candidate, greedy from there on, under the same cache."""
    given = {"cache": STACKS[name], "max_new_tokens": 14}
    trace = wb.decode(small, PROMPT, wb.AdaDec(threshold=1.0, candidates=3, lookahead=4), **given)
    tokens, decisions = trace.tokens, [event for event in trace.log if event["type"] == "decision"]
    pauses = (tokens["entropy_raw_nats"] >= 1.0).tolist()
    assert sum(pauses) == len(decisions) > 0
    asked = [at for at, pause in enumerate(pauses) if pause]
    for at, decision in list(zip(asked, decisions, strict=True))[:3]:
        means = []
        for token, score in decision["alternatives"]:
            forced = [*trace.token_ids[:at], token]
            lone = wb.decode(small, PROMPT, force=forced, **given | {"max_new_tokens": min(at + 5, 14)}).tokens
            means.append(-lone["surprisal_nats"].iloc[at:].mean())
            assert score == pytest.approx(means[-1], abs=2e-3)
        taken = trace.token_ids[at]
        assert taken == decision["alternatives"][max(range(len(means)), key=means.__getitem__)][0]
        assert decision["action"] == ("kept" if tokens["rank"].iloc[at] == 1 else "reranked")
    assert set(trace.forwards["phase"]) == {"prefill", "target", "lookahead"}


# -- hypotheses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STACKS)
def test_every_hypothesis_is_a_plain_run_forced_to_its_text(wide, name):
    """Its cache gives the logits of one fed with its text, forks go on as the state does, and the bytes are those of
    the storages. In double precision, where no rounding changes a code."""
    session = wb.Session(wide, PROMPT, wb.Beam(beams=2 + len(str(name)) % 7), cache=STACKS[name], max_new_tokens=40)
    for done in range(20):
        session.step()
        state = session.state
        if state.ended or done % 5 != 4:
            continue
        found = sum(sum(column.get(kind, [0])) for column in ledgers(state).values() for kind in CACHE_KINDS)
        assert walk(state) == found == walk(state.fork()) and len(state.hypotheses) > 1
        fork, other = state.fork(), state.fork()
        steps = session.decoder.step(fork), session.decoder.step(other)
        assert steps[0].hypotheses == steps[1].hypotheses and fork.tokens == other.tokens
        for one in list(state.fork().hypotheses.values())[:3]:
            tokens, store = one.state.tokens, one.state.runners["target"].store
            stack = STACKS[name]
            lone = stack.new_store(wide, len(PROMPT)) if stack else wide.new_store()
            with torch.inference_mode():
                feed(wide, lone, tokens[:-1])
                assert store.length == lone.length
                pair = [wide.forward(tokens[-1:], [len(tokens) - 1], s).logits for s in (store, lone)]
            assert close(*pair, TERMS)


def test_a_search_is_the_same_whatever_is_gone_back_to(small):
    straight = wb.decode(small, PROMPT, wb.Beam(beams=3), **GREEDY)
    session = wb.Session(small, PROMPT, wb.Beam(beams=3), **GREEDY)
    session.run()
    assert session.trace.token_ids == straight.token_ids
    session._snapshots = {}
    for number in (4, 11, 20):
        state = session._state_before(number)
        expected = session.trace.hypotheses.query(f"round == {number}")
        found = session.decoder.step(state).hypotheses
        assert found["id"] == expected["id"].tolist()
        assert found["logp"] == pytest.approx(expected["logp"].tolist(), abs=1e-4)


def test_forwards_of_hypotheses_are_one_row_and_read_the_trunk_once(small):
    trace = wb.decode(small, LONG, wb.BestOf(n=4), temperature=1.0, max_new_tokens=5)
    rows = trace.forwards.iloc[2:]
    assert rows["sequences"].tolist() == rows["rows"].tolist() == [4] * 4
    token = small.kv_bytes()
    own = range(2, 6)  # what each reads of its own: the last token of the prompt, and its text
    assert rows["kv_read_bytes"].tolist() == [token * (len(LONG) - 1 + 4 * n) for n in own]
    alone = wb.decode(small, LONG, max_new_tokens=5).forwards.iloc[2:]
    assert rows["flops"].tolist() == [4 * flops for flops in alone["flops"]]
    assert rows["context"].tolist() == alone["context"].tolist()


def test_several_searches_are_bundled(small):
    """Hypotheses of two prompts share their forwards; a search within a bundle is the lone search."""
    prompts = [PROMPT[:20], PROMPT[10:44]]
    many = wb.decode(small, prompts, wb.Beam(beams=3), **GREEDY)
    assert [t.token_ids for t in many] == [wb.decode(small, p, wb.Beam(beams=3), **GREEDY).token_ids for p in prompts]
    assert all(trace.forwards["sequences"].max() == 6 and trace.forwards["rows"].max() <= 33 for trace in many)


# -- noise, time -------------------------------------------------------------------------------------------------------


def test_ids_follow_from_the_lineage():
    ids = {child_of(parent, rank) for parent in (0, 1, 2**53 - 1) for rank in range(500)}
    assert len(ids) == 1500 and all(0 < id < 2**53 for id in ids) and child_of(0, 0) == child_of(0, 0)


def test_draws_of_siblings_are_independent():
    """Uniform over tokens of equal probability, pair by pair; hypothesis 0 is no field at all."""
    ids = torch.arange(4)
    children = [child_of(0, rank) for rank in range(3)] + [0]
    draws = torch.stack([torch.stack([gumbel(9, "target", at, ids, hypothesis=id).argmax() for id in children])
                         for at in range(4000)])  # fmt: skip
    for a, b in itertools.combinations(range(4), 2):
        counts = torch.bincount(draws[:, a] * 4 + draws[:, b], minlength=16).double()
        assert ((counts - 250) ** 2 / 250).sum() < 50  # 15 degrees of freedom: p = 1e-5
    plain = gumbel(9, "target", 7, ids)
    assert torch.equal(gumbel(9, "target", 7, ids, hypothesis=0), plain)
    assert not torch.equal(gumbel(9, "target", 7, ids, branch=5), gumbel(9, "target", 7, ids, hypothesis=5))


@pytest.mark.parametrize("decoder", [wb.Autoregressive(), wb.Beam(), wb.Speculative(drafter=wb.CopySpec())], ids=str)
def test_time_ends_a_run_and_is_read_back(small, decoder, monkeypatch):
    """The clock is an input of the round: done again, a round ends where it ended."""
    from workbench.rounds import Round

    times = itertools.count(0, 0.02)
    monkeypatch.setattr(Round, "now", lambda self: next(times))
    session = wb.Session(small, PROMPT, decoder, max_time=1.0, max_new_tokens=400)
    session.run()
    assert session.ended == session.trace.end["reason"] == "time" and 0 < session.length < 400
    spent = [event["inputs"]["spent_us"] for event in session.trace.log if event["type"] == "round"]
    assert spent == sorted(spent) and spent[-1] >= 1_000_000 > spent[-2]
    monkeypatch.setattr(Round, "now", lambda self: next(times) * 100)  # a slower machine
    session._snapshots = {}
    state = session._state_before(session.rounds - 1)
    assert state.ended is None and state.spent_us == spent[-2]
    session.decoder.step(state, session.trace.index.event(session.rounds - 1)["inputs"])
    assert state.ended == "time" and state.new_tokens == session.trace.token_ids
    with pytest.raises(wb.BadInput, match="max_time"):
        wb.Session(small, PROMPT, max_time=0)


# -- prompts of their own ----------------------------------------------------------------------------------------------


def test_a_runner_may_have_a_prompt_of_its_own(small):
    """Two runners of one model, each behind its prompt: the distributions of lone runs forced to the text."""
    from dataclasses import dataclass

    seen: list[torch.Tensor] = []
    other = PROMPT[::-1] + PROMPT[3:9]

    @dataclass(frozen=True)
    class Both(wb.Decoder):
        declared_name = "both"

        def guarantee(self, sampling):
            return "own"

        def runners(self, lm):
            return {"target": lm, "other": lm}

        def caches(self, settings):
            return {"target": settings.cache, "other": settings.cache}

        def prompts(self, lm, prompt_ids):
            return {"other": other}

        def first(self, state):
            return ("target", "other")

        def decode_round(self, state, r):
            logits = [r.advance(role).logits for role in ("target", "other")]
            seen.append(logits[1])
            dist = r.dist(logits[0] - 0.5 * logits[1])
            r.append(dist, [0], [r.choose(dist, 0, len(state.tokens))], ["target"])

    for cache in (None, wb.KIVI(), wb.H2O(budget=48)):
        seen.clear()
        trace = wb.decode(small, PROMPT, Both(), cache=cache, max_new_tokens=12)
        lone = wb.decode(small, other, cache=cache, force=trace.token_ids, level="full").tokens
        surprisal = [-row.log_softmax(-1)[0, token] for row, token in zip(seen, trace.token_ids, strict=True)]
        assert [float(x) for x in surprisal] == pytest.approx(lone["surprisal_nats"].tolist(), abs=1e-3)
        rows = trace.cache[trace.cache["round"] == 5].groupby("model")["logical_length"].max()
        assert rows["other"] - rows["target"] == len(other) - len(PROMPT)


# -- branches in the middle of a search --------------------------------------------------------------------------------


@pytest.mark.parametrize("decoder", [wb.Beam(beams=3), wb.BestOf(n=3), wb.AdaDec(threshold=1.0)], ids=str)
@pytest.mark.parametrize("stack", [None, "h2o+kivi4"])
def test_branches_in_the_middle_of_a_search(small, decoder, stack):
    """A branch without a change goes on as the straight run; with a forced token it is the run that was forced."""
    given = {"max_new_tokens": 16, "cache": dict(stacks()).get(stack), "temperature": 0.0}
    if decoder.declared_name == "best_of":
        given |= {"temperature": 1.1, "seed": 3}
    session = wb.Session(small, PROMPT, decoder, **given)
    session.run(rounds=6)
    place = session.place
    branch = session.fork()
    session.run()
    branch.run()
    assert branch.trace.token_ids == session.trace.token_ids and branch.rounds == session.rounds
    session.jump(place.token, round=place.round)
    late = session.fork()
    late.run()
    assert late.trace.token_ids == session.trace.token_ids
    token = (session.trace.token_ids[9] + 1) % 11
    forced = session.fork(9, token)
    forced.run()
    text = [*session.trace.token_ids[:9], token]
    assert forced.trace.token_ids[:10] == text
    assert forced.trace.token_ids == wb.decode(small, PROMPT, decoder, force=text, **given).token_ids


def test_beams_that_begin_anew_are_those_of_the_forced_run(wide):
    """With ends of text of different lengths, what the settled text has cost counts on."""
    late, lengths = 0, set()
    for number in range(10):
        prompt, given = [(number * 7 + 3 * i * i) % 11 for i in range(20)], {"max_new_tokens": 40, "eos_ids": [number]}
        session = wb.Session(wide, prompt, wb.Beam(beams=2, length_penalty=1.5), **given)
        session.run()
        text = session.trace.token_ids
        for at in range(8, len(text), 9):
            token = (text[at] + 1 + number) % 11
            fork = session.fork(at, token)
            late += fork.place.token > 0
            fork.run()
            alone = wb.decode(wide, prompt, session.decoder, force=[*text[:at], token], **given)
            assert fork.trace.token_ids == alone.token_ids, (number, at)
            lengths.add(fork.length)
    assert late and len(lengths) > 3


def test_a_forced_token_stands_whatever_a_processor_says(small):
    def without(ids, scores):
        return scores.index_fill(-1, torch.tensor([9]), -torch.inf)

    for decoder in (wb.Beam(), wb.BestOf(), wb.AdaDec(threshold=0.0)):
        trace = wb.decode(small, PROMPT, decoder, force=[9, 9], processors=[without], max_new_tokens=6)
        assert trace.token_ids[:2] == [9, 9] and 9 not in trace.token_ids[2:]


def test_processors_with_a_memory_are_refused_in_a_search(small):
    class Counting:
        calls = 0

        def __call__(self, ids, scores):
            self.calls += 1
            return scores + self.calls * torch.arange(scores.shape[-1])

    for decoder in (wb.Beam(), wb.BestOf(), wb.AdaDec()):
        with pytest.raises(wb.BadInput, match="stateful: it is called for every"):
            wb.Session(small, PROMPT, decoder, processors=[Counting()])
    arms = {"plain": None}
    with pytest.raises(wb.BadInput, match="side by side"):
        wb.compare(small, [PROMPT, PROMPT], arms, processors=[Counting()], batch_size=2, progress=False)


@pytest.mark.parametrize("name", ["h2o", "kivi4", "h2o+kivi4"])
def test_what_maintenance_did_to_each_hypothesis_is_in_the_record(small, name):
    """Events of the winner's lineage are those of the plain run forced to its text; counts are of all caches."""
    stack = dict(stacks())[name]
    trace = wb.decode(small, PROMPT, wb.Beam(beams=3), cache=stack, max_new_tokens=60)
    plain = wb.decode(small, PROMPT, force=trace.token_ids, cache=stack, max_new_tokens=60)
    tables = [t.events[t.events["type"] == "cache"].groupby(["op", "layer"]).size() for t in (trace, plain)]
    assert (tables[0] >= tables[1]).all() and set(tables[0].index) == set(tables[1].index)
    evicted = [t.cache["evicted"].sum() for t in (trace, plain)]
    assert evicted[0] >= evicted[1] and (evicted[1] > 0) == ("h2o" in name)


def test_bytes_of_shared_runs_are_counted_as_what_they_hold(small):
    """Payload is distinct committed slots, also where a hypothesis goes on in a run that another store has counted; a
    store on the device has the columns of the plain one."""
    from workbench.device.store import StaticStore

    session = wb.Session(small, PROMPT, wb.Beam(beams=3), max_new_tokens=40)
    session.run(rounds=9)
    slots: dict[int, int] = {}
    for state in (session.state, *(one.state for one in session.state.hypotheses.values())):
        store = state.runners["target"].store
        key = store._run.k[0].data_ptr()
        slots[key] = max(slots.get(key, 0), store.held)
    columns = ledgers(session.state)["target"]
    assert columns["live_slots"] == [sum(slots.values())] * 2
    assert columns["payload"] == [sum(slots.values()) * small.kv_bytes() // 2] * 2
    store = small.new_store()
    with torch.inference_mode():
        feed(small, store, PROMPT)
    plain, static = store.ledger(), StaticStore.of(store).ledger()
    assert plain["payload"] == static["payload"] and min(static["pad"]) > 0


def test_rows_in_flight_are_not_shared(small):
    store = small.new_store()
    with torch.inference_mode():
        small.forward([1, 2], range(2), store)
    with pytest.raises(RuntimeError, match="share between rounds"):
        store.share()


def test_samples_compared_side_by_side(small):
    prompts, arms = [PROMPT[:20], PROMPT[5:30], PROMPT[9:40]], {"plain": None, "beam": wb.Beam(beams=2)}
    tables = [wb.compare(small, prompts, arms, batch_size=size, gaps=True, max_new_tokens=8, progress=False)
              for size in (1, 2)]  # fmt: skip
    texts = [[[t.token_ids for t in table.attrs["traces"][name]] for name in arms] for table in tables]
    assert texts[0] == texts[1] and tables[0]["tokens"].tolist() == tables[1]["tokens"].tolist()
    assert tables[1].attrs["traces"]["plain"][0].forwards["sequences"].max() == 2
    with pytest.raises(wb.BadInput, match="batch_size: expected an integer of at least 1"):
        wb.compare(small, prompts, arms, batch_size=0)


def test_criteria_of_generate_hold_for_the_text_that_stands(small):
    """A criterion that hypotheses meet, which come to nothing, ends nothing."""

    class Said(tf.StoppingCriteria):
        def __init__(self, token):
            self.token = token

        def __call__(self, ids, scores, **kwargs):
            return (ids[:, 12:] == self.token).any(-1)

    rows, found = torch.tensor([PROMPT[:12]]), []
    given = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    given["attention_mask"] = torch.ones_like(rows)
    for token in range(11):
        stock = small.model.generate(rows, **given, num_beams=4, stopping_criteria=[Said(token)])
        ours = small.model.generate(rows, **given, custom_generate=wb.custom_generate(wb.Beam()),
                                    stopping_criteria=[Said(token)])  # fmt: skip
        assert torch.equal(ours, stock), token
        found.append(ours.shape[1])
    assert len(set(found)) > 2

"""Time travel: step, run, back, jump, fork, for every decoder of the table."""

import threading

import pytest
import torch

import workbench as wb
from tests.table import DECODERS
from workbench import session as session_module
from workbench.errors import BadInput
from workbench.rounds import round as rounds

PROMPT = [0, 1, 2, 3, 1, 2]
TIMES = {"ms", "forwards"}
ALL = pytest.mark.parametrize("name", sorted(DECODERS))


def toy_session(toy, name: str, sampled: bool = False, **options) -> wb.Session:
    row = DECODERS[name]
    temperature = row.temperature if sampled and row.sampled else 0.0
    options = {"max_new_tokens": 24, "seed": 5, "temperature": temperature, "ignore_eos": True} | options
    return wb.Session(toy, PROMPT, row.make("toy-draft"), **options)


def contents(trace: wb.Trace) -> list[dict]:
    """The round events without their times: what must be the same whenever it is decoded again."""
    rounds = []
    for event in trace.steps():
        passes = {k: v for k, v in event["forwards"].items() if k != "wall_ms"}
        figures = {k: v for k, v in event.get("figures", {}).items() if not k.endswith("_ms")}
        rounds.append({**{k: v for k, v in event.items() if k not in TIMES}, "forwards": passes, "figures": figures})
    return rounds


def without_copies(trace: wb.Trace) -> list[dict]:
    """The same without the bytes of a search: which of several forks has to copy a run depends on who was first."""
    return [{k: v for k, v in event.items() if k != "cache" or "hypotheses" not in event} for event in contents(trace)]


@ALL
def test_stepping_equals_decoding(toy, name):
    """A stepped run is the decoded run, whatever was stepped back or looked at in between."""
    whole = toy_session(toy, name, sampled=True)
    for _ in whole:
        pass
    stepped = toy_session(toy, name, sampled=True)
    stepped.step()
    stepped.step(by="token")
    stepped.back()
    stepped.jump(0)
    while stepped.step(by="token") is not None:
        pass
    assert contents(stepped.trace) == contents(whole.trace)
    assert stepped.cursor == stepped.length == 24


@ALL
def test_back_and_jump_move_only_the_cursor(toy, name):
    """Going back records a mark and changes nothing else; walking on again computes nothing."""
    s = toy_session(toy, name)
    s.run(rounds=5)
    before, tip = contents(s.trace), s.state
    reached = s.place
    assert s.back() <= reached.token and s.place < reached
    assert s.back(by="token") == s.cursor
    assert s.jump(0) == 0 and s.text == ""
    while s.place < reached:
        s.step()
    assert contents(s.trace) == before and s.state is tip
    marks = [e["kind"] for e in s.trace.log if e["type"] == "mark"]
    assert marks == ["cursor"] * (3 if reached.token else len(marks)) and marks


@ALL
def test_fork_on_a_round_start_continues_bit_for_bit(toy, name):
    """A branch without any change does the very same rounds: every figure, not only the tokens."""
    s = toy_session(toy, name, sampled=True)
    s.run()
    for number in (1, s.rounds // 2):
        at = s.jump(s.trace.index[number - 1].tokens, round=number)
        branch = s.fork()
        branch.run()
        assert without_copies(branch.trace) == without_copies(s.trace)
        assert branch.trace.run["parent"] == {"trace": s.trace.id, "round": number, "index": at}


def test_fork_continues_bit_for_bit_on_the_embedded_model(lm, held_out):
    """The same on a real model: kept rows (level full) equal to the last bit."""
    s = wb.Session(lm, held_out[0], wb.Speculative(), max_new_tokens=24, level="full", temperature=0.8, seed=2)
    s.run()
    branch = s.fork(at=s.trace.index[2].tokens)
    branch.run()
    assert branch.trace.token_ids == s.trace.token_ids
    logits = [[e for e in t.log if e["type"] == "rows"] for t in (s.trace, branch.trace)]
    assert logits[0] == logits[1] and len(logits[0]) > 3


@ALL
def test_fork_inside_a_round_is_token_equal(toy, name):
    """Without a change, a branch from the middle of a round has the parent's tokens."""
    s = toy_session(toy, name, sampled=True)
    s.run()
    for at in range(0, 20, 3):
        branch = s.fork(at=at)
        branch.run()
        assert branch.trace.token_ids == s.trace.token_ids


@ALL
def test_fork_with_another_token(toy, name):
    """The token is there, what came before is untouched, and the branch equals decoding with that token forced."""
    s = toy_session(toy, name, sampled=True)
    s.run()
    kept = contents(s.trace)
    at = 9
    other = next(t for t in range(4) if t != s.trace.token_ids[at])
    branch = s.fork(at=at, token=other)
    branch.run()
    ids = branch.trace.token_ids
    assert ids[:at] == s.trace.token_ids[:at] and ids[at] == other and len(ids) == 24
    assert contents(s.trace) == kept
    row = branch.trace.tokens.iloc[at]
    assert row["decision"] == "force" or name in ("entropy_adaptive", "mirostat")
    if DECODERS[name].sampled == "seeded":
        forced = wb.Session(
            toy, PROMPT, s.decoder, max_new_tokens=24, seed=5, temperature=DECODERS[name].temperature,
            force={i: t for i, t in enumerate(ids[: at + 1])}, ignore_eos=True,
        )  # fmt: skip
        forced.run()
        assert forced.trace.token_ids == ids


def test_fork_with_another_setting_equals_a_fresh_run(toy):
    """Greedy from a token on = plain decoding forced up to there; also through a fork of a fork, and mid-round."""
    s = toy_session(toy, "speculative", sampled=True)
    s.run()
    for at in (3, 4, 5, 6, 7, 11):
        branch = s.fork(at=at, temperature=0.0)
        branch.run(rounds=2)
        twig = branch.fork(at=min(at + 2, branch.length), decoder=wb.Autoregressive())
        twig.run()
        force = dict(enumerate(s.trace.token_ids[:at]))
        fresh = wb.decode(toy, PROMPT, max_new_tokens=24, force=force, seed=5)
        assert twig.trace.token_ids == fresh.token_ids
        assert twig.trace.run["decoder"]["name"] == "autoregressive"


def test_branches_do_not_disturb_each_other(toy):
    """Parent and branches advance in turns; each ends as if it were alone."""
    s = toy_session(toy, "speculative-tree", sampled=True)
    s.run(rounds=4)
    at = s.length
    branches = [s.fork(at=at - 1, token=t) for t in range(4)]
    for _ in range(12):
        for one in (s, *branches):
            one.step()
    alone = toy_session(toy, "speculative-tree", sampled=True)
    alone.run()
    s.run()
    assert s.trace.token_ids == alone.trace.token_ids
    for token, branch in enumerate(branches):
        branch.run()
        lone = alone.fork(at=at - 1, token=token)
        lone.run()
        assert branch.trace.token_ids == lone.trace.token_ids


@ALL
def test_thinned_snapshots_are_made_again(toy, name, monkeypatch):
    """Beyond the cap snapshots are dropped, and the missing states come out the same."""
    monkeypatch.setattr(session_module, "SNAPSHOTS", 3)
    s = toy_session(toy, name, sampled=True)
    s.run()
    assert len(s._snapshots) <= 3 and s.rounds > 6
    for number in range(1, s.rounds):
        branch = s.fork(at=s.trace.index[number - 1].tokens)
        branch.run()
        assert branch.trace.token_ids == s.trace.token_ids


def test_forks_copy_nothing_until_somebody_writes(lm, held_out):
    """A fork shares every storage of the caches; the branch that writes makes its own."""

    def storages(session) -> set[int]:
        return {t.untyped_storage().data_ptr() for t in session.state.runners["target"].store._run.k}

    def rows() -> list:
        store = s.state.runners["target"].store
        return [t[:, : store.length].clone() for t in store._run.k]

    s = wb.Session(lm, held_out[1], max_new_tokens=32)
    s.run(rounds=4)
    branch = s.fork(at=2, token=5)
    shared = storages(s)
    assert storages(branch) == shared
    branch.step()
    assert not storages(branch) & shared
    kept = rows()
    branch.run()
    assert all(torch.equal(a, b) for a, b in zip(kept, rows(), strict=True))


def test_run_until(toy):
    """The cursor stops right after the first token that fulfils the condition, later ones stay ahead."""
    s = toy_session(toy, "speculative", sampled=True)
    row = s.run(until="rank > 1")
    ranks = s.trace.tokens["rank"].tolist()
    assert row["index"] == next(i for i, rank in enumerate(ranks) if rank > 1) == s.cursor - 1
    again = s.run(until="rank > 1")
    assert again is None or again["index"] > row["index"]
    s = toy_session(toy, "speculative", sampled=True)
    assert s.run(until=lambda r: r["index"] == 7)["index"] == 7 and s.cursor == 8
    assert s.run(until="accepted > drafted") is None and s.ended == "length"
    with pytest.raises(BadInput, match="entropi"):
        toy_session(toy, "speculative").run(until="entropi > 1")


def test_pause_from_another_thread(toy):
    """`pause` stops a run after its current round, and the run can go on."""
    s = toy_session(toy, "autoregressive", max_new_tokens=50)
    rounds = []

    def slow(row):
        rounds.append(row["index"])
        if len(rounds) == 5:
            s.pause()
        return False

    worker = threading.Thread(target=s.run, kwargs={"until": slow})
    worker.start()
    worker.join(timeout=30)
    assert not worker.is_alive() and s.length == 5 and not s.ended
    s.run()
    assert s.length == 50


def test_iteration_and_replay(toy):
    """`for step in session` gives the emitting rounds; `replay` the recorded ones, computing nothing."""
    s = toy_session(toy, "speculative")
    events = list(s)
    assert sum(e["emitted"] for e in events) == 24 and all(e["emitted"] for e in events)
    s.decoder = None  # any computation would fail
    assert [e["round"] for e in s.replay()] == list(range(s.rounds)) and s.cursor == 24
    assert list(s) == []


def test_same_seed_same_trace(toy):
    """Two runs differ in their times alone; another seed gives another text."""
    a, b, c = (toy_session(toy, "speculative-rejection", sampled=True, seed=seed) for seed in (1, 1, 2))
    for s in (a, b, c):
        s.run()
    assert contents(a.trace) == contents(b.trace)
    assert a.trace.token_ids != c.trace.token_ids


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.fork(at=99), r"expected a token number in \[0, 24\]"),
        (lambda s: s.fork(at=3, token="abc"), "is 3 tokens"),
        (lambda s: s.fork(at=3, token=4), r"expected one in \[0, 4\)"),
        (lambda s: s.fork(at=24), "raise it to go on"),
        (lambda s: s.fork(at=3, temprature=1.0), "unknown setting 'temprature'"),
        (lambda s: s.fork(at=3, decoder="speculativ"), "did you mean 'speculative'"),
        (lambda s: s.jump(25), r"expected a token number in \[0, 24\]"),
        (lambda s: s.back(-1), "expected a number of steps"),
        (lambda s: s.step(by="word"), "expected 'round' or 'token'"),
    ],
)
def test_bad_input_is_one_line_and_harmless(toy, call, message):
    """Every refusal is one line and leaves the session as it was."""
    s = toy_session(toy, "autoregressive")
    s.run()
    before = list(s.trace.log)
    with pytest.raises(BadInput, match=message) as caught:
        call(s)
    assert "\n" not in str(caught.value)
    assert s.trace.log == before


def test_a_failing_round_leaves_the_last_complete_one(toy, monkeypatch):
    """Ctrl-C inside a round: nothing recorded is lost, and the run goes on as if nothing had happened."""
    s = toy_session(toy, "speculative", sampled=True)
    s.run(rounds=3)
    length = s.length
    forward, calls = toy.forward, []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            forward(*args, **kwargs)
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(toy, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        s.run()
    assert s.length == length
    s.run()
    whole = toy_session(toy, "speculative", sampled=True)
    whole.run()
    assert s.trace.token_ids == whole.trace.token_ids


def test_prompt_rows_log_the_distribution_at_every_prompt_token(toy, monkeypatch):
    """They equal what scoring the same tokens as new ones logs, over several chunks and with sampling settings."""
    monkeypatch.setattr(rounds, "PREFILL_CHUNK", 3)
    prompt = [3, 1, 0, 1, 2, 0, 2, 2]
    options = {"temperature": 0.7, "top_k": 3}
    trace = wb.decode(toy, prompt, max_new_tokens=2, prompt_rows=True, **options)
    rows = trace.prompt_tokens
    assert rows["token_id"].tolist() == prompt[1:] and rows["index"].tolist() == list(range(-7, 0))
    assert rows["position"].tolist() == list(range(1, 8)) and set(rows["round"]) == {0}
    scored = wb.decode(toy, prompt[:1], force=prompt[1:], **options).tokens
    for name in ("entropy_raw_nats", "entropy_sampled_nats", "surprisal_nats", "p_sampled"):
        assert rows[name].tolist() == pytest.approx(scored[name].tolist(), rel=1e-4, abs=1e-6)
    assert rows["rank"].tolist() == scored["rank"].tolist()
    assert trace.tokens["index"].tolist() == [0, 1]
    assert wb.decode(toy, prompt, max_new_tokens=2).prompt_tokens.empty


def test_a_model_may_be_named_or_be_transformers_own(lm):
    ids = lm.tokenizer.encode("def add(a, b):")
    expected = wb.decode(lm, ids, max_new_tokens=8).token_ids
    assert wb.decode("embedded", ids, max_new_tokens=8).token_ids == expected
    assert wb.decode(lm.model, ids, max_new_tokens=8).token_ids == expected

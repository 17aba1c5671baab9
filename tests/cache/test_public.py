"""`cache=` everywhere: decode, sessions, branches, replay, generate, traces, the command line."""

import pytest
import torch

import workbench as wb
from tests.cache.conftest import DRAFT, PROMPT, live_positions
from tests.table import stacks
from workbench import declare
from workbench.cache import as_stack

STACKS = dict(stacks())
BOTH = [wb.H2O(budget=44, recent=32), wb.KIVI(bits=4)]


def comparable(trace) -> dict:
    """Tables without times."""
    tables = {name: getattr(trace, name) for name in ("tokens", "rounds", "cache", "bits", "drafts")}
    return {name: t[[c for c in t if not c.endswith("_ms")]].to_csv() for name, t in tables.items()}


def test_all_ways_to_write_a_cache_are_one(small):
    ways = [BOTH, wb.Stack(*BOTH), wb.Stack(policy=BOTH[0], quantizer=BOTH[1])]
    traces = [wb.decode(small, PROMPT, cache=way, max_new_tokens=20) for way in ways]
    assert len({tuple(t.token_ids) for t in traces}) == 1
    assert traces[0].run["cache"] == traces[1].run["cache"] == traces[2].run["cache"]
    assert declare.from_dict(traces[0].run["cache"]) == wb.Stack(*BOTH)
    assert as_stack("h2o") == wb.Stack(wb.H2O()) and as_stack(["h2o", "kivi"]) == wb.Stack(wb.H2O(), wb.KIVI())
    assert as_stack(None) is None and as_stack(wb.KIVI()) == wb.Stack(None, wb.KIVI())
    assert wb.decode(small, PROMPT, max_new_tokens=2).run["cache"] is None


@pytest.mark.parametrize("name", ["h2o", "snapkv+kivi4", "h2o+kivi2", "kivi-k8v2"])
def test_the_same_run_gives_the_same_trace(small, name):
    """Stepped, forked and decoded again: tokens, bytes and widths agree but for times."""
    decoder = wb.Speculative(drafter=wb.DraftModel(DRAFT), shape=wb.FixedLength(3))
    settings = dict(cache=STACKS[name], temperature=1.0, seed=2, max_new_tokens=48)
    expected = comparable(wb.decode(small, PROMPT, decoder, **settings))
    session = wb.Session(small, PROMPT, decoder, **settings)
    session.run(rounds=9)
    session.back(4)
    again = session.fork()
    session.run()
    again.run()
    assert comparable(session.trace) == expected == comparable(again.trace)
    assert [event["round"] for event in session.replay()] == list(range(session.rounds))


@pytest.mark.parametrize("name", ["h2o", "h2o+kivi4"])
def test_a_branch_sees_the_cache_as_it_was(small, name):
    """Another token before a maintenance: the branch goes on as a run whose text was forced so from the start."""
    session = wb.Session(small, PROMPT, cache=STACKS[name], max_new_tokens=48)
    session.run()
    ids = session.trace.token_ids
    for at in (5, 20, 47):
        other = (ids[at] + 1) % 11
        branch = session.fork(at, other)
        branch.run()
        forced = wb.decode(
            small, PROMPT, cache=STACKS[name], force={**dict(enumerate(ids[:at])), at: other}, max_new_tokens=48
        )
        assert branch.trace.token_ids == forced.token_ids


def test_a_branch_with_another_cache_reads_the_text_anew(small):
    session = wb.Session(small, PROMPT, max_new_tokens=40)
    session.run(rounds=20)
    kept = session.trace.token_ids
    for cache in (STACKS["h2o+kivi4"], None):
        branch = session.fork(cache=cache)
        branch.run()
        expected = wb.decode(small, PROMPT, cache=cache, force=dict(enumerate(kept)), max_new_tokens=40).token_ids
        assert branch.trace.token_ids == expected
        session = branch.fork(20)


def test_level_off_keeps_tokens_and_no_events(small):
    quiet = wb.decode(small, PROMPT, cache=BOTH, max_new_tokens=40, level="off")
    assert quiet.token_ids == wb.decode(small, PROMPT, cache=BOTH, max_new_tokens=40).token_ids
    assert quiet.events.empty and quiet.bits.empty and quiet.cache.empty


def test_events_name_what_was_dropped(small):
    """Evicted positions of all events, and those still held, are all positions, per layer and head."""
    session = wb.Session(small, PROMPT, cache=wb.H2O(budget=44, recent=32), max_new_tokens=60)
    session.run()
    store = session.state.runners["target"].store
    gone = {(layer, head): [] for layer in range(2) for head in range(2)}
    for event in session.trace.events.to_dict("records"):
        assert event["op"] == "evict" and event["reason"] == "h2o" and event["bytes"] > 0 and event["model"] == "target"
        for key, found in gone.items():
            if all(own == at or own != own for own, at in zip((event["layer"], event["head"]), key, strict=True)):
                found += [at for start, count in event["positions"] for at in range(start, start + count)]
    for (layer, head), found in gone.items():
        assert sorted(found + live_positions(store, layer)[head]) == list(range(store.length))
    assert session.trace.cache["evicted"].sum() == 2 * len(gone[0, 0])
    streaming = wb.decode(small, PROMPT, cache=STACKS["streaming"], max_new_tokens=60).events
    assert len(streaming) <= 3 and streaming["head"].isna().all() and streaming["layer"].isna().all()
    assert streaming["positions"].iloc[0][0][0] == 4


def test_traces_stay_small(small, tmp_path):
    """Per token of text, events and widths of the busiest stack cost little more than the tokens themselves."""
    sizes = {}
    for name in (None, "streaming", "kivi4", "h2o+kivi2"):
        wb.decode(small, PROMPT, cache=STACKS.get(name), max_new_tokens=160, out=tmp_path / f"{name}.wb")
        sizes[name] = (tmp_path / f"{name}.wb").stat().st_size / 160
    assert sizes["streaming"] < 1.25 * sizes[None] and sizes["kivi4"] < 1.3 * sizes[None]
    assert sizes["h2o+kivi2"] < 3 * sizes[None]


def test_generate_with_a_cache(small):
    generate = wb.custom_generate(cache=BOTH)
    out = small.model.generate(torch.tensor([PROMPT]), custom_generate=generate, max_new_tokens=20, do_sample=False)
    expected = wb.decode(small, PROMPT, cache=BOTH, max_new_tokens=20).token_ids
    assert out[0, len(PROMPT) :].tolist() == expected and generate.traces[0].run["cache"]["name"] == "stack"


def test_comparing_under_a_cache(small):
    arms = {"plain": None, "drafted": wb.Speculative(drafter=wb.DraftModel(DRAFT))}
    table = wb.compare(small, [PROMPT], arms, cache=BOTH, max_new_tokens=24, progress=False)
    assert (table["same_text"] == 1).all() and (table["bits_per_element"] > 4).all()


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def call(capsys):
    from workbench.cli import main

    def run(*arguments):
        code = main(list(arguments))
        return (code, *capsys.readouterr())

    return run


def test_run_takes_a_cache_and_its_parameters(call, tmp_path):
    out = str(tmp_path / "run.wb")
    settings = [
        "--set",
        "cache.budget=80",
        "--set",
        "cache.kivi.bits=8",
        "--set",
        "ngram=2",
        "--set",
        "cache.recent=40",
    ]
    code, text, _ = call(
        "run", "def a(b):", "--cache", "h2o", "--cache", "kivi", *settings[:4], *settings[6:],
        "--max-new-tokens", "6", "--out", out, "--quiet",
    )  # fmt: skip
    assert code == 0 and text
    members = wb.Trace.load(out).run["cache"]["settings"]
    assert members["policy"]["settings"]["budget"] == 80 and members["policy"]["settings"]["recent"] == 40
    assert members["quantizer"]["settings"]["bits"] == 8


REFUSED = {
    "unknown": (["--cache", "h20"], "unknown cache 'h20'"),
    "no cache": (["--set", "cache.budget=3"], "no --cache given"),
    "nobody's": (["--cache", "h2o", "--set", "cache.bits=3"], "parameter of none"),
    "order": (["--cache", "kivi", "--cache", "h2o"], "policy before the quantizer"),
    "text": (["--cache", "h2o", "--set", "cache.budget=many"], "expected an integer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_run_refuses_in_one_line(call, name):
    arguments, message = REFUSED[name]
    code, _, error = call("run", "a", *arguments)
    assert code == 2 and message in error and error.count("\n") == 1

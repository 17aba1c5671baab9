"""Traces that version 0.1 wrote: they open, show and export as any other, and today's code writes the same tokens."""

import json
from pathlib import Path

import pandas as pd
import pytest

import workbench as wb
from tests.hostile.traces import exercise, uses
from workbench.cursor import Replay
from workbench.trace import Trace, schema
from workbench.trace.schema_1 import current, current_run

FOLDER = Path(__file__).parent / "of_0_1"
FIBONACCI = "def fibonacci(n):"


def speculative(shape=None, verifier=None) -> wb.Speculative:
    return wb.Speculative(wb.DraftModel("embedded-draft"), shape, verifier or wb.SeededMatch())


SEEDED = speculative(wb.FixedLength(4))
STACK = [wb.H2O(budget=40, recent=32, interval=16), wb.KIVI(bits=4)]
RUNS = {
    "plain": (FIBONACCI, None, {"prompt_rows": True}),
    "chain-keyed": (FIBONACCI, SEEDED, {"temperature": 0.8, "top_p": 0.8, "seed": 3, "level": "full"}),
    "tree-rejection": (
        "Once upon a time",
        speculative(wb.FixedTree(branching=(3, 2, 1)), wb.Rejection()),
        {"temperature": 1.0, "seed": 5},
    ),
    "cache-stack": (
        "The quick brown fox jumps over the lazy dog. " * 2,
        speculative(),
        {"temperature": 0.7, "seed": 7, "sample": 1, "cache": STACK, "force": {5: 40}},
    ),
    "device-rounds": (FIBONACCI, SEEDED, {"temperature": 0.8, "seed": 3}),
}


@pytest.fixture(params=RUNS)
def name(request) -> str:
    return request.param


@pytest.fixture
def old(name) -> Trace:
    return Trace.load(FOLDER / f"{name}.wb")


def test_it_opens_whole_in_the_words_of_today(name, old):
    """Every column and value is one that the schema knows, and no old word is left."""
    assert old.dropped == [] and old.end["reason"] == "length" and old.run["schema"] == schema.SCHEMA
    assert old.run["guarantee"] in ("exact", "seeded", "distribution")
    assert old.run["body"]["name"] == ("fast" if name == "device-rounds" else "stock") and old.run["body"]["reason"]
    verifier = old.run["decoder"]["settings"].get("verifier", {"name": "seeded"})
    assert verifier["name"] == ("rejection" if name == "tree-rejection" else "seeded")
    for event in old.log:
        known = {column.name for column in schema.EVENTS[event["type"]]}
        assert event.keys() - known <= {"type", "id", "position"}
        for group in schema.KEYS:
            columns = {c.name for c in schema.TABLES["tokens" if group == "prompt" else group]}
            assert event["type"] != "round" or event.get(group, {}).keys() <= columns
    assert set(old.events["op"].dropna()) <= set(schema.OPS)
    assert set(zip(old.forwards["model"], old.forwards["layers_run"], strict=True)) <= {("target", 8), ("draft", 3)}


def test_it_shows_and_exports(old, tmp_path):
    """All that can be done with a trace, and what it gives: tables, Parquet, capsule, Perfetto, saved again."""
    for use in range(len(uses())):
        exercise(old, use)
    old.to_parquet(tmp_path / "tables")
    for table, frame in Trace.tables_from_parquet(tmp_path / "tables").items():
        pd.testing.assert_frame_equal(frame, getattr(old, table))
    old.to_perfetto(tmp_path / "run.json")
    assert len(json.loads((tmp_path / "run.json").read_text())["traceEvents"]) > len(old.rounds)
    again = Trace.load(old.capsule(tmp_path / "run.html"))
    assert again.log == old.log and again.summary() == old.summary()
    assert [event["tokens"].get("token_id", []) for event in Replay(old).trace.steps() if event["emitted"]]


def test_todays_code_writes_the_same(name, old, lm, monkeypatch):
    """Token by token, round by round, with the same figures: what was recorded then is what would be recorded now."""
    if name == "device-rounds":
        monkeypatch.setenv("WORKBENCH_ROUND", "device")
    prompt, decoder, settings = RUNS[name]
    most = old.run["max_new_tokens"]
    session = wb.Session(lm, prompt, decoder, max_new_tokens=most, ignore_eos=True, **settings)
    session.run()
    new = session.trace
    assert new.token_ids == old.token_ids == [t for e in session.replay() for t in e["tokens"].get("token_id", [])]
    assert new.text == old.text
    columns = ["mode", "drafted", "accepted", "emitted", "stop_reason", "context", "cache_bytes", "full_cache_bytes"]
    pd.testing.assert_frame_equal(new.rounds[columns], old.rounds[columns])
    columns = ["round", "phase", "model", "rows", "context", "layers_run", "kv_read_bytes"]
    pd.testing.assert_frame_equal(new.forwards[columns], old.forwards[columns])
    columns = ["round", "node", "parent", "depth", "token_id", "kind", "fate"]
    pd.testing.assert_frame_equal(new.drafts[columns], old.drafts[columns])
    columns = ["round", "model", "layer", "head", "start", "length", "bits_k", "codec", "reason"]
    pd.testing.assert_frame_equal(new.bits[columns], old.bits[columns])
    assert new.events["op"].dropna().tolist() == old.events["op"].dropna().tolist()
    assert new.run["body"]["name"] == "fast"
    same = ("decoder", "guarantee", "cache", "sampling", "seed", "sample", "forced", "prompt_ids")
    found = {key: new.run[key] for key in same}
    if cache := found["cache"]:
        stack, kivi = cache["settings"], cache["settings"]["quantizer"]["settings"]
        for settings, since in ((stack, {"during_prompt": True, "requantize": "sparse", "reader": None}),
                                (kivi, {"page_size": 32, "raw_keys": False})):  # fmt: skip
            assert since.items() <= settings.items()  # what was always done is a setting since
            for key in since:
                del settings[key]
    assert found == {key: old.run[key] for key in same}


def test_old_words_have_one_place():
    """Members and parameters, wherever they are nested; what is not old, and what is not declared, stays."""
    shape = {"family": "shape", "name": "specdec", "settings": {"least": 2, "most": 5, "later": [1]}}
    verifier = {"family": "verifier", "name": "keyed", "settings": {}}
    decoder = {"family": "decoder", "name": "x", "settings": {"shape": shape, "verifier": verifier}}
    run = current_run({"type": "run", "schema": 1, "claim": "own_law", "rounds": 3, "decoder": decoder, "cache": 5})
    assert run["guarantee"] == "own" and run["body"] == 3 and run["cache"] == 5 and run["schema"] == schema.SCHEMA
    settings = run["decoder"]["settings"]
    assert settings["shape"]["settings"] == {"min_length": 2, "max_length": 5, "later": [1]}
    assert settings["verifier"]["name"] == "seeded"
    for _ in range(900):  # deeper than Python goes: left for the door, which refuses it
        decoder = {"family": "decoder", "name": "x", "settings": {"inner": decoder}}
    assert current_run({"schema": 1, "decoder": decoder})["decoder"]["name"] == "x"
    for op, to, now in (("seal", None, "quantize"), ("retier", "host", "offload"), ("retier", "device", "fetch")):
        event = {"type": "cache", "round": 0, "op": op, "destination": to, "score": 2}
        assert current(event, {}, lambda cells: None) == {
            "type": "cache", "round": 0, "op": now, "destination": to, "importance": 2,
        }  # fmt: skip


def test_columns_of_schema_1_become_full_lists():
    """Runs of a key, columns of one value, and drafts that are a chain."""
    paid = []
    forwards = {"runs": [2, 1], "phase": ["draft", "target"], "rows": [1, 5], "wall_ms": [0.1, 0.2, 4.0], "share": 0.5}
    drafts = {"node": [1, 2], "chain": True, "drafter": "d", "text": None}
    event = {"type": "round", "round": 1, "forwards": forwards | {"model": "target"}, "drafts": drafts}
    found = current(event, {"target": 8}, paid.append)
    assert found["forwards"] == {
        "phase": ["draft", "draft", "target"], "rows": [1, 1, 5], "wall_ms": [0.1, 0.2, 4.0], "model": ["target"] * 3,
        "layers_run": [4] * 3,
    }  # fmt: skip
    assert found["drafts"] == {
        "node": [1, 2], "drafter": ["d"] * 2, "text": [None] * 2, "depth": [1, 2], "parent": [0, 1],
    }  # fmt: skip
    assert sum(paid) > 0


@pytest.mark.parametrize("group", ["tokens", "forwards"])
def test_a_mark_of_chains_means_nothing_outside_of_drafts(group, tmp_path):
    """It left out `parent` and `depth` of nodes; a group that has no nodes cannot be read by it."""
    events = [json.loads(line) for line in (FOLDER / "chain-keyed.wb").read_text(encoding="utf-8").splitlines()]
    for event in events:
        if event.get(group):
            event[group]["chain"] = True
    (tmp_path / "run.wb").write_text("\n".join(map(json.dumps, events)), encoding="utf-8")
    trace = Trace.load(tmp_path / "run.wb")
    assert not trace.dropped and trace.log == Trace.load(FOLDER / "chain-keyed.wb").log


def rounds(tmp_path, **groups) -> Trace:
    """A run of 0.1 with one round of these groups."""
    round_ = {"type": "round", "round": 0, "index": 0, "mode": "plain", "emitted": 0, "ms": {}, **groups}
    events = [{"type": "run", "schema": 1, "prompt_ids": [1], "models": []}, round_]
    (tmp_path / "run.wb").write_text("\n".join(map(json.dumps, events)), encoding="utf-8")
    return Trace.load(tmp_path / "run.wb")


def test_repeated_rows_cost_all_columns_of_their_table(tmp_path):
    """Each repeated row is a row of the table, however few columns the file writes."""
    trace = rounds(tmp_path, forwards={"phase": ["draft"], "runs": [300_000]})
    assert trace.dropped and trace.forwards.empty


def test_shares_without_models_keep_their_round(tmp_path):
    trace = rounds(tmp_path, forwards={"phase": ["draft", "target"], "share": [0.5, 1.0]})
    assert not trace.dropped and len(trace.forwards) == 2

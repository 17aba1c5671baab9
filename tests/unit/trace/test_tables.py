"""The tables: fixed columns and dtypes, literal values for a run made by hand, the distributions of the ledger."""

from dataclasses import replace

import pandas as pd
import pytest

from workbench.trace import Recorder, Step
from workbench.trace.schema import CACHE_KINDS, TABLES


@pytest.fixture
def by_hand(made_up):
    """Prompt of 3; a prefill, a round of two tokens (one draft accepted), a plain round. One tiny model and a draft."""
    models = [
        {"role": "target", "name": "t", "layers": 2, "kv_heads": 2, "head_dim": 4, "kv_bits": 32},
        {"role": "draft", "name": "d", "layers": 1, "kv_heads": 1, "head_dim": [4, 2], "kv_bits": 16},
    ]
    recorder = Recorder(made_up.run_event(models=models))

    def cache(length):
        return {
            "target": {"live_slots": [length] * 2, "logical_length": [length] * 2, "payload": [64 * length] * 2,
                       "scale": [0, length], "tier": ["device", "host"], "simulated": [False] * 2},
            "draft": {"live_slots": [length], "logical_length": [length], "payload": [12 * length]},
        }  # fmt: skip

    recorder.round(Step("prefill", forwards={"phase": ["prefill"], "model": ["target"], "rows": [2]}, cache=cache(2)))
    recorder.round(
        Step(
            "chain",
            tokens={"token_id": [8, 9], "source": ["draft-model", "residual"], "rank": [1, 3]},
            drafts={"node": [1, 2], "parent": [0, 1], "depth": [1, 2], "fate": ["accepted", "rejected"]},
            forwards={"phase": ["draft", "draft", "target"], "model": ["d", "d", "t"], "rows": [1, 1, 3]},
            ms={"total": 4.0, "draft": 1.0},
            cache=cache(4),
            decisions=[{"controller": "c", "action": "shrink"}],
            drafted=2, accepted=1, emitted=2, context=5, depth=2, texts=["é", "x"]),
    )  # fmt: skip
    recorder.round(
        Step(
            "plain",
            tokens={"token_id": [7], "source": ["target"], "topk_raw": [[[7, 1], [0.75, 0.25]]]},
            forwards={"phase": ["target"], "model": ["target"], "rows": [1]},
            cache=cache(3),  # a policy dropped slots: fewer bytes than at the peak
            bits={"layer": [1], "head": [0], "start": [0], "length": [2], "bits_k": [4], "bits_v": [2]},
            emitted=1, context=6, bonus=True, texts=[""]),
    )  # fmt: skip
    return recorder


def test_tokens_by_hand(by_hand):
    tokens = by_hand.trace.tokens
    columns = ["index", "position", "round", "token_id", "text", "bytes", "source", "target_forwards", "decision"]
    assert tokens[columns].astype(object).values.tolist() == [
        [0, 3, 1, 8, "é", 2, "draft-model", 1, "shrink"],
        [1, 4, 1, 9, "x", 1, "residual", 0, "shrink"],
        [2, 5, 2, 7, "", 0, "target", 1, None],
    ]
    assert tokens["rank"].tolist()[:2] == [1, 3] and tokens["rank"].isna().tolist() == [False, False, True]
    assert tokens["topk_raw"].tolist() == [None, None, [[7, 1], [0.75, 0.25]]]


def test_rounds_by_hand(by_hand):
    rounds = by_hand.trace.rounds
    assert rounds["mode"].tolist() == ["prefill", "chain", "plain"]
    assert rounds["emitted"].tolist() == [0, 2, 1] and rounds["bonus"].tolist() == [False, False, True]
    assert rounds["rows_target"].tolist() == [2, 3, 1] and rounds["rows_draft"].tolist() == [0, 2, 0]
    assert rounds["total_ms"].isna().tolist() == [True, False, True]
    # target layer 0 on the device (64 a slot) and the draft (12 a slot); target layer 1 on the host (64 + 1 a slot)
    assert rounds["cache_bytes"].tolist() == [76 * 2, 76 * 4, 76 * 3]
    assert rounds["host_bytes"].tolist() == [65 * 2, 65 * 4, 65 * 3]
    assert rounds["peak_bytes"].tolist() == [76 * 2, 76 * 4, 76 * 4]
    assert rounds["resident_bytes"].tolist() == [141 * 2, 141 * 4, 141 * 3]
    # 129 bytes a slot over 2 layers x 2 heads x (4 + 4) elements
    assert rounds["bits_per_element"].tolist() == [8 * 129 / 32] * 3


def test_free_slots_are_bytes_but_no_bits():
    """`pad` and `staging` count as bytes held; the width of a cached element does not grow by them."""
    layers = {"live_slots": [4], "payload": [128], "scale": [8], "pad": [640], "staging": [64]}
    facts = {"role": "target", "name": "m", "layers": 1, "kv_heads": 1, "head_dim": 4, "kv_bits": 32}
    recorder = Recorder({"models": [facts]})
    recorder.round(Step("prefill", cache={"target": layers}))
    assert recorder.trace.rounds[["cache_bytes", "bits_per_element"]].values.tolist() == [[840, 8 * 136 / 32]]
    assert recorder.trace.cache["bits_effective"].tolist() == [8 * 136 / 32]


def test_cache_by_hand(by_hand):
    cache = by_hand.trace.cache
    assert cache[["round", "model", "layer", "bytes"]].values.tolist()[3:6] == [
        [1, "target", 0, 256], [1, "target", 1, 260], [1, "draft", 0, 48],
    ]  # fmt: skip
    assert (cache[list(CACHE_KINDS)].sum(axis=1) == cache["bytes"]).all()
    assert cache["bits_effective"].tolist()[3:6] == [32.0, 8 * 260 / (4 * 2 * 8), 16.0]
    assert cache["bits_nominal"].tolist()[3:6] == [32, 32, 16]


def test_bits_by_hand(by_hand):
    bits = by_hand.trace.bits
    target = bits[bits["model"] == "target"]
    assert target[["round", "layer", "head", "start", "length", "bits_k"]].values.tolist() == [
        *([0, layer, head, 0, 2, 32] for layer in (0, 1) for head in (0, 1)),
        *([1, layer, head, 2, 2, 32] for layer in (0, 1) for head in (0, 1)),
        [2, 1, 0, 0, 2, 4],
    ]
    assert bits[bits["model"] == "draft"][["start", "length", "bits_k", "codec"]].values.tolist() == [
        [0, 2, 16, "raw"], [2, 2, 16, "raw"],
    ]  # fmt: skip


def test_drafts_and_forwards_by_hand(by_hand):
    trace = by_hand.trace
    assert trace.drafts[["round", "node", "parent", "fate"]].values.tolist() == [
        [1, 1, 0, "accepted"],
        [1, 2, 1, "rejected"],
    ]
    assert trace.forwards[["round", "phase", "model"]].values.tolist() == [
        [0, "prefill", "target"], [1, "draft", "d"], [1, "draft", "d"], [1, "target", "t"], [2, "target", "target"],
    ]  # fmt: skip


def test_events_are_flat(made_up):
    recorder = made_up.record([])
    step = Step("plain", cache_events=[{"op": "evict", "layer": 1, "positions": [0, 3], "bytes": 64}])
    step.decisions = [{"controller": "c", "action": "stop", "signals": [{"name": "H", "value": 2.5, "unit": "nats"}]}]
    recorder.round(step)
    recorder.mark("breakpoint", 3, "why")
    events = recorder.trace.events
    assert events["type"].tolist() == ["decision", "cache", "mark"] and events["round"].tolist() == [1, 1, 2]
    assert events["positions"].tolist() == [None, [0, 3], None] and events["note"].tolist() == [None, None, "why"]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("rounds", [None, [], [(4, 2), (0, 0)]], ids=["run only", "prefill only", "two rounds"])
def test_columns_and_dtypes_are_those_of_the_schema_whatever_the_run(made_up, name, rounds):
    recorder = Recorder(made_up.run_event()) if rounds is None else made_up.record(rounds)
    frame = getattr(recorder.trace, name)
    assert list(frame.columns) == [column.name for column in TABLES[name]]
    assert [str(dtype) for dtype in frame.dtypes] == [column.dtype for column in TABLES[name]]


def test_a_draft_prefill_is_no_target_forward(made_up):
    recorder = Recorder(made_up.run_event())
    passes = {"phase": ["prefill", "prefill"], "model": ["draft", "target"], "rows": [3, 3]}
    step = Step("prefill", tokens={"token_id": [1], "source": ["target"]}, forwards=passes, emitted=1)
    recorder.round(replace(step, texts=["x"]))
    assert recorder.trace.tokens["target_forwards"].tolist() == [1]
    assert recorder.trace.rounds[["rows_target", "rows_draft"]].values.tolist() == [[3, 3]]


def test_level_off_leaves_gaps_not_errors(made_up):
    trace = made_up.record([(4, 2), (4, 4)], level="off").trace
    assert len(trace.tokens) == 8 and trace.tokens["entropy_raw_nats"].isna().all()
    assert trace.rounds["cache_bytes"].isna().all() and trace.drafts.empty and trace.cache.empty and trace.bits.empty


def test_last_rows_are_those_of_the_tables(made_up):
    """The cheap rows that conditions read agree with the tables, peak included."""
    recorder = made_up.record([(4, 2), (4, 4)])
    rows, tokens, rounds = recorder.trace.last_rows(), recorder.trace.tokens, recorder.trace.rounds
    assert len(rows) == 5
    for row, (_, expected) in zip(rows, tokens.tail(5).iterrows(), strict=True):
        together = {**rounds.iloc[-1].to_dict(), **expected.to_dict()}
        for name, value in together.items():
            got = row.get(name)
            same = got is None if not isinstance(value, list) and pd.isna(value) else got == value
            assert same, name
    assert made_up.record([]).trace.last_rows() == []


def test_writing_into_a_table_does_not_change_the_trace(made_up):
    trace = made_up.record([(4, 2)]).trace
    table = trace.tokens
    table.loc[0, "token_id"] = -1
    assert trace.tokens["token_id"][0] == trace.token_ids[0] != -1

"""Bytes of a managed cache: the sum over kinds is what a walk over every reachable storage finds, at every round."""

import pytest
import torch

import workbench as wb
from tests.cache.conftest import DRAFT, PROMPT, feed
from tests.engine.test_bytes import walk
from tests.table import DECODERS, POLICIES, covered, stacks
from workbench.rounds.costs import ledgers
from workbench.trace.schema import CACHE_KINDS

STACKS = dict(stacks()) | {"slots": wb.Stack(wb.StreamingLLM(4, 24, 16, positions="slot"))}


def ledger(state) -> int:
    return sum(sum(column.get(kind, [0])) for column in ledgers(state).values() for kind in CACHE_KINDS)


@pytest.mark.parametrize("name", [*covered(), "slots"])
def test_the_walk_equals_the_ledger_and_the_trace_at_every_round(small, name):
    """Drafted (under policies plain too), the draft under the same stack; forks weigh the same and add nothing."""
    drafted = wb.Speculative(drafter=wb.DraftModel(DRAFT, cache=STACKS[name]))
    for decoder in (None, drafted) if name in POLICIES else (drafted,):
        session = wb.Session(small, PROMPT, decoder, cache=STACKS[name], max_new_tokens=52)
        for done, _ in enumerate(session):
            found = walk(session.state)
            assert found == ledger(session.state) > 0
            last = session.trace.last_rows()[-1]
            assert last["cache_bytes"] + last["host_bytes"] == found
            if done % 16 == 0:
                assert walk(session.state.fork()) == found
        assert session.length == 52


@pytest.mark.parametrize("where", ["store", "page table", "page"])
def test_one_planted_tensor_makes_the_walk_differ(small, where):
    session = wb.Session(small, PROMPT, cache=STACKS["h2o+kivi4"], max_new_tokens=30)
    session.run()
    state = session.state.fork()
    assert walk(state) == ledger(state)
    store, extra = state.runners["target"].store, torch.zeros(7)
    page_table = store._layers[0].page_table
    {"store": store, "page table": page_table, "page": page_table.pages[0][0].arena}[where].hoard = extra
    assert walk(state) == ledger(state) + 28


def test_what_each_kind_holds(small):
    """By hand, for 96 tokens of two KV heads of size 16: H2O alone, KIVI alone."""
    store = wb.Stack(wb.H2O(budget=48, recent=16)).new_store(small, 96)
    kivi = wb.Stack(None, wb.KIVI(bits=4)).new_store(small, 96)
    for each in (store, kivi):
        feed(small, each, (PROMPT * 2)[:96])
    found = {kind: column[0] for kind, column in store.ledger().items() if column[0]}
    assert found["payload"] == 48 * 2 * 2 * 16 * 4 and found["position"] == 48 * 2 * 4 and found["score"] == 48 * 2 * 8
    assert (found["live_slots"], found["logical_length"]) == (48, 96)
    found = {kind: column[0] for kind, column in kivi.ledger().items() if column[0]}
    pages = 2 * 2  # 64 quantized tokens, two heads
    assert found["payload"] == 32 * 2 * 2 * 16 * 4 + pages * 32 * 2 * 16 * 4 // 8
    assert found["scale"] == found["zero"] == pages * (2 * 16 + 32 * 2) and found["header"] == pages * 16
    assert found["position"] == pages * 32 * 4 and found["table"] == pages * 4 + 2 * 4
    assert found["bits_nominal"] == 4.0 and found["live_slots"] == 96


def test_quantised_bytes_in_the_summary(small):
    """bits_per_element counts every byte that is held; narrower widths hold fewer, none reaches its nominal width."""
    text = {"max_new_tokens": 100}
    raw = wb.decode(small, PROMPT, **text).summary()
    widths = {bits: wb.decode(small, PROMPT, cache=wb.KIVI(bits=bits), **text).summary() for bits in (2, 4, 8)}
    found = [widths[bits]["bits_per_element"] for bits in (2, 4, 8)] + [raw["bits_per_element"]]
    assert found == sorted(found) and found[0] > 2 and found[-1] == 32
    assert widths[4]["cache_bytes"]["last"] < raw["cache_bytes"]["last"]
    forwards = wb.decode(small, PROMPT, cache=wb.KIVI(bits=4), **text).forwards
    plain = wb.decode(small, PROMPT, **text).forwards
    assert forwards["kv_read_bytes"].iloc[-1] < plain["kv_read_bytes"].iloc[-1]
    assert forwards["context"].tolist()[-99:] == plain["context"].tolist()[-99:]  # nothing evicted


def test_a_host_tier_is_counted_apart_and_logged(small):
    trace = wb.decode(small, PROMPT, cache=wb.KIVI(bits=4, on_device=64), max_new_tokens=100)
    without = wb.decode(small, PROMPT, cache=wb.KIVI(bits=4), max_new_tokens=100)
    assert trace.token_ids == without.token_ids
    last, usual = trace.rounds.iloc[-1], without.rounds.iloc[-1]
    assert last["host_bytes"] > 0 == usual["host_bytes"] and last["cache_bytes"] < usual["cache_bytes"]
    events = trace.events
    moved, read = events[events["op"] == "offload"], events[events["op"] == "fetch"]
    assert (moved["destination"] == "host").all() and len(read) and (read["bytes"] > 0).all()
    assert trace.cache["fetched"].sum() > 0 == without.cache["fetched"].sum()


@pytest.mark.parametrize("name", [n for n in DECODERS if n in ("autoregressive", "speculative-tree")])
def test_maintenance_holds_no_bytes_of_what_was_dropped(small, name):
    """A run of 160 tokens under a budget does not grow: neither snapshots nor old pages count, nor are reachable."""
    for stack in ("h2o", "h2o+kivi4"):
        trace = wb.decode(small, PROMPT, DECODERS[name].make(DRAFT), cache=STACKS[stack], max_new_tokens=160)
        target = trace.cache[(trace.cache["model"] == "target")].groupby("round")["bytes"].sum()
        half = len(target) // 2
        assert target.iloc[half:].max() <= 1.25 * target.iloc[: half + 1].max()

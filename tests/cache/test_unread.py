"""Slots that are held and not read, and slots that lie in the tier below: SentenceKV, plans, scratch files."""

import gc
import os
import subprocess
import sys
from dataclasses import dataclass
from unittest import mock

import pytest
import torch

import workbench as wb
from tests.cache.conftest import DRAFT, PROMPT, TERMS, contents, feed, live_positions
from tests.cache.test_policies import Masked
from tests.rounding import close
from workbench.cache import scratch
from workbench.cache.pages import Arena, PageTable
from workbench.cache.plan import CacheMethod, Plan
from workbench.web import data as web

TEXT = PROMPT * 6
ENDS = (3, 7)
METHOD = wb.SentenceKV(budget=80, sinks=8, ends=ENDS)
CPU = torch.device("cpu")


def started(lm, member, length: int = 200, prompt: int = 200):
    store = wb.cache.as_stack(member).new_store(lm, prompt)
    feed(lm, store, TEXT[:length])
    return store


def unread(store, layer: int) -> torch.Tensor:
    """Which positions are left out, bool [Hk, length]."""
    state, table = store._layers[layer], store._layers[layer].page_table
    where, live = table.places()
    hidden = state.unread[:, : table.slots] & live
    found = torch.zeros(len(where), store.length, dtype=torch.bool)
    for head in range(len(where)):
        found[head, where[head][hidden[head]]] = True
    return found


@pytest.mark.parametrize("quantizer", [None, wb.MixedKIVI(bits=0, low_bits=0)], ids=["one kind", "two kinds"])
def test_what_is_unread_is_dense_attention_with_the_same_slots_masked(small, quantizer):
    member = [METHOD, quantizer] if quantizer else METHOD
    store, plain = started(small, member), Masked(small.layers)
    feed(small, small_copy := small.new_store(), TEXT[:200])
    plain._run, plain.length, plain.held = small_copy._run, 200, 200
    plain.hidden = [unread(store, layer) for layer in range(small.layers)]
    assert all(hidden.sum() > 0 for hidden in plain.hidden)
    found = small.forward([4, 5, 6], range(200, 203), store).logits
    wanted = small.forward([4, 5, 6], range(200, 203), plain).logits
    assert close(found, wanted, TERMS)
    assert not close(found, small.forward([4, 5, 6], range(200, 203), small_copy.fork()).logits, TERMS)
    store.discard()
    for state in store._layers:
        state.unread = torch.zeros_like(state.unread)
    attended = small.forward([4, 5, 6], range(200, 203), store).logits
    assert not close(attended, wanted, TERMS)  # control: what is unread is attended


def test_the_choice_is_that_of_brute_force(small):
    """Sentences from the best on, one at most cut; the first and the newest always; found at the boundary of 224."""
    store = wb.Stack(METHOD).new_store(small, 200)
    feed(small, store, TEXT[:223])
    queries, honest = [], type(store).segments

    def seen(self, layer, window=None, query=None):
        queries.extend([] if query is None else [query])
        return honest(self, layer, window, query)

    with mock.patch.object(type(store), "segments", seen):
        feed(small, store, TEXT[223:224])
    for layer in range(small.layers):
        keys = torch.zeros(2, 224, 16)
        table, held = store._layers[layer].page_table, store.held
        k, _, where, live = table.decode()
        for head in range(2):
            keys[head, where[head][live[head]]] = k[head][live[head]]
        keys[:, 224 - held :] = store._run.k[layer][:, :held]
        sentences, start = [], 0
        for at, token in enumerate(TEXT[:224]):
            if token in ENDS or at == 223:
                sentences.append(range(start, at + 1))
                start = at + 1
        kept = store._layers[layer].queries
        assert kept.shape == (2, 32, 16)
        last = queries[layer][0].unflatten(0, (2, 2)).mean(1)[:, 0]  # of the group, in the forward before the boundary
        assert torch.equal(last, kept[:, -1])
        for head in range(2):
            probe = kept[head].mean(0)
            order = sorted(sentences, key=lambda span: -(keys[head, list(span)].mean(0) @ probe).item())
            wanted = set(range(8)) | set(range(192, 224))
            for at in (at for span in order for at in span if at not in wanted):
                if len(wanted) == 80:
                    break
                wanted.add(at)
            assert set((~unread(store, layer)[head]).nonzero()[:, 0].tolist()) == wanted


def test_a_budget_for_all_is_pages_alone_to_the_last_bit(small):
    stacks = (wb.SentenceKV(budget=512, ends=ENDS), wb.Stack(quantizer=wb.Paged()))
    whole, pages = (feed(small, wb.cache.as_stack(each).new_store(small, 0), TEXT[:280]) for each in stacks)
    assert torch.equal(whole, pages)
    few = feed(small, wb.Stack(METHOD).new_store(small, 0), TEXT[:280])
    assert not close(few, whole, TERMS)


def test_cold_pages_change_no_number_and_a_fork_adds_no_bytes(small):
    """Bit-equal with and without, also over codes; what is read of the other tier is fetched, page by page."""
    for codec in (wb.Paged(), wb.KIVI(), wb.KIVI(on_device=0, residual=0)):
        stores = [started(small, [wb.SentenceKV(budget=80, sinks=8, ends=ENDS, offload=offload), codec], 230)
                  for offload in (True, False)]  # fmt: skip
        assert torch.equal(*(feed(small, store, TEXT[230:300]) for store in stores))
        cold, warm = ([sum(store.ledger()[kind]) for kind in ("host_bytes", "payload")] for store in stores)
        assert cold[1] == warm[1] and cold[0] > warm[0] or codec.on_device == 0
        for layer, state in enumerate(stores[0]._layers):
            alone = unread(stores[0], layer)
            where, live = state.page_table.places()
            for head, row in enumerate(state.page_table.pages):
                for page, places, lives in zip(row, where[head].split(32), live[head].split(32), strict=False):
                    nothing_read = bool(alone[head, places[lives]].all())
                    assert page.arena.host == (nothing_read or codec.on_device == 0)
        events = stores[0].drain()[0]
        assert {"offload"} <= {event["op"] for event in events}
        counted: dict = {}
        stores[0].ledger(counted)
        shared = stores[0].fork().ledger(counted)
        assert not any(any(shared[kind]) for kind in ("payload", "host_bytes", "note", "score", "pad", "index"))


def test_only_what_is_read_is_fetched(small, monkeypatch):
    """Counted where bytes leave the other tier."""
    store = started(small, [METHOD, wb.KIVI(on_device=0, residual=0)], 230)
    moved, honest = [], Arena.take_out

    def counted(arena, places, device, size=None):
        moved.append(len(places) * arena.codec.bytes)
        return honest(arena, places, device, size)

    store.drain()
    monkeypatch.setattr(Arena, "take_out", counted)
    feed(small, store, [3])
    events, _, reads = store.drain()
    fetched = [event for event in events if event["op"] == "fetch"]
    assert sum(moved) == sum(reads["bytes_fetched"]) == sum(event["bytes"] for event in fetched) > 0
    assert sum(moved) < sum(state.page_table.offloaded for state in store._layers)
    assert all(event["ms"] > 0 for event in fetched) and set(reads["unit"]) == {"slots"}
    assert [held - read for held, read in zip(reads["held"], reads["read"], strict=True)] == [
        int(unread(store, layer).sum()) for layer in range(small.layers)]  # fmt: skip


def test_going_back_repeats_it_and_the_page_draws_it(small):
    session = wb.Session(small, TEXT[:200], wb.Speculative(drafter=wb.DraftModel(DRAFT)), cache=METHOD, seed=3,
                         temperature=1.0, max_new_tokens=40)  # fmt: skip
    session.run()
    session.back(6)
    branch = session.fork()
    branch.run()
    reads = session.trace.reads
    assert branch.trace.token_ids == session.trace.token_ids and branch.trace.reads.equals(reads)
    rounds = web.payload(session.trace)["rounds"]
    assert [n for n in rounds["units_read"] if n is not None] == reads.groupby("round")["read"].sum().tolist()
    assert rounds["host_bytes"][-1] > 0


def test_branches_never_disturb_each_other(small):
    """What a fork holds, and what it says next, is what it would hold and say alone."""
    first = started(small, METHOD, 210)
    second = first.fork()
    feed(small, first, TEXT[5:60])
    feed(small, second, TEXT[100:170])
    for store, more in ((first, TEXT[5:60]), (second, TEXT[100:170])):
        alone = started(small, METHOD, 210)
        feed(small, alone, more)
        assert all(torch.equal(*pair) for pair in zip(contents(store), contents(alone), strict=True))
        assert live_positions(store, 0) == live_positions(alone, 0)
        assert torch.equal(feed(small, store, [1]), feed(small, alone, [1]))


# -- plans ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Own(CacheMethod):
    declared_name = "test-own"
    interval = 32
    ragged = True
    answer = staticmethod(lambda view: Plan())

    def budgets(self, views):
        return [1] * len(views)

    def plan(self, view, budget):
        return self.answer(view)


def first_slots(view, count: int = 4) -> torch.Tensor:
    return torch.zeros_like(view.live) | (torch.arange(view.live.shape[1]) < count)


WRONG = {
    "unread of int64": (lambda view: Plan(unread=first_slots(view).long()), "unread of torch.int64 .*expected bool"),
    "cold of another shape": (lambda view: Plan(cold=first_slots(view)[:, :3]), "cold of torch.bool .2, 3.; expected"),
    "unread newest": (lambda view: Plan(unread=view.live.clone()), "unread of the newest slots; expected"),
    "cold and dropped": (
        lambda view: Plan(keep=~first_slots(view), cold=first_slots(view)), "cold of slots that do not stay; expected",
    ),
    "memory": (lambda view: Plan(memory={"a": 3}), "memory with something else than tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_plan_is_refused_in_one_line(small, monkeypatch, case):
    answer, line = WRONG[case]
    monkeypatch.setattr(Own, "answer", staticmethod(answer))
    with pytest.raises(wb.BadInput, match=f"policy test-own: plan\\(\\) answered {line}") as caught:
        started(small, Own(), 64)
    assert "\n" not in str(caught.value)


def test_without_pages_nothing_is_cold(small, monkeypatch):
    monkeypatch.setattr(Own, "answer", staticmethod(lambda view: Plan(cold=first_slots(view))))
    monkeypatch.setattr(Own, "ragged", False)
    with pytest.raises(wb.BadInput, match="cold of slots that lie in no pages; expected a method that declares ragged"):
        started(small, Own(), 64)


def test_sentences_end_where_the_text_of_a_token_says_so():
    lm = wb.load("embedded")
    marks, ids = wb.SentenceKV().marks(lm), lm.tokenizer("x = 1\nprint('Hi!')\nWhy? So. Done").input_ids
    texts = [lm.tokenizer.decode([token]) for token in ids]
    last = [text for token, text in zip(ids, texts, strict=True) if marks[token]]
    assert len(marks) == lm.vocab_size and len(last) > 3 and all("\n" in text or text[-1] in ".!?" for text in last)
    assert not any("\n" in text or text[-1] in ".!?" for text in set(texts) - set(last))
    assert wb.SentenceKV(ends=(3, 7)).marks(lm)[:9] == bytes([0, 0, 0, 1, 0, 0, 0, 1, 0])


def test_what_cannot_be_is_refused(small):
    with pytest.raises(wb.Unsupported, match="reads where sentences end, and .* has no tokenizer: give ends"):
        wb.decode(small, PROMPT, cache=wb.SentenceKV(), max_new_tokens=1)
    with pytest.raises(wb.BadInput, match="both choose what is read: give one of them"):
        wb.Stack(METHOD, reader=wb.LServe())
    with pytest.raises(wb.BadInput, match="expected a policy that drops slots; sentencekv keeps all and reads some"):
        wb.Merging(METHOD)
    with pytest.raises(wb.BadInput, match="expected a budget above sinks=32 and recent=32 together"):
        wb.SentenceKV(budget=64)


# -- the tier below ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="scratch files are mapped on Linux only")
def test_resident_bytes_really_fall_and_no_name_is_left(tmp_path):
    """In a process of its own, that is killed: what lies below takes no memory, and no file stays behind."""
    code = f"""
import os, torch, tempfile
tempfile.tempdir = {str(tmp_path)!r}
from workbench.cache.scratch import mapped, release
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE")
before, data = resident(), mapped(1 << 26)
data.fill_(7)
full = resident() - before
release(data)
print(full, resident() - before, bool((data[:: 4097] == 7).all()), os.listdir({str(tmp_path)!r}), flush=True)
os.kill(os.getpid(), 9)
"""
    if scratch.mapped(1) is None:
        pytest.skip("the folder for temporary files lies in memory here")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.getcwd())
    full, rest, same, names = done.stdout.strip().split(maxsplit=3)
    assert done.returncode == -9 and int(full) > 6e7 and int(rest) < 1e7 and same == "True" and names == "[]"
    assert os.listdir(tmp_path) == []


def test_where_there_is_no_such_file_the_run_says_so(small, monkeypatch):
    """Nothing is claimed, and no number changes."""
    usual = wb.decode(small, TEXT[:150], cache=wb.KIVI(on_device=64), max_new_tokens=8)
    monkeypatch.setattr(scratch, "_in_memory", lambda number: True)
    same = wb.decode(small, TEXT[:150], cache=wb.KIVI(on_device=64), max_new_tokens=8)
    assert same.token_ids == usual.token_ids
    events = same.events[same.events["op"] == "offload"]
    assert len(events) and set(events["destination"]) == {"same memory"} and same.cache["host_bytes"].sum() == 0
    assert "fetch" not in set(same.events["op"]) and same.cache["fetched"].sum() == 0
    assert usual.cache["host_bytes"].sum() > 0 and "fetch" in set(usual.events["op"])


def test_a_run_leaves_no_open_files(small):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    trace = wb.decode(small, TEXT[:150], cache=wb.KIVI(on_device=64), max_new_tokens=8)
    gc.collect()
    assert trace.cache["host_bytes"].sum() >= 0
    assert not before or len(os.listdir("/proc/self/fd")) <= before


@torch.inference_mode()
def test_reading_pages_counts_them_once(small):
    """Asked for twice in one forward, as by a body that then reads another way, pages are counted once."""
    store = started(small, [METHOD, wb.KIVI()], 210)
    store.drain()
    with mock.patch.object(PageTable, "gathered", autospec=True, side_effect=PageTable.gathered) as gathered:
        store.begin([210])
        q = torch.randn(1, 4, 1, 16)
        store.stage(0, torch.randn(2, 1, 16), torch.randn(2, 1, 16))
        for _ in range(2):
            store.segments(0, None, q)
        store.end()
    store.discard()
    assert gathered.call_count == 1 and len(store.drain()[2]["held"]) == 1

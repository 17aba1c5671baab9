"""Pages, page tables and forks: what one side writes the other never sees; rejected rows leave no trace."""

import gc
import random
import threading
from unittest import mock

import pytest
import torch

import workbench as wb
from tests.cache.conftest import PROMPT, TERMS, contents, feed, page_rows
from tests.rounding import close
from tests.table import stacks
from workbench.cache import apply, quantize
from workbench.cache.codec import Affine
from workbench.cache.pages import Arena, PageTable, PendingPage, page_out
from workbench.cache.protocol import Segment
from workbench.engine.attention import attend, attend_in_place, column_mass, in_place, join
from workbench_kernels.pages import PageFormat, pack

STACKS = dict(stacks())
TEXT = (PROMPT * 4)[:150]
FORM = PageFormat(16, 16, 4, 4, 16)
CODEC = Affine(FORM)
SLOTS = FORM.slots
CPU = torch.device("cpu")


def drafts(count: int, start: int = 0) -> list[PendingPage]:
    torch.manual_seed(start)
    places = torch.arange(start, start + count * SLOTS).view(count, SLOTS)
    rows = pack(torch.randn(count, SLOTS, 16), torch.randn(count, SLOTS, 16), places, torch.full((count,), SLOTS), FORM)
    return [PendingPage(CODEC, rows, i, SLOTS, SLOTS, int(where[-1])) for i, where in enumerate(places)]


# -- page tables
# ----------------------------------------------------------------------------------------------------------


def test_pages_are_shared_until_nobody_names_them():
    """Appending keeps the arena while it has room; a page that the last page table drops goes back to the free list."""
    first = page_out([drafts(2), drafts(3)], CPU, [])
    (arena,) = first.arenas
    assert len(arena.data) == 5 and not arena.free
    fewer = page_out([first.pages[0][:1], first.pages[1]], CPU, [arena])
    assert fewer.arenas == [arena] and not arena.free  # the first page table still holds it
    place = first.pages[0][1].place
    del first
    gc.collect()
    assert arena.free == [place]
    before = arena.data.clone()
    more = page_out([fewer.pages[0], [*fewer.pages[1], drafts(1, 900)[0]]], CPU, [arena])
    assert more.arenas == [arena] and not arena.free
    assert torch.equal(arena.data[[p.place for p in fewer.pages[0]]], before[[p.place for p in fewer.pages[0]]])
    grown = page_out([more.pages[0], [*more.pages[1], *drafts(2, 2000)]], CPU, [arena])
    first = [[row[0].row for row in table.pages] for table in (grown, more)]
    assert grown.arenas != [arena] and all(map(torch.equal, *first))
    assert more.arenas == [arena]  # untouched


def test_tables_name_pages_in_units_of_sixteen_bytes():
    page_table = page_out([drafts(1), drafts(3, 500)], CPU, [])
    assert (
        page_table.count.tolist() == [1, 3]
        and page_table.table.shape == (2, 3)
        and page_table.table.dtype == torch.int32
    )
    (arena,) = page_table.arenas
    for head in range(2):
        for place in range(page_table.count[head]):
            start = int(page_table.table[head, place]) * 16
            assert torch.equal(arena.data.flatten()[start : start + FORM.bytes], page_table.pages[head][place].row)
    _, _, where, live = page_table.decode()
    assert live.sum(-1).tolist() == [32, 96] and where[1][live[1]].tolist() == list(range(500, 596))
    assert sum(page_table.ledger().values()) == arena.data.nbytes + page_table.table.nbytes + page_table.count.nbytes


def test_two_tiers_hold_what_they_should():
    entries = [drafts(3), drafts(3, 1000)]
    page_table = page_out(entries, CPU, [], before=64)
    homes = [[page.arena.host for page in row] for row in page_table.pages]
    assert homes == [[True, True, False], [False, False, False]] and len(page_table.arenas) == 2
    drafted = torch.stack([draft.rows[draft.index] for row in entries for draft in row])
    assert torch.equal(torch.stack(page_rows(page_table)), drafted)
    assert sum(arena.data.nbytes for arena in page_table.arenas if arena.host) == 2 * FORM.bytes
    assert page_table.offloaded == 2 * FORM.bytes
    back = page_out(page_table.pages, CPU, page_table.arenas)
    assert not any(arena.host for arena in back.arenas)
    assert all(map(torch.equal, page_rows(back), page_rows(page_table)))


@torch.inference_mode()
def test_pages_are_decoded_beside_the_run(small):
    """To the last bit what decoding and putting side by side gives; where it cannot be, nothing."""
    run = Segment(torch.randn(2, 7, 16), torch.randn(2, 7, 16))
    table = page_out([drafts(3), drafts(3, 1000)], CPU, [])
    k, v, *_ = table.decode()
    both = table.decoded_before(run)
    assert torch.equal(both[0], torch.cat([k, run.k], 1)) and torch.equal(both[1], torch.cat([v, run.v], 1))
    ragged = page_out([drafts(3), drafts(1, 1000)], CPU, [])
    offloaded = page_out([drafts(3), drafts(3, 1000)], CPU, [], before=64)
    half = Segment(run.k.half(), run.v.half())
    for pages_, given in ((ragged, run), (offloaded, run), (table, half)):
        assert pages_.decoded_before(given) is None
    store = STACKS["kivi4"].new_store(small, 40)
    feed(small, store, TEXT[:130])
    store.begin([130])
    store.stage(0, *torch.randn(2, 2, 1, 16))
    segments = store.segments(0)
    assert segments[0].plain and segments[1].plain and join(torch.zeros(1, 4, 1, 16), segments).k.shape[1] == 131
    with mock.patch.object(PageTable, "decode", side_effect=AssertionError):
        join(torch.zeros(1, 4, 1, 16), segments)  # without another copy


def test_threads_take_different_places():
    arena, taken = Arena(CODEC, CPU, 400), []
    workers = [threading.Thread(target=lambda: taken.extend(arena.take(1)[0] for _ in range(100))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(taken) == list(range(400)) and arena.take(1) is None and arena.take(0) == []


def test_retier_moves_pages_there_and_back(small):
    """Bytes change tiers, no logit changes, and the events name the positions that moved."""
    store, usual = (STACKS["kivi4"].new_store(small, 40) for _ in range(2))
    for each in (store, usual):
        feed(small, each, TEXT[:128])
    shared, total = store.fork(), sum(store.ledger()["payload"])
    store.drain()
    store.retier(64)
    found = store.ledger()
    assert all(found["host_bytes"]) and sum(found["payload"]) == total and not any(shared.ledger()["host_bytes"])
    events, *_ = store.drain()
    assert [(e["layer"], e["head"], e["positions"]) for e in events] == [(n // 2, n % 2, [[0, 64]]) for n in range(4)]
    assert torch.equal(feed(small, store.fork(), [3]), feed(small, usual.fork(), [3]))
    store.retier(32)
    assert {(e["destination"], str(e["positions"])) for e in store.drain()[0]} == {("device", "[[32, 32]]")}
    feed(small, store, TEXT[128:])
    feed(small, usual, TEXT[128:])
    assert all(torch.equal(*pair) for pair in zip(contents(store), contents(usual), strict=True))
    ops = [(event["op"], event["bytes"] > 0) for event in store.drain()[0]]
    assert ("fetch", True) in ops


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("name", ["kivi4", "h2o+kivi2", "streaming+paged", "snapkv+kivi8", "h2o+kivi4-64"])
@torch.inference_mode()
def test_pages_read_where_they_lie_give_what_the_joined_segments_give(small, name, window):
    """Outputs and mass, for one row, a chain and a tree; one page fewer in the table shows."""
    store = STACKS[name].new_store(small, 40)
    feed(small, store, TEXT[:130])
    torch.manual_seed(0)
    for rows in (1, 5):
        store.begin(range(130, 130 + rows), torch.eye(rows, dtype=torch.bool) if rows == 5 else None)
        k, q = torch.randn(2, rows, 16), torch.randn(1, 4, rows, 16)
        store.stage(0, k, k)
        segments = store.segments(0, window)
        assert not in_place(q, segments)  # not on a GPU
        watched = list(range(0, rows, 2))
        out, mass = attend_in_place(q, segments, 0.25, watched)
        assert close(out, attend(q, segments, 0.25), terms=16 + 150)  # scores, then values
        assert close(mass, column_mass(q, segments, 0.25, watched), terms=16 + 150)
        if window is None:
            segments[0].page_table.count -= 1
            assert not close(attend_in_place(q, segments, 0.25)[0], out, terms=16 + 150)
            segments[0].page_table.count += 1
        store.discard()


# -- forks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["h2o", "kivi4", "streaming+paged", "h2o+kivi2", "snapkv+kivi-k8v2"])
def test_branches_never_disturb_each_other(small, name):
    """A random tree of forks: every branch holds bit for bit what it would hold had it run alone."""
    draw = random.Random(name)
    start = STACKS[name].new_store(small, 40)
    feed(small, start, TEXT[:40])
    branches = [(start, TEXT[:40])]
    for _ in range(14):
        store, text = draw.choice(branches)
        if len(branches) < 4:
            store = store.fork()
            branches.append((store, text))
        more = [draw.randrange(11) for _ in range(draw.choice((3, 17, 40)))]
        for token in more:
            feed(small, store, [token])
        branches = [(s, text + more if s is store else t) for s, t in branches]
    for store, text in branches:
        alone = STACKS[name].new_store(small, 40)
        feed(small, alone, text[:40])
        for token in text[40:]:
            feed(small, alone, [token])
        assert all(torch.equal(*pair) for pair in zip(contents(store), contents(alone), strict=True))
        assert torch.equal(feed(small, store.fork(), [1]), feed(small, store, [1]))


@pytest.mark.parametrize("name", ["h2o", "snapkv", "kivi4", "h2o+kivi4"])
def test_rejected_drafts_leave_no_trace(small, name):
    """Drafting and discarding changes no byte; committing one row of a drafted tree is committing it alone."""
    store = STACKS[name].new_store(small, 60)
    feed(small, store, TEXT[:59])
    alone, before = store.fork(), contents(store)
    tree = torch.ones(3, 3, dtype=torch.bool).tril()
    tree[2, 1] = False
    small.forward(TEXT[59:60], [59], store)
    store.discard()
    small.forward(TEXT[59:62], [59, 60, 60] if store.rows_left(59) > 1 else [59, 59, 59], store, tree)
    assert all(torch.equal(a, b) for a, b in zip(contents(store), before, strict=True))
    store.commit([0])
    feed(small, alone, TEXT[59:60])
    held, wanted = contents(store), contents(alone)
    assert all(close(mine, theirs, TERMS) for mine, theirs in zip(held, wanted, strict=True))
    assert store.ledger()["live_slots"] == alone.ledger()["live_slots"]
    wanted[0][0, -1] *= 1.01  # the last key, off by a hundredth: the bound is not wide
    assert not close(held[0], wanted[0], TERMS)


def test_boundaries_are_kept(small):
    """No forward and no commit passes a maintenance; `room` says how far one may go."""
    store = STACKS["h2o+kivi4"].new_store(small, 40)
    assert store.rows_left(0) == 32 and store.rows_left(31) == 1 and store.rows_left(32) == 32
    feed(small, store, TEXT[:30])
    with pytest.raises(RuntimeError, match="pass the cache's maintenance at 32"):
        small.forward(TEXT[30:33], range(30, 33), store)
    store.discard()
    small.forward([1, 2, 3], [30, 31, 31], store, torch.eye(3, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="pass the maintenance at 32"):
        store.commit(range(3))
    store.commit(range(2))
    snap = STACKS["snapkv"].new_store(small, 40)
    assert (snap.rows_left(0), snap.rows_left(39)) == (40, 1) and snap.rows_left(40) > 10**9


def test_a_fork_between_forwards_of_a_round_is_refused(small):
    store = STACKS["h2o"].new_store(small, 40)
    small.forward([1], [0], store)
    with pytest.raises(RuntimeError, match="still staged"):
        store.fork()


# -- no memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, where", [("kivi4", "page_out"), ("h2o+kivi2", "page_out"), ("h2o", "_Run"), ("kivi4", "_Run")]
)
def test_running_out_of_memory_in_maintenance_changes_nothing(small, monkeypatch, name, where):
    """The commit raises; the next forward makes up for the maintenance, and all is as if nothing had happened."""
    store, usual = (STACKS[name].new_store(small, 40) for _ in range(2))
    for start, end in ((0, 95), (95, 96), (96, 101)):
        feed(small, usual, TEXT[start:end])
    feed(small, store, TEXT[:95])
    module = apply if where == "_Run" else quantize
    honest, calls = getattr(module, where), []

    def full(*_, **__):
        calls.append(1)
        raise MemoryError("full")

    with monkeypatch.context() as patch:
        if where == "_Run":
            patch.setattr(honest, "of", full)
        else:
            patch.setattr(module, where, full)
        with pytest.raises(MemoryError):
            feed(small, store, TEXT[95:96])
        assert calls and store.length == 96 and store.staged == 0
        with pytest.raises(MemoryError):
            feed(small, store, TEXT[96:97])
        store.discard()
    feed(small, store, TEXT[96:101])
    assert all(torch.equal(*pair) for pair in zip(contents(store), contents(usual), strict=True))


def test_a_session_goes_on_after_running_out_of_memory(small, monkeypatch):
    expected = wb.decode(small, PROMPT, cache=STACKS["h2o+kivi4"], max_new_tokens=40).token_ids
    session = wb.Session(small, PROMPT, cache=STACKS["h2o+kivi4"], max_new_tokens=40)
    session.run(rounds=5)

    def full(*_):
        raise MemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(quantize, "page_out", full)
        with pytest.raises(MemoryError):
            session.run()
    session.run()
    assert session.trace.token_ids == expected

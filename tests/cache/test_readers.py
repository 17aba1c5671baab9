"""Readers: what a row reads is its own affair, exact where nothing is left out, counted where something is."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch

import workbench as wb
from tests.cache.conftest import DRAFT, PROMPT, TERMS, build, feed
from tests.rounding import close
from workbench.cache.pages import PageTable
from workbench.cache.readers.base import CacheReader, PageView, Reading
from workbench.models.adapter import wrap
from workbench.web import data as web

TEXT = PROMPT * 6
CHAIN = [-1, 0, 1, 2, 3]  # the parent of each row
TREE = [-1, 0, 0, 1, 1, 2]
READER = wb.LServe(budget=96)


@dataclass(frozen=True)
class Together(wb.LServe):
    """What was drafted together reads together."""

    declared_name = "test-together"

    def select(self, reading: Reading) -> torch.Tensor:
        found = super().select(reading)
        return found.any(1, keepdim=True).expand_as(found)


@pytest.fixture
def chosen(monkeypatch) -> list[torch.Tensor]:
    """Every choice of a reader, layer by layer."""
    found, honest = [], CacheReader.selected
    monkeypatch.setattr(CacheReader, "selected", lambda self, reading: found.append(honest(self, reading)) or found[-1])
    return found


def ancestors(parents: list[int], row: int) -> list[int]:
    path = [row]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


def alone_and_together(lm, stack, parents: list[int], chosen: list, length: int = 261):
    """What rows of a draft chose and said, and what each does behind its own ancestors alone."""
    store = wb.cache.as_stack(stack).new_store(lm, 40)
    feed(lm, store, TEXT[:length])
    paths = [ancestors(parents, row) for row in range(len(parents))]
    ids, depth = [(5 * row + 3) % 11 for row in range(len(parents))], [len(path) - 1 for path in paths]
    mask = torch.tensor([[column in path for column in range(len(parents))] for path in paths])
    singles = []
    for path in paths:
        one = store.fork()
        if len(path) > 1:
            feed(lm, one, [ids[row] for row in path[:-1]])
        chosen.clear()
        logits = lm.forward([ids[path[-1]]], [length + len(path) - 1], one).logits[0]
        singles.append(([each[:, 0].clone() for each in chosen], logits))
    chosen.clear()
    logits = lm.forward(ids, [length + d for d in depth], store, mask).logits
    return singles, [([each[:, row] for each in chosen], logits[row]) for row in range(len(parents))]


@pytest.mark.parametrize("parents", [CHAIN, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("over", ["pages", "kivi4", "mixed", "h2o", "window"])
def test_a_row_in_a_draft_reads_and_says_what_it_would_alone(small, chosen, parents, over):
    lm = wrap(build(window=200)) if over == "window" else small
    parts = {"kivi4": [wb.KIVI()], "mixed": [wb.MixedKIVI(interval=64)], "h2o": [wb.H2O(budget=200), wb.KIVI()]}
    singles, together = alone_and_together(lm, [*parts.get(over, ()), READER], parents, chosen)
    left_out = set()
    for (mine, logits), (theirs, found) in zip(singles, together, strict=True):
        assert len(mine) == lm.layers and all(map(torch.equal, mine, theirs))
        assert close(found, logits, TERMS)
        left_out |= {tuple(map(tuple, each.tolist())) for each in mine}
    assert len(left_out) > 1 and not all(all(map(all, each)) for each in left_out)  # rows differ, and leave pages out


@pytest.mark.parametrize("parents", [CHAIN, TREE], ids=["chain", "tree"])
def test_rows_that_read_together_would_break_it(small, chosen, parents):
    """Negative control."""
    singles, together = alone_and_together(small, Together(budget=96), parents, chosen)
    assert not all(torch.equal(a, b) for one, other in zip(singles, together, strict=True)
                   for a, b in zip(one[0], other[0], strict=True))  # fmt: skip
    assert not all(close(other[1], one[1], TERMS) for one, other in zip(singles, together, strict=True))


@pytest.mark.parametrize("over", [(None, None), (None, wb.KIVI(bits=2)), (wb.H2O(budget=150), wb.MixedKIVI())])
def test_reading_all_is_the_stack_without_a_reader_to_the_last_bit(small, over):
    whole, plain = (wb.Stack(*over, reader=reader) for reader in (wb.LServe(budget=512), None)) if any(over) else (
        wb.Stack(reader=wb.LServe(budget=512)), wb.Stack(quantizer=wb.Paged()))  # fmt: skip
    found, expected = (feed(small, stack.new_store(small, 40), TEXT[:280]) for stack in (whole, plain))
    assert torch.equal(found, expected)
    few = feed(small, wb.Stack(*over, reader=wb.LServe(budget=64)).new_store(small, 40), TEXT[:280])
    assert torch.equal(few[:64], expected[:64]) and not close(few, expected, TERMS)


def random_reading(seed: int, pages: int = 7, page_size: int = 32, rows: int = 3) -> tuple[Reading, PageView]:
    draw = torch.Generator().manual_seed(seed)
    k = torch.randn(2 * pages, page_size, 16, generator=draw) * torch.rand(2 * pages, 1, 16, generator=draw) * 3
    live = torch.rand(2 * pages, page_size, generator=draw) < 0.9
    live[0, :16] = False  # a sub-page with nothing in it
    view = PageView(k, k, torch.zeros(live.shape), live)
    newest = torch.arange(pages, dtype=torch.int32).expand(2, -1) * 32 + 31
    there = torch.ones(2, rows, pages, dtype=torch.bool)
    there[1, :, -1] = False  # a page less in the second head
    newest = newest.clone()
    newest[1, -1] = -1
    q = torch.randn(4, rows, 16, generator=draw)
    return Reading(0, q, wb.LServe().notes(view).unflatten(0, (2, pages)), newest, there, page_size), view


@pytest.mark.parametrize("seed", range(4))
def test_the_bound_is_never_exceeded_and_the_choice_is_that_of_brute_force(seed):
    reading, view = random_reading(seed, page_size=(32, 64)[seed % 2])
    pages, size = reading.there.shape[-1], reading.page_size
    k, live = view.k.view(2, pages, size, 16), view.live.view(2, pages, size)
    bounds, budget = wb.LServe().bounds(reading), 3
    found = wb.LServe(budget=budget * size).select(reading) & reading.there
    for head, row in product(range(2), range(3)):
        by_page = []
        for page in range(pages):
            best = -1e30
            for q in reading.queries[2 * head : 2 * head + 2, row]:
                scores = k[head, page][live[head, page]] @ q
                g = 0 if torch.equal(q, reading.queries[2 * head, row]) else 1
                assert (scores <= bounds[head, g, row, page] + 1e-4).all()
                for start in range(0, size, 16):
                    part = k[head, page, start : start + 16][live[head, page, start : start + 16]]
                    if len(part):
                        best = max(best, torch.maximum(q * part.amin(0), q * part.amax(0)).sum().item())
            by_page.append(best)
        there = [page for page in range(pages) if reading.there[head, row, page]]
        always = {there[0], there[-1]}
        rest = sorted((page for page in there if page not in always), key=lambda page: -by_page[page])
        assert set(found[head, row].nonzero()[:, 0].tolist()) == always | set(rest[: budget - 2])


def test_bytes_are_those_of_the_pages_that_were_touched(small, monkeypatch):
    """Counted where pages are decoded, round by round; fetched are those that lie elsewhere."""
    for quantizer in (wb.Paged(), wb.KIVI(on_device=64), wb.MixedKIVI()):
        touched, honest = [], PageTable._unpacked

        def counted(table, pages=None, touched=touched, honest=honest):
            named = [page for page in table.named(None if pages is None else pages.tolist()) if page is not None]
            touched.append([(page.codec.bytes, page.arena.host) for page in named])
            return honest(table, pages)

        session = wb.Session(small, TEXT[:200], cache=[quantizer, READER], max_new_tokens=20)
        session.run(rounds=3)
        with monkeypatch.context() as patch:
            patch.setattr(PageTable, "_unpacked", counted)
            session.run(rounds=1)
        last = session.trace.reads[session.trace.reads["round"] == session.trace.reads["round"].max()]
        flat = [page for pages in touched for page in pages]
        assert last["bytes_read"].sum() == sum(size for size, _ in flat) > 0
        assert last["bytes_fetched"].sum() == sum(size for size, away in flat if away)
        assert (last["bytes_fetched"].sum() > 0) == (quantizer.on_device is not None)
        assert last["read"].sum() == len(flat) < last["held"].sum() and set(last["unit"]) == {"pages"}
        store = session.state.runners["target"].store
        run = small.kv_bytes() * (store.held)
        assert session.trace.forwards["kv_read_bytes"].iloc[-1] == last["bytes_read"].sum() + run


def test_notes_are_the_index_of_the_ledger_and_shared_by_forks(small):
    store = wb.Stack(wb.H2O(budget=150), wb.KIVI(), READER).new_store(small, 40)
    feed(small, store, TEXT[:280])
    columns = store.ledger()
    for layer, state in enumerate(store._layers):
        table = state.page_table
        notes = [page.arena.notes[page.place] for row in table.pages for page in row]
        assert columns["index"][layer] == sum(note.nbytes for note in notes) > 0
        decoded = PageView(*table._unpacked())
        assert torch.equal(table.notes().flatten(0, 1), READER.notes(decoded))  # also of pages that lost slots
    shared, seen = store.fork(), {}
    store.ledger(seen)
    assert sum(shared.ledger(seen)["index"]) == 0


def test_going_back_and_forking_repeat_what_was_read(small):
    session = wb.Session(small, TEXT[:200], wb.Speculative(drafter=wb.DraftModel(DRAFT)), cache=READER, seed=3,
                         temperature=1.0, max_new_tokens=24)  # fmt: skip
    session.run()
    ids, reads = session.trace.token_ids, session.trace.reads
    assert {*reads["model"]} == {"target"}
    session.back(4)
    branches = [session.fork(), session.fork(at=5)]
    for branch in branches:
        branch.run()
        assert branch.trace.token_ids == ids and len(reads)
    assert branches[0].trace.reads.equals(reads)


def test_the_page_draws_what_a_run_read(small):
    """The track shows sums that the run has: fewer than there were."""
    trace = wb.decode(small, TEXT[:200], cache=READER, max_new_tokens=6)
    rounds, table = web.payload(trace)["rounds"], trace.reads
    sums = table.groupby("round")[["held", "read"]].sum()
    assert [n for n in rounds["units_read"] if n is not None] == sums["read"].tolist()
    assert [n for n in rounds["units_held"] if n is not None] == sums["held"].tolist()
    assert (sums["read"] < sums["held"]).all() and len(sums) == 5  # the last token of the prompt reads all


class Wrong(wb.LServe):
    declared_name = "test-wrong"


@pytest.mark.parametrize(
    "method, answer, line",
    [
        ("notes", lambda self, pages: torch.zeros(1), "answered torch.float32 .1.; expected a tensor of .* rows"),
        ("select", lambda self, reading: reading.there[0], "answered torch.bool .*; expected bool .2, 1, 5."),
        ("select", lambda self, reading: None, "answered a NoneType; expected bool"),
    ],
)
def test_wrong_answers_are_refused(small, monkeypatch, method, answer, line):
    monkeypatch.setattr(Wrong, method, answer)
    with pytest.raises(wb.BadInput, match=f"reader test-wrong: {method}.. {line}"):
        wb.decode(small, TEXT[:200], cache=Wrong(), max_new_tokens=3)


def test_what_cannot_go_with_a_reader_is_refused(toy):
    with pytest.raises(wb.BadInput, match="reads pages: use positions='baked'"):
        wb.Stack(wb.StreamingLLM(positions="slot"), reader=READER)
    with pytest.raises(wb.Unsupported, match="lserve reads the queries of rows, which 'toy-7' does not give"):
        wb.decode(toy, [0, 1], cache=READER, max_new_tokens=1)

"""The plain store against lists of tokens: forks share until somebody writes, branches never disturb each other."""

import random
import threading
from dataclasses import dataclass, field

import pytest
import torch

import workbench as wb
from tests.engine.test_adapter import PROMPT, TOLERANCE, build, close, stock
from workbench.cache import PlainStore
from workbench.cache.stack import Stack
from workbench.decoders import Autoregressive
from workbench.engine.settings import Settings
from workbench.models.adapter import wrap

LAYERS = 2


def forward(store: PlainStore, numbers: list[int], visible=None) -> None:
    """One forward of rows whose keys are their numbers (values: their negatives), at the next positions."""
    start = store.length + store.staged
    store.begin(range(start, start + len(numbers)), visible)
    for layer in range(LAYERS):
        k = torch.tensor(numbers, dtype=torch.float64)[None, :, None].expand(3, -1, 2) + layer / 4
        store.stage(layer, k, -k[..., :1])
    store.end()


def append(store: PlainStore, numbers: list[int]) -> None:
    forward(store, numbers)
    store.commit(range(len(numbers)))


def held(store: PlainStore, count: int) -> list[int]:
    """The first `count` numbers in the store, all layers, heads, keys and values agreeing."""
    out = None
    for layer in range(LAYERS):
        if store._run.k[layer] is None:
            found = []
        else:
            k, v = store._run.k[layer][:, :count], store._run.v[layer][:, :count]
            assert (k == k[:1, :, :1]).all() and (v == -k[..., :1]).all()
            found = (k[0, :, 0] - layer / 4).tolist()
        out = found if out is None else out
        assert found == out
    return [int(n) for n in out]


def pointers(store: PlainStore) -> list[int]:
    return [t.untyped_storage().data_ptr() for t in [*store._run.k, *store._run.v]]


def test_a_fork_copies_nothing_until_somebody_writes():
    first = PlainStore(LAYERS)
    append(first, [1, 2, 3])
    second = first.fork()
    assert pointers(second) == pointers(first) and second.length == 3
    before = pointers(first)
    append(first, [4])  # free slots: the first to come appends in place
    assert pointers(first) == before == pointers(second)
    append(second, [5])  # its slot is taken now: its own copy
    assert pointers(first) == before
    assert not set(pointers(second)) & set(before)
    assert held(first, 4) == [1, 2, 3, 4] and held(second, 4) == [1, 2, 3, 5]
    again = pointers(second)
    append(second, [6])
    assert pointers(second) == again  # it is alone there: no second copy


def test_a_fork_of_a_shorter_past_does_not_write_over_the_present():
    store = PlainStore(LAYERS)
    append(store, [1, 2])
    past = store.fork()
    append(store, [3, 4])
    forward(past, [9])  # staged only: even that must not touch slot 2
    assert held(store, 4) == [1, 2, 3, 4]
    past.discard()


def test_committing_nothing_from_the_past_does_not_free_the_present():
    """A runner that fed nothing in a round still commits; its shorter length must not become the frontier."""
    store = PlainStore(LAYERS)
    append(store, [1, 2])
    past, other = store.fork(), store.fork()
    append(store, [3])
    past.commit([])
    append(other, [9])
    assert held(store, 3) == [1, 2, 3] and held(other, 3) == [1, 2, 9]


def test_two_branches_may_have_rows_in_flight_at_once():
    """Both at the frontier: whoever comes second moves away, although nothing is committed yet."""
    first = PlainStore(LAYERS)
    append(first, [1, 2])
    second = first.fork()
    forward(first, [3])
    forward(second, [7])
    forward(first, [4])
    first.commit([0, 1])
    second.commit([0])
    assert held(first, 4) == [1, 2, 3, 4] and held(second, 3) == [1, 2, 7]


def test_a_branch_that_is_dropped_in_flight_frees_its_slots():
    first = PlainStore(LAYERS)
    append(first, [1])
    branch = first.fork()
    forward(branch, [5])
    before = pointers(first)
    del branch
    append(first, [2])
    assert pointers(first) == before and held(first, 2) == [1, 2]


def test_a_fork_between_forwards_of_a_round_is_refused():
    store = PlainStore(LAYERS)
    forward(store, [1])
    with pytest.raises(RuntimeError, match="still staged"):
        store.fork()


@dataclass
class Naive:
    """The same branch as plain lists."""

    store: PlainStore
    kept: list[int] = field(default_factory=list)
    flight: list[int] = field(default_factory=list)


@pytest.mark.parametrize("seed", range(12))
def test_random_lives_of_many_branches(seed):
    """Forwards, commits of random rows, discards, forks and drops in any interleaving equal lists of tokens."""
    draw, count = random.Random(seed), iter(range(1, 10**6))
    branches = [Naive(PlainStore(LAYERS))]
    for _ in range(150):
        one = draw.choice(branches)
        action = draw.choice(["forward", "forward", "commit", "commit", "discard", "fork", "drop"])
        if action == "forward" and len(one.kept) < 300:
            numbers = [next(count) for _ in range(draw.choice([1, 1, 2, 5, 40]))]
            forward(one.store, numbers)
            one.flight += numbers
        elif action == "commit":
            rows = sorted(draw.sample(range(len(one.flight)), draw.randint(0, len(one.flight))))
            if draw.random() < 0.4:
                rows = list(range(len(rows)))
            one.store.commit(rows)
            one.kept, one.flight = one.kept + [one.flight[r] for r in rows], []
        elif action == "discard":
            one.store.discard()
            one.flight = []
        elif action == "fork" and not one.flight and len(branches) < 6:
            branches.append(Naive(one.store.fork(), list(one.kept)))
        elif action == "drop" and len(branches) > 1:
            branches.remove(one)
        for each in branches:
            assert (each.store.length, each.store.staged) == (len(each.kept), len(each.flight))
            assert held(each.store, len(each.kept) + len(each.flight)) == each.kept + each.flight
            ledger = each.store.ledger()
            assert ledger["live_slots"] == [len(each.kept)] * LAYERS
            total = [sum(parts) for parts in zip(ledger["payload"], ledger["staging"], ledger["pad"], strict=True)]
            pairs = zip(each.store._run.k, each.store._run.v, strict=True)
            assert total == [0 if k is None else k.nbytes + v.nbytes for k, v in pairs]


@pytest.mark.parametrize("window", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("seed", range(5))
def test_masks_equal_their_definition(window, seed):
    """A key is visible if the round's mask (or the order, in a chain) allows it and it lies inside the window."""
    draw = random.Random(seed)
    store = PlainStore(LAYERS)
    append(store, list(range(draw.randint(1, 12))))
    base, depths = store.length, []
    for _ in range(draw.randint(1, 3)):
        rows, staged = draw.randint(1, 4), len(depths)
        visible = None
        if draw.random() < 0.7:
            visible = torch.rand(rows, staged + rows, generator=torch.Generator().manual_seed(seed)) < 0.5
            visible[:, staged:] |= torch.eye(rows, dtype=torch.bool)
        fresh = [draw.randint(0, 4) if visible is not None else staged + i for i in range(rows)]
        store.begin([base + d for d in fresh], visible)
        depths += fresh
        for layer in range(LAYERS):
            store.stage(layer, torch.zeros(3, rows, 2), torch.zeros(3, rows, 1))
            (segment,) = store.segments(layer, window)
            assert segment.k.shape == (3, base + len(depths), 2)
            found = segment.mask
            if found is None:
                n = base + len(depths)
                found = torch.ones(rows, n, dtype=torch.bool).tril(n - rows if segment.causal else n)
            for row in range(rows):
                for key in range(base + len(depths)):
                    where = key if key < base else base + depths[key - base]
                    if key < base:
                        allowed = True
                    elif visible is None:
                        allowed = key - base <= staged + row
                    else:
                        allowed = bool(visible[row, key - base])
                    inside = window is None or base + fresh[row] - where < window
                    assert bool(found[row, key]) == (allowed and inside), (row, key)
        store.end()


def test_branches_decode_in_threads_as_they_do_alone(lm):
    """Four branches of one state, stepped at once: the same tokens as one after the other."""
    decoder = Autoregressive()
    start = decoder.start(lm, list(range(50, 90)), Settings(max_new_tokens=24, level="off"))
    decoder.step(start)
    sampling = wb.Sampling(temperature=1.0)
    settings = [Settings(sampling=sampling, seed=seed, max_new_tokens=24, level="off") for seed in range(4)]

    def run(state) -> None:
        while not state.ended:
            decoder.step(state)

    def branches() -> list:
        states = [start.fork() for _ in settings]
        for state, one in zip(states, settings, strict=True):
            state.settings = one
        return states

    alone = branches()
    for state in alone:
        run(state)
    together = branches()
    threads = [threading.Thread(target=run, args=(state,)) for state in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [s.new_tokens for s in together] == [s.new_tokens for s in alone]
    assert len({tuple(s.new_tokens) for s in alone}) > 1


# -- forwards over some of the layers ------------------------------------------------------------------------------


def partly(store: PlainStore, layers: range, numbers: list[int], positions: list[int]) -> None:
    """A forward over some layers, which see what they have staged themselves and no more."""
    store.begin(positions, None, layers)
    for layer in layers:
        k = torch.tensor(numbers, dtype=torch.float64)[None, :, None].expand(3, -1, 2) + layer / 4
        store.stage(layer, k, -k[..., :1])
        (segment,) = store.segments(layer)
        assert segment.k.shape[1] == store.length + store.behind + len(numbers)
        assert segment.k[0, -len(numbers) :, 0].tolist() == k[0, :, 0].tolist()
    store.end()


FIRST, REST, ALL = range(2), range(2, 5), range(5)


@pytest.mark.parametrize("seed", range(8))
def test_random_rounds_layer_by_layer(seed):
    """Two layers run ahead, three come to the same slots: each holds its own rows, whatever the order of work; a row
    that is not in all layers cannot be committed, and a forward over layers that differ is refused."""
    draw, count = random.Random(seed), iter(range(1, 10**6))
    store, kept, flight, done = PlainStore(len(ALL)), [], [], {0: 0, 2: 0}  # done: rows by the group's first layer
    for _ in range(120):
        action = draw.choice(["ahead", "ahead", "follow", "follow", "all", "commit", "discard"])
        start = store.length
        if action == "ahead":
            numbers = [next(count) for _ in range(draw.choice([1, 1, 3, 40]))]
            partly(store, FIRST, numbers, [*range(start + done[0], start + done[0] + len(numbers))])
            flight += numbers
            done[0] = len(flight)
        elif action == "follow" and done[2] < done[0]:
            numbers = flight[done[2] : draw.randint(done[2] + 1, done[0])]
            partly(store, REST, numbers, [*range(start + done[2], start + done[2] + len(numbers))])
            done[2] += len(numbers)
        elif action == "all":
            if done[0] != done[2]:
                with pytest.raises(RuntimeError, match=r"the layers to run have staged \[\d+, \d+\] rows"):
                    store.begin([start + done[0]])
                continue
            flight.append(next(count))
            partly(store, ALL, flight[-1:], [start + len(flight) - 1])
            done = dict.fromkeys(done, len(flight))
        elif action == "commit":
            whole = min(done.values())
            if whole < len(flight):
                with pytest.raises(RuntimeError, match=rf"row {len(flight) - 1} has been through 2 of 5 layers"):
                    store.commit(range(len(flight)))
            rows = sorted(draw.sample(range(whole), draw.randint(0, whole)))
            store.commit(rows)
            kept, flight, done = kept + [flight[row] for row in rows], [], {0: 0, 2: 0}
        elif action == "discard":
            store.discard()
            flight, done = [], {0: 0, 2: 0}
        assert (store.length, store.staged) == (len(kept), len(flight))
        staging = store.ledger()["staging"]
        for layer in ALL if store._run.k[4] is not None else ():
            own = kept + flight[: done[0 if layer < 2 else 2]]
            assert (store._run.k[layer][0, : len(own), 0] - layer / 4).tolist() == own
            assert staging[layer] == (len(own) - len(kept)) * 3 * 3 * 8


def test_rows_in_flight_keep_their_positions():
    """A forward that comes to rows in flight must speak of the same ones; it may go on beyond them."""
    store = PlainStore(len(ALL))
    partly(store, FIRST, [1, 2, 3], [0, 1, 1])
    with pytest.raises(RuntimeError, match=r"rows in flight are at positions \[0, 1\], got \[0, 2\]"):
        store.begin([0, 2], None, REST)
    partly(store, REST, [1, 2, 3, 4], [0, 1, 1, 2])
    partly(store, FIRST, [4], [2])
    store.commit([0, 2, 3])
    assert [int(x) for x in store._run.k[0][0, :3, 0]] == [1, 3, 4]


def test_rows_beyond_those_staged_cannot_be_committed():
    store = PlainStore(LAYERS)
    forward(store, [1, 2])
    with pytest.raises(RuntimeError, match="row 2 has been through 0 of 2 layers"):
        store.commit([0, 2])
    store.commit([0, 1])
    assert store.length == 2


@pytest.mark.parametrize("name", ["llama-gqa", "mistral-window", "qwen2-mixed-windows", "gpt-neox", "gpt2"])
def test_the_first_layers_ahead_and_the_others_after_are_one_ordinary_run(name):
    """Rows drafted one by one through layers 0 and 1, then their exit states through layer 2 at once: the logits, and
    after a commit of some rows those of the next token, are the stock model's."""
    model = build(name)
    lm, tolerance = wrap(model), TOLERANCE[torch.float64]
    store, expected = lm.new_store(), stock(model, PROMPT)
    lm.forward(PROMPT[:13], range(13), store)
    store.commit(range(13))
    exits = []
    for start, end in [(13, 14), (14, 15), (15, 20)]:
        out = lm.forward(PROMPT[start:end], range(start, end), store, layers=range(2), logits_at=[], want=("exit",))
        assert out.logits.shape == (0, 97) and out.exit.shape == (end - start, 32)
        exits.append(out.exit)
    with pytest.raises(RuntimeError, match="row 0 has been through 2 of 3 layers"):
        store.commit([0])
    states = torch.cat(exits)
    first = lm.forward(states[:4], range(13, 17), store, layers=[2]).logits
    rest = lm.forward(states[4:6], range(17, 19), store, layers=[2]).logits
    close(torch.cat([first, rest]), expected[13:19], tolerance)
    with pytest.raises(RuntimeError, match="row 6 has been through 2 of 3 layers"):
        store.commit(range(7))
    store.commit(range(6))
    close(lm.forward(PROMPT[19:], range(19, 28), store).logits, expected[19:], tolerance)
    store.discard()
    exit_ = lm.forward(PROMPT[19:], range(19, 28), store, want=("hidden", "exit"))
    close(exit_.logits, expected[19:], tolerance)
    assert not torch.equal(exit_.exit, exit_.hidden)


def test_a_tree_through_the_first_layers_then_through_the_others():
    """Siblings at one position under a mask, layers 0 and 1 first: each path is as the stock model runs it."""
    model = build("llama-gqa")
    lm = wrap(model)
    store = lm.new_store()
    lm.forward(PROMPT[:13], range(13), store)
    store.commit(range(13))
    rows, places = [5, 6, 7], [13, 14, 14]
    mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)
    states = lm.forward(rows, places, store, mask, layers=[0, 1], want=("exit",)).exit
    logits = lm.forward(states, places, store, mask, layers=[2]).logits
    for row, path in ((1, [5, 6]), (2, [5, 7])):
        close(logits[row], stock(model, PROMPT[:13] + path)[-1], TOLERANCE[torch.float64])
    store.commit([0, 2])
    close(lm.forward([8], [15], store).logits[0], stock(model, [*PROMPT[:13], 5, 7, 8])[-1], TOLERANCE[torch.float64])


STACKS = {
    "streaming": Stack(wb.StreamingLLM(window=12)),
    "h2o": Stack(wb.H2O(budget=12)),
    "snapkv": Stack(wb.SnapKV(budget=12, window=4)),
    "h2o+kivi": Stack(wb.H2O(budget=48), wb.KIVI(bits=8, residual=0)),
}


@pytest.mark.parametrize("name", STACKS)
def test_under_a_cache_stack_too(name):
    """Layer by layer or all at once: the same logits before and after the maintenance that follows, and no commit of
    rows that are in some layers only."""
    lm = wrap(build("llama-wide-heads"))
    text = [(11 * i + 5) % 97 for i in range(100)]

    def run(split: bool) -> torch.Tensor:
        store, logits = STACKS[name].new_store(lm, 8), []
        at = 0
        while at < len(text):
            end = min(len(text), at + min(5, store.rows_left(at)))
            if split:
                states = [
                    lm.forward([text[i]], [i], store, layers=[0, 1], logits_at=[], want=("exit",)).exit
                    for i in range(at, end)
                ]
                with pytest.raises(RuntimeError, match="has been through 2 of 3 layers"):
                    store.commit([0])
                logits.append(lm.forward(torch.cat(states), range(at, end), store, layers=[2]).logits)
            else:
                logits.append(lm.forward(text[at:end], range(at, end), store).logits)
            store.commit(range(end - at))
            at = end
        return torch.cat(logits)

    close(run(True), run(False), 1e-9)

"""What the map is drawn from: rows about slots, replayed as documented, give the cache that the trace describes."""

import numpy as np
import pytest

import workbench as wb
from tests.unit.views.test_cache_views import random_run
from workbench import web
from workbench.trace import Trace
from workbench.trace import slots as recorded
from workbench.trace.slots import OPS, STATES, changes, replay

HELD, WIDTH = OPS.index("held"), OPS.index("width")
GONE = [OPS.index("evicted"), OPS.index("merged away")]
ABSENT = len(OPS)
SAME = {"absent": ABSENT, "evicted": GONE[0], "merged away": GONE[1], "host": OPS.index("on the host"),
        "merged into": OPS.index("merged into"), "kept": HELD}  # fmt: skip
STACKS = {
    "evicting": wb.Stack(wb.StreamingLLM(sinks=2, window=30)),
    "quantizing": wb.Stack(wb.H2O(budget=96), wb.KIVI(bits=4)),
    "merging": wb.Stack(wb.Merging(method=wb.H2O(budget=48), threshold=0.1)),
    "adding": wb.Stack(wb.CaM(budget=48)),
    "offloading": wb.Stack(quantizer=wb.KIVI(bits=4, on_device=32)),
}


def replayed(rows: dict[str, list], shape: tuple[int, int, int]) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Round, state and bits [layers, heads, positions] after every round in the rows, by the rules of `changes`."""
    state, bits, found = np.full(shape, ABSENT), np.full(shape, np.nan), []
    columns = [rows[name] for name in ("round", "layer", "head", "start", "length", "op", "bits")]
    for round, layer, head, start, length, op, width in zip(*columns, strict=True):
        every = slice(None)
        here = (every if layer < 0 else layer, every if head < 0 else head, slice(start, start + length))
        now = state[here]
        if op == HELD:
            now[~np.isin(now, GONE)] = HELD
        elif op != WIDTH:
            now[~np.isin(now, [*GONE, ABSENT])] = op
        if width is not None:
            bits[here] = width
        if found and found[-1][0] == round:
            found.pop()
        found.append((round, state.copy(), bits.copy()))
    return found


def check(trace: Trace) -> set[int]:
    """Compare with `replay` at every round; the states that were seen."""
    seen, last = set(), replay(trace)
    for round, state, bits in replayed(changes(trace.log), last.state.shape):
        slots = replay(trace, round)
        n = slots.state.shape[2]
        expected = np.array([SAME[name] for name in STATES])[slots.state]
        assert (state[:, :, :n] == expected).all() and (state[:, :, n:] == ABSENT).all(), f"round {round}"
        there = slots.state >= STATES.index("host")
        mean = (slots.bits_k + slots.bits_v) / 2
        assert np.allclose(bits[:, :, :n][there], mean[there]), f"round {round}"
        seen |= {*np.unique(state).tolist()}
    return seen


@pytest.fixture(scope="module")
def runs(lm):
    text = "def fibonacci(n):\n    a, b = 0, 1\n    for i in range(n):\n        a, b = b, a + b\n    return a\n" * 4
    return {
        name: wb.decode(lm, text, max_new_tokens=40, ignore_eos=True, cache=stack) for name, stack in STACKS.items()
    }


@pytest.mark.parametrize("name", STACKS)
def test_the_rows_replayed_are_the_cache_of_every_round(runs, name):
    seen = check(runs[name])
    assert HELD in seen
    special = {"evicting": "evicted", "quantizing": "evicted", "merging": "merged into", "adding": "merged away",
               "offloading": "on the host"}  # fmt: skip
    assert OPS.index(special[name]) in seen


@pytest.mark.parametrize("seed", range(8))
def test_events_of_every_kind_are_replayed(seed):
    trace, held = random_run(seed, runs=bool(seed % 2))
    check(trace)
    *_, (_, state, _) = replayed(changes(trace.log), replay(trace).state.shape)
    for layer, mine in enumerate(held):
        assert {*np.flatnonzero(~np.isin(state[layer, 0], [*GONE, ABSENT])).tolist()} == mine


def test_what_is_alike_everywhere_is_one_row(runs):
    rows = changes(runs["evicting"].log)
    assert set(rows["layer"]) == set(rows["head"]) == {-1}
    assert len(rows["round"]) < 3 * len(runs["evicting"].rounds)


def test_too_many_rows_are_no_map(runs, monkeypatch):
    monkeypatch.setattr(recorded, "MOST", 10)
    assert changes(runs["quantizing"].log) == {} and web.payload(runs["quantizing"])["slots"] == {}


@pytest.mark.browser
@pytest.mark.parametrize("name", STACKS)
def test_the_browser_replays_the_same_forwards_and_back(chromium, runs, name):
    """State and width of every slot in the module's own replay, at rounds in any order."""
    trace = runs[name]
    last = replay(trace).state.shape
    found = {round: (state, bits) for round, state, bits in replayed(changes(trace.log), last)}
    order = [*found][::5] + [*found][::-7]
    page = chromium.new_page()
    seen = page.evaluate(
        """([source, data, order]) => {
          const { record, slotsAt } = new Function(`${source}; return { record, slotsAt };`)();
          const held = record();
          held.take(data);
          return order.map((round) => {
            const { state, bits, positions } = slotsAt(held, round);
            return [[...state], [...bits], positions];
          });
        }""",
        [web.module(export=False), web.payload(trace), order],
    )
    page.close()
    for round, (state, bits, positions) in zip(order, seen, strict=True):
        shape = (*last[:2], positions)
        state, bits = np.array(state).reshape(shape)[:, :, : last[2]], np.array(bits).reshape(shape)[:, :, : last[2]]
        expected, widths = found[round]
        assert (np.where(state == 255, ABSENT, state) == expected).all(), f"round {round}"
        there = ~np.isin(expected, [*GONE, ABSENT])
        assert np.allclose(bits[there], widths[there], atol=1e-3), f"round {round}"

"""Counterfactual replay: what it says of a shape is what a run with that shape does."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import workbench as wb
from workbench import views
from workbench.errors import BadInput
from workbench.experiments.headroom import _line
from workbench.views.break_even import break_even_numbers

LENGTH = 72
FLAT = wb.Costs(draft=1.0, start=4.0, row=0.1)


@pytest.fixture(scope="module", params=[0.0, 0.8], ids=["greedy", "seeded"])
def recorded(lm, held_out, request):
    """(settings, trace) of a run with chains of four at level `full`."""
    settings = {"max_new_tokens": LENGTH, "temperature": request.param, "seed": 7}
    return settings, wb.decode(lm, held_out[2], wb.Speculative(), level="full", **settings)


def row(table, shape, setting):
    found = table[(table["shape"] == shape) & (table["setting"] == setting)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.mark.parametrize(
    ("shape", "setting", "other"),
    [
        ("fixed", "1", wb.FixedLength(1)),
        ("fixed", "4", wb.FixedLength(4)),
        ("fixed", "10", wb.FixedLength(10)),
        ("tree", "2×2×1×1", wb.FixedTree((2, 2, 1, 1))),
    ],
)
def test_a_replayed_shape_is_a_run_with_that_shape(recorded, lm, held_out, shape, setting, other):
    settings, trace = recorded
    rounds = wb.decode(lm, held_out[2], wb.Speculative(shape=other), **settings).rounds
    rounds = rounds[rounds["mode"] != "prefill"]
    replayed = row(wb.headroom(trace, FLAT), shape, setting)
    assert len(rounds) == replayed["rounds"] and rounds["accepted"].sum() == replayed["accepted"]
    assert abs(rounds["drafted"].sum() - replayed["drafted"]) <= replayed["drafted"] / replayed["rounds"]


def test_no_lengths_beat_the_oracle(recorded):
    _, trace = recorded
    table = wb.headroom(trace, FLAT)
    oracle = table.iloc[-1]
    chains = table[table["shape"] != "tree"]
    assert (chains["modelled_speedup"] <= oracle["modelled_speedup"] + 1e-9).all()
    assert oracle["oracle_share"] == 1 and oracle["drafted"] == oracle["accepted"]
    assert (
        sum(table.attrs["oracle_lengths"]) == oracle["drafted"]
        and len(table.attrs["oracle_lengths"]) == oracle["rounds"]
    )
    assert oracle["rounds"] + oracle["accepted"] in (LENGTH, LENGTH + 1)


def test_dear_drafts_leave_nothing_to_gain(recorded):
    _, trace = recorded
    table = wb.headroom(trace, wb.Costs(draft=10.0, start=4.0, row=0.0))
    assert set(table.attrs["oracle_lengths"]) == {0} and table.iloc[-1]["modelled_speedup"] == 1
    assert "no choice of lengths pays" in table.attrs["note"]
    free = wb.headroom(trace, wb.Costs(draft=0.0, start=4.0, row=0.0))
    assert free.iloc[-1]["modelled_speedup"] == pytest.approx(LENGTH / free.iloc[-1]["rounds"])


def test_costs_are_those_of_the_run(recorded):
    """Times that are planted: 0.5 ms a level of the drafter, 4 ms and 0.25 a row of the target."""
    _, trace = recorded
    passes = trace.forwards.copy()
    passes["rows"] = np.where(passes["phase"] == "target", passes["round"] % 3 + 3, passes["rows"])
    passes["wall_ms"] = np.where(passes["phase"] == "draft", 0.5, 4 + 0.25 * passes["rows"])
    costs = wb.Costs.of(SimpleNamespace(forwards=passes, rounds=trace.rounds, run=trace.run))
    assert (costs.draft, costs.start, costs.row, costs.plain) == pytest.approx((0.5, 4, 0.25, 4.25))
    real = wb.Costs.of(trace)
    assert real.draft > 0 and min(real.start, real.row) >= 0 < max(real.start, real.row)


@pytest.mark.parametrize(
    ("times", "line"), [((3, 4, 6), (2, 1)), ((5, 4, 2), (4, 0)), ((1, 4, 8), (0, 2)), ((7,), (7, 0))]
)
def test_noise_makes_no_price_negative(times, line):
    assert _line(np.array([1.0, 2.0, 4.0][: len(times)]), np.array(times, float)) == pytest.approx(line)


def test_costs_can_be_measured(lm):
    costs = wb.Costs.measure(lm, wb.load("embedded-draft"), context=64, repeats=3)
    assert 0 < costs.draft < costs.start + costs.row and math.isfinite(costs.row)


def test_the_view_shows_every_shape_and_says_what_is_left(recorded):
    table = wb.headroom(recorded[1], FLAT)
    for theme in ("light", "dark", None):
        drawn = views.headroom(table, theme)
        assert views.description(drawn) == table.attrs["note"] and drawn.layout.paper_bgcolor is None
    shown = views.as_table(drawn)
    assert len(shown[shown["series"] == "shape"]) == len(table) - 1


def test_what_cannot_be_replayed_is_refused(lm):
    short = {"max_new_tokens": 6}
    with pytest.raises(BadInput, match="record at level 'full'"):
        wb.headroom(wb.decode(lm, "x = 1", wb.Speculative(), **short))
    with pytest.raises(BadInput, match="holds no distributions of a drafter"):
        wb.headroom(wb.decode(lm, "x = 1", level="full", **short))
    rejecting = wb.Speculative(verifier=wb.Rejection())
    with pytest.raises(BadInput, match="verified by 'rejection'"):
        wb.headroom(wb.decode(lm, "x = 1", rejecting, level="full", temperature=0.8, **short))


def test_runs_that_shared_their_forwards_have_no_price(lm, held_out):
    traces = wb.decode(lm, held_out[:2], wb.Speculative(), max_new_tokens=6)
    with pytest.raises(BadInput, match="shared its forwards with other prompts"):
        wb.Costs.of(traces[0])
    assert break_even_numbers(traces[0]).predicted is None

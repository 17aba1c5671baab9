"""Views of drafting: the tree, acceptance by what it depends on, divergence, and whether drafting pays."""

import random
from dataclasses import replace

import pytest

from workbench import views
from workbench.errors import BadInput
from workbench.trace import Recorder, Step
from workbench.trace.schema import FATES
from workbench.views.tree import SYMBOLS


def named(figure, name: str):
    (found,) = [trace for trace in figure.data if trace.name == name]
    return found


@pytest.fixture
def tree(made_up):
    recorder = Recorder(made_up.run_event())
    drafts = {
        "node": [1, 2, 3, 4, 5], "parent": [0, 0, 1, 1, 2], "depth": [1, 1, 2, 2, 2], "token_id": [1, 2, 3, 4, 5],
        "text": [" a", "b", "<b>", "$x$", "\n"], "q": [0.5, 0.25, 0.125, 0.5, 0.5], "p": [0.75, None, 0.5, 0.1, 0.1],
        "fate": ["accepted", "sibling_won", "rejected", "rejected", "parent_rejected"],
        "reason": [None, None, "ratio", "ratio", None], "kind": ["dist"] * 5, "drafter": ["draft<model>"] * 5,
    }  # fmt: skip
    tokens = {"token_id": [1, 9], "source": ["draft<model>", "residual"], "p_sampled": [0.75, 0.4]}
    step = Step("tree", tokens=tokens, texts=[" a", "<i>"], drafts=drafts, drafted=5, accepted=1, emitted=2, depth=2)
    recorder.round(step)
    return recorder.trace


def test_a_tree_places_every_node_below_its_parent_and_ends_in_the_targets_token(tree):
    figure = views.draft_tree(tree, 0)
    places = {}
    for fate, texts in {"accepted": ["␣a"], "another sibling won": ["b"], "parent rejected": ["⏎"]}.items():
        assert list(named(figure, fate).text) == texts
    assert list(named(figure, "rejected").text) == ["&lt;b&gt;", "&#36;x&#36;"]
    for part in figure.data:
        if part.hoverinfo != "skip":
            places.update(dict(zip(part.text, zip(part.x, part.y, strict=True), strict=True)))
    assert places == {
        "&lt;b&gt;": (2, 0), "&#36;x&#36;": (2, 1), "&lt;i&gt;": (2, 2), "␣a": (1, 1), "⏎": (2, 3), "b": (1, 3),
        "pending": (0, 2),
    }  # fmt: skip
    path, rest = named(figure, "accepted path"), named(figure, "drafted after")
    assert list(path.x) == [0, 1, None, 1, 2, None] and list(path.y) == [2, 1, None, 1, 2, None]
    assert len(rest.x) == 3 * 4 and path.line.width > rest.line.width


def test_the_hover_text_and_the_table_carry_all_that_is_known(tree):
    figure = views.draft_tree(tree, 0)
    rejected = named(figure, "rejected")
    assert list(rejected.customdata[0][:6]) == ["&lt;b&gt;", "0.5", "0.125", "rejected", "ratio", "draft&lt;model&gt;"]
    table = views.as_table(figure)
    row = table[table["token"] == "<b>"].iloc[0]
    assert (row["p"], row["q"], row["fate"], row["reason"]) == ("0.5", "0.125", "rejected", "ratio")
    assert named(figure, "p and q").text[0] == "p .75<br>q .50" and named(figure, "p and q").text[1] == "p –<br>q .25"


def test_fates_differ_in_shape_as_well_as_in_colour():
    assert set(SYMBOLS) == set(FATES) and len(set(SYMBOLS.values())) == len(FATES)


def test_a_chain_lies_on_a_line_until_the_target_disagrees(made_up):
    figure = views.draft_tree(made_up.record([(4, 4)]).trace, 1)
    assert set(named(figure, "accepted").y) == set(named(figure, "bonus token").y) == {0}
    assert named(figure, "bonus token").x == (5,) and named(figure, "bonus token").marker.symbol == "star"
    figure = views.draft_tree(made_up.record([(4, 2)]).trace, 1)
    assert named(figure, "resampled token").x == named(figure, "rejected").x == (3,)
    assert named(figure, "resampled token").y != named(figure, "rejected").y


def test_where_nothing_is_drawn_the_sentence_stands_alone(made_up):
    """The sentence once lay over the marker of the pending token."""
    trace = made_up.record([(0, 0)]).trace
    figure = views.draft_tree(trace, 1)
    assert not figure.data and [n.text for n in figure.layout.annotations] == ["round 1 drafted nothing"]
    (note,) = views.draft_tree(made_up.record([(4, 2)], level="off").trace, 1).layout.annotations
    assert note.text == "round 1 drafted 4 tokens; this trace does not record them (level off)"
    with pytest.raises(BadInput, match="round 7 is not in the trace; expected 0 to 1"):
        views.draft_tree(trace, 7)


def test_acceptance_by_drafter_and_entropy_counts_the_same_tokens(made_up):
    trace = made_up.record([(4, 2), (4, 4), (4, 0)]).trace
    drafts = trace.drafts
    for by in ("drafter", "entropy"):
        figure = views.acceptance(trace, by)
        bars, points = figure.data
        assert sum(n for (n,) in points.customdata) == 12 and sum(n for (n,) in bars.customdata) == 8
        shares = [share * n for share, (n,) in zip(points.y, points.customdata, strict=True)]
        assert sum(shares) == pytest.approx(6) and figure.layout.xaxis.type == "category"
    (point,) = [p for x, p in zip(points.x, points.customdata, strict=True) if x == "4 and more"]
    assert point[0] == (drafts["entropy_draft_nats"] >= 4).sum() > 0
    with pytest.raises(BadInput, match="position, drafter, entropy"):
        views.acceptance(trace, "mood")


def test_traces_are_pooled(made_up):
    one, two = made_up.record([(4, 2)]).trace, made_up.record([(4, 4), (4, 4), (4, 4)]).trace
    assert [n for (n,) in views.acceptance([one, two]).data[1].customdata] == [4] * 4
    full, alone, single = views.acceptance_length([one, two]).data
    assert list(full.y) == pytest.approx([1 + 14 / 4, 1 + (2 + 4) / 2])
    assert list(alone.y) == pytest.approx([14 / 4, 3]) and list(single.y) == [3, 5]


def test_divergence_is_the_mean_by_position(made_up):
    trace = made_up.record([(4, 2), (4, 4)]).trace
    tv, kl = views.divergence(trace).data
    assert list(tv.y) == pytest.approx(trace.drafts.groupby("depth")["tv"].mean().tolist())
    assert list(kl.y) == pytest.approx(trace.drafts.groupby("depth")["kl_nats"].mean().tolist())
    assert list(tv.x) == [1, 2, 3, 4] and all(bar >= 0 for bar in (*tv.error_y.array, *tv.error_y.arrayminus))


def timed(made_up, drafted: int, accepted: int, draft_ms: float, score_ms: float, total_ms: float, rounds: int = 4):
    """A run whose every drafting round costs the same; one plain round at 10 ms tells what a plain step takes."""
    recorder, draw = Recorder(made_up.run_event()), random.Random(0)
    recorder.round(made_up.prefill_step())
    plan = [(0, 0, 0.0, 10.0, 10.0)] + [(drafted, accepted, draft_ms, score_ms, total_ms)] * rounds
    for k, kept, draft, score, total in plan:
        step = made_up.chain_step(draw, 5, k, kept)
        passes = step.forwards | {"wall_ms": [draft / max(k, 1)] * k + [score]}
        texts = ["x"] * step.emitted
        recorder.round(replace(step, forwards=passes, ms={"draft": draft, "total": total}, texts=texts))
    return recorder.trace


def test_break_even_weighs_what_a_round_costs_against_what_it_emits(made_up):
    found = views.break_even_numbers(timed(made_up, 4, 3, draft_ms=8.0, score_ms=12.0, total_ms=20.0))
    assert (found.drafted, found.emitted, found.plain_ms, found.score_ms) == (4, 4, 10, 12)
    assert found.draft_cost == pytest.approx(0.2) and found.score_cost == pytest.approx(1.2)
    assert found.cost == pytest.approx(2.0) and found.predicted == pytest.approx(2.0) and not found.extrapolated
    assert found.measured is None and "2.00 times" in found.why and "faster" in found.why


@pytest.mark.parametrize(
    ("accepted", "draft_ms", "score_ms", "reason"),
    [(0, 8.0, 12.0, "too few drafted tokens are accepted: it needs 2.00"), (4, 80.0, 12.0, "drafting is so dear"),
     (4, 8.0, 90.0, "scoring several rows at once is so dear")],
)  # fmt: skip
def test_the_sentence_names_the_reason_for_a_slow_run(made_up, accepted, draft_ms, score_ms, reason):
    found = views.break_even_numbers(timed(made_up, 4, accepted, draft_ms, score_ms, 100.0))
    assert found.predicted < 1 and "slower" in found.why and reason in found.why


def test_the_curve_passes_through_the_run_and_starts_at_one(made_up):
    trace = timed(made_up, 4, 3, 8.0, 12.0, 20.0)
    figure = views.break_even(trace, timed(made_up, 0, 0, 0.0, 10.0, 10.0))
    curve, point, measured = (named(figure, n) for n in ("predicted, other lengths", "predicted", "measured"))
    assert curve.y[0] == pytest.approx(1) and curve.y[4] == pytest.approx(point.y[0]) == pytest.approx(2.0)
    assert measured.y[0] == pytest.approx((17 / 90) / (1 / 10)) and views.description(figure).startswith("1.89 times")


def test_a_missing_plain_step_is_extrapolated_or_said_to_be_missing(made_up):
    def run(*plan):
        recorder, draw = Recorder(made_up.run_event()), random.Random(0)
        for drafted, score in plan:
            step = made_up.chain_step(draw, 5, drafted, 0)
            recorder.round(replace(step, forwards=step.forwards | {"wall_ms": [1.0] * drafted + [score]}, texts=["x"]))
        return views.break_even_numbers(recorder.trace)

    found = run((4, 12.0), (2, 8.0))
    assert found.extrapolated and found.plain_ms == pytest.approx(4.0)
    assert run((4, 12.0)).plain_ms is None and "plain run" in run((4, 12.0)).why
    assert "Nothing was drafted" in run((0, 5.0)).why

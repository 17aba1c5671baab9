"""The views, on content: what is drawn equals the tables, axes are named, partial runs draw, text is inert."""

import json
import random
from dataclasses import replace

import plotly.graph_objects as go
import pytest

import workbench as wb
from tests import table
from workbench import declare, views
from workbench.trace import Recorder, Step
from workbench.trace.schema import FATES
from workbench.views.figure import shown, unit_of
from workbench.views.palette import PALETTE, colours

SAFE_TYPES = {"scatter", "bar", "heatmap"}  # drawn alike by plotly.js 3 and 4
VIEWS = {name: draw for name, draw in table.VIEWS.items() if name != "headroom"}  # it draws what few traces hold
RUNS = {
    "full": ([(4, 2), (4, 4), (0, 0), (4, 0)], "default"),
    "one token": ([(0, 0)], "default"),
    "prefill only": ([], "default"),
    "no drafts": ([(0, 0)] * 3, "default"),
    "level off": ([(4, 2), (4, 4)], "off"),
}


def named(figure: go.Figure, name: str):
    """The one trace of that name."""
    (found,) = [trace for trace in figure.data if trace.name == name]
    return found


def notes(figure: go.Figure) -> list[str]:
    return [note.text for note in figure.layout.annotations]


@pytest.mark.parametrize("view", table.VIEWS)
def test_every_registered_view_draws_a_sample(made_up, view):
    """By its name in the registry, and under that name in `workbench.views`; its first line says what it shows."""
    trace = made_up.record(RUNS["full"][0]).trace
    if view == "headroom":  # of a run that its drafter can be asked about
        trace = wb.decode(wb.load("embedded"), "def f(x):", wb.Speculative(), max_new_tokens=16, level="full")
    figure = table.VIEWS[view](trace)
    assert figure.layout.meta["view"] == view and len(figure.data) > 0 and not notes(figure)
    assert getattr(views, view) is declare.get("view", view) and view in declare.names("view")
    assert views.description(figure).endswith(".") and declare.get("view", view).__doc__.split("\n")[0].endswith(".")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("run", RUNS)
def test_every_view_draws_every_kind_of_run(made_up, view, run):
    rounds, level = RUNS[run]
    figure = VIEWS[view](made_up.record(rounds, level=level).trace)
    assert json.loads(figure.to_json())["layout"]["uirevision"].startswith(f"{view}:made-up")
    assert views.description(figure).endswith(".") and views.as_table(figure).columns[0] == "series"
    assert {trace.type for trace in figure.data} <= SAFE_TYPES
    for axis in (name for name in figure.layout.to_plotly_json() if name[1:5] == "axis"):
        assert figure.layout[axis].title.text, axis
    for trace in figure.data:
        if trace.type == "heatmap":
            assert trace.zmin is not None and trace.zmax > trace.zmin
    assert figure.layout.title.text is None  # panels carry their own labels


@pytest.mark.parametrize("view", VIEWS)
def test_a_run_without_rounds_says_that_there_is_nothing(made_up, view):
    figure = VIEWS[view](Recorder(made_up.run_event()).trace)
    assert len(notes(figure)) == 1 and "no" in notes(figure)[0].lower()
    assert figure.to_json()


def test_signals_share_one_token_axis_and_draw_the_tables(made_up):
    trace = made_up.record([(4, 2), (4, 4), (4, 0)]).trace
    figure = views.signals(trace, cursor=5)
    tokens, rounds = trace.tokens, trace.rounds.set_index("round")
    assert [name for name in figure.layout.to_plotly_json() if name.startswith("xaxis")] == ["xaxis"]
    assert {trace.yaxis for trace in figure.data} == {"y", "y2", "y3", "y4"}
    index = tokens["index"].tolist()
    raw = named(figure, "entropy, next-token distribution")
    assert list(raw.x) == index and list(raw.y) == tokens["entropy_raw_nats"].tolist()
    assert list(named(figure, "entropy, sampled distribution").y) == tokens["entropy_sampled_nats"].tolist()
    assert list(named(figure, "drafted in the round").y) == [4] * 9
    assert list(named(figure, "accepted in the round").y) == [2] * 3 + [4] * 5 + [0]
    drafted = named(figure, "from draft-model")
    assert list(drafted.x) == [0, 1, 3, 4, 5, 6] and list(drafted.y) == [1, 2, 1, 2, 3, 4]
    assert list(named(figure, "resampled token").x) == [2, 8] and list(named(figure, "bonus token").x) == [7]
    assert list(named(figure, "bits per element").y) == [32.0] * 9
    assert figure.layout.yaxis3.title.text == "cache (KiB)"
    stacked = [
        sum(pair) for pair in zip(named(figure, "cache, target").y, named(figure, "cache, draft").y, strict=True)
    ]
    expected = [rounds["cache_bytes"][number] / 1024 for number in tokens["round"]]
    assert stacked == pytest.approx(expected)
    assert named(figure, "cache, target").stackgroup == named(figure, "cache, draft").stackgroup
    (line,) = figure.layout.shapes
    assert (line.x0, line.x1, line.yref) == (5, 5, "paper")
    assert tuple(figure.layout.xaxis.range) == (-0.5, 8.5)
    assert not views.signals(trace).layout.shapes


def test_with_one_model_the_cache_is_stacked_by_kind(made_up):
    recorder = Recorder(made_up.run_event())
    cache = {"live_slots": [2] * 8, "payload": [64] * 8, "scale": [8] * 8}
    step = Step("plain", {"token_id": [1], "source": ["target"]}, cache={"target": cache}, emitted=1)
    recorder.round(replace(step, texts=["x"]))
    figure = views.signals(recorder.trace)
    assert list(named(figure, "cache, payload").y) == [512] and list(named(figure, "cache, scale").y) == [64]
    assert figure.layout.yaxis3.title.text == "cache (B)"


def test_a_single_token_or_round_can_be_seen(made_up):
    """A line through one point draws nothing: every scatter has markers."""
    trace = made_up.record([(0, 0)]).trace
    drawn = [*views.signals(trace).data, *views.entropy(trace).data, *views.cache_footprint(trace).data[1:]]
    assert drawn and all("markers" in scatter.mode for scatter in drawn)


def test_sources_differ_in_colour_and_symbol(made_up):
    figure = views.signals(made_up.record([(4, 2), (4, 4), (0, 0)]).trace)
    points = [trace.marker for trace in figure.data if trace.mode == "markers"]
    assert len({marker.color for marker in points}) == len({marker.symbol for marker in points}) == len(points) == 3


def test_acceptance_counts_only_what_was_tested(made_up):
    """2 of 4, 4 of 4 and 0 of 4 accepted: three were at risk at depth 1, two at depth 2 and 3, one at depth 4."""
    figure = views.acceptance(made_up.record([(4, 2), (4, 4), (4, 0)]).trace)
    bars, points = named(figure, "of those tested"), named(figure, "of all drafted")
    assert list(bars.x) == [1, 2, 3, 4] and list(bars.text) == ["n = 3", "n = 2", "n = 2", "n = 1"]
    assert list(bars.y) == pytest.approx([2 / 3, 1, 1 / 2, 1])
    assert list(points.y) == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3])


def test_the_footprint_shows_every_layer_of_every_model(made_up):
    trace = made_up.record([(4, 2), (4, 4)]).trace
    figure = views.cache_footprint(trace)
    heat = figure.data[0]
    assert list(heat.x) == [0, 1, 2]
    assert list(heat.y) == [f"target {layer}" for layer in range(8)] + [f"draft {layer}" for layer in range(4)]
    grid = trace.cache.assign(row=trace.cache["model"] + " " + trace.cache["layer"].astype(str))
    for row, values in zip(heat.y, heat.z, strict=True):
        assert list(values) == pytest.approx((grid[grid["row"] == row]["bytes"] / 1024).tolist())
    assert heat.zmax == pytest.approx(trace.cache["bytes"].max() / 1024)
    assert list(named(figure, "payload").y) == pytest.approx((trace.rounds["cache_bytes"] / 1024).tolist())
    assert figure.layout.yaxis2.title.text == "all layers (KiB)"


@pytest.mark.parametrize("view", VIEWS)
def test_text_of_the_model_is_inert(made_up, view):
    """Nothing the model or a drafter's name says reaches a figure as markup or as a formula."""
    evil = "<img src=x onerror=alert(1)><a href='javascript:1'>$\\frac{1}{2}$"
    recorder = Recorder(made_up.run_event())
    step = Step(
        "chain",
        tokens={"token_id": [1], "source": [evil], "entropy_raw_nats": [1.0], "surprisal_nats": [1.0]},
        drafts={"node": [1], "text": [evil], "drafter": [evil], "fate": [evil], "reason": [evil], "depth": [1]},
        forwards={"phase": [evil], "model": [evil], "wall_ms": [1.0], "implementation": [evil]},
        cache={evil: {"live_slots": [1], "payload": [8]}, "target": {"live_slots": [1], "payload": [8]}},
        drafted=1, emitted=1,
    )  # fmt: skip
    recorder.round(replace(step, texts=[evil]))
    figure = VIEWS[view](recorder.trace).to_plotly_json()
    text = json.dumps(figure, default=str)
    for markup in ("<br>", "<extra>", "</extra>"):  # ours
        text = text.replace(markup, "")
    assert "<" not in text and "$" not in text


def test_quotes_stay_as_they_are(made_up):
    """Plotly reads few entities: `&quot;` once stood in the drawings."""
    assert shown("\"a'&<") == "\"a'&amp;&lt;"


def test_long_labels_of_a_tree_are_cut_and_whole_in_the_hover_text(made_up):
    text = "a_very_long_token_indeed"
    recorder = Recorder(made_up.run_event())
    drafts = {"node": [1], "parent": [0], "depth": [1], "token_id": [1], "text": [text], "fate": ["accepted"]}
    tokens = {"token_id": [1, 2], "source": ["d", "bonus"]}
    for _ in range(2):
        recorder.round(Step("chain", tokens=tokens, texts=[text, text], drafts=drafts, drafted=1, emitted=2, depth=1))
    figure = views.draft_tree(recorder.trace)
    for name in ("accepted", "pending token", "bonus token"):
        drawn = named(figure, name)
        assert drawn.text[0] == "a_very_lo…" and drawn.customdata[0][0] == text
        assert drawn.hovertemplate.startswith("%{customdata[0]}")


@pytest.mark.parametrize("view", VIEWS)
def test_figures_say_words_for_the_names_of_a_trace(made_up, view):
    """In legends, hover texts, axes, tables and sentences."""
    recorder, many = Recorder(made_up.run_event()), len(FATES)
    step = made_up.chain_step(random.Random(0), 5, many, many - 1)
    step.drafts.update(fate=list(FATES), drafter=["draft_model"] * many)
    step.tokens["source"] = [*["draft_model"] * (many - 1), "residual"]
    recorder.round(replace(step, texts=["x"] * many))
    figure = VIEWS[view](recorder.trace)
    said = views.description(figure) + views.as_table(figure).to_csv()
    said += json.dumps([[one.name, one.hovertemplate] for one in figure.data])
    for name in ("_won", "_rejected", "after_end", "draft_model", "raw distribution", "draft · draft", "residual"):
        assert name not in said
    if view == "draft_tree":
        assert {"another sibling won", "parent rejected", "after the end"} < {one.name for one in figure.data}


def test_where_the_likeliest_token_is_taken_its_entropy_of_nothing_is_not_drawn(made_up):
    recorder = Recorder(made_up.run_event())
    for _ in range(2):
        tokens = {"token_id": [1], "entropy_raw_nats": [1.5], "entropy_sampled_nats": [0.0]}
        recorder.round(Step("plain", tokens=tokens, texts=["x"], emitted=1))
    for figure in (views.entropy(recorder.trace), views.signals(recorder.trace)):
        (drawn,) = [one.name for one in figure.data if one.name.startswith("entropy")]
        assert drawn == "entropy, next-token distribution"


def test_labels_show_white_space_and_stay_short():
    assert shown(" a\n\t<") == "␣a⏎⇥&lt;" and shown("\n" + 8 * " " + "x") == "⏎␣×8x"
    assert shown("x" * 50) == "x" * 39 + "…" and shown(None) == shown(float("nan")) == ""


@pytest.mark.parametrize(
    ("size", "unit"), [(0, "B"), (1023, "B"), (1024, "KiB"), (5 * 1024**2, "MiB"), (3 * 1024**3, "GiB")]
)
def test_bytes_are_shown_in_the_unit_that_reads_well(size, unit):
    assert unit_of(size)[1] == unit


def test_the_palette_covers_the_vocabulary_and_is_plain_data():
    assert set(PALETTE["fate"]) == set(FATES) and len(set(PALETTE["fate"].values())) == len(FATES)
    assert json.loads(json.dumps(PALETTE)) == PALETTE
    names = ["target", "d1", "d2", "residual", "d3"]
    assert colours("source", names)["d1"] == PALETTE["fate"]["accepted"]
    assert len(set(colours("source", names).values())) == len(names)


def test_the_same_run_gives_the_same_figure(made_up):
    rounds = [(random.Random(3).randrange(5), 0) for _ in range(3)]
    figures = [views.signals(made_up.record(rounds).trace).to_json() for _ in range(2)]
    assert figures[0] == figures[1]

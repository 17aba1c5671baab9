"""Figures of a run against what they stand for: bytes of a plain run, tokens that were emitted."""

import pytest

import workbench as wb
from tests.speculation.tiny import tiny_target
from workbench import views
from workbench.trace import Recorder, Step
from workbench.views.break_even import break_even_numbers

PROMPT = [0, 1, 2, 3, 4, 0, 1]


@pytest.fixture(scope="module")
def target():
    tiny_target("figures-draft", seed=5)
    tiny_target("figures-same", layers=4)
    return tiny_target(layers=4)


def read(trace) -> float:
    """Bytes that a run read after its prompt."""
    passes = trace.forwards[trace.forwards["phase"] != "prefill"]
    return passes["weight_bytes"].sum() + passes["kv_read_bytes"].sum()


@pytest.mark.parametrize(
    ("drafter", "shape", "cache"),
    [
        (wb.Kangaroo(weights=None, exits=(1,)), wb.FixedLength(3), None),
        (wb.Kangaroo(weights=None, exits=(3,)), wb.FixedTree((2, 1)), wb.H2O(budget=12, interval=8)),
        (wb.LayerSkip(skip=(1, 2)), wb.FixedLength(3), None),
        (wb.DraftModel("figures-draft"), wb.FixedLength(2), None),
    ],
    ids=["exit 1 of 4", "exit 3 of 4", "two layers skipped", "draft model"],
)
def test_the_modelled_speedup_is_the_bytes_of_a_plain_run_over_those_of_this_one(target, drafter, shape, cache):
    """It was priced by the part of the layers that verification ran: with an early exit a gain was told as a loss."""
    settings = {"max_new_tokens": 12, "cache": cache}
    plain = wb.decode(target, PROMPT, **settings)
    trace = wb.decode(target, PROMPT, wb.Speculative(drafter, shape), **settings)
    assert trace.token_ids == plain.token_ids and plain.summary()["modelled_speedup"] == pytest.approx(1)
    assert trace.summary()["modelled_speedup"] == pytest.approx(read(plain) / read(trace), rel=0.01)


def accepting(target, **settings):
    """A run in which every draft of six is accepted."""
    decoder = wb.Speculative(wb.DraftModel("figures-same"), wb.FixedLength(6))
    return wb.decode(target, PROMPT, decoder, **settings)


@pytest.mark.parametrize(
    ("settings", "length", "alone", "by_position"),
    [
        ({"max_new_tokens": 14}, 7, 6, [1] * 6),
        ({"max_new_tokens": 5}, 5, 5, [1] * 5),
        ({"max_new_tokens": 10}, 5, 4.5, [1] * 6),
    ],
    ids=["whole rounds", "one cut round", "a whole one and a cut one"],
)
def test_acceptance_counts_what_was_emitted(target, settings, length, alone, by_position):
    """A round that ends inside its accepted draft got no token from the target, and what lies behind the end of the
    text was neither accepted nor refused."""
    trace = accepting(target, **settings)
    found = trace.summary()
    assert found["tokens"] == settings["max_new_tokens"] == found["mean_acceptance_length"] * found["num_drafts"]
    for name, value in (("mean_acceptance_length", length), ("mean_acceptance_length_no_bonus", alone)):
        assert found[name] == found[name.replace("length", "length_per_request")] == value
    assert found["draft_acceptance_rate"] == found["acceptance_tested"] == 1
    assert found["acceptance_by_position"] == by_position
    bars = views.acceptance_length([trace, trace]).data
    assert list(bars[0].y) == [length] * 2 and list(bars[1].y) == [alone] * 2 and list(bars[2].y) == [length] * 2
    depths = views.acceptance(trace)
    assert list(depths.data[0].y) == list(depths.data[1].y) == by_position
    tokens = found["num_draft_tokens"]
    assert f"{tokens} of {tokens} drafted" in views.description(depths)
    assert f"{tokens} of {tokens} drafted" in views.description(views.signals(trace))


def test_of_a_tree_cut_by_the_end_its_deeper_nodes_are_left_out():
    """Two levels of two children; the text ended with the first: its sibling lost, the others were not decided."""
    recorder = Recorder({"models": []})
    fates = ["accepted", "sibling_won", "after_end", "sibling_won"]
    drafts = {"node": [1, 2, 3, 4], "parent": [0, 0, 1, 1], "depth": [1, 1, 2, 2], "fate": fates}
    tokens = {"token_id": [5], "source": ["d"]}
    recorder.round(Step("tree", tokens, drafts=drafts, texts=["a"], drafted=4, accepted=1, emitted=1, depth=2))
    found = recorder.trace.summary()
    assert found["num_draft_tokens"] == 2 and found["draft_acceptance_rate"] == 0.5
    assert found["acceptance_by_position"] == [1.0]


def test_break_even_takes_no_part_of_the_model_for_a_plain_step(target):
    """Passes through three of four layers are no plain steps; the line through them is raised to all four."""
    trace = wb.decode(target, PROMPT, wb.Speculative(wb.Kangaroo(weights=None, exits=(1,)), wb.FixedLength(3)),
                      max_new_tokens=10)  # fmt: skip
    passes = trace.forwards
    scoring = passes[passes["phase"] == "target"]
    assert set(scoring["layers_run"]) == {3} and set(passes["layers_run"][passes["phase"] == "draft"]) == {1}
    assert break_even_numbers(trace).plain_ms is None or break_even_numbers(trace).extrapolated

"""Headroom is exact where it answers, for every drafter it accepts and under every cache, and refuses elsewhere."""

import pytest
import torch

import workbench as wb
from tests.speculation.tiny import tiny_heads, tiny_target
from tests.table import DRAFTERS
from workbench.dashboard.figures import _place
from workbench.dashboard.html import inert
from workbench.declare import to_dict
from workbench.errors import BadInput
from workbench.trace import Recorder

FLAT = wb.Costs(draft=1.0, start=4.0, row=0.1)
PROMPT = [number * 7 % 12 for number in range(58)]
OTHERS = {
    ("fixed", "6"): wb.FixedLength(6),
    ("heuristic", "+2/−1 from 4"): wb.HeuristicLength(start=4),
    ("confidence", "0.4"): wb.ConfidenceStop(12, 0.4),
    ("tree", "4×2×2"): wb.FixedTree((4, 2, 2)),
}


@pytest.fixture(scope="module")
def target():
    return tiny_target(vocabulary=12, width=32)


def noisy(name):
    """Registers the target with some noise on it."""
    near, noise = tiny_target(name, vocabulary=12, width=32), torch.Generator().manual_seed(1)
    for weight in (w for w in near.model.parameters() if w.dim() > 1):
        weight.data += 0.06 * torch.randn(weight.shape, generator=noise)


def compared(run, replayed, key) -> tuple[bool, bool]:
    """Whether a real run has the rounds of a replayed row; and whether it drafted and accepted as much.

    Whether the last token of all was drafted, its distribution may not be recorded; behind a miss confidences are
    estimates.
    """
    rounds = run.rounds[run.rounds["mode"] != "prefill"]
    drafted = key[0] == "confidence" or rounds["drafted"].sum() == replayed["drafted"]
    return len(rounds) == replayed["rounds"], drafted and abs(rounds["accepted"].sum() - replayed["accepted"]) <= 1


@pytest.fixture(scope="module")
def drafters(target, tmp_path_factory):
    """A draft that is the target with some noise on it, an exit with an adapter, and one without."""
    noisy("replay-near")
    heads = tiny_heads(target, "kangaroo", tmp_path_factory.mktemp("heads"), steps=1)
    return {
        "model": wb.DraftModel("replay-near"),
        "adapter": wb.Kangaroo(weights=heads, exits=(1,)),
        "exit": wb.Kangaroo(weights=None, exits=(1,)),
    }


@pytest.mark.parametrize(
    ("drafter", "cache", "temperature"),
    [
        ("model", None, 0.8),
        ("model", wb.H2O(budget=12, interval=8), 0.0),
        ("adapter", wb.KIVI(residual=32), 0.8),
        ("exit", wb.StreamingLLM(sinks=2, window=10, interval=8), 0.8),
    ],
)
def test_a_replayed_shape_is_a_run_with_that_shape(target, drafters, drafter, cache, temperature):
    """Rounds, drafted and accepted tokens; over-read distributions of early exits and boundaries of caches are in
    it."""
    settings = {"max_new_tokens": 16, "temperature": temperature, "seed": 3, "cache": cache}
    trace = wb.decode(target, PROMPT, wb.Speculative(drafters[drafter], wb.FixedLength(3)), level="full", **settings)
    table = wb.headroom(trace, FLAT).set_index(["shape", "setting"])
    for key, shape in OTHERS.items():
        run = wb.decode(target, PROMPT, wb.Speculative(drafters[drafter], shape), **settings)
        assert run.token_ids == trace.token_ids and compared(run, table.loc[key], key) == (True, True), key
    assert table.loc[("fixed", "2"), "tokens_per_target_forward"] > 1.1


def recorded(decoder, **more):
    """A trace that says no more than how it was decoded."""
    run = {"decoder": to_dict(decoder), "guarantee": "exact", "level": "full", "prompt_ids": [1], **more}
    return Recorder(run, level="full").trace


@pytest.mark.parametrize("name", sorted(set(DRAFTERS) - {"draft_model", "kangaroo"}))
def test_drafters_whose_distributions_depend_on_the_round_are_refused(name):
    decoder = wb.Speculative(DRAFTERS[name]("replay-near", "none"))
    with pytest.raises(BadInput, match="depends on where a round begins.*use wb.compare"):
        wb.headroom(recorded(decoder))


@pytest.mark.parametrize(
    ("decoder", "more", "words"),
    [
        (wb.Speculative(wb.DraftModel(cache=wb.H2O())), {}, "depends on where a round begins"),
        (wb.Speculative(wb.Kangaroo(exits=(2, 4)), wb.Del()), {}, "the exits that shape 'del' chose"),
        (wb.Pearl(), {}, "expected a run of 'speculative'"),
        (wb.Speculative(verifier=wb.Typical()), {"guarantee": "lossy"}, "verified by 'typical'"),
        (wb.Speculative(), {"parent": {"trace": "x", "round": 3, "index": 5}}, "is a branch"),
    ],
    ids=["draft's cache", "exits", "pearl", "typical", "branch"],
)
def test_what_replay_would_get_wrong_is_refused_in_one_line_in_the_app_too(decoder, more, words):
    trace = recorded(decoder, **more)
    with pytest.raises(BadInput, match=words) as refused:
        wb.headroom(trace)
    about, plot = _place("headroom of other drafts", trace, None, None)
    assert "\n" not in str(refused.value) and inert(refused.value) in about and not plot["visible"]


def test_a_distribution_that_is_missing_is_not_taken_for_a_miss(target, drafters):
    settings = {"max_new_tokens": 8, "level": "full"}
    trace = wb.decode(target, PROMPT[:5], wb.Speculative(drafters["model"], wb.FixedLength(1)), **settings)
    with pytest.raises(BadInput, match="expected no wider trees"):
        wb.headroom(trace, FLAT, trees=[(9, 1)])
    rows = [event for event in trace.log if event["type"] == "rows" and event.get("draft")]
    del rows[1]["draft"]
    with pytest.raises(BadInput, match="does not hold the drafter's distribution at token"):
        wb.headroom(trace, FLAT)


def test_plain_decoding_is_priced_by_the_whole_model(target, drafters):
    """Early exits score with the other layers alone; a plain step runs them all."""
    passes = {"max_new_tokens": 12, "level": "full"}
    trace = wb.decode(target, PROMPT[:5], wb.Speculative(drafters["exit"], wb.FixedLength(2)), **passes)
    costs = wb.Costs.of(trace)
    assert costs.step() == pytest.approx(2 * (costs.start + costs.row), rel=0.1)  # one of two layers was skipped
    assert FLAT.step() == 4.1

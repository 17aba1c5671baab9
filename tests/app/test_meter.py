"""Verify without a browser: one click to a verdict, an early end, bad input; and whether drafting pays."""

import math
import re
import time

import gradio as gr
import pytest

import workbench as wb
from tests.app.test_transport import refused
from tests.app.visitor import PROMPT
from workbench.cursor import Replay
from workbench.dashboard.experiments import baseline, paying
from workbench.dashboard.verifying import Apart, Measured, bound
from workbench.dashboard.visits import Visit


def measured(visitor, seconds: float = 180) -> str:
    deadline = time.monotonic() + seconds
    while visitor.enabled("enough") and time.monotonic() < deadline:
        visitor.fire("pulse")
        time.sleep(0.05)
    assert not visitor.enabled("enough") and visitor.enabled("measure")
    return visitor.get("verdict")


def test_one_click_gives_a_badge_and_a_bound_over_several_texts(visitor):
    visitor.set("prompt", PROMPT)
    visitor.set("decoder", "speculative")
    visitor.fire("measure")
    assert "comparing with plain decoding" in visitor.get("verdict") or "= exact" in visitor.get("verdict")
    said = measured(visitor)
    assert ">= exact</span>" in said and said.count('class="wb-gauge"') == 3
    assert "0 of 384 tokens differ in 8 texts: flip rate below 0.78 % (95 %)" in said
    assert said.count("0 of 192 tokens differ in 4 texts: flip rate below 1.5 % (95 %)") == 3
    assert "seed by seed at temperature 0.8" in said and "3 short held-out prompts" in said
    assert "claim holds" not in said and "there is no cache stack" in said


def test_under_a_stack_it_is_exact_under_its_cache_alone(visitor):
    visitor.set("prompt", PROMPT)
    visitor.set("decoder", "speculative")
    visitor.set("cache quantizer", "kivi")
    visitor.fire("measure")
    said = measured(visitor)
    assert ">≈ exact under its cache</span>" in said and ">= exact<" not in said
    assert "not measured" not in said and re.search(r"against the full cache [^\"]*flip rate", said)
    full = said[said.index("plain decoding with the full cache") :]
    assert re.search(r"KL 0\.\d+ \[[\d.e-]+, [\d.e-]+\] nats / token", full)


def test_a_lossy_verifier_is_told_and_counting_can_be_cut_short(visitor):
    visitor.set("prompt", PROMPT)
    visitor.set("decoder", "speculative")
    visitor.shown[visitor.find("verifier", "which drafts stand")] = "typical"
    visitor.fire("measure")
    deadline = time.monotonic() + 120
    while "counted …" not in visitor.get("verdict") and visitor.enabled("enough") and time.monotonic() < deadline:
        visitor.fire("pulse")
        time.sleep(0.05)
    visitor.fire("enough")
    said = measured(visitor)
    counted = [int(count) for count in re.findall(r"(\d+) runs of \d+ tokens (?:over|uncut)", said)]
    assert len(counted) == 2 and 50 <= counted[0] == counted[1] < 500 and "total variation" in said
    assert ">≈ lossy</span>" in said and f"{2 * counted[0]} runs counted" in said


def test_both_batches_together_are_at_most_the_runs_asked_for(lm):
    """The meter may count as many runs again where the first are unlucky."""
    asked = []
    job = Measured(wb.Speculative(verifier=wb.Rejection()), lm, [PROMPT], "", 400, temperature=0.8, cache=None)
    counted = job.counted
    job.counted = lambda done, runs: asked.append(runs) or counted(done, runs)
    job.work()
    assert set(asked) == {200} and job.verdict.runs == 100 and "= exact in distribution" in job.badge()


def test_stopped_before_the_texts_are_compared_nothing_is_claimed(lm):
    job = Measured(wb.Speculative(), lm, [PROMPT, "x = 1"], "", 400, temperature=0.8, cache=None)
    for _ in job.parts[0]:
        if job.parts[0].found:
            break
    assert "? not measured" in job.badge() and "= exact" not in job.shown()[0].replace("exact at", "")


def test_the_bound_is_that_of_clopper_and_pearson():
    """At the bound, so few are seen in one of twenty tries."""
    assert bound(0, 1152) == pytest.approx(1 - 0.05 ** (1 / 1152)) == pytest.approx(0.0026, abs=1e-4)
    for seen, tried in ((1, 10), (3, 100), (40, 4000)):
        rate = bound(seen, tried)
        chance = sum(math.comb(tried, k) * rate**k * (1 - rate) ** (tried - k) for k in range(seen + 1))
        assert rate > seen / tried and chance == pytest.approx(0.05, rel=1e-6)
    assert bound(4, 4) == bound(0, 0) == 1


def test_texts_are_compared_up_to_where_they_part():
    assert str(Apart(4, 0, 192)) == "0 of 192 tokens differ in 4 texts: flip rate below 1.5 % (95 %)"
    assert str(Apart(4, 3, 93)).startswith("3 of 4 texts differ: 3 flips in 93 tokens, flip rate 3.2 %, below ")
    assert Apart(1, 0, 48) + Apart(1, 1, 2) == Apart(2, 1, 50) and "in 1 text:" in str(Apart(1, 0, 48))


def test_bad_input_is_one_line(visitor):
    visitor.set("prompt", "")
    assert "prompt is empty" in refused(visitor, "measure")


def test_a_plain_run_is_measured_and_noted_as_the_baseline(lm):
    visit = Visit()
    said, made, button, timer = paying(visit)
    assert "No run yet" in made and not button["interactive"] and not timer.active
    session = wb.Session(lm, PROMPT, wb.Speculative(shape=wb.FixedLength(3)), max_new_tokens=24)
    session.run()
    visit.add("a run", session)
    before = paying(visit)
    assert "measure a plain run" in before[1] and re.fullmatch(r"Measure a plain run, about \d+ s", before[2]["value"])
    assert "record at level" in before[1]  # headroom says what it lacks
    assert baseline(visit)[2]["value"] == "Stop" or visit.jobs["baseline"].over
    visit.jobs["baseline"].join()
    said, made, button, timer = paying(visit)
    assert not said and not timer.active and button["interactive"]
    assert "× measured" in made and "plain steps" in made and 'class="wb-bars"' in made
    plain = visit.jobs["baseline"].trace
    assert plain.token_ids == session.trace.token_ids and plain.run["decoder"]["name"] == "autoregressive"
    assert session.trace.run["baseline"] == {"tokens_per_second": plain.summary()["tokens_per_second"]}
    assert session.trace.summary()["measured_speedup"] > 0 and len(visit.branches) == 1


def test_where_no_forward_is_recorded_that_is_said(lm, toy):
    """A run that is only opened, and one recorded at level `off`."""
    visit = Visit()
    visit.add("a run", wb.Session(lm, PROMPT, wb.Speculative(), max_new_tokens=24))
    visit.add("opened", Replay(wb.decode(toy, [0, 1], max_new_tokens=4, level="off")))
    for visit.current in range(2):
        assert "Not known: " in paying(visit)[1]


def test_headroom_is_drawn_where_the_run_tells(lm):
    visit = Visit()
    session = wb.Session(lm, PROMPT, wb.Speculative(shape=wb.FixedLength(3)), max_new_tokens=24, level="full")
    session.run()
    visit.add("a run", session)
    made = paying(visit)[1]
    assert "oracle best lengths" in made and made.count("wb-chart") == 2


def test_an_opened_trace_has_no_model_to_measure_with(lm):
    visit = Visit()
    visit.add("opened", Replay(wb.decode(lm, PROMPT, wb.Speculative(), max_new_tokens=8)))
    assert not paying(visit)[2]["interactive"]
    with pytest.raises(gr.Error, match="no model behind it"):
        baseline(visit)

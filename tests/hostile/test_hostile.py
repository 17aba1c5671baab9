"""The short form of `python -m tests.hostile`: about a thousand inputs over all corpora, always the same ones."""

import re

import pytest

from tests.hostile.runner import corpora, run

EXAMPLES = 1000
CORPORA = corpora()


@pytest.mark.parametrize("name", CORPORA)
def test_hostile_inputs_are_taken_or_refused_in_one_line(name):
    """No other exception, nothing above 2 s of processor time, nothing above 300 MB."""
    report = run(name, CORPORA[name], -(-EXAMPLES // len(CORPORA)))
    assert not report.faults, report.faults
    assert report.examples > 0


def test_no_event_of_the_app_is_left_out():
    """But those that open a page, load a model, or stay in the browser or among the controls."""
    from tests.hostile import events

    named = {re.sub(r"_\d+$", "", name) for name in events.page().events}
    opening, drawing = {"loaded", "closed"}, {"partial", "str", "js_fn"}
    assert {name for name in named if not name.startswith(("load_", "fill_"))} - opening - drawing == set(events.EVENTS)


@pytest.mark.parametrize("fault", ["raises", "lines", "slow", "large"])
def test_the_runner_sees_each_kind_of_fault(fault, monkeypatch):
    """The control: a corpus that breaks the promise is told of, and is not stopped by it."""
    from hypothesis import strategies

    from tests.hostile import runner

    class Lines(runner.WorkbenchError):
        def __str__(self):
            return "two\nlines"

    def call(value):
        if fault == "raises":
            raise KeyError(value)
        if fault == "lines":
            raise Lines
        if fault == "slow":
            sum(range(200_000))

    monkeypatch.setattr(runner, "SECONDS", 1e-4 if fault == "slow" else 2.0)
    if fault == "large":
        monkeypatch.setattr(runner, "_peak_mb", lambda reset=False: 0.0 if reset else 500.0)
    report = run("control", (strategies.integers(), call), 20)
    assert len(report.faults) == 1 and report.examples >= 10

"""The calls of a session: what they cost in a long run, and what they refuse in one line."""

import sys
from collections.abc import Callable

import numpy as np
import pytest

import workbench as wb
from tests.campaigns.writing import session
from workbench.errors import BadInput

LONG, SHORT = 400, 40


def calls_of(action: Callable[[], object]) -> int:
    """How many calls of Python functions an action takes."""
    count = 0

    def watch(frame, event, argument) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


ACTIONS = {
    "run until": lambda s: s.run(until="rank > 100", rounds=1),
    "run until, over the record": lambda s: (s.jump(s.length - 9), s.run(until="rank > 100", rounds=1)),
    "run": lambda s: s.run(rounds=1),
    "round_at": lambda s: s.round_at(s.length - 3),
    "new text": lambda s: s.text_from(s.length - 3, s.length),
    "back": lambda s: s.back(3),
    "jump": lambda s: s.jump(s.length // 2),
    "end": lambda s: s.end(),
    "last rows": lambda s: s.trace.last_rows(),
}


@pytest.fixture(scope="module")
def grown() -> tuple[list[wb.Session], list[wb.Session]]:
    """Sessions of a few rounds and of ten times as many, one of each per action."""
    short, long = session("plain", 2000), session("plain", 2000)
    short.run(rounds=SHORT)
    long.run(rounds=LONG)
    return short, long


@pytest.mark.parametrize("name", ACTIONS)
def test_a_call_costs_no_more_in_a_long_run(grown, name):
    """`run(until=…)` walked all rounds in every round, so that a run of n rounds cost n² of them."""
    costs = []
    for one in grown:
        one.jump(one.length)
        ACTIONS[name](one)  # what is new since the last call is noted once
        one.jump(one.length)
        costs.append(calls_of(lambda one=one: ACTIONS[name](one)))
    short, long = costs
    assert long < short + 60, f"{short} calls after {SHORT} rounds, {long} after {LONG}"


REFUSED = {
    "step by": (lambda s: s.step(by=["round"]), "expected 'round' or 'token'"),
    "run until number": (lambda s: s.run(until=5), "condition"),
    "run until nothing": (lambda s: s.run(until=""), "condition"),
    "run rounds -1": (lambda s: s.run(rounds=-1), "rounds: expected a whole number of at least 0, got -1"),
    "run rounds text": (lambda s: s.run(rounds="x"), "rounds: expected a whole number"),
    "run rounds half": (lambda s: s.run(rounds=1.5), "rounds: expected a whole number"),
    "run rounds true": (lambda s: s.run(rounds=True), "rounds: expected a whole number"),
    "back text": (lambda s: s.back("2"), "back: expected a number of steps"),
    "back nothing": (lambda s: s.back(None), "back: expected a number of steps"),
    "back nan": (lambda s: s.back(float("nan")), "back: expected a number of steps"),
    "back by": (lambda s: s.back(1, by=1), "expected 'round' or 'token'"),
    "jump text": (lambda s: s.jump("1"), "jump: expected a token number in"),
    "jump very far": (lambda s: s.jump(10**5000), "got a value of type int"),
    "fork at text": (lambda s: s.fork(at="1"), "fork: expected a token number in"),
    "fork token list": (lambda s: s.fork(at=1, token=[1]), "token: expected an id or text"),
    "fork token half": (lambda s: s.fork(at=1, token=1.0), "token: expected an id or text"),
    "fork token true": (lambda s: s.fork(at=1, token=True), "token: expected an id or text"),
    "fork token bytes": (lambda s: s.fork(at=1, token=b"a"), "token: expected an id or text"),
    "fork decoder": (lambda s: s.fork(at=1, decoder=5), "decoder: expected one"),
    "fork out": (lambda s: s.fork(at=1, out=5), "expected the path of a file"),
    "end reason": (lambda s: s.end(5), "end: reason: expected text, got 5"),
    "end message": (lambda s: s.end("stop", ["x"]), "end: message: expected text"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_types_and_odd_values_are_one_line_and_change_nothing(name):
    """Some were tracebacks of Python, and some were taken for something else."""
    one = session("plain", 6)
    one.run(rounds=4)
    before, cursor = list(one.trace.log), one.cursor
    call, message = REFUSED[name]
    with pytest.raises(BadInput, match=message) as caught:
        call(one)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    assert one.trace.log == before and one.cursor == cursor


def test_far_more_steps_back_than_there_are_end_at_the_start():
    """The loop over the steps held the session's lock for an hour."""
    one = session("plain", 6)
    one.run()
    assert one.back(10**9) == 0
    one.jump(6)
    assert one.back(2**62, by="token") == 0
    one.jump(np.int64(6))
    assert one.back(np.int64(2)) == 4 == one.cursor and one.run(rounds=np.int64(0)) is None


def test_back_by_rounds_visits_the_starts_of_rounds():
    one = session("chain, off", 30)
    starts = {one.cursor}
    for _ in one:
        starts.add(one.cursor)
    one.jump(one.length - 1)
    seen = []
    while one.cursor:
        seen.append(one.back())
    assert seen == sorted((start for start in starts if start < one.length - 1), reverse=True)


def test_a_named_decoder_is_built_for_a_branch():
    """The name itself used to be taken for the decoder."""
    one = session("plain", 6)
    one.run(rounds=3)
    branch = one.fork(at=2, decoder="mirostat", temperature=1.0)
    branch.run()
    assert branch.decoder.declared_name == "mirostat" and branch.length == 6


def test_a_condition_that_fails_skips_no_token():
    """The cursor used to stand behind the round whose rows had not been asked."""
    one, asked = session("chain, off", 30), []

    def holds(row) -> bool:
        asked.append(row["index"])
        if len(asked) == 7:
            raise RuntimeError("the caller's own")
        return False

    with pytest.raises(RuntimeError):
        one.run(until=holds)
    assert one.cursor <= asked[-1]
    one.run(until=lambda row: asked.append(row["index"]))
    assert set(asked) == set(range(30))


def test_the_text_between_two_tokens():
    one = session("chain, off", 30)
    one.run()
    texts = one.trace.tokens["text"].tolist()
    for start in range(0, 31, 4):
        for stop in range(start, 31, 5):
            assert one.text_from(start, stop) == "".join(texts[start:stop])
    one.jump(7)
    assert one.text == "".join(texts[:7]) and one.text_from(3) == "".join(texts[3:7])

"""Forward and back without a browser: by phase, by round, by token; run, pause, breakpoints."""

import time

import gradio as gr
import pytest

import workbench as wb
from tests.app.visitor import PROMPT, Visitor
from workbench.dashboard import limits
from workbench.dashboard.form import MAX_NEW_TOKENS, MAX_PROMPT
from workbench.dashboard.html import PHASES
from workbench.dashboard.jobs import Worker
from workbench.dashboard.visits import BY, VISITS, forget_idle
from workbench.trace import Trace


def refused(visitor: Visitor, event: str, data: dict | None = None) -> str:
    """The one line with which an event is refused, in the toast and, after it, in the status line."""
    with pytest.raises(gr.Error) as error:
        visitor.fire(event, data)
    visitor.fire("failed")
    line = error.value.message
    assert "\n" not in line and visitor.status == line
    return line


@pytest.fixture(scope="module")
def plain() -> Trace:
    """What plain decoding writes."""
    return wb.decode(wb.load("embedded"), PROMPT, max_new_tokens=12)


def test_a_fresh_page_can_only_start(visitor):
    assert visitor.enabled("Run") and visitor.enabled("Start paused")
    for button in ("step", "back", "play", "pause", "fork", "resettle", "forget", "save", "capsule", "perfetto"):
        assert not visitor.enabled(button)
    assert refused(visitor, "step").startswith("nothing to step through yet")


def test_step_and_back_move_over_one_record(visitor, plain):
    visitor.start()
    assert "Ready: " in visitor.status and "guarantee: exact" in visitor.status
    visitor.step().step().step().step("token")
    assert visitor.text == "".join(plain.tokens["text"][:4]) and visitor.cursor == 4
    visitor.fire("back")
    assert visitor.cursor == 3 and len(visitor.texts) == 4 and "Token 3 of 4 recorded" in visitor.status


def test_a_round_is_stepped_phase_by_phase_and_back(visitor):
    """Phases are views of a recorded round: its tokens count as committed from the phase `commit` on."""
    visitor.start(decoder="speculative").step()
    before = visitor.cursor
    for place, phase in enumerate(PHASES):
        visitor.step("phase")
        shown = visitor.get("phases")
        assert f"Round 2, {phase}." in visitor.status and shown.count("not shown yet") == len(PHASES) - 1 - place
        assert (visitor.cursor == before) == (place < PHASES.index("commit"))
    assert "drafted" not in shown or "accepted" in shown
    for phase in reversed(PHASES[:-1]):
        visitor.fire("back")
        assert f"Round 2, {phase}." in visitor.status
    visitor.fire("back")
    assert "Round 1, cache." in visitor.status and visitor.cursor == before


def test_the_cursor_in_the_page_is_where_the_next_step_goes_on(visitor):
    """Scrubbing happens in the browser; the server hears of the token it came to rest on."""
    visitor.start(tokens=6)
    visitor.fire("play")
    visitor.watch()
    assert visitor.cursor == 6
    visitor.fire("pick", {"index": 1})
    assert visitor.cursor == 6  # the page has moved its own cursor; nothing is sent back
    assert visitor.step("token").cursor == 3
    visitor.fire("pick", {"index": 4})
    visitor.fire("back")
    assert visitor.cursor == 4
    visitor.fire("pick", {"index": 99})
    before = visitor.get("view")
    assert visitor.step().cursor == 5
    visitor.fire("pick", {"index": 3})
    assert visitor.step("token").cursor == 5 and visitor.get("view") != before  # else the page would not take notice


@pytest.mark.parametrize("index", [False, True, 1.0, "1", None, [1], {}])
def test_what_is_no_token_number_is_not_picked(visitor, index):
    """False stayed selected, and the next picture could not be drawn."""
    visitor.start(tokens=6).step()
    visitor.fire("pick", {"index": index})
    assert VISITS[visitor.name].selected is None
    visitor.fire("tick")


def test_run_plays_to_the_end(visitor, plain):
    visitor.start()
    visitor.fire("play")
    assert visitor.playing and visitor.enabled("pause") and not visitor.enabled("step")
    visitor.watch()
    assert visitor.text == plain.text and "Ended: length" in visitor.status and not visitor.enabled("step")


def test_run_opens_and_plays_in_one_press(visitor, plain):
    visitor.set("prompt", PROMPT)
    visitor.set("max new tokens", 12)
    visitor.fire("go")
    assert visitor.playing
    assert visitor.watch().text == plain.text


def test_pause_stops_between_two_steps(visitor):
    visitor.start(tokens=64)
    visitor.set("speed", "10 steps / s")
    visitor.fire("play")
    while visitor.cursor == 0:
        visitor.fire("tick")
    visitor.fire("pause")
    held = visitor.cursor
    assert not visitor.playing and 0 < held < 64 and "Paused." in visitor.status
    time.sleep(0.25)
    visitor.fire("tick")  # a beat that was under way
    assert visitor.cursor == held == len(visitor.texts)


def test_the_page_is_sent_only_what_it_lacks(visitor):
    visitor.start(tokens=40)
    visitor.step().step()
    assert visitor.view["since"] == 2 and len(visitor.view["tokens"]["text"]) == 2
    whole = visitor.fire("lost")[0]
    assert '"since":0' in whole


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("decoder", ["autoregressive", "speculative"])
def test_a_breakpoint_stops_right_after_its_token(visitor, by, decoder):
    visitor.start(decoder=decoder)
    visitor.set("by", by)
    visitor.set("until", "index >= 4 and rank >= 1")
    visitor.fire("play")
    visitor.watch()
    assert visitor.cursor in (5, *([3, 4] if by == "phase" else []))
    assert "Stopped where index &gt;= 4 and rank &gt;= 1" in visitor.status


@pytest.mark.parametrize(
    ("label", "value", "line"),
    [
        ("prompt", "", "the prompt is empty"),
        ("prompt", "x" * (MAX_PROMPT + 1), f"at most {MAX_PROMPT}"),
        ("prompt", "x = 1\n" * 3000, "context"),
        ("given as", "chat message", "no chat template"),
        ("model", "/nowhere/at-all", "no model directory"),
        ("top p", 1.5, "expected a number in (0, 1]"),
        ("seed", -1, "seed"),
        ("until", "entrop > 3", "did you mean &#x27;entropy&#x27;?"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_the_run_stays(visitor, label, value, line):
    visitor.start(tokens=4).step()
    before = visitor.view
    visitor.set(label, value)
    assert line in refused(visitor, "play" if label == "until" else "start")
    assert visitor.fire("pause") and visitor.texts == before["tokens"]["text"]


def test_limits_hold_in_the_form_itself(visitor):
    """The browser's slider stops at the limit; a request by hand does not have to."""
    with pytest.raises(gr.Error):
        visitor.start(tokens=MAX_NEW_TOKENS + 1)
    visitor.set("temperature", -1)
    with pytest.raises(gr.Error):
        visitor.start(tokens=4)


def test_more_runs_at_once_than_the_limit_are_refused(visitor, monkeypatch):
    import threading

    visitor.start(tokens=4)
    monkeypatch.setattr(limits, "_turns", threading.BoundedSemaphore(1))
    turn = limits.Turn()
    turn.take()
    assert "the most at once; try again in a moment" in refused(visitor, "play")
    assert visitor.fire("tick") and not visitor.playing
    turn.give()
    visitor.fire("play")
    visitor.watch()


def test_a_run_that_fails_does_not_take_the_visit_down(visitor, monkeypatch):
    from workbench.decoders import Autoregressive

    def broken(self, state, r):
        raise wb.NumericalError("the model returned NaN")

    def bug(self, state, r):
        raise TypeError("no such\nthing")

    visitor.start(tokens=6).step()
    with monkeypatch.context() as patch:
        patch.setattr(Autoregressive, "decode_round", broken)
        assert refused(visitor, "step") == "the model returned NaN"
        visitor.fire("play")
        assert visitor.watch().status == "the model returned NaN"
        patch.setattr(Autoregressive, "decode_round", bug)
        visitor.fire("play")
        assert visitor.watch().status == "unexpected TypeError: no such thing"
    visitor.fire("back")
    assert len(visitor.texts) == 1
    visitor.start(tokens=2).step()
    assert len(visitor.texts) == 1


def test_two_visitors_do_not_mix(app):
    one, two = Visitor(app, "one"), Visitor(app, "two")
    one.start(tokens=30)
    two.start(tokens=4, prompt="class Stack:").step()
    one.fire("play")
    two.fire("play")
    two.watch()
    one.watch()
    assert (one.cursor, two.cursor) == (30, 4)
    assert (one.view["prompt"], two.view["prompt"]) == (PROMPT, "class Stack:")
    assert one.text == wb.decode(wb.load("embedded"), PROMPT, max_new_tokens=30).text


def test_a_closed_page_lets_go_of_its_runs_even_while_they_play(app):
    from workbench.dashboard.app import closed

    leaving = Visitor(app, "leaving").start(tokens=400)
    leaving.fire("play")
    visit, worker = VISITS["leaving"], VISITS["leaving"].worker
    assert isinstance(worker, Worker) and worker.is_alive()
    closed(gr.Request(session_hash="leaving"))
    assert visit.branches == [] and "leaving" not in VISITS and not worker.is_alive()


def test_an_idle_page_lets_go_of_its_runs_and_says_so(visitor):
    visitor.start(tokens=4).step()
    assert forget_idle(older=3600) == 0
    assert forget_idle(older=-1) >= 1
    visitor.fire("tick")
    assert "was idle" in visitor.status and not visitor.enabled("step")
    assert visitor.start(tokens=4).step().cursor == 1

"""Forward and back without a browser: by phase, by round, by token; run, pause, breakpoints."""

import json
import time

import gradio as gr
import pytest

import workbench as wb
from tests.app.visitor import PROMPT, Visitor
from workbench.dashboard import limits
from workbench.dashboard.form import MAX_NEW_TOKENS, MAX_PROMPT
from workbench.dashboard.jobs import Worker
from workbench.dashboard.presets import presets
from workbench.dashboard.visits import VISITS, forget_idle
from workbench.trace import Trace
from workbench.web.data import COMMIT, PHASES


def refused(visitor: Visitor, event: str, data: dict | None = None) -> str:
    """The one line with which an event is refused, in the status line."""
    with pytest.raises(gr.Error) as error:
        visitor.fire(event, data)
    visitor.fire("failed")
    line = error.value.message
    assert "\n" not in line and visitor.status == line and not error.value.visible  # no box over the page beside it
    return line


@pytest.fixture(scope="module")
def plain() -> Trace:
    """What plain decoding writes."""
    return wb.decode(wb.load("embedded"), PROMPT, max_new_tokens=12)


def test_a_fresh_page_shows_a_recorded_run_and_nothing_to_decode(app):
    """No model, no wait: a run that teaches, at the token to look at, and its settings in the form."""
    visit = VISITS[(fresh := Visitor(app, "fresh", empty=False)).name]
    assert fresh.runs == ["A · cache cliff*"] and len(fresh.texts) == 96 and fresh.view["selected"] == 40
    assert "fall off a cliff" in fresh.view["line"] and fresh.view["badge"]["caution"] and not fresh.view["can"]
    assert fresh.get("prompt").strip() and json.loads(fresh.get("setup"))["preset"] == "cache cliff"
    assert [chip["group"] for chip in json.loads(fresh.get("setup"))["chips"]][:2] == ["Prompt", "Decoder"]
    assert fresh.enabled("save") and visit.branches[0].run.ended


def test_a_page_without_runs_can_only_start(visitor):
    for button in ("save", "capsule", "perfetto"):
        assert not visitor.enabled(button)
    assert refused(visitor, "step", {"by": "round"}).startswith("nothing to step through yet")


def test_steps_go_on_from_the_end_of_the_record(visitor, plain):
    visitor.start()
    assert visitor.status == "9 tokens of prompt."
    assert visitor.view["badge"]["text"] == "= exact" and visitor.view["can"]
    visitor.step().step().step().step("token")
    assert visitor.text == "".join(plain.tokens["text"][:4]) and visitor.cursor == 4
    visitor.fire("pick", {"index": 1})
    assert visitor.cursor == 4  # the page has moved its own cursor; nothing is sent back
    before = visitor.get("view")
    assert visitor.step("token").cursor == 5 and visitor.get("view") != before  # else the page would not take notice
    assert refused(visitor, "step", {"by": "leap"}).startswith("step by")


def test_a_round_is_stepped_phase_by_phase_and_nothing_is_sent_before_its_phase(visitor):
    """Phases are views of a recorded round: its tokens are sent from the phase `commit` on."""
    visitor.start(decoder="speculative").step()
    before = len(visitor.texts)
    for place in range(len(PHASES)):
        visitor.step("phase")
        last = place == len(PHASES) - 1
        assert visitor.phase == (None if last else place)
        assert (len(visitor.texts) == before) == (place < COMMIT)
        sent = json.loads(visitor.get("view"))
        rounds, fates = sent["drafts"]["round"], sent["drafts"].get("fate", ())
        fates = [fate for round, fate in zip(rounds, fates, strict=False) if fate and round == 2]
        assert bool(fates) == (place >= 2) and (sent["rounds"].get("cache_bytes", [None])[-1] is not None) == last
        assert last or "drafts accepted" not in visitor.view["line"]
    whole = len(visitor.texts)
    visitor.step("phase").step("round")
    assert visitor.phase is None and len(visitor.texts) > whole  # the open round is shown whole, none is skipped
    assert len(VISITS[visitor.name].branch.run.trace.rounds) == 4


@pytest.mark.parametrize("index", [False, True, 1.0, "1", None, [1], {}])
def test_what_is_no_token_number_is_not_picked(visitor, index):
    """False stayed selected, and the next picture could not be drawn."""
    visitor.start(tokens=6).step()
    visitor.fire("pick", {"index": index})
    assert VISITS[visitor.name].selected is None
    visitor.fire("tick")


def test_run_plays_to_the_end(visitor, plain):
    visitor.start()
    visitor.fire("run", {})
    assert visitor.playing
    visitor.watch()
    assert visitor.text == plain.text and "Ended: length" in visitor.status and visitor.view["ended"] == "length"


def test_run_opens_and_plays_in_one_press(visitor, plain):
    visitor.set("prompt", PROMPT)
    visitor.set("max new tokens", 12)
    visitor.fire("go", {})
    assert visitor.playing
    assert visitor.watch().text == plain.text


def test_pause_stops_between_two_steps(visitor):
    visitor.start(tokens=64)
    visitor.fire("run", {"pace": 0.1})
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


@pytest.mark.parametrize("decoder", ["autoregressive", "speculative"])
def test_a_breakpoint_stops_right_after_its_token(visitor, decoder):
    visitor.start(decoder=decoder)
    visitor.fire("run", {"until": "index >= 4 and rank >= 1"})
    visitor.watch()
    assert visitor.cursor == 5
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
    if label == "until":
        assert line in refused(visitor, "run", {"until": value})
    else:
        visitor.set(label, value)
        assert line in refused(visitor, "start")
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
    assert "the most at once; try again in a moment" in refused(visitor, "run", {})
    assert visitor.fire("tick") and not visitor.playing
    assert "the most at once" in refused(visitor, "go", {})
    visitor.fire("tick")
    assert len(visitor.runs) == 1  # as if it had not been asked for
    turn.give()
    visitor.fire("run", {})
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
        assert refused(visitor, "step", {"by": "round"}) == "the model returned NaN"
        visitor.fire("run", {})
        assert visitor.watch().status == "the model returned NaN"
        patch.setattr(Autoregressive, "decode_round", bug)
        visitor.fire("run", {})
        assert visitor.watch().status == "unexpected TypeError: no such thing"
    visitor.fire("tick")
    assert len(visitor.texts) == 1
    visitor.start(tokens=2).step()
    assert len(visitor.texts) == 1


def test_two_visitors_do_not_mix(app):
    one, two = Visitor(app, "one"), Visitor(app, "two")
    one.start(tokens=30)
    two.start(tokens=4, prompt="class Stack:").step()
    one.fire("run", {})
    two.fire("run", {})
    two.watch()
    one.watch()
    assert (one.cursor, two.cursor) == (30, 4)
    assert (one.view["prompt"], two.view["prompt"]) == (PROMPT, "class Stack:")
    assert one.text == wb.decode(wb.load("embedded"), PROMPT, max_new_tokens=30).text


def test_a_closed_page_lets_go_of_its_runs_even_while_they_play(app):
    from workbench.dashboard.app import closed

    leaving = Visitor(app, "leaving").start(tokens=400)
    leaving.fire("run", {})
    visit, worker = VISITS["leaving"], VISITS["leaving"].worker
    assert isinstance(worker, Worker) and worker.is_alive()
    closed(gr.Request(session_hash="leaving"))
    assert visit.branches == [] and "leaving" not in VISITS and not worker.is_alive()


def test_an_idle_page_lets_go_of_its_runs_and_says_so(visitor):
    visitor.start(tokens=4).step()
    assert forget_idle(older=3600) == 0
    assert forget_idle(older=-1) >= 1
    visitor.fire("tick")
    assert "was idle" in visitor.status and visitor.view == {}
    assert visitor.start(tokens=4).step().cursor == 1


@pytest.mark.parametrize(
    "asked", [{"until": 3}, {"until": ["x"]}, {"pace": -1}, {"pace": 1e9}, {"pace": "1"}, {"pace": True}]
)
def test_what_is_no_condition_or_pace_is_refused(visitor, asked):
    visitor.start(tokens=2)
    assert "until is a condition, and pace 0 to 5 seconds a step" in refused(visitor, "run", asked)


def test_presets_show_their_recorded_run_at_once_and_fill_the_form(visitor):
    for name in presets():
        visitor.fire("preset", {"name": name})
        assert visitor.runs[-1] == f"{chr(64 + len(visitor.runs))} · {name}*" and len(visitor.texts) > 30
        setup = json.loads(visitor.get("setup"))
        assert setup["preset"] == name and setup["trouble"] == ""
        for chip in setup["chips"]:  # what the form says is what the run was asked to do
            assert chip["text"] == chip["run"] or chip["group"] == "Model", chip
    visitor.fire("preset", {"name": next(iter(presets()))})
    assert visitor.runs[0].endswith("*")  # it is open already
    assert "there is no such preset" in refused(visitor, "preset", {"name": "nothing of that name"})
    assert len(visitor.runs) == len(presets())


def test_the_setup_row_says_what_the_form_says_and_why_it_cannot_be_run(visitor):
    visitor.set("temperature", 0.7)
    visitor.set("cache policy", "h2o")
    visitor.fire("edited", {})
    chips = {chip["group"]: chip["text"] for chip in json.loads(visitor.get("setup"))["chips"]}
    assert chips["Sampling"] == "T 0.7" and chips["Cache"].startswith("h2o")
    assert chips["Decoder"].startswith("speculative")
    visitor.set("top p", 1.5)
    visitor.fire("edited", {})
    assert "expected a number in (0, 1]" in json.loads(visitor.get("setup"))["trouble"]

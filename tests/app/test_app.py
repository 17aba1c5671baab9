"""The app without a browser: a visitor presses its buttons, and what the page would show is checked."""

import json

import gradio as gr
import pytest

import workbench as wb
from tests.app.visitor import PROMPT, Visitor
from workbench.dashboard import handlers
from workbench.dashboard.form import MAX_NEW_TOKENS, MAX_PROMPT
from workbench.trace import Trace


def refused(visitor: Visitor, event: str, data: dict | None = None) -> str:
    """The one line with which an event is refused, in the toast and, after it, in the status line."""
    with pytest.raises(gr.Error) as error:
        visitor.fire(event, data)
    visitor.fire("failed")
    line = error.value.message
    assert "\n" not in line and visitor.get("status") == line
    return line


@pytest.fixture(scope="module")
def plain() -> Trace:
    """What plain decoding writes."""
    return wb.decode(wb.load("embedded"), PROMPT, max_new_tokens=12)


def test_a_fresh_page_can_only_start(visitor):
    assert visitor.enabled("Start")
    for button in ("Step ▶", "Step token", "◀ Back", "Run ▶▶", "Pause", "Save trace", "Fork here"):
        assert not visitor.enabled(button)
    assert refused(visitor, "step").startswith("nothing to step through yet")


def test_step_back_and_jump_move_over_one_record(visitor, plain):
    visitor.start()
    assert "Ready: " in visitor.get("status") and "claim: exact" in visitor.get("status")
    for _ in range(3):
        visitor.fire("step")
    visitor.fire("step_token")
    assert visitor.text == "".join(plain.tokens["text"][:4]) and visitor.strip["cursor"] == 4
    visitor.fire("back")
    assert visitor.strip["cursor"] == 3 and len(visitor.strip["text"]) == 4
    assert "Token 3 of 4 recorded" in visitor.get("status")
    visitor.set("scrub", 1)
    visitor.fire("jump")
    assert visitor.strip["cursor"] == 1 and visitor.strip["selected"] == 0


def test_steps_of_a_speculative_run_show_its_drafts(visitor, plain):
    visitor.start(decoder="speculative")
    visitor.fire("step")
    strip = visitor.strip
    assert "".join(strip["text"]) == "".join(plain.tokens["text"][: len(strip["text"])])
    assert set(strip["kind"]) <= {"drafted", "bonus", "residual", "target"}
    assert "drafted in round 1 by draft_model" in visitor.get("inspector")
    visitor.fire("step_token")
    assert visitor.strip["cursor"] == len(strip["text"]) + 1


def test_run_plays_to_the_end_and_pause_stops_it(visitor, plain):
    visitor.start()
    visitor.fire("play")
    assert visitor.playing and visitor.enabled("Pause") and not visitor.enabled("Step ▶")
    visitor.fire("tick")
    visitor.fire("tick")
    visitor.fire("pause")
    assert not visitor.playing and visitor.strip["cursor"] == 2 and visitor.enabled("Step ▶")
    visitor.fire("tick")  # a beat that was under way
    assert visitor.strip["cursor"] == 2
    visitor.set("pace", "fast")
    visitor.fire("play")
    for _ in range(12):
        if visitor.playing:
            visitor.fire("tick")
    assert not visitor.playing and visitor.text == plain.text
    assert "Ended: length" in visitor.get("status") and not visitor.enabled("Step ▶")


@pytest.mark.parametrize("pace", list(handlers.PACES))
def test_run_until_a_condition_holds(visitor, pace):
    visitor.start()
    visitor.set("pace", pace)
    visitor.set("run until", "index >= 4")
    visitor.fire("play")
    for _ in range(8):
        if visitor.playing:
            visitor.fire("tick")
    assert not visitor.playing and visitor.strip["cursor"] == 5
    assert "Stopped where index &gt;= 4" in visitor.get("status")


def test_a_picked_token_is_inspected(visitor, plain):
    visitor.start(tokens=4)
    for _ in range(4):
        visitor.fire("step")
    visitor.fire("pick", {"index": 1})
    row = plain.tokens.iloc[1]
    assert visitor.strip["selected"] == 1
    shown = visitor.get("inspector")
    assert f"token 1 at position {row['position']}, round {row['round']}" in shown
    assert f"{row['entropy_raw_nats']:.4g} nats" in shown
    labels = visitor.props[visitor.find("candidate")]["choices"]
    assert [number for _, number in labels] == row["topk_raw"][0]
    visitor.fire("pick", {"index": 99})
    assert visitor.strip["selected"] == 1


@pytest.mark.parametrize("name", list(handlers.DETAILS))
def test_every_figure_can_be_chosen(visitor, name):
    visitor.start(tokens=6, decoder="speculative")
    visitor.fire("step")
    visitor.set("figure", name)
    drawn = visitor.fire("detail")[0]
    assert drawn["type"] == "plotly" and json.loads(drawn["plot"])["data"]


def test_a_fork_is_a_branch_with_another_token(visitor, plain):
    visitor.start()
    for _ in range(3):
        visitor.fire("step")
    visitor.fire("pick", {"index": 1})
    visitor.set("candidate", plain.tokens["topk_raw"][1][0][2])
    visitor.fire("fork")
    assert visitor.strip["text"][0] == plain.tokens["text"][0]
    assert visitor.fire("step") and visitor.strip["text"][1] != plain.tokens["text"][1]
    assert visitor.props[visitor.find("branch")]["visible"]
    visitor.set("branch", 0)
    visitor.fire("branch")
    assert visitor.text == "".join(plain.tokens["text"][:3])


def test_a_fork_takes_a_typed_token_and_new_settings(visitor):
    visitor.start()
    visitor.fire("step")
    visitor.set("or type one token", " if")
    visitor.set("with the settings as they are now", True)
    visitor.set("decoder", "speculative")
    visitor.fire("fork")
    assert visitor.strip["text"][0] == " if" and "speculative" in visitor.figures


def test_forks_that_make_no_sense_are_refused(visitor):
    visitor.start()
    visitor.fire("step")
    assert "a branch needs something new" in refused(visitor, "fork")
    visitor.set("or type one token", "several tokens, surely")
    assert "expected exactly one" in refused(visitor, "fork")
    assert len(visitor.strip["text"]) == 1


def test_a_saved_trace_opens_again_and_needs_no_model(app, visitor, tmp_path, monkeypatch):
    visitor.start(decoder="speculative")
    for _ in range(3):
        visitor.fire("step")
    text, _ = visitor.fire("save")
    path = tmp_path / "run.wb"
    path.write_text(text, encoding="utf-8")
    assert Trace.load(path).text == visitor.text

    def no_model(*args, **named):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("workbench.dashboard.form.load", no_model)
    view = handlers.Visit()
    shown = dict(zip(handlers.PANEL, handlers.open_trace(view, str(path)), strict=True))
    assert "Opened run.wb" in shown["status"] and json.loads(shown["strip"])["text"] == visitor.strip["text"]
    assert not shown["fork"]["interactive"]
    handlers.back(view)
    shown = dict(zip(handlers.PANEL, handlers.back(view), strict=True))
    assert json.loads(shown["strip"])["cursor"] < len(visitor.strip["text"])
    shown = dict(zip(handlers.PANEL, handlers.step(view), strict=True))
    assert "of" in shown["status"]


@pytest.mark.parametrize(
    ("content", "line"), [(b"hello", "bad.wb is not a trace"), (b'{"type":"run","schema":99}\n', "has schema 99")]
)
def test_files_that_are_no_traces_are_refused(tmp_path, content, line):
    (tmp_path / "bad.wb").write_bytes(content)
    visit = handlers.Visit()
    with pytest.raises(gr.Error, match=line):
        handlers.open_trace(visit, str(tmp_path / "bad.wb"))
    assert line in visit.message and str(tmp_path) not in visit.message


def test_what_a_damaged_trace_lost_is_named(tmp_path, plain):
    plain.save(tmp_path / "cut.wb")
    (tmp_path / "cut.wb").write_bytes((tmp_path / "cut.wb").read_bytes()[:-10])
    visit = handlers.Visit()
    handlers.open_trace(visit, str(tmp_path / "cut.wb"))
    assert f"Dropped: line {len(plain.log)}: cut off" in visit.message


@pytest.mark.parametrize(
    ("label", "value", "line"),
    [
        ("prompt", "", "the prompt is empty"),
        ("prompt", "x" * (MAX_PROMPT + 1), f"at most {MAX_PROMPT}"),
        ("prompt", "x = 1\n" * 3000, "context"),
        ("temperature", -1, "temperature"),
        ("top p", 1.5, "expected a value in (0, 1]"),
        ("seed", -1, "seed"),
        ("run until", "entrop > 3", "did you mean &#x27;entropy&#x27;?"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_the_run_stays(visitor, label, value, line):
    visitor.start(tokens=4)
    visitor.fire("step")
    before = visitor.strip
    visitor.set(label, value)
    assert line in refused(visitor, "play" if label == "run until" else "start")
    assert visitor.fire("pause") and visitor.strip == before


def test_limits_hold_in_the_form_itself(app, visitor):
    """The browser's slider stops at the limit; a request by hand does not have to."""
    with pytest.raises(gr.Error):
        visitor.start(tokens=MAX_NEW_TOKENS + 1)


def test_two_visitors_do_not_mix(app):
    one, two = Visitor(app, "one"), Visitor(app, "two")
    one.start(tokens=4)
    two.start(tokens=4, prompt="class Stack:")
    one.fire("step")
    two.fire("step")
    one.fire("step")
    assert (one.strip["cursor"], two.strip["cursor"]) == (2, 1)
    assert (one.strip["prompt"], two.strip["prompt"]) == (PROMPT, "class Stack:")


def test_a_closed_page_lets_go_of_its_runs(app):
    leaving = Visitor(app, "leaving")
    leaving.start(tokens=4)
    visit = handlers._visits["leaving"]
    handlers.closed(gr.Request(session_hash="leaving"))
    assert visit.branches == [] and "leaving" not in handlers._visits


def test_a_run_that_fails_does_not_take_the_visit_down(visitor, monkeypatch):
    from workbench.decoders import Autoregressive

    def broken(self, state, log):
        raise wb.NumericalError("the model returned NaN")

    visitor.start(tokens=6)
    visitor.fire("step")
    with monkeypatch.context() as patch:
        patch.setattr(Autoregressive, "round", broken)
        assert refused(visitor, "step") == "the model returned NaN"
    visitor.fire("back")
    assert len(visitor.strip["text"]) == 1
    visitor.start(tokens=2)
    visitor.fire("step")
    assert len(visitor.strip["text"]) == 1


def test_text_of_model_and_prompt_is_inert(visitor):
    hostile = "<img src=x onerror=alert(1)> {{7*7}} ${7*7} `x`"
    visitor.start(tokens=2, prompt=hostile)
    visitor.fire("step")
    assert visitor.strip["prompt"] == hostile  # set as text, never as markup
    from workbench.dashboard.inspector import inert, shown

    for safe in (inert(hostile), shown(hostile)):
        assert not set("<>{}$`") & set(safe)


def test_every_event_of_the_app_is_private_and_named(app):
    known = {"start", "step", "step_token", "back", "play", "pause", "tick", "jump", "pick", "branch", "detail", "fork"}
    names = {fn.api_name for fn in app.fns.values()}
    assert known | {"open", "save", "loaded"} <= names
    assert all(fn.api_visibility == "private" for fn in app.fns.values() if fn.api_name != "closed")


def test_the_strip_module_becomes_a_function_body():
    from workbench.dashboard.strip import script

    code = script()
    assert "export" not in code and "import " not in code and "function mount(" in code
    assert "innerHTML" not in code and "http" not in code

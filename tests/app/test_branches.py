"""Branching, import and export: branches, side by side, traces, capsules, timelines."""

import json

import gradio as gr
import pytest

import workbench as wb
from tests.app.test_transport import refused
from tests.app.visitor import PROMPT
from workbench.dashboard import share
from workbench.dashboard.visits import MAX_BRANCHES, VISITS, Visit
from workbench.trace import Trace, storage


@pytest.fixture(scope="module")
def plain() -> Trace:
    """What plain decoding writes."""
    return wb.decode(wb.load("embedded"), PROMPT, max_new_tokens=12)


def test_a_branch_takes_a_candidate_and_both_runs_stay(visitor, plain):
    visitor.start().step().step().step()
    visitor.fire("fork", {"index": 1, "token": plain.tokens["topk_raw"][1][0][2]})
    assert visitor.texts[0] == plain.tokens["text"][0] and visitor.texts[1] != plain.tokens["text"][1]
    assert visitor.runs == ["A · autoregressive", "B · from 1*"]
    assert visitor.view["marks"] == [{"index": 1, "text": "forced token"}]
    visitor.fire("choose", {"run": 0})
    assert visitor.text == "".join(plain.tokens["text"][:3]) and visitor.runs[0].endswith("*")
    visitor.fire("choose", {"run": 7})
    assert visitor.runs[0].endswith("*")


def test_other_settings_in_mid_run_make_a_branch_that_goes_on(visitor):
    visitor.start(tokens=200)
    visitor.fire("run", {"pace": 0.1})
    visitor.set("decoder", "speculative")
    visitor.set("max new tokens", 20)
    visitor.fire("resettle", {})
    assert visitor.playing and visitor.view["decoder"] == "speculative" and len(visitor.runs) == 2
    visitor.watch()
    assert len(visitor.texts) == 20 and len(VISITS[visitor.name].branches[0].run.trace.token_ids) < 200


@pytest.mark.parametrize("index", [False, True, 1.0, "1", None, [1], {}, -1, 99])
def test_what_is_no_token_number_is_not_branched_at(visitor, index):
    visitor.start().step()
    assert "choose a token first" in refused(visitor, "fork", {"index": index, "text": " if"})


def test_branches_that_make_no_sense_are_refused(visitor):
    visitor.start().step()
    assert "a branch needs something new" in refused(visitor, "fork", {"index": 0})
    assert "expected exactly one" in refused(visitor, "fork", {"index": 0, "text": "several tokens, surely"})
    visitor.set("model", "embedded-draft")
    assert "for another model, device or dtype press Run" in refused(visitor, "resettle", {"index": 0})
    assert len(visitor.texts) == 1


def test_runs_are_kept_until_forgotten_and_no_more_than_the_limit(visitor):
    for _ in range(MAX_BRANCHES):
        visitor.start(tokens=1)
    assert "press Forget on one" in refused(visitor, "start")
    visitor.fire("forget")
    assert len(visitor.runs) == MAX_BRANCHES - 1
    visitor.start(tokens=1)


def test_two_runs_side_by_side_show_where_they_part_and_why(visitor, plain):
    visitor.start()
    visitor.fire("run", {})
    visitor.watch()
    visitor.fire("fork", {"index": 3, "text": " if"})
    visitor.set("left", 0)
    visitor.set("right", 1)
    shown = json.loads(visitor.fire("beside")[0])
    assert shown["said"] == "They part at token 3: forced token." and shown["part"] == 3
    assert shown["detail"] == "Token 3 of B was forced."
    a, b = shown["runs"]
    assert a["tokens"]["text"][:3] == b["tokens"]["text"][:3] and b["tokens"]["text"][3] == " if"
    assert a["marks"] == [{"index": 3, "text": "they part"}] and shown["names"][1] == "B · from 3"
    (facts,) = shown["tables"]
    assert facts["title"] == "Both runs" and ["tokens", "12", "4"] in facts["rows"]
    visitor.set("right", 0)
    assert json.loads(visitor.fire("right")[0])["said"] == "The texts are the same."
    visitor.set("right", None)
    assert visitor.fire("right") == [""]


@pytest.mark.parametrize("kind", ["save", "capsule", "perfetto"])
def test_a_run_leaves_as_a_file(visitor, kind, tmp_path):
    visitor.start(decoder="speculative").step().step()
    file = json.loads(visitor.fire(kind)[0])
    path = tmp_path / file["name"]
    path.write_text(file["text"], encoding="utf-8")
    if kind == "perfetto":
        assert json.loads(file["text"])["traceEvents"]
    else:
        assert Trace.load(path).text == visitor.text and visitor.status.startswith("Saved")


@pytest.mark.parametrize("kind", ["save", "capsule"])
def test_traces_and_capsules_open_without_a_model(visitor, kind, tmp_path, monkeypatch):
    visitor.start(decoder="speculative").step().step().step()
    texts, file = visitor.texts, json.loads(visitor.fire(kind)[0])
    path = tmp_path / file["name"]
    path.write_text(file["text"], encoding="utf-8")

    def no_model(*args, **named):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("workbench.dashboard.form.load", no_model)
    visitor.fire("forget")
    share.open_trace(VISITS[visitor.name], str(path))
    VISITS[visitor.name].sent = (None, 0)
    visitor.fire("tick")
    assert f"Opened {path.name}" in visitor.status and visitor.texts == texts
    assert visitor.view["can"] is False
    assert "no model behind it" in refused(visitor, "fork", {"index": 0, "text": " if"})


@pytest.mark.parametrize(
    ("content", "line"), [(b"hello", "bad.wb is not a trace"), (b'{"type":"run","schema":99}\n', "has schema 99")]
)
def test_files_that_are_no_traces_are_refused(tmp_path, content, line):
    (tmp_path / "bad.wb").write_bytes(content)
    visit = Visit()
    with pytest.raises(gr.Error, match=line):
        share.open_trace(visit, str(tmp_path / "bad.wb"))
    assert line in visit.message and str(tmp_path) not in visit.message


def test_what_a_damaged_trace_lost_is_named(tmp_path, plain):
    (tmp_path / "cut.wb").write_bytes(b"".join(map(storage.encode, plain.log))[:-10])
    visit = Visit()
    share.open_trace(visit, str(tmp_path / "cut.wb"))
    assert f"Dropped: line {len(plain.log)}: cut off" in visit.message

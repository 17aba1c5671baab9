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


def test_candidates_are_those_of_the_token_with_what_was_cut(visitor, plain):
    visitor.set("temperature", 0.8)
    visitor.set("top k", 2)
    visitor.start(tokens=4).step().step()
    visitor.fire("pick", {"index": 0})
    labels = visitor.choices("candidate")
    assert [number for _, number in labels] == plain.tokens["topk_raw"][0][0]
    assert all(" → 0." in label or " → 1" in label for label, _ in labels[:2]) and "→" not in labels[2][0]
    assert sum("taken" in label for label, _ in labels) <= 1
    assert all("cut by top_k" in label for label, _ in labels[2:]) and "cut" not in labels[0][0]


def test_a_branch_takes_a_candidate_and_both_runs_stay(visitor, plain):
    visitor.start().step().step().step()
    visitor.fire("pick", {"index": 1})
    visitor.set("candidate", plain.tokens["topk_raw"][1][0][2])
    visitor.fire("fork")
    assert visitor.texts[0] == plain.tokens["text"][0] and visitor.texts[1] != plain.tokens["text"][1]
    assert [number for _, number in visitor.choices("branches")] == [0, 1]
    visitor.set("branches", 0)
    visitor.fire("branch")
    assert visitor.text == "".join(plain.tokens["text"][:3])


def test_other_settings_in_mid_run_make_a_branch_that_goes_on(visitor):
    visitor.start(tokens=200)
    visitor.set("speed", "10 steps / s")
    visitor.fire("play")
    visitor.set("decoder", "speculative")
    visitor.set("max new tokens", 20)
    visitor.fire("resettle")
    assert visitor.playing and "speculative" in visitor.choices("branches")[1][0]
    visitor.watch()
    assert len(visitor.texts) == 20 and len(VISITS[visitor.name].branches[0].run.trace.token_ids) < 200


def test_branches_that_make_no_sense_are_refused(visitor):
    visitor.start().step()
    assert "a branch needs something new" in refused(visitor, "fork")
    visitor.set("typed", "several tokens, surely")
    assert "expected exactly one" in refused(visitor, "fork")
    visitor.set("model", "embedded-draft")
    assert "for another model, device or dtype press Start" in refused(visitor, "resettle")
    assert len(visitor.texts) == 1


def test_runs_are_kept_until_forgotten_and_no_more_than_the_limit(visitor):
    for _ in range(MAX_BRANCHES):
        visitor.start(tokens=1)
    assert "press Forget on one" in refused(visitor, "start")
    visitor.fire("forget")
    assert len(visitor.choices("branches")) == MAX_BRANCHES - 1
    visitor.start(tokens=1)


def test_two_runs_side_by_side_show_where_they_part_and_why(visitor, plain):
    visitor.start()
    visitor.fire("play")
    visitor.watch()
    visitor.fire("pick", {"index": 3})
    visitor.set("typed", " if")
    visitor.fire("fork")
    visitor.set("left", 0)
    visitor.set("right", 1)
    html, plot, words = visitor.fire("beside")
    assert "They part at token 3: forced token." in html and html.count("<mark") == 2
    assert json.loads(plot["value"]["plot"])["data"] and "wb-data" in words
    visitor.set("right", 0)
    assert "The texts are the same." in visitor.fire("beside")[0]
    visitor.set("right", None)
    assert "choose two runs" in refused(visitor, "beside")


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
    assert not visitor.enabled("fork") and not visitor.enabled("resettle")
    visitor.fire("back")
    assert visitor.cursor < len(texts)
    assert "Round 2, draft." in visitor.step("phase").status or "Round 3, draft." in visitor.status
    visitor.fire("play")
    assert "Ended: replayed" in visitor.watch().status
    assert "no model behind it" in refused(visitor, "fork")


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

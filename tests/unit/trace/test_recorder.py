"""The recorder: what a round becomes, what reaches the file and when, what is refused."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.errors import BadInput
from workbench.trace import Recorder, Step, Trace


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def one_token(**more) -> Step:
    return Step("plain", tokens={"token_id": [4], "source": ["target"], **more}, emitted=1, context=4)


def test_a_round_reaches_the_file_before_the_next_one(made_up, tmp_path):
    """Crash safety: after every call the file holds whole lines for everything recorded so far."""
    path = tmp_path / "run.wb"
    recorder = Recorder(made_up.run_event(), out=path)
    assert [event["type"] for event in lines(path)] == ["run"]
    for n in range(1, 4):
        recorder.round(replace(one_token(), texts=["x"]))
        assert lines(path) == list(recorder) and len(lines(path)) == 1 + n
    recorder.mark("note", 2, "here")
    recorder.end("length")
    assert [event["type"] for event in lines(path)][-2:] == ["mark", "end"]


def test_a_killed_run_leaves_every_completed_round(tmp_path):
    path = tmp_path / "run.wb"
    program = (
        "import os, signal, sys\n"
        "from workbench.trace import Recorder, Step\n"
        "r = Recorder({}, out=sys.argv[1])\n"
        "for i in range(5):\n"
        "    r.round(Step('plain', tokens={'token_id': [i], 'source': ['target']}, texts=[str(i)], emitted=1))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program, str(path)], cwd=root, env={"PYTHONPATH": str(root)})
    assert done.returncode == -signal.SIGKILL
    trace = Trace.load(path)
    assert trace.text == "01234" and trace.dropped == [] and trace.end is None


def test_values_that_are_not_finite_become_null_and_are_named(made_up, tmp_path):
    path = tmp_path / "run.wb"
    recorder = Recorder(made_up.run_event(), out=path)
    step = Step(
        "plain",
        tokens={
            "token_id": [1, 2],
            "source": ["target"] * 2,
            "entropy_raw_nats": [math.nan, 1.0],
            "p_raw": [math.inf] * 2,
        },
        figures={"mu": -math.inf, "tau": 3.0},
        emitted=2,
        flags=["logits"],
    )
    event = recorder.round(replace(step, texts=["a", "b"]))
    assert event["flags"] == ["logits", "tokens.entropy_raw_nats", "tokens.p_raw", "figures.mu"]
    assert event["figures"] == {"mu": None, "tau": 3.0}
    assert recorder.trace.tokens["entropy_raw_nats"].isna().tolist() == [True, False]
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()


def test_floats_carry_six_significant_digits_and_topk_probabilities_three(made_up):
    step = one_token(p_raw=[0.123456789], topk_raw=[[[65537], [0.123456789]]])
    event = Recorder(made_up.run_event()).round(replace(step, texts=["x"]))
    assert event["tokens"]["p_raw"] == [0.123457] and event["tokens"]["topk_raw"] == [[[65537], [0.123]]]


def test_numpy_numbers_are_written_as_numbers(made_up):
    import numpy as np

    event = Recorder(made_up.run_event()).round(
        replace(one_token(p_raw=[np.float32(0.5)], rank=[np.int64(3)]), texts=["x"])
    )
    assert (event["tokens"]["p_raw"], event["tokens"]["rank"]) == ([0.5], [3])
    assert type(event["tokens"]["rank"][0]) is int


def test_decisions_and_cache_events_follow_their_round_with_its_number(made_up):
    recorder = Recorder(made_up.run_event(), level="full")
    step = one_token()
    step.decisions = [{"controller": "eta", "action": "stop"}]
    step.cache_events = [{"op": "evict", "layer": 1, "positions": [0]}]
    step.rows = {"target": [1.0]}
    recorder.round(replace(one_token(), texts=["x"]))
    recorder.round(replace(step, texts=["y"]))
    assert [(event["type"], event.get("round")) for event in recorder][2:] == [
        ("round", 1), ("decision", 1), ("cache", 1), ("rows", 1),
    ]  # fmt: skip
    assert recorder.trace.tokens["decision"].tolist() == [None, "stop"]


def test_levels_keep_what_they_say(made_up):
    def events(level):
        recorder = Recorder(made_up.run_event(), level=level)
        step = one_token(entropy_raw_nats=[1.0])
        step.rows, step.figures, step.ms = {"target": [1.0]}, {"mu": 1.0}, {"total": 2.0}
        step.cache, step.decisions = {"target": made_up.cache_columns("target", 3)}, [{"action": "stop"}]
        recorder.round(replace(step, texts=["x"]))
        return recorder

    assert [event["type"] for event in events("full")] == ["run", "round", "decision", "rows"]
    assert [event["type"] for event in events("default")] == ["run", "round", "decision"]
    off = events("off")
    assert len(off) == 2
    assert set(off[1]) == {
        "type", "round", "index", "mode", "drafted", "accepted", "emitted", "depth", "context", "ms", "tokens",
    }  # fmt: skip
    assert set(off[1]["tokens"]) == {"token_id", "source", "text"}


def test_end_is_written_once_and_again_only_after_more_rounds(made_up):
    recorder = made_up.record([(4, 2)])
    first = recorder.end("length", "done")
    assert recorder.end("stop") is first
    assert first["totals"]["tokens"] == 3 and first["totals"]["accepted"] == 2 and first["totals"]["rounds"] == 2
    recorder.round(replace(one_token(), texts=["x"]))
    assert recorder.trace.end is None
    assert recorder.end("eos")["reason"] == "eos" and recorder.trace.end["reason"] == "eos"
    assert [event["type"] for event in recorder].count("end") == 2


def test_an_existing_file_is_not_overwritten_unless_asked(made_up, tmp_path):
    path = tmp_path / "run.wb"
    path.write_text("precious")
    with pytest.raises(BadInput, match="exists already") as error:
        Recorder(made_up.run_event(), out=path)
    assert "\n" not in str(error.value) and path.read_text() == "precious"
    recorder = Recorder(made_up.run_event(), out=path, overwrite=True)
    assert path.read_text() == "precious"  # until there is a round to put in its place
    recorder.round(replace(one_token(), texts=["x"]))
    assert [event["type"] for event in lines(path)] == ["run", "round"]


def test_a_missing_folder_is_bad_input(made_up, tmp_path):
    with pytest.raises(BadInput, match="cannot write"):
        Recorder(made_up.run_event(), out=tmp_path / "nowhere" / "run.wb")


def test_an_unknown_level_is_bad_input(made_up):
    with pytest.raises(BadInput, match="off, default, full"):
        Recorder(made_up.run_event(), level="loud")


@pytest.mark.parametrize(
    ("step", "texts"),
    [
        (Step("plain", tokens={"token_id": [1], "source": ["target"]}, emitted=2), ["a"]),
        (Step("plain", tokens={"token_id": [1], "source": ["target"]}, emitted=1), []),
        (Step("plain", tokens={"token_id": [1, 2], "source": ["target"]}, emitted=2), ["a", "b"]),
        (Step("plain", forwards={"model": ["target"]}), []),
        (Step("plain", figures={"state": object()}), []),
    ],
    ids=["emitted", "texts", "unequal columns", "no key column", "no JSON value"],
)
def test_a_step_that_contradicts_itself_is_refused_and_leaves_no_trace(made_up, step, texts):
    recorder = Recorder(made_up.run_event())
    with pytest.raises(BadInput):
        recorder.round(replace(step, texts=texts))
    assert len(recorder) == 1
    recorder.round(replace(one_token(), texts=["x"]))
    assert recorder.trace.tokens["index"].tolist() == [0]


def test_what_is_recorded_does_not_change_with_the_step_afterwards(made_up):
    recorder, step = Recorder(made_up.run_event()), one_token(entropy_raw_nats=[1.0])
    recorder.round(replace(step, texts=["x"]))
    step.tokens["token_id"][0] = 99
    assert recorder.trace.token_ids == [4]


def test_the_id_depends_on_the_run_and_its_time_alone():
    run = {"time": "2030-01-01T00:00:00+00:00", "seed": 1}
    assert Recorder(run).trace.id == Recorder(run).trace.id != Recorder({**run, "seed": 2}).trace.id


def test_a_branch_copies_the_rounds_before_it_and_names_its_parent(made_up, tmp_path):
    parent = made_up.record([(4, 2), (4, 4), (4, 0)])
    parent.mark("back", 3)
    parent.end("length")
    path = tmp_path / "branch.wb"
    branch = Recorder.branch(parent.trace, 2, made_up.run_event(id="child"), out=path)
    assert branch[0]["parent"] == {"trace": "made-up", "round": 2, "index": 3} and branch.trace.id == "child"
    assert [event["type"] for event in branch] == ["run", "round", "round"]
    branch.round(replace(one_token(), texts=["!"]))
    assert branch.trace.token_ids == [*parent.trace.token_ids[:3], 4]
    assert branch.trace.tokens[["index", "round"]].values.tolist() == [[0, 1], [1, 1], [2, 1], [3, 2]]
    assert Trace.load(path).log == list(branch) and len(parent.trace.tokens) == 9


def test_the_live_trace_grows_with_the_log(made_up):
    recorder = made_up.record([(4, 2)])
    trace = recorder.trace
    assert len(trace.tokens) == 3
    recorder.round(replace(one_token(), texts=["x"]))
    assert len(trace.tokens) == 4 and trace.text.endswith("x") and recorder.trace is trace


def test_a_default_run_of_512_rounds_stays_below_one_megabyte(made_up, tmp_path):
    """4 drafts and 3 tokens a round, 8 + 4 layers, two models, every column of the default level with random digits."""
    path = tmp_path / "run.wb"
    recorder = made_up.record([(4, 2)] * 511)
    recorder.end("length")
    recorder.trace.save(path)
    trace = Trace.load(path)
    assert len(trace.rounds) == 512 and len(trace.tokens) == 3 * 511 and len(trace.cache) == 512 * 12
    assert path.stat().st_size < 1_000_000
    plain = made_up.record([(0, 0)] * 511, out=tmp_path / "plain.wb")
    assert len(plain.trace.rounds) == 512 and (tmp_path / "plain.wb").stat().st_size < 1_000_000

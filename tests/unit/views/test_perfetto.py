"""The run on the clock: spans that do not overlap, and a file that follows the Trace Event format."""

import json

import pytest

from workbench import views
from workbench.cli import main
from workbench.errors import BadInput
from workbench.trace.perfetto import events, spans

NEEDED = {"X": {"ts", "dur", "tid"}, "C": {"ts", "args"}, "i": {"ts", "s"}, "M": {"args"}}


def check(document: dict) -> None:
    """The JSON object form of the Trace Event format."""
    assert isinstance(document["traceEvents"], list) and document["displayTimeUnit"] in ("ms", "ns")
    for event in document["traceEvents"]:
        assert event["ph"] in NEEDED and NEEDED[event["ph"]] <= set(event), event
        assert isinstance(event["name"], str) and event["name"] and isinstance(event["pid"], int)
        assert isinstance(event["tid"], int) and isinstance(event.get("args", {}), dict)
        assert event["ts"] >= 0 and event.get("dur", 0) >= 0
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and isinstance(event["args"]["name"], str)
        if event["ph"] == "C":
            assert event["args"] and all(isinstance(value, (int, float)) for value in event["args"].values())
        if event["ph"] == "i":
            assert event["s"] in "gpt"


def test_spans_follow_each_other_inside_their_round(made_up):
    trace = made_up.record([(4, 2), (0, 0), (4, 4)]).trace
    found = spans(trace)
    rounds = found[found["phase"] == "round"].set_index("round")
    parts = found[found["phase"] != "round"]
    assert parts["start_ms"].is_monotonic_increasing and len(rounds) == 4
    ends = (parts["start_ms"] + parts["length_ms"]).tolist()
    assert all(end <= start + 1e-9 for end, start in zip(ends, parts["start_ms"].tolist()[1:], strict=False))
    for part, end in zip(parts.to_dict("records"), ends, strict=True):
        whole = rounds.loc[part["round"]]
        assert whole["start_ms"] <= part["start_ms"] and end <= whole["start_ms"] + whole["length_ms"] + 1e-9
    passes = parts[parts["place"] >= 0]
    assert sorted(passes["place"]) == list(range(len(trace.forwards)))
    assert passes["length_ms"].sum() == pytest.approx(trace.forwards["wall_ms"].sum())
    assert (rounds["length_ms"].to_numpy() >= trace.rounds["total_ms"].to_numpy() - 1e-9).all()


def test_the_timeline_draws_the_spans(made_up):
    trace = made_up.record([(4, 2), (0, 0)]).trace
    figure, found = views.forwards_timeline(trace), spans(trace)
    assert [bar.name for bar in figure.data][:4] == [
        "prefill · target", "prefill · draft", "draft", "target",
    ]  # fmt: skip
    assert {bar.name for bar in figure.data[4:]} == {"verify", "commit", "cache"}
    drawn = sorted(pair for bar in figure.data for pair in zip(bar.base, bar.x, strict=True))
    found = found[found["phase"] != "round"]
    assert drawn == sorted(zip(found["start_ms"], found["length_ms"], strict=True))
    (draft,) = [bar for bar in figure.data if bar.name == "draft"]
    assert list(draft.customdata[0]) == [1, "1", "3", "sdpa"] and draft.marker.pattern.shape


def test_the_document_follows_the_format_and_holds_the_run(made_up):
    recorder = made_up.record([(4, 2), (4, 4)])
    recorder.mark("breakpoint", {"index": 3}, "here")
    document = events(recorder.trace)
    check(document)
    kinds = [event["ph"] for event in document["traceEvents"]]
    assert kinds.count("X") == len(spans(recorder.trace)) and kinds.count("i") == 1
    first = next(event for event in document["traceEvents"] if event["name"] == "round 1")
    assert first["args"]["text"] == recorder.trace.tokens.groupby("round")["text"].sum()[1]
    assert (first["args"]["drafted"], first["args"]["accepted"], first["args"]["bonus"]) == (4, 2, False)
    tracks = {
        event["args"]["name"]: event["tid"] for event in document["traceEvents"] if event["name"] == "thread_name"
    }
    assert set(tracks) == {"rounds", "host", "model target", "model draft"} and len(set(tracks.values())) == 4
    sizes = [
        event["args"]["cache_bytes"]
        for event in document["traceEvents"]
        if event["name"] == "cache" and event["ph"] == "C"
    ]
    assert sizes == recorder.trace.rounds["cache_bytes"].tolist()


@pytest.mark.parametrize("rounds", [None, [], [(0, 0)], [(4, 2)]])
@pytest.mark.parametrize("level", ["default", "off"])
def test_every_kind_of_run_can_be_written(made_up, tmp_path, rounds, level):
    from workbench.trace import Recorder

    trace = (Recorder(made_up.run_event()) if rounds is None else made_up.record(rounds, level=level)).trace
    trace.to_perfetto(tmp_path / "out.json")
    check(json.loads((tmp_path / "out.json").read_text(encoding="utf-8")))


def test_the_command_line_writes_it_and_refuses_an_impossible_path(made_up, tmp_path, capsys):
    trace = made_up.record([(4, 2)]).trace
    trace.save(tmp_path / "run.wb")
    out = tmp_path / "out.json"
    assert main(["show", str(tmp_path / "run.wb"), "--perfetto", str(out)]) == 0
    check(json.loads(out.read_text(encoding="utf-8")))
    with pytest.raises(BadInput, match="choose an existing folder"):
        trace.to_perfetto(tmp_path / "no" / "out.json")
    assert main(["show", str(tmp_path / "run.wb"), "--perfetto", str(tmp_path / "no" / "out.json")]) == 2

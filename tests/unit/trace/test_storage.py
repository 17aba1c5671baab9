"""Files: read back equal, salvaged where damaged, refused in one line where they are no trace."""

import gzip
import json
import time
import tracemalloc

import pandas as pd
import pytest

from workbench.errors import BadInput, BadTrace
from workbench.trace import Recorder, Step, Trace, storage
from workbench.trace.schema import SCHEMA, TABLES


@pytest.fixture
def saved(made_up, tmp_path):
    """A trace and its file, of plain lines as a run leaves it."""
    recorder = made_up.record([(4, 2), (4, 4), (0, 0)], out=tmp_path / "run.wb")
    recorder.end("length")
    return recorder.trace, tmp_path / "run.wb"


@pytest.mark.parametrize("gzipped", [False, True], ids=["as it ran", "saved"])
def test_a_trace_reads_back_equal(saved, gzipped):
    trace, path = saved
    if gzipped:
        trace.save(path)
        assert gzip.decompress(path.read_bytes()) == b"".join(map(storage.encode, trace.log))
    again = Trace.load(path)
    assert again.log == trace.log and again.text == trace.text and again.dropped == []
    assert again.summary() == trace.summary()
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(again, name), getattr(trace, name))


def test_saving_leaves_no_other_file_and_any_suffix_will_do(saved):
    trace, path = saved
    trace.save(path.with_suffix(".jsonl"))
    assert sorted(p.name for p in path.parent.iterdir()) == ["run.jsonl", "run.wb"]
    assert Trace.load(path).log == Trace.load(path.with_suffix(".jsonl")).log


def test_saving_into_a_missing_folder_is_bad_input(saved, tmp_path):
    with pytest.raises(BadInput, match="cannot write"):
        saved[0].save(tmp_path / "nowhere" / "run.wb")


def test_every_cut_of_the_last_line_loses_that_line_alone(saved):
    trace, path = saved
    content = path.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last + 1, len(content) - 1, 7):
        path.write_bytes(content[:end])
        again = Trace.load(path)
        assert again.log == trace.log[:-1] and again.dropped == [f"line {len(trace.log)}: cut off"]
    path.write_bytes(content[:-1])  # only the newline is missing: nothing is lost
    assert Trace.load(path).log == trace.log


def test_a_cut_or_damaged_gzip_member_keeps_what_is_before(made_up, tmp_path, monkeypatch):
    """Several members, cut anywhere: whole lines before the cut stay, and what is lost is named."""
    monkeypatch.setattr(storage, "MEMBER", 4000)
    trace, path = made_up.record([(4, 2)] * 8).trace, tmp_path / "run.wb"
    trace.save(path)
    content = path.read_bytes()
    starts = [at for at in range(len(content)) if content.startswith(b"\x1f\x8b\x08\x00\x00\x00\x00\x00", at)]
    assert len(starts) > 3 and Trace.load(path).log == trace.log
    kept = []
    for end in range(starts[1] + 2, len(content), 97):
        path.write_bytes(content[:end])
        again = Trace.load(path)
        kept.append(len(again.log))
        assert again.log == trace.log[: kept[-1]]
        assert end in starts or (len(again.dropped) == 1 and again.dropped[0].endswith("cut off"))
    assert kept == sorted(kept) and len(set(kept)) >= len(starts) - 1
    for spoiled in (content[: starts[2]] + b"\0x" + content[starts[2] + 2 :], content + b"x"):
        path.write_bytes(spoiled)
        again = Trace.load(path)
        assert again.log == trace.log[: len(again.log)] and again.dropped[0].endswith("damaged from here on")


def test_a_saved_trace_copied_as_text_reads_as_it_was(made_up, tmp_path):
    """Each line feed behind a carriage return, as from another system; with a byte changed besides it is damaged."""
    trace, path, changed = made_up.record([(4, 2)] * 8).trace, tmp_path / "run.wb", 0
    for tokens in range(2, len(trace.log)):
        content = storage.packed(trace.log[:tokens])
        copied = content.replace(b"\n", b"\r\n")
        changed += copied != content
        path.write_bytes(copied)
        again = Trace.load(path)
        assert again.log == trace.log[:tokens] and not again.dropped
    assert changed
    path.write_bytes(copied[:-6] + bytes([copied[-6] ^ 255]) + copied[-5:])  # in the checksum
    assert Trace.load(path).dropped


def test_a_gzipped_trace_holds_at_most_so_many_times_its_own_bytes(made_up, tmp_path):
    """A bomb is refused in one line, at the cost of its bytes; an honest trace that shrinks as much is saved larger."""
    lines = b"".join(map(storage.encode, made_up.record([(4, 2)]).trace.log))
    path = tmp_path / "run.wb"
    for bomb in (gzip.compress(lines + b"\0" * 50_000_000), b"".join([gzip.compress(lines[:9] * 1_000_000)] * 9)):
        path.write_bytes(bomb)
        tracemalloc.start()
        with pytest.raises(BadTrace, match="larger than") as error:
            Trace.load(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * storage.SWELL * len(bomb) + 3 * storage.MEMBER and "\n" not in str(error.value)
    recorder = Recorder({"prompt_text": "x" * 3_000_000})
    recorder.trace.save(path)
    assert Trace.load(path).log == recorder.trace.log


def test_many_small_members_cost_what_their_bytes_do(tmp_path):
    """As many members as there are bytes for: linear in them."""
    costs = []
    for n in (2000, 8000):
        path = tmp_path / "run.wb"
        path.write_bytes(gzip.compress(b'{"type":"run","schema":2}\n') + gzip.compress(b"") * n)
        start = time.process_time()
        assert len(Trace.load(path).log) == 1
        costs.append(time.process_time() - start)
    assert costs[1] < 16 * costs[0]


def test_a_damaged_round_in_the_middle_is_named_and_the_others_keep_their_places(saved):
    trace, path = saved
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:40] + b"\xff\x00" + lines[2][42:]
    path.write_bytes(b"\n".join(lines))
    again = Trace.load(path)
    assert again.dropped == ["line 3: not an event"]
    kept = trace.tokens[trace.tokens["round"] != 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.tokens, kept)
    assert "1 lines dropped" in repr(again)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda e: e["tokens"].update(token_id=5), "damaged tokens"),
        (lambda e: e["tokens"].update(token_id=["a", "b", "c"]), "damaged tokens"),
        (lambda e: e["tokens"].update(text=["a"]), "damaged tokens: text is of unequal length"),
        (lambda e: e.update(emitted=1), "damaged tokens"),
        (lambda e: e.update(drafts=[1]), "damaged drafts"),
        (lambda e: e["forwards"].update(rows="x"), "damaged forwards"),
        (lambda e: e.update(cache={"target": 3}), "damaged cache"),
        (lambda e: e.update(ms=3), "damaged ms"),
        (lambda e: e.pop("round"), "without a round number"),
    ],
)
def test_rounds_that_parse_but_cannot_be_used_are_dropped_by_name(saved, damage, named):
    trace, path = saved
    events = json.loads(json.dumps(trace.log))
    damage(events[2])
    path.write_text("\n".join(map(json.dumps, events)))
    again = Trace.load(path)
    assert len(again.dropped) == 1 and named in again.dropped[0] and again.dropped[0].startswith("line 3: ")
    assert len(again.rounds) == len(trace.rounds) - 1


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"hello\n", b"\x80\x81\x00\xff" * 50, b'{"type":"round","round":0}\n', b"[1]\n", b'"run"\n'],
    ids=["empty", "blank", "text", "binary", "no run", "list", "string"],
)
def test_what_is_no_trace_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "run.wb"
    path.write_bytes(content)
    with pytest.raises(BadTrace, match="is not a trace") as error:
        Trace.load(path)
    assert "\n" not in str(error.value)


def test_a_newer_schema_is_refused_by_name(tmp_path):
    path = tmp_path / "run.wb"
    path.write_text(json.dumps({"type": "run", "schema": SCHEMA + 1}) + "\n")
    with pytest.raises(BadTrace) as error:
        Trace.load(path)
    assert str(error.value).endswith(
        f"run.wb has schema {SCHEMA + 1}; this version reads up to {SCHEMA}; upgrade decoding-workbench"
    )


@pytest.mark.parametrize("schema", [None, "1", 0, True, 1.5])
def test_a_schema_that_is_no_version_is_refused(tmp_path, schema):
    path = tmp_path / "run.wb"
    path.write_text(json.dumps({"type": "run", "schema": schema}) + "\n")
    with pytest.raises(BadTrace, match="names no schema version"):
        Trace.load(path)


def test_a_missing_file_and_a_folder_are_bad_input(tmp_path):
    for path in (tmp_path / "absent.wb", tmp_path):
        with pytest.raises(BadInput, match="cannot read"):
            Trace.load(path)


def test_a_run_line_alone_is_a_trace(tmp_path):
    path = tmp_path / "run.wb"
    path.write_text('{"type":"run","schema":2}')
    trace = Trace.load(path)
    assert (trace.text, trace.id, trace.prompt, trace.end, len(trace.tokens)) == ("", "", "", None, 0)
    assert trace.summary()["tokens"] == 0


def test_any_text_survives_the_file(tmp_path):
    """Line separators, markup, astral characters and lone surrogates: text is only ever data."""
    text = '\u2028</script>\r\n\x00"\\\U0001f600\udc80'
    recorder = Recorder({"prompt_text": text}, out=tmp_path / "run.wb")
    recorder.round(Step("plain", tokens={"token_id": [1], "source": ["target"]}, emitted=1, texts=[text]))
    trace = Trace.load(tmp_path / "run.wb")
    assert trace.text == text == trace.prompt and trace.dropped == []


def test_parquet_tables_read_back_equal(made_up, tmp_path):
    recorder = made_up.record([(4, 2), (0, 0)])
    recorder.mark("jump", {"round": 1})
    trace = recorder.trace
    trace.to_parquet(tmp_path / "tables")
    again = Trace.tables_from_parquet(tmp_path / "tables")
    assert list(again) == list(TABLES)
    for name, frame in again.items():
        pd.testing.assert_frame_equal(frame, getattr(trace, name))


def test_parquet_of_an_empty_run_has_the_same_types_as_of_a_full_one(made_up, tmp_path):
    import pyarrow.parquet as pq

    made_up.record([(4, 2)]).trace.to_parquet(tmp_path / "full")
    Recorder(made_up.run_event()).trace.to_parquet(tmp_path / "empty")
    for name in TABLES:
        full, empty = (pq.read_schema(tmp_path / kind / f"{name}.parquet") for kind in ("full", "empty"))
        assert full.equals(empty, check_metadata=False), name


def test_a_missing_or_damaged_parquet_file_is_named(made_up, tmp_path):
    made_up.record([]).trace.to_parquet(tmp_path)
    (tmp_path / "cache.parquet").write_bytes(b"no parquet")
    with pytest.raises(BadTrace, match=r"cache\.parquet is damaged"):
        Trace.tables_from_parquet(tmp_path)
    (tmp_path / "cache.parquet").unlink()
    with pytest.raises(BadInput, match=r"no cache\.parquet"):
        Trace.tables_from_parquet(tmp_path)

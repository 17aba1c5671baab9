"""What may come as a trace: marks of editors, pages that a browser wrote again, bombs, pipes, foreign tables."""

import base64
import gzip
import os
import re
import threading
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import workbench as wb
from tests.hostile.traces import honest
from workbench import views
from workbench.cli.run import read_text
from workbench.errors import BadInput, BadTrace
from workbench.trace import Trace, storage

MARK = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    trace = honest()[0]
    trace.save(folder / "run.wb")
    trace.capsule(folder / "run.html")
    return trace, gzip.decompress((folder / "run.wb").read_bytes()), (folder / "run.html").read_bytes()


def test_a_byte_order_mark_is_no_part_of_a_trace_a_capsule_or_a_prompt(pages, tmp_path):
    trace, lines, page = pages
    for name, content in (("run.wb", lines), ("run.html", page)):
        (tmp_path / name).write_bytes(MARK + content.replace(b"\n", b"\r\n"))
        again = Trace.load(tmp_path / name)
        assert again.log == trace.log and not again.dropped
    assert wb.open_capsule(tmp_path / "run.html").log == trace.log
    (tmp_path / "prompt.txt").write_bytes(MARK + b"a\r\nb")
    assert read_text(str(tmp_path / "prompt.txt")) == "a\nb"


RESAVED = {
    "doctype": lambda page: page.replace(b"<!doctype html>", b"<!DOCTYPE html>"),
    "comment first": lambda page: b"<!-- saved from url=(0014)about:internet -->\r\n" + page,
    "attributes": lambda page: page.replace(
        b'<script type="application/gzip" id="workbench-trace">', b"<SCRIPT ID=workbench-trace TYPE='application/gzip'>"
    ),
    "a class": lambda page: page.replace(b'id="workbench-trace"', b"class=\"\" id = 'workbench-trace' data-kept"),
    "wrapped lines": lambda page: re.sub(rb"[A-Za-z0-9+/]{64}", lambda found: found[0] + b"\r\n", page),
    "a meta": lambda page: page.replace(b"<head>", b'<head><meta http-equiv="content-type" content="text/html">'),
    "blank lines": lambda page: b"\r\n\r\n" + page,
}


@pytest.mark.parametrize("how", RESAVED)
def test_a_capsule_that_a_browser_wrote_again_still_holds_its_trace(pages, how, tmp_path):
    trace, _, page = pages
    changed = RESAVED[how](page)
    assert changed != page
    (tmp_path / "run.html").write_bytes(changed)
    assert wb.open_capsule(tmp_path / "run.html").log == trace.log


def with_content(page: bytes, content: bytes) -> bytes:
    packed = base64.b64encode(gzip.compress(content))
    return re.sub(rb'(id="workbench-trace">)[^<]*', lambda found: found[1] + packed, page)


def test_a_capsule_holds_at_most_so_many_times_its_own_bytes(pages, tmp_path):
    """100 MB of zeros are 100 kB of gzip: refused in one line, having cost what the page allows."""
    _, lines, page = pages
    path = tmp_path / "bomb.html"
    path.write_bytes(with_content(page, lines + b"\0" * 100_000_000))
    tracemalloc.start()
    with pytest.raises(BadTrace, match="larger than") as error:
        Trace.load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * path.stat().st_size and "\n" not in str(error.value)


def test_the_app_takes_no_more_trace_than_it_says(pages, tmp_path):
    """A capsule of 16 MB may hold a trace of 100 MB; the app's limit is one of the trace."""
    _, lines, page = pages
    for name, content in (("run.wb", lines), ("run.html", page)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises((BadInput, BadTrace), match="the most that"):
            Trace.load(tmp_path / name, limit=len(lines) - 1)
    assert Trace.load(tmp_path / "run.wb", limit=len(lines)).log


def test_a_cut_or_empty_capsule_is_refused_in_one_line(pages, tmp_path):
    _, lines, page = pages
    cut = re.sub(rb'(id="workbench-trace">[^<]{400})[^<]*', rb"\1", page)
    for content in (cut, with_content(page, b""), b"<html>", b"<script " * 20_000, page.replace(b"id=", b"x=")):
        (tmp_path / "run.html").write_bytes(content)
        with pytest.raises(BadTrace) as error:
            Trace.load(tmp_path / "run.html")
        assert "\n" not in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name here")
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path):
    """A pipe that nobody writes to kept the command line waiting for good; a device may have no end."""
    os.mkfifo(tmp_path / "pipe.wb")
    found = []

    def load(path) -> None:
        for act in (Trace.load, wb.open_capsule):
            try:
                act(path)
            except BadInput as error:
                found.append(str(error))

    for path in (tmp_path / "pipe.wb", tmp_path, "/dev/zero", tmp_path / "a\0b"):
        thread = threading.Thread(target=load, args=(path,), daemon=True)
        thread.start()
        thread.join(20)
    assert len(found) == 8 and all(text.startswith("cannot read") and "\n" not in text for text in found)


FOREIGN = {
    "no such columns": lambda table: table.rename_columns([f"x{i}" for i in range(table.num_columns)]),
    "columns of text": lambda table: table.set_column(0, "index", pa.array(["a"] * len(table))),
    "missing values": lambda table: table.set_column(0, "index", pa.array([None] * len(table), pa.int64())),
    "no topk": lambda table: table.set_column(
        table.column_names.index("topk_raw"), "topk_raw", pa.array([1.5] * len(table))
    ),
}


@pytest.mark.parametrize("how", FOREIGN)
def test_foreign_parquet_is_refused_in_one_line(how, tmp_path):
    honest()[0].to_parquet(tmp_path)
    path = tmp_path / "tokens.parquet"
    pq.write_table(FOREIGN[how](pq.read_table(path)), path)
    with pytest.raises(BadTrace, match=r"tokens\.parquet is damaged") as error:
        Trace.tables_from_parquet(tmp_path)
    assert "\n" not in str(error.value)


def test_parquet_of_json_that_is_none_and_of_too_many_rows_is_refused(tmp_path, monkeypatch):
    honest()[4].to_parquet(tmp_path)
    path = tmp_path / "events.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("signals")
    pq.write_table(table.set_column(place, "signals", pa.array(["[" * 9000] * len(table))), path)
    with pytest.raises(BadTrace, match=r"events\.parquet is damaged"):
        Trace.tables_from_parquet(tmp_path)
    honest()[4].to_parquet(tmp_path)
    assert len(Trace.tables_from_parquet(tmp_path)["bits"]) > 0
    monkeypatch.setattr(storage, "FREE", 0)
    monkeypatch.setattr(storage, "PACKED", 0.001)
    with pytest.raises(BadTrace, match=r"tokens\.parquet is damaged"):
        Trace.tables_from_parquet(tmp_path)


def test_lone_surrogates_of_a_prompt_reach_parquet_figures_and_capsules_as_marks(made_up, tmp_path):
    """No encoding can write them; the trace file keeps them as escapes."""
    recorder = made_up.record([(4, 2)], prompt_text="a\udc80b")
    event = recorder.trace.log[-1]
    event["tokens"]["text"][0] = "x\udc80"
    event["tokens"]["cut_by"] = ["y\ud800", *event["tokens"]["text"][1:]]  # short texts, too
    trace = recorder.trace
    trace.to_parquet(tmp_path)
    back = Trace.tables_from_parquet(tmp_path)
    assert back["tokens"]["text"].iloc[0] == "x?" and back["tokens"]["cut_by"].iloc[0] == "y?"
    again = Trace.load(trace.capsule(tmp_path / "run.html"))
    assert again.text == trace.text and not again.dropped
    assert "x?" in views.signals(trace).to_json() and "x?" in trace._repr_mimebundle_()["text/html"]


def test_a_capsule_knows_the_texts_of_a_run_with_quantized_pages(made_up):
    """An event's own `bits` were taken for a round's columns: no capsule of a quantized run of another model."""
    from workbench import web

    trace = made_up.record([(4, 2)]).trace
    trace.log.append({"type": "cache", "round": 1, "op": "quantize", "positions": [[0, 2]], "bits": 4.0})
    assert web.payload(trace)["names"]

"""How runs begin and end badly: refused before any work, interrupted, killed, numerically broken."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

import workbench as wb

SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background hands down that it is ignored
import workbench as wb
from workbench.engine.toy import ToyModel

lm = ToyModel(context=100_000)
wb.decode(lm, [0, 1, 2], max_new_tokens=90_000, out=sys.argv[1], on_round=lambda s: print(s.rounds, flush=True))
"""


def started(out) -> subprocess.Popen:
    """A run in a process of its own, some rounds in."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(out)], stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if int(line) >= 40:
            return process
    raise AssertionError("the run did not start")


def test_sigkill_leaves_every_completed_round(tmp_path):
    """Killed mid-way: the file loads with at least the rounds that were announced, and no end."""
    process = started(tmp_path / "run.wb")
    process.kill()
    process.wait()
    trace = wb.Trace.load(tmp_path / "run.wb")
    assert len(trace.rounds) >= 40 and trace.end is None
    assert len(trace.token_ids) == len(trace.rounds) - 1


def test_ctrl_c_ends_as_interrupted(tmp_path):
    """SIGINT: the trace says so, and `decode` returns instead of dying."""
    process = started(tmp_path / "run.wb")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    trace = wb.Trace.load(tmp_path / "run.wb")
    assert process.returncode == 0 and trace.end["reason"] == "interrupted" and len(trace.rounds) >= 40


def test_nan_logits_keep_the_trace(toy, monkeypatch, tmp_path):
    """NaN logits end the run as an error; what was recorded is in the exception and in the file."""
    forward, calls = toy.forward, []

    def broken(*args, **kwargs):
        out = forward(*args, **kwargs)
        calls.append(1)
        if len(calls) > 5:
            out.logits = out.logits * torch.nan
        return out

    monkeypatch.setattr(toy, "forward", broken)
    with pytest.raises(wb.NumericalError, match="NaN or infinite logits") as caught:
        wb.decode(toy, [0, 1], max_new_tokens=20, out=tmp_path / "run.wb")
    for trace in (caught.value.trace, wb.Trace.load(tmp_path / "run.wb")):
        assert len(trace.token_ids) == 4 and trace.end["reason"] == "error" and "NaN" in trace.end["message"]


def test_levels(lm, held_out):
    """`off` keeps ids, sources and texts; `default` the figures; `full` the rows. The text is the same."""
    traces = {
        level: wb.decode(lm, held_out[0], wb.Speculative(), max_new_tokens=16, level=level)
        for level in ("off", "default", "full")
    }
    assert len({tuple(t.token_ids) for t in traces.values()}) == 1
    assert len({t.text for t in traces.values()}) == 1
    assert traces["off"].tokens["entropy_raw_nats"].isna().all() and traces["off"].cache.empty
    assert traces["default"].tokens["entropy_raw_nats"].notna().all() and not traces["default"].cache.empty
    kinds = {level: {event["type"] for event in t.log} for level, t in traces.items()}
    assert "rows" in kinds["full"] and "rows" not in kinds["default"]
    with pytest.raises(wb.BadInput, match="level: expected one of off, default, full"):
        wb.decode(lm, "a", level="all")


REFUSED = {
    "empty text": (lambda lm: wb.decode(lm, ""), "the prompt is empty"),
    "no ids": (lambda lm: wb.decode(lm, []), "the prompt is empty"),
    "beyond the context": (lambda lm: wb.decode(lm, [5] * lm.context), f"a context of {2048}"),
    "foreign ids": (lambda lm: wb.decode(lm, [1, 99999]), r"integers in \[0, 4096\)"),
    "chat": (lambda lm: wb.decode(lm, [{"role": "user", "content": "hi"}]), "has no chat template"),
    "setting": (lambda lm: wb.decode(lm, "a", temprature=1), "unknown setting 'temprature'"),
    "temperature": (lambda lm: wb.decode(lm, "a", temperature=-1), "temperature"),
    "top_p": (lambda lm: wb.decode(lm, "a", top_p=0), "top_p"),
    "tokens": (lambda lm: wb.decode(lm, "a", max_new_tokens=0), "max_new_tokens: expected an integer of at least 1"),
    "seed": (lambda lm: wb.decode(lm, "a", seed=-1), "seed: expected an integer"),
    "cache": (lambda lm: wb.decode(lm, "a", cache="h20"), "unknown cache 'h20'; known: .*h2o"),
    "decoder": (lambda lm: wb.decode(lm, "a", "speculativ"), "did you mean 'speculative'"),
    "parameter": (lambda lm: wb.Speculative(shape=wb.FixedLength(0)), r"expected an integer in \[1, 64\], got 0"),
    "vocabulary": (
        lambda lm: wb.decode(lm, "a", wb.Speculative(drafter=wb.DraftModel("toy-draft"))),
        "different vocabularies",
    ),
    "directory": (lambda lm: wb.load("./no/such/model"), "no model directory"),
    "model": (lambda lm: wb.load("no-such-model"), "cannot find model"),
    "device": (lambda lm: wb.load("embedded", device="tpu"), "device"),
    "dtype": (lambda lm: wb.load("embedded", dtype="int3"), "unknown dtype 'int3'"),
    "taken name": (lambda lm: wb.register_model("embedded", lm), "belongs to a model of the workbench"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(lm, toy, name):
    """Bad input is refused before any work, in one line that says what to do."""
    call, message = REFUSED[name]
    with pytest.raises(wb.WorkbenchError, match=message) as caught:
        call(lm)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_here(lm):
    with pytest.raises(wb.Unsupported, match="sees no such GPU; use device='cpu'"):
        wb.load("embedded", device="cuda")


def test_pickle_checkpoints_are_refused(tmp_path, lm):
    """A folder with pickle weights only is named as such and never read."""
    lm.model.config.save_pretrained(tmp_path)
    with pytest.raises(wb.BadInput, match="holds no weights"):
        wb.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04would run code")
    with pytest.raises(wb.Unsupported, match="only pickle weights") as caught:
        wb.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_local_directory_loads(tmp_path, lm, held_out):
    """A model saved by transformers is loaded by path and decodes as the one it was saved from."""
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    again = wb.load(tmp_path)
    assert (
        wb.decode(again, held_out[0], max_new_tokens=12).token_ids
        == wb.decode(lm, held_out[0], max_new_tokens=12).token_ids
    )
    assert wb.load(tmp_path) is again


def test_an_existing_file_is_not_overwritten(toy, tmp_path):
    out = tmp_path / "run.wb"
    wb.decode(toy, [0, 1], max_new_tokens=4, out=out)
    before = out.read_bytes()
    with pytest.raises(wb.BadInput, match="exists already"):
        wb.decode(toy, [0, 1], max_new_tokens=4, out=out)
    assert out.read_bytes() == before
    wb.decode(toy, [0, 1], max_new_tokens=4, out=out, overwrite=True)
    assert json.loads(out.read_text().splitlines()[0])["type"] == "run"


def test_import_loads_no_torch():
    """Reading a trace needs no torch: `import workbench` and `Trace` do not import it."""
    code = "import sys, workbench as wb; wb.Trace; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert out.stdout.strip() == "False"

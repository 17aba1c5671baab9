"""The kernel benchmark: its cases, their work and baselines, and what it refuses to print. No speed is tested here."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import device, device_check, kernel_speed
from benchmarks.cases import SHAPES, Case, baselines, cases
from workbench_kernels.pages import RAW
from workbench_kernels.selftest import OPERATIONS, compare

MEASURED = [name for name in OPERATIONS if name != "attention"]
RATES = device.Rates(1e9, 1e12, "float32")
RAW_PAGES = {"widths": ((RAW, RAW),)}


def small(name: str) -> dict:
    """The shape that an operation takes by default."""
    parameters = list(inspect.signature(OPERATIONS[name].prepare).parameters.values())[2:]
    return {parameter.name: parameter.default for parameter in parameters}


def tensors(result) -> list[torch.Tensor]:
    return [part for part in (result if isinstance(result, tuple) else [result]) if isinstance(part, torch.Tensor)]


@pytest.fixture
def uncompiled(monkeypatch):
    """Baselines that torch.compile would take long to make; what it makes is its own affair."""
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)


def test_every_operation_has_shapes_and_work():
    assert list(SHAPES) == MEASURED
    for quick in (True, False):
        assert {case.operation for case in cases(quick)} == set(MEASURED)
    assert len({(case.operation, case.label) for case in cases()}) == len(cases())


@pytest.mark.parametrize("name", MEASURED)
def test_shapes_are_those_the_operation_takes(name):
    for case in cases():
        if case.operation == name:
            moved, flops = case.work
            assert moved > 0 and flops >= 0 and set(case.shape) == set(small(name)), case.label


@pytest.mark.parametrize("name", MEASURED)
def test_work_counts_at_least_what_comes_out(name):
    """And no more than twice everything the call holds and gives."""
    call = OPERATIONS[name]("cpu", torch.float32, **small(name))
    out = sum(tensor.nbytes for tensor in tensors(call.run("torch")) if tensor.dtype != torch.uint8)
    held = sum(tensor.nbytes for tensor in call.tensors.values())
    moved, _ = OPERATIONS[name].floor(torch.float32, **small(name))
    assert out <= moved + 64 and moved <= 2 * (out + held) + 1024


def test_work_of_paged_attention_by_hand():
    """Queries, pages but their positions, table and counts, output: as the tensors themselves say."""
    shape = small("attend_pages")
    call = OPERATIONS["attend_pages"]("cpu", torch.float32, **shape)
    pages = shape["kv_heads"] * shape["count"]
    inputs = sum(call.tensors[name].nbytes for name in ("q", "arena", "table", "count")) - 4 * 32 * pages
    moved, flops = OPERATIONS["attend_pages"].floor(torch.float32, **shape)
    assert moved == inputs + sum(tensor.nbytes for tensor in call.run("torch"))
    assert flops == 2 * 2 * shape["rows"] * 4 * shape["count"] * 32 * shape["size"]


@pytest.mark.parametrize("name", MEASURED)
def test_baselines_give_the_result_they_stand_beside(name, uncompiled):
    """All but the draw of torch, which has its own noise; a backend this machine lacks raises, and is no baseline."""
    shape = small(name) | (RAW_PAGES if "kv_heads" in small(name) and "widths" in small(name) else {})
    call = OPERATIONS[name]("cpu", torch.float32, **shape)
    want = call.read() if call.read else tensors(call.run("torch"))
    ran = set()
    for label, run in baselines(Case(name, "", shape), call).items():
        try:
            got = run()
        except RuntimeError:
            assert label.startswith("sdpa")
            continue
        ran.add(label)
        if label.endswith("torch sampling"):
            assert got.shape == (shape["rows"],) and (got < shape["vocab"]).all()
        elif call.read is None:
            pairs = [(left.reshape(right.shape), right) for left, right in zip(tensors(got), want, strict=False)]
            assert pairs and compare(*zip(*pairs, strict=True)) <= 2e-5, label
    assert {"reference", "compiled reference"} <= ran
    assert "sdpa math" in ran or not name.startswith("attend")


def test_floor_is_the_larger_of_two_times():
    assert RATES.floor_us(1000, 0) == pytest.approx(1) and RATES.floor_us(1000, 5_000_000) == pytest.approx(5)
    row = kernel_speed.floor(Case("merge", "", {"segments": 4, "rows": 16, "heads": 32, "size": 128}), RATES)
    assert row["bound"] == "memory" and row["floor_us"] == pytest.approx(4 * 5 * 16 * 32 * 129 / 1e9 * 1e6)


def test_rates_are_of_this_machine():
    found = device.rates(torch.device("cpu"))
    assert 1e8 < found.bytes_per_s < 1e13 and 1e8 < found.flops_per_s < 1e15 and found.dtype == "float32"


def test_a_timed_row_takes_the_fastest_baseline_and_keeps_refusals(monkeypatch, uncompiled):
    """By made-up times: the kernel takes 4 µs, the first baseline 10, the second 6, one refuses."""
    times = iter([4.0, 10.0, 6.0])

    def measure(run, where):
        median = next(times, None)
        if median is None:
            raise RuntimeError("no such backend\nmore")
        return device.Timing(median, median - 1, median + 1, "graph")

    monkeypatch.setattr(device, "measure", measure)
    case = Case("attend_prefix", "tiny", small("attend_prefix"))
    row = kernel_speed.timed(case, kernel_speed.floor(case, RATES) | {"floor_us": 2.0}, torch.device("cpu"))
    assert (row["median_us"], row["times_floor"]) == (4.0, 2.0)
    assert (row["best_baseline"], row["baseline_us"], row["speedup"]) == ("compiled reference", 6.0, 1.5)
    assert row["baselines"]["sdpa flash"] == {"refused": "RuntimeError: no such backend"}
    assert len(kernel_speed.line(row).split("\n")) == 1 and "1.50 compiled reference" in kernel_speed.line(row)


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure for minutes")
def test_without_a_gpu_it_prints_the_floors_of_every_kernel_and_says_so(capsys, tmp_path):
    out = tmp_path / "kernels.json"
    assert kernel_speed.main(["--quick", "--no-tests", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "no speed was measured: no CUDA device" in text and "WARNING: not run (--no-tests)" in text
    assert {line.split()[0] for line in text.splitlines()[5:]} == set(MEASURED) and "median" not in text
    found = json.loads(out.read_text())
    assert found["conditions"]["versions"]["torch"] == torch.__version__ and found["conditions"]["bytes_per_s"] > 0
    assert all(row["floor_us"] > 0 and "median_us" not in row for row in found["rows"])


def test_red_tests_mean_no_figures(capsys, tmp_path):
    """Neither floors nor speeds, nor a file."""
    out = tmp_path / "kernels.json"
    (tmp_path / "test_red.py").write_text("def test_wrong():\n    assert 1 == 2\n")
    command = f"{sys.executable} -m pytest -q -p no:cacheprovider {tmp_path / 'test_red.py'}"
    assert kernel_speed.main(["--quick", "--tests", command, "--out", str(out)]) == 1
    text = capsys.readouterr().out
    assert "1 failed" in text and "the kernel tests failed" in text
    assert "floor" not in text and "attend_pages" not in text and not out.exists()


@pytest.mark.parametrize("measured", [False, True])
def test_the_kernel_tests_run_first_on_a_cpu_too(measured, capsys, monkeypatch):
    """All of tests/kernels, on a GPU what is native of it, unless a command or --no-tests is given."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: measured)
    monkeypatch.setattr(kernel_speed, "tests_pass", lambda command: asked.append(command) or False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert kernel_speed.main(["--quick"]) == 1
    assert len(asked) == 1 and asked[0].endswith("-m pytest tests/kernels -q" + (" -m gpu" if measured else ""))
    assert capsys.readouterr().out == ""


def test_it_runs_as_a_script():
    script = Path(kernel_speed.__file__)
    command = [sys.executable, str(script), "--quick", "--only", "merge", "--no-tests"]
    if torch.cuda.is_available():
        command = [sys.executable, str(script), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=script.parents[1])
    assert done.returncode == 0, done.stderr[-2000:]


# -- the check of a device ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure for minutes")
def test_the_check_of_a_device_runs_here_in_small_and_tells_no_time(tmp_path, monkeypatch):
    """All of it but the tests; both ways to decode give one token, whatever the settings."""
    monkeypatch.setenv("WORKBENCH_ROUND", "auto")
    phases = [part for name in device_check.PHASES if name != "tests" for part in ("--only", name)]
    assert device_check.main(["--here", "--out", str(tmp_path), *phases]) == 0
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert set(found) == set(device_check.PHASES) - {"tests"}
    assert all(told["conditions"]["dry_run"] for told in found.values())
    rows = {row["name"]: row for told in found.values() for row in told["rows"]}
    questions = [row for name, row in rows.items() if name.startswith("question")]
    assert len(questions) == 4 and all(len(row["tokens"]) == 1 for row in questions)
    assert len(found["kernels"]["rows"]) == len(device_check.KERNELS)
    timed = ("ms", "built_s", "seconds", "us", "GB_per_s", "TFLOP_per_s", "median_us", "floor_us", "saved")
    assert all(row.get(name) is None for row in rows.values() for name in timed)


def test_a_phase_that_fails_or_takes_too_long_does_not_stop_the_next(tmp_path, monkeypatch, capfd):
    asked = []

    def run(command, limit):
        name = command[command.index("--only") + 1]
        asked.append((name, limit))
        if name == "tests":
            raise subprocess.TimeoutExpired("python", limit)
        return int(name == "model"), None

    monkeypatch.setattr(device_check, "_run", run)
    assert device_check.main(["--out", str(tmp_path)]) == 1
    assert asked == list(device_check.LIMITS.items()) and sum(device_check.LIMITS.values()) <= 480
    assert "2 of 4 phases came to their end" in capfd.readouterr().out
    monkeypatch.undo()
    told = device_check._told([sys.executable, "-c", "print('FAILED one'); raise SystemExit(3)"], 20)
    assert told["status"] == 3 and told["failed"] == ["FAILED one"]
    assert device_check._told([sys.executable, "-c", "import time; time.sleep(9)"], 0.2)["status"] is None

"""`workbench doctor`: what it finds, and that its self-tests can fail."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import workbench as wb
import workbench_kernels
from workbench.cli import main
from workbench.report import doctor as diagnosis
from workbench_kernels import distribution, pages, segment_attention, selftest, verification
from workbench_kernels.selftest import OPERATIONS, Call

HELPERS = {"choose", "ledger", "mask_words", "words_mask"}
SDPA = "attention"


def planted(tmp_path: Path, monkeypatch, file: str, right: str, wrong: str) -> None:
    """A copy of the kernels in which `right` reads `wrong`, found before the real ones by processes started later."""
    copy = tmp_path / "workbench_kernels"
    shutil.copytree(Path(workbench_kernels.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    text = (copy / file).read_text()
    assert right in text, f"{file} no longer reads {right!r}"
    (copy / file).write_text(text.replace(right, wrong))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_every_public_kernel_has_a_self_test():
    """A new kernel must be added in one place, `OPERATIONS`, or named here as no kernel."""
    public = {
        name
        for package in (distribution, pages, segment_attention, verification)
        for name in package.__all__
        if name.islower() and name not in HELPERS
    }
    tested = {name.removeprefix("pages.").partition(".")[0] for name in OPERATIONS}
    assert public <= tested


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_self_test_sees_a_wrong_result(name):
    """A kernel that does nothing, or is off by a hundredth in one place."""

    def wrong(device, dtype) -> Call:
        call = OPERATIONS[name](device, dtype)

        def run(how: str):
            if how == "torch":
                return call.run(how)
            if call.read:
                return None
            first, *rest = call.run("torch")
            first = first.clone(memory_format=torch.contiguous_format)
            first.view(-1)[-1] += 0.01 if first.is_floating_point() else 1
            return (first, *rest)

        return call._replace(run=run)

    error, tolerance = selftest.check(wrong, "cpu")
    assert error > tolerance


def test_infinities_shapes_and_integers_must_be_equal():
    inf, one = torch.tensor([torch.inf, 1.0]), torch.tensor([1.0, 1.0])
    assert selftest.compare([inf], [inf]) == 0
    for left, right in ((inf, one), (one, inf), (inf, -inf), (one, one[:1]), (one.int(), 2 * one.int())):
        assert selftest.compare([left], [right]) == torch.inf
    assert selftest.compare([one * 3], [one * 2]) == 0.5


def test_a_planted_wrong_kernel_fails(tmp_path, monkeypatch, capsys):
    """In the process of the self-tests: keys turn the wrong way, every operation that turns none passes."""
    planted(tmp_path, monkeypatch, "pages/kernel_rotation.py", "x * cos - y * sin", "x * cos + y * sin")
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    rows = {row["operation"]: row for row in found["operations"]}
    assert list(rows) == list(OPERATIONS)
    failed = {name for name, row in rows.items() if row["selftest"] == "FAIL"}
    assert failed == {"pages.rotate"}, [row for row in rows.values() if row["selftest"] != "pass"]
    assert rows["pages.rotate"]["error"] > rows["pages.rotate"]["tolerance"]
    good = rows["attend_pages"]
    assert good["selftest"] == "pass" and 0 < good["error"] <= good["tolerance"]
    if not torch.cuda.is_available():
        assert (good["implementation"], good["where"]) == ("torch", "interpreter") and "'cpu'" in good["reason"]
        assert (rows[SDPA]["implementation"], rows[SDPA]["where"]) == ("sdpa", "cpu")


def test_a_process_that_dies_fails_what_it_did_not_answer(monkeypatch, capsys):
    """Rows before its end count; a library's words between them do not."""
    row = {"operation": SDPA, "passed": True, "error": 0.0, "tolerance": 1e-5, "message": ""}
    out = f"hello\n{json.dumps(row)}\n" + '{"operation": "mer'
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -11, out, "no\nSegmentation fault")
    )
    found = wb.doctor()
    assert [r["selftest"] for r in found["operations"]] == ["pass"] + ["FAIL"] * (len(OPERATIONS) - 1)
    assert found["operations"][1]["message"] == "the process ended with code -11: Segmentation fault"
    assert main(["doctor"]) == 1
    assert "Segmentation fault" in capsys.readouterr().out

    def late(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout, output=out.encode())

    monkeypatch.setattr(subprocess, "run", late)
    assert "no answer within" in wb.doctor()["operations"][1]["message"]


def test_quick_runs_no_self_test(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", None)
    assert main(["doctor", "--quick"]) == 0
    text = capsys.readouterr().out
    assert torch.__version__ in text and "attend_pages" in text and f"self-tests: {len(OPERATIONS)} not run" in text
    if torch.version.cuda is None:
        assert "built without CUDA" in text


def test_without_triton_it_says_so_and_skips(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "triton" else real(name, *_))
    monkeypatch.setattr(subprocess, "run", None)
    found = wb.doctor()
    assert {row["selftest"] for row in found["operations"]} == {"skipped"} and found["passed"]
    assert {row["implementation"] for row in found["operations"]} == {"torch", "sdpa"}
    assert any("Triton is not installed" in line for line in found["advice"])


def test_missing_and_old_packages_are_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(diagnosis, "requires", lambda name: ["torch>=99", "nothing-such>=1", "x; extra == 'test'"])
    packages = {row["package"]: row for row in diagnosis.installed()}
    assert set(packages) == {"torch", "nothing-such"} and packages["nothing-such"]["installed"] is None
    lines = diagnosis.advice(list(packages.values()))
    assert f"torch is {torch.__version__}: python -m pip install 'torch>=99'" in lines
    assert "nothing-such is not installed: python -m pip install 'nothing-such>=1'" in lines


def test_an_unknown_wish_in_the_environment_is_refused_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv("WORKBENCH_KERNELS", "cuda")
    assert main(["doctor", "--quick"]) == 2
    assert "WORKBENCH_KERNELS" in capsys.readouterr().err

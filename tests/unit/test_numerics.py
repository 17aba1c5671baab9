"""The campaign over other CPUs: it counts what passed and failed, and its arms do change what is computed."""

from tests.campaigns.numerics import ARMS, ROOT, SHORT, SHORT_ARMS, kernel_folder, parts, run, table

MADE_UP = """
import os
import torch

def test_products_are_rounded_another_way():
    x = torch.randn(64, 64)
    assert not torch.equal(x @ x, torch.mm(x, x)) and torch.allclose(x @ x, torch.mm(x, x), atol=1e-3)

def test_the_kernels_are_those_asked_for():
    assert torch.backends.cpu.get_cpu_capability() == os.environ["ATEN_CPU_CAPABILITY"].upper()

def test_that_fails():
    assert False
"""


def test_an_arm_is_run_counted_and_its_failures_are_named(tmp_path):
    file = tmp_path / "test_made_up.py"
    file.write_text(MADE_UP)
    with kernel_folder() as folder:
        found = run({"ANOTHER_CPU_SEED": "3", "ATEN_CPU_CAPABILITY": "default"}, [str(file)], folder)
        missing = run({}, ["no/such/file.py"], folder)
    assert (found["passed"], found["failed"], found["skipped"]) == (2, 1, 0), found
    assert missing["failed"] == 1  # nothing run is nothing shown
    said = table({"this, 1": {"made up": found}})
    assert "test_that_fails" in said and "FAILED under this, 1" in said


def test_arms_and_parts_are_what_they_say():
    assert set(SHORT_ARMS) < set(ARMS) and len(ARMS) == 10
    assert {arm["OMP_NUM_THREADS"] for arm in ARMS.values()} == {"1", "2"}
    assert all((ROOT / path).exists() for path in SHORT)
    whole = parts(short=False)
    assert "05-bit-allocation.ipynb" in whole and "test_invariant.py" in whole and len(whole) > 40

"""The one place that decides which implementation runs."""

import pytest

from workbench_kernels.dispatch import VARIABLE, decide


def fits() -> None:
    return None


def test_auto_takes_what_the_device_and_the_environment_say(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv(VARIABLE, raising=False)
    assert decide("cpu", fits) == ("torch", "the input is on 'cpu'")
    assert decide("cuda", fits) == ("triton", "the input is on 'cuda'")
    assert decide("cuda", lambda: "too wide") == ("torch", "too wide")
    monkeypatch.setenv(VARIABLE, "triton")
    assert decide("cpu", fits) == ("triton", "asked for")
    assert decide("cpu", lambda: "too wide") == ("torch", "too wide")  # a wish, not a demand
    assert decide("cpu", fits, "torch").name == "torch"  # the call's own word counts more
    monkeypatch.setenv(VARIABLE, "torch")
    assert decide("cuda", fits).name == "torch"
    assert decide("cuda", fits, "triton").name == "triton"


def test_what_cannot_run_says_why(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match=r"the page is on 'cpu' and its interpreter is off.*implementation='torch'"):
        decide("cpu", fits, "triton", "page")
    with pytest.raises(RuntimeError, match="too wide; use implementation='torch'"):
        decide("cuda", lambda: "too wide", "triton")
    with pytest.raises(ValueError, match="implementation: expected 'auto', 'triton' or 'torch', got 'cuda'"):
        decide("cuda", fits, "cuda")
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ValueError, match=f"{VARIABLE}: expected 'auto', 'triton' or 'torch', got 'fast'"):
        decide("cuda", fits)

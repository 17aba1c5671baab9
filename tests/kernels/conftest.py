"""Where a kernel runs in the kernel tests.

On a machine without a GPU the Triton code runs under its interpreter (the root conftest.py switches it on before
anything imports Triton); with a GPU it runs natively, through the `gpu` variants.
"""

import os

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the Triton code runs: `cpu` under the interpreter, `cuda` natively (then `cpu` runs the torch twin)."""
    return request.param


@pytest.fixture
def implementation(device: str) -> str:
    """The implementation a device can run in this process."""
    return "triton" if device == "cuda" or os.environ["TRITON_INTERPRET"] == "1" else "torch"

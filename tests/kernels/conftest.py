"""Where a kernel runs in the kernel tests.

On a machine without a GPU the Triton code runs under its interpreter (the root conftest.py switches it on before
anything imports Triton); with a GPU it runs natively, through the `gpu` variants, and the `cpu` ones are skipped.
"""

import pytest

from tests.kernels.interpreter import needs_interpreter


@pytest.fixture(params=[pytest.param("cpu", marks=needs_interpreter), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Where the Triton code runs: `cpu` under the interpreter, `cuda` natively."""
    return request.param

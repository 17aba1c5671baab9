"""What every test may use: the embedded pair, the held-out prompts, and a toy pair whose laws are known exactly."""

import pytest

import workbench as wb

TOY, TOY_DRAFT = "toy-target", "toy-draft"


@pytest.fixture(scope="session")
def lm():
    """The embedded target in fp32; read-only."""
    return wb.load("embedded")


@pytest.fixture(scope="session")
def held_out() -> list[str]:
    """Held-out prompts, the texts alone."""
    return [row["prompt"] for row in wb.held_out_prompts()]


@pytest.fixture(scope="session")
def toy():
    """An enumerable target over four tokens; its draft is registered as "toy-draft"."""
    wb.register_model(TOY_DRAFT, wb.ToyModel(vocab_size=4, seed=11, sharpness=1.0))
    return wb.register_model(TOY, wb.ToyModel(vocab_size=4, seed=7, sharpness=1.2))

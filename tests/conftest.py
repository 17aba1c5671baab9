"""What every test may use: the embedded pair, the held-out prompts, a toy pair with known distributions, and a
Chromium."""

import importlib.util
import os
import shutil

import pytest

import workbench as wb
from tests.kernels.interpreter import hurry

TOY, TOY_DRAFT = "toy-target", "toy-draft"
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PATIENCE = 120_000  # ms
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> None:
    """Triton code on the CPU at more than twice its speed, where there is Triton."""
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
        hurry()


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


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium. It starts, and its pages wait, for as long as a busy machine takes."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here; install one, or name it in CHROMIUM")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS), timeout=PATIENCE)
        yield browser
        browser.close()

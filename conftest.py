"""Pytest set-up for tests/ and notebooks/; it runs before anything imports Triton."""

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

# nbval compares what a reader sees as text; drawings are checked by the tests of the views.
DRAWN = ("text/html", "application/javascript", "application/vnd.plotly.v1+json", "image/svg+xml")
SENTENCE = r"(?s)\AFigure: .*"  # what a drawing shows, times and speeds too

LONGEST = ("test_equality", "browser", ".ipynb")  # parts of the names of files


def pytest_collectstart(collector: pytest.Collector) -> None:
    if collector.path.suffix == ".ipynb":
        collector.skip_compare += DRAWN
        collector.sanitize_patterns[SENTENCE] = "Figure"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark notebooks; skip `gpu` tests where there is no GPU."""
    if item.path.suffix == ".ipynb":
        item.add_marker(pytest.mark.notebook)
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest go first: each goes to one worker, and all workers are to end together."""
    items.sort(key=lambda item: next((n for n, part in enumerate(LONGEST) if part in item.path.name), len(LONGEST)))

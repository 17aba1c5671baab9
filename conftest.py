"""Pytest set-up for tests/ and notebooks/; it runs before anything imports Triton."""

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

# nbval compares what a reader sees as text; drawings are checked by the tests of the views.
DRAWN = ("text/html", "application/javascript", "application/vnd.plotly.v1+json", "image/svg+xml")


def pytest_collectstart(collector: pytest.Collector) -> None:
    if collector.path.suffix == ".ipynb":
        collector.skip_compare += DRAWN


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark notebooks; skip `gpu` tests where there is no GPU. A group runs in one worker: a file, or all that browse."""
    if item.path.suffix == ".ipynb":
        item.add_marker(pytest.mark.notebook)
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if not item.get_closest_marker("spread"):
        browsing = item.get_closest_marker("browser")
        item.add_marker(pytest.mark.xdist_group("browser" if browsing else item.nodeid.split("::")[0]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest goes first, so that all workers end together."""
    order = ("browser", "spread", "notebook")
    items.sort(key=lambda item: next((n for n, mark in enumerate(order) if item.get_closest_marker(mark)), len(order)))

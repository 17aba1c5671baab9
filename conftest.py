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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

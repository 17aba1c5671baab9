"""Figures of a comparison: intervals by a paired bootstrap, and the part of the cache that drafting adds."""

import numpy as np
import pytest

import workbench as wb
from tests.speculation.tiny import tiny_target
from workbench.experiments.compare import interval

PROMPTS = [[0, 1, 2, 3, 4, 0, 1], [3, 3, 1, 2], [2, 0, 4, 4, 1]]


@pytest.fixture(scope="module")
def target():
    tiny_target("compare-draft", seed=5)
    return tiny_target()


def compared(target, prompts, **settings):
    """Plain decoding and a draft model, and a cache stack that evicts."""
    spec = wb.Speculative(wb.DraftModel("compare-draft"), wb.FixedLength(2))
    arms = {
        "plain": None,
        "spec": spec,
        "evicting": wb.Arm(wb.Autoregressive(), wb.Stack(wb.StreamingLLM(sinks=1, window=4, interval=2))),
    }
    return wb.compare(target, prompts, arms, progress=False, max_new_tokens=10, **settings)


def test_an_interval_holds_its_statistic_and_is_the_same_every_time():
    values = [1.2, 1.5, 1.4, 1.9, 1.6, 1.3]
    low, high = interval(values, np.median)
    assert 1.2 <= low < np.median(values) < high <= 1.9 and interval(values, np.median) == (low, high)
    assert interval([2 * value for value in values], np.median) == pytest.approx((2 * low, 2 * high))  # same resamples
    assert interval([1.0] * 4, np.mean) == (1, 1)
    assert interval([1.7], np.median) == interval([], np.mean) == (None, None)


def test_an_interval_has_its_nominal_cover():
    """Of the mean of 40 draws, in at least nine of ten tries."""
    rng = np.random.default_rng(1)
    ends = [interval(rng.normal(size=40).tolist(), np.mean) for _ in range(100)]
    assert sum(low <= 0 <= high for low, high in ends) >= 90


def test_of_several_prompts_figures_have_intervals(target):
    table = compared(target, PROMPTS, gaps=True)
    for name in ("speedup", "kl_nats"):
        assert (table[f"{name}_low"] <= table[name]).all() and (table[name] <= table[f"{name}_high"]).all()
    assert tuple(table.loc["plain", ["speedup_low", "speedup", "speedup_high"]]) == (1, 1, 1)
    assert table.loc["spec", "kl_nats_high"] == 0 < table.loc["evicting", "kl_nats"]


def test_of_one_prompt_there_is_no_interval(target):
    table = compared(target, [PROMPTS[0]])
    assert table["speedup"].notna().all() and table[["speedup_low", "speedup_high"]].isna().all(axis=None)
    assert "kl_nats" not in table and "kl_nats_low" not in table


def test_the_bytes_that_drafting_adds_are_those_of_the_other_models_at_the_peak(target):
    table = compared(target, PROMPTS)
    assert table.loc["plain", "draft_cache_bytes"] == table.loc["evicting", "draft_cache_bytes"] == 0
    peaks = []
    for trace in table.attrs["traces"]["spec"]:
        sizes = trace.cache.pivot_table(index="round", columns="model", values="bytes", aggfunc="sum")
        largest = sizes.sum(axis=1).idxmax()
        peaks.append((sizes.sum(axis=1).max(), sizes.loc[largest, "draft"]))
    assert (table.loc["spec", "cache_bytes"], table.loc["spec", "draft_cache_bytes"]) == max(peaks, key=lambda p: p[0])

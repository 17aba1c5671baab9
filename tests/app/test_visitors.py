"""Several visitors at once, for some seconds: nothing mixes, nothing fails, nothing stays open; looking is cheap."""

from benchmarks.visitors import measure


def test_three_visitors_watch_their_own_runs():
    found = measure(visitors=3, seconds=5)
    assert found["runs"] >= 3 and found["errors"] == 0 and found["mixed_texts"] == 0 and found["left_open"] == 0
    assert found["look_cpu_over_decode_cpu"] < 0.15
    assert found["peak_memory_after_mib"] - found["peak_memory_before_mib"] < 400

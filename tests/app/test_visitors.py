"""Several visitors of a served app at once: nothing mixes, nothing fails, nothing stays open; watching is cheap."""

from benchmarks.visitors import measure
from workbench.dashboard.visits import MOST_LEFT


def test_three_visitors_watch_and_step_their_own_runs():
    found = measure(visitors=3, seconds=6, watch=4)
    assert found["errors"] == [] and found["mixed_texts"] == 0 and found["runs"] >= 3
    assert found["reloads"] >= 3 and found["cancelled"] >= 3 and found["rounds_after_cancel"] == 0
    assert found["pages_after"] == 0
    assert found["sessions"]["after"] <= MOST_LEFT < found["sessions"]["most"]  # of tabs that may come back
    assert found["memory_mib"]["after_each_wave"][-1] - found["memory_mib"]["before"] < 400
    shares = [found["watching_cpu_over_decode_cpu"]]  # updates keep their pace where other work slows decoding down
    while min(shares) >= 0.15 and len(shares) < 3:
        shares.append(measure(visitors=3, seconds=1, watch=4)["watching_cpu_over_decode_cpu"])
    assert min(shares) < 0.15, shares

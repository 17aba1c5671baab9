"""The losslessness meter without a browser: one click to a verdict, an early end, bad input."""

import re
import time

from tests.app.test_transport import refused
from tests.app.visitor import PROMPT


def measured(visitor, seconds: float = 180) -> str:
    deadline = time.monotonic() + seconds
    while visitor.enabled("enough") and time.monotonic() < deadline:
        visitor.fire("pulse")
        time.sleep(0.05)
    assert not visitor.enabled("enough") and visitor.enabled("measure")
    return visitor.get("verdict")


def test_one_click_gives_a_verdict(visitor):
    visitor.set("prompt", PROMPT)
    visitor.set("decoder", "speculative")
    visitor.fire("measure")
    assert "comparing texts" in visitor.get("verdict") or "exact" in visitor.get("verdict")
    said = measured(visitor)
    assert "<b>exact</b>" in said.replace("seeded", "exact") and "the guarantee holds" in said
    assert "texts of 48 tokens equal plain decoding" in said


def test_a_lossy_verifier_is_told_and_counting_can_be_cut_short(visitor):
    visitor.set("prompt", PROMPT)
    visitor.set("decoder", "speculative")
    visitor.shown[visitor.find("verifier", "which drafts stand")] = "typical"
    visitor.fire("measure")
    deadline = time.monotonic() + 120
    while "runs counted" not in visitor.get("verdict") and visitor.enabled("enough") and time.monotonic() < deadline:
        visitor.fire("pulse")
        time.sleep(0.05)
    visitor.fire("enough")
    said = measured(visitor)
    counted = [int(count) for count in re.findall(r"(\d+) runs of \d+ tokens (?:over|uncut)", said)]
    assert len(counted) == 2 and 50 <= counted[0] == counted[1] < 500 and "total variation" in said


def test_bad_input_is_one_line(visitor):
    visitor.set("prompt", "")
    assert "prompt is empty" in refused(visitor, "measure")

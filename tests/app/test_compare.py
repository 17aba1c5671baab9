"""Compare: arms, progress, charts and table, stopping, export; a browser only looks at the finished page."""

import csv
import io
import json
import re
import time

import pytest
import torch

import workbench as wb
from tests.app.test_transport import refused
from tests.app.visitor import PROMPT
from workbench.dashboard.comparing import claimed, report, sentence
from workbench.dashboard.experiments import BASELINE, MAX_PROMPTS
from workbench.dashboard.html import badge
from workbench.experiments.compare import Arm, Comparison, gap
from workbench.report.headline import acted
from workbench.web import FOLDER, variables

PLAIN = wb.Autoregressive()


def drained(steps):
    """What a generator returns at its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def compare(visitor, arms: list[str], tokens: int = 64, prompts: int = 1) -> None:
    visitor.set("prompt", PROMPT)
    visitor.set("prompts", prompts)
    visitor.set("max new tokens", tokens)
    visitor.set("arms", arms)
    visitor.fire("compare")


def wait(visitor, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while visitor.enabled("stop") and time.monotonic() < deadline:
        visitor.fire("beat")
        time.sleep(0.05)
    assert not visitor.enabled("stop")


def test_a_comparison_is_one_table_that_can_be_saved(visitor):
    visitor.set("decoder", "speculative")
    visitor.set("cache quantizer", "kivi")
    visitor.set("arms", ["copied drafts"])
    visitor.fire("add")
    chosen = visitor.get("arms")
    assert chosen == ["copied drafts", "1: speculative over kivi"]
    compare(visitor, chosen)
    assert "of 3 runs" in visitor.get("progress")
    wait(visitor)
    assert "Done: 1 of 1 prompt · 3 of 3 runs" in visitor.get("progress")
    assert "1 prompt: no interval" in visitor.get("compared") and "wb-whisker" not in visitor.get("compared")
    rows = json.loads(json.loads(visitor.fire("json")[0])["text"])["rows"]
    table = list(csv.DictReader(io.StringIO(json.loads(visitor.fire("csv")[0])["text"])))
    assert [row["arm"] for row in rows] == [row["arm"] for row in table] == [BASELINE, *chosen]
    plain, copied, quantized = rows
    for row in rows:
        assert row["verified_by"] and row["tokens"] == 64 and row["cache_bytes"] > 0
    assert copied["same_text"] == 1 and copied["tokens_per_target_forward"] >= plain["tokens_per_target_forward"]
    assert plain["kl_nats"] == copied["kl_nats"] == 0 and not plain["cache"]
    assert quantized["kl_nats"] > 0 and quantized["guarantee"] == "exact" and quantized["cache"]
    assert quantized["bits_per_element"] < plain["bits_per_element"]
    assert quantized["acted"] and not copied["acted"] and quantized["draft_cache_bytes"] > 0
    assert "≈ exact under its cache" in visitor.get("compared") and "= exact" in visitor.get("compared")


def test_several_prompts_have_intervals_and_share_the_texts_counted(visitor):
    assert visitor.get("prompts") == 12 <= MAX_PROMPTS
    compare(visitor, ["copied drafts", "h2o 128"], tokens=16, prompts=3)
    assert re.search(r"of 9 runs", visitor.get("progress"))
    wait(visitor)
    assert "Done: 3 of 3 prompts" in visitor.get("progress") and "95 % bootstrap" in visitor.get("progress")
    made = visitor.get("compared")
    assert "wb-whisker" in made and "3 / 3" in made and "reference" in made
    rows = json.loads(json.loads(visitor.fire("json")[0])["text"])["rows"]
    for row in rows:
        assert row["prompts"] == 3 and row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
    assert rows[1]["kl_nats_high"] == 0 < rows[2]["kl_nats"] <= rows[2]["kl_nats_high"]


def test_a_policy_that_never_acted_is_told_from_one_that_did(visitor):
    compare(visitor, ["h2o 128", "kivi 4 bits"], tokens=8)
    wait(visitor)
    made = visitor.get("compared")
    assert made.count("○ cache never acted") == 2 and "never acted on these texts" in made
    lm = wb.load("embedded")
    for stack, did in ((wb.Stack(wb.H2O(budget=16)), True), (wb.Stack(quantizer=wb.KIVI(bits=4, residual=0)), True),
                       (wb.Stack(wb.H2O(budget=512)), False), (None, False)):  # fmt: skip
        assert acted(wb.decode(lm, PROMPT, cache=stack, max_new_tokens=40)) is did
    assert acted(wb.decode(lm, PROMPT, cache=wb.Stack(wb.H2O(budget=512)), max_new_tokens=4, level="off"))


def row(arm: str, speedup: float, low: float | None = None, high: float | None = None, **more) -> dict:
    """A row of a comparison."""
    usual = {
        "guarantee": "exact", "verified_by": "a test", "cache": False, "acted": False, "prompts": 12,
        "tokens_per_target_forward": 1.0, "draft_acceptance_rate": None, "cache_bytes": 4 << 20, "draft_cache_bytes": 0,
        "bits_per_element": 32.0, "same_text": 1.0, "ms_per_token": 2.0, "kl_nats": 0.0, "kl_nats_low": 0.0,
        "kl_nats_high": 0.0,
    }  # fmt: skip
    return {"arm": arm, "speedup": speedup, "speedup_low": low, "speedup_high": high, **usual, **more}


LOSSY = {"cache": True, "acted": True, "same_text": 0.25, "kl_nats": 0.04, "kl_nats_low": 0.02, "kl_nats_high": 0.07}
ROWS = [
    row(BASELINE, 1.0, 1.0, 1.0),
    row("draft model, tree", 1.74, 1.6, 1.88, cache_bytes=5 << 20, draft_cache_bytes=1 << 20),
    row("h2o 128", 0.97, 0.93, 1.02, cache_bytes=1 << 20, **LOSSY),
    row("tree over h2o 128", 1.49, 1.33, 1.64, **LOSSY),
    row("h2o 1024", 0.99, 0.9, 1.1, cache=True),
]


def test_what_the_table_shows_is_said_first():
    assert sentence(ROWS) == (
        "draft model, tree is fastest: 1.74× [1.60, 1.88] the speed of plain decoding; h2o 128 keeps the smallest"
        " cache, 25 % of plain's, at a KL of 0.04 [0.02, 0.07] nats / token; the cache policy of h2o 1024 never acted"
        " on these texts: they say nothing about it."
    )
    assert sentence([ROWS[0], row("a", 1.05, 0.9, 1.2)]).endswith("speed of plain decoding, not surely faster.")
    assert sentence([ROWS[0], row("a", 0.8, 0.7, 0.9)]).startswith("No arm is faster than plain decoding; a comes")
    assert "the one prompt (no interval)" in sentence([ROWS[0], row("a", 1.8, prompts=1)])
    assert "b should spell plain decoding's text and does not" in sentence([ROWS[0], row("b", 1, 1, 1, same_text=0.5)])


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, "= exact"),
        ({"guarantee": "seeded"}, "= exact"),
        ({"guarantee": "distribution", "same_text": 0.1}, "= exact in distribution"),
        ({"guarantee": "lossy"}, "≈ lossy"),
        ({"guarantee": "own"}, "≈ own distribution"),
        ({"cache": True}, "○ cache never acted"),
        ({**LOSSY, "guarantee": "seeded"}, "≈ exact under its cache"),
        (LOSSY, "≈ exact under its cache"),
        ({**LOSSY, "guarantee": "lossy"}, "≈ lossy"),
        ({"same_text": 0.9}, "≠ texts differ"),
    ],
)
def test_the_claim_of_an_arm_is_a_badge_that_says_how_it_is_checked(more, text):
    made = badge(**claimed(row("a", 1, **more)))
    assert f">{text}</span>" in made and "checked by a test" in made
    assert ("wb-caution" in made) is (text[0] in "≈≠")


def test_names_of_arms_are_inert_in_every_chart():
    name = '<script>alert(1)</script>" onload="x'
    made = report([ROWS[0], row(name, 1.2, 1.1, 1.3), row(f"{name}2", 0.7, 0.6, 0.8, **LOSSY)])
    assert "<script" not in made and '" onload' not in made and made.count("&lt;script") >= 6


def test_the_report_fits_a_phone_and_its_figures_stand_at_the_right(chromium):
    """At 390 wide nothing but the table's own box scrolls, and of every chart one drawing is shown."""
    look = (FOLDER / "charts.css").read_text(encoding="utf-8")
    for width, wide in ((390, False), (1440, True)):
        page = chromium.new_page(viewport={"width": width, "height": 844})
        page.set_content(f"<style>:root {{ {variables()} }} {look}</style>{report(ROWS)}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("svg.wb-wide:visible").count() == (2 if wide else 0)
        assert page.locator("svg.wb-narrow:visible").count() == (0 if wide else 2)
        box = page.evaluate(
            "(({scrollWidth, clientWidth}) => [scrollWidth, clientWidth])(document.querySelector('.wb-arms'))"
        )
        assert (box[0] > box[1]) is not wide
        cell = page.locator("tbody tr").nth(1).locator("td").nth(1)
        assert cell.evaluate("e => getComputedStyle(e).textAlign") == "right"
        page.close()


def test_the_gap_is_that_of_the_distributions_on_the_same_text():
    """Recomputed from the logged log-probabilities of the forced tokens: the distributions are those the traces speak
    of."""
    lm = wb.load("embedded")
    arms = {"plain": Arm(PLAIN), "kivi": Arm(PLAIN, wb.Stack(quantizer=wb.KIVI(bits=2, residual=0)))}
    comparison = Comparison(lm, [PROMPT], arms)
    text = wb.decode(lm, PROMPT, max_new_tokens=36).token_ids
    for arm in arms.values():
        dists = drained(comparison._distributions(PROMPT, arm, text))
        trace = wb.decode(lm, PROMPT, arm.decoder, cache=arm.cache, force=text, ignore_eos=True)
        found = [float(-dists[place][token]) for place, token in zip(sorted(dists), text, strict=True)]
        assert found == pytest.approx(trace.tokens["surprisal_nats"].tolist(), rel=1e-3, abs=1e-4)
    dist = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert gap({3: dist.log()}, {3: dist.flip(0).log(), 4: dist.log()}) == pytest.approx(
        0.5 * torch.log(dist[1] / dist[0])
    )
    assert gap({}, {}) is None


def test_a_comparison_is_stopped_and_refuses_nonsense(visitor):
    compare(visitor, ["draft model, chain"], tokens=400)
    assert "a comparison is running" in refused_here(visitor)
    visitor.fire("stop")  # in the middle of a text, not at its end
    assert "Stopped: 0 of 1 prompt" in visitor.get("progress")
    visitor.set("arms", [])
    assert "choose between 1 and" in refused_here(visitor)
    visitor.set("arms", ["h2o 128"])
    visitor.set("prompts", MAX_PROMPTS + 1)
    assert str(MAX_PROMPTS) in refused_here(visitor)
    visitor.set("prompts", 1)
    visitor.set("prompt", "")
    assert "the prompt is empty" in refused_here(visitor)


def refused_here(visitor) -> str:
    import gradio as gr

    with pytest.raises(gr.Error) as error:
        visitor.fire("compare")
    return error.value.message


def test_nothing_can_be_saved_before_there_is_a_table(visitor):
    assert "compare first" in refused(visitor, "csv")

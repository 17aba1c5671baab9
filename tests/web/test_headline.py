"""What stands above the text of a run: the sentence of its figures, and what it promises."""

import pytest

import workbench as wb
from workbench.report.headline import badge, run_line

DRAFT, PLAIN = wb.DraftModel("embedded-draft"), wb.Autoregressive()
CHANCE = wb.Speculative(drafter=DRAFT, verifier=wb.Rejection())
CACHES = {"roomy": wb.Stack(wb.H2O(budget=512)), "cut": wb.Stack(wb.StreamingLLM(sinks=2, window=8)),
          "narrowed": wb.Stack(quantizer=wb.KIVI(bits=4)), "read": wb.Stack(reader=wb.LServe()),
          "unread": wb.Stack(reader=wb.LServe(budget=32, oldest=0, newest=0))}  # fmt: skip
RUNS = {
    "exact": (wb.Speculative(drafter=DRAFT), {}, "= exact", False),
    "chance": (CHANCE, {"temperature": 0.8}, "= exact in distribution", False),
    "lossy": (wb.EntropyAdaptive(), {}, "≈ lossy", True),
    "own": (wb.Mirostat(), {}, "≈ own distribution", True),
    "roomy": (PLAIN, {"cache": CACHES["roomy"]}, "○ cache never acted", False),
    "cut": (PLAIN, {"cache": CACHES["cut"]}, "≈ exact under its cache", True),
    "narrowed": (PLAIN, {"cache": CACHES["narrowed"]}, "≈ exact under its cache", True),
    "unread": (PLAIN, {"cache": CACHES["unread"]}, "≈ exact under its cache", True),
    "read": (PLAIN, {"cache": CACHES["read"]}, "○ cache never acted", False),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_badge_says_what_a_run_promises(lm, run):
    """A cache that drops or narrows makes an exact decoder approximate, and one that did neither is named as such."""
    decoder, settings, text, caution = RUNS[run]
    prompt = "def area(width, height):\n    return width * height\n" * 6
    trace = wb.decode(lm, prompt, decoder, max_new_tokens=12, ignore_eos=True, **settings)
    found = badge(trace)
    assert (found["text"], found["caution"]) == (text, caution) and "checked" in found["tip"]


def test_the_sentence_holds_the_figures_of_the_trace(speculative, tree):
    for trace in (speculative, tree):
        known = trace.summary()
        line = run_line(trace)["line"]
        assert line.startswith(f"{known['tokens']} tokens in ") and line.endswith("Ended: length.")
        assert f"{known['tokens_per_target_forward']:.2f} per forward" in line
        rate = known["num_accepted_tokens"] / known["num_draft_tokens"]
        assert f"{rate:.0%} of {known['num_draft_tokens']} drafts accepted" in line
    assert run_line(wb.Trace(tree.log[:1]))["line"] == "0 tokens."

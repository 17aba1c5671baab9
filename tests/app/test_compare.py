"""Compare without a browser: arms, progress, the table, stopping, export."""

import csv
import io
import json
import time

import pytest
import torch

import workbench as wb
from tests.app.test_transport import refused
from tests.app.visitor import PROMPT
from workbench.dashboard.experiments import BASELINE
from workbench.experiments.compare import Arm, Comparison, gap

PLAIN = wb.Autoregressive()


def drained(steps):
    """What a generator returns at its end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def compare(visitor, arms: list[str], tokens: int = 64) -> None:
    visitor.set("prompt", PROMPT)
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
    assert "Done: 1 of 1 prompts." in visitor.get("progress") and "copied drafts" in visitor.get("compared")
    rows = json.loads(json.loads(visitor.fire("json")[0])["text"])["rows"]
    table = list(csv.DictReader(io.StringIO(json.loads(visitor.fire("csv")[0])["text"])))
    assert [row["arm"] for row in rows] == [row["arm"] for row in table] == [BASELINE, *chosen]
    plain, copied, quantized = rows
    for row in rows:
        assert row["verified_by"] and row["tokens"] == 64 and row["cache_bytes"] > 0
    assert copied["same_text"] == 1 and copied["tokens_per_target_forward"] >= plain["tokens_per_target_forward"]
    assert plain["kl_nats"] == copied["kl_nats"] == 0 and not plain["cache"]
    assert quantized["kl_nats"] > 0 and quantized["guarantee"] == "exact" and quantized["cache"]
    assert quantized["bits_per_element"] < plain["bits_per_element"] and "exact, under" in visitor.get("compared")


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
    assert "Stopped: 0 of 1 prompts" in visitor.get("progress")
    visitor.set("arms", [])
    assert "choose between 1 and" in refused_here(visitor)
    visitor.set("arms", ["h2o 128"])
    visitor.set("prompt", "")
    assert "the prompt is empty" in refused_here(visitor)


def refused_here(visitor) -> str:
    import gradio as gr

    with pytest.raises(gr.Error) as error:
        visitor.fire("compare")
    return error.value.message


def test_nothing_can_be_saved_before_there_is_a_table(visitor):
    assert "compare first" in refused(visitor, "csv")

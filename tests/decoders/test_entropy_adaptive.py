"""Entropy Adaptive Decoding: its limits are plain decoders, and its switches happen when and as often as it says."""

import math

import pytest

import workbench as wb
from workbench.errors import BadInput

PROMPT = [0, 1, 2, 3]


def rounds(lm, decoder, prompt=PROMPT, **settings) -> tuple[wb.Trace, list[dict]]:
    trace = wb.decode(lm, prompt, decoder, **settings)
    return trace, [event["figures"] for event in trace.steps() if event.get("figures")]


@pytest.mark.parametrize("monitor", ["active", "small"])
@pytest.mark.parametrize(("tau", "window", "dwell"), [(-1, 1, 0), (0.8, 1, 0), (1.2, 3, 2), (1.5, 5, 10), (9, 2, 1)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_between_equal_models_it_is_plain_decoding(toy, tau, window, dwell, monitor, temperature):
    settings = dict(temperature=temperature, seed=2, max_new_tokens=40)
    decoder = wb.EntropyAdaptive(small="toy-target", threshold=tau, window=window, dwell=dwell, monitor=monitor)
    assert wb.decode(toy, PROMPT, decoder, **settings).token_ids == wb.decode(toy, PROMPT, **settings).token_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_its_limits_are_the_two_models_alone(toy, temperature):
    settings = dict(temperature=temperature, seed=2, max_new_tokens=40)
    never = wb.EntropyAdaptive(small="toy-draft", threshold=math.inf, begin="small")
    small, figures = rounds(toy, never, **settings)
    assert small.token_ids == wb.decode(wb.load("toy-draft"), PROMPT, **settings).token_ids
    assert set(small.tokens["source"]) == {"toy-draft"} and figures[-1]["share_on_large"] == 0
    always = wb.EntropyAdaptive(small="toy-draft", threshold=-1, begin="large")
    large, figures = rounds(toy, always, **settings)
    assert large.token_ids == wb.decode(toy, PROMPT, **settings).token_ids
    assert set(large.tokens["source"]) == {"target"} and figures[-1]["share_on_large"] == 1
    assert small.token_ids != large.token_ids


@pytest.mark.parametrize("dwell", [0, 1, 4, 9])
@pytest.mark.parametrize("monitor", ["active", "small"])
def test_switches_lie_at_least_dwell_apart(toy, dwell, monitor):
    decoder = wb.EntropyAdaptive(small="toy-draft", threshold=1.4, window=1, dwell=dwell, monitor=monitor)
    trace, figures = rounds(toy, decoder, temperature=1.0, max_new_tokens=55)
    at = [i for i, f in enumerate(figures) if f["switched"]]
    assert len(at) >= 2
    assert all(b - a >= dwell for a, b in zip(at, at[1:], strict=False))
    events = trace.events[trace.events["controller"] == "entropy_adaptive"]
    assert len(events) == len(at)


def test_the_window_is_the_mean_of_the_last_entropies(toy):
    decoder = wb.EntropyAdaptive(small="toy-draft", threshold=1.4, window=4, dwell=1)
    _, figures = rounds(toy, decoder, temperature=1.0, max_new_tokens=30)
    entropies = [f["entropy_bits"] for f in figures]
    for i, f in enumerate(figures):
        seen = entropies[max(0, i - 3) : i + 1]
        assert f["mean_entropy_bits"] == pytest.approx(sum(seen) / len(seen), abs=1e-4)
        if f["switched"]:
            assert (f["active"] == "target") == (f["mean_entropy_bits"] > 1.4)


def test_a_switch_feeds_the_tokens_that_the_other_wrote(toy):
    """The model that takes over reads what it missed: the rows of its pass, and the cost that the event states."""
    decoder = wb.EntropyAdaptive(small="toy-draft", threshold=1.4, window=1, dwell=3)
    trace, figures = rounds(toy, decoder, temperature=1.0, max_new_tokens=50)
    forwards = trace.forwards
    fed = {"target": 0, "draft": 0}
    seen = 0
    for event in trace.steps():
        passes = forwards[forwards["round"] == event["round"]]
        decisions = [e for e in trace.log if e["type"] == "decision" and e["round"] == event["round"]]
        for decision in decisions:
            role = decision["action"].removeprefix("switch to ")
            context = event["context"] - 1  # tokens before this round's own
            assert decision["cost"]["catch_up_tokens"] == context - 1 - fed[role]
            assert passes[passes["model"] == role]["rows"].sum() == context - fed[role]
            seen += 1
        for role in fed:
            fed[role] += int(passes[passes["model"] == role]["rows"].sum())
    assert seen >= 2


def test_on_forced_text_the_share_of_the_large_model_falls_with_tau(lm, held_out):
    """Same text, same entropies of the small model: a higher threshold can only hand over less."""
    row = wb.held_out_prompts(1)[0]
    force = lm.tokenizer.encode(row["reference"])[:40]
    assert len(force) >= 20
    shares, entropies = [], []
    for tau in (-1, 1.0, 2.0, 3.0, 4.0, 6.0, 14.0):
        decoder = wb.EntropyAdaptive(threshold=tau, window=3, dwell=0, monitor="small")
        trace, figures = rounds(lm, decoder, row["prompt"][-600:], force=force)
        assert trace.token_ids == force
        shares.append(figures[-1]["share_on_large"])
        entropies.append([f["entropy_bits"] for f in figures])
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1 and shares[-1] == 0 and len(set(shares)) > 3
    for other in entropies[1:]:
        assert other == pytest.approx(entropies[0], abs=1e-3)


def test_it_fires_on_the_embedded_pair(lm, held_out):
    trace, figures = rounds(
        lm, wb.EntropyAdaptive(threshold=2.0, window=2, dwell=2), held_out[1][-600:], max_new_tokens=48
    )
    assert {"target", "embedded-draft"} == set(trace.tokens["source"])
    assert {"target", "draft"} == set(trace.tokens["model"])
    assert sum(f["switched"] for f in figures) >= 2
    assert trace.run["guarantee"] == "lossy"
    large = (trace.tokens["source"] == "target").mean()
    assert figures[-1]["share_on_large"] == pytest.approx(large, abs=1e-4)


def test_beyond_the_small_models_context_the_large_one_writes(toy):
    wb.register_model("toy-short", wb.ToyModel(vocab_size=4, seed=11, context=20))
    decoder = wb.EntropyAdaptive(small="toy-short", threshold=math.inf)
    trace = wb.decode(toy, PROMPT, decoder, max_new_tokens=40)
    assert len(trace.token_ids) == 40
    assert trace.tokens["source"].tolist()[-20:] == ["target"] * 20
    assert trace.tokens["source"].tolist()[:10] == ["toy-short"] * 10
    assert len(wb.decode(toy, [0, 1] * 15, decoder, max_new_tokens=5).token_ids) == 5


@pytest.mark.parametrize(
    "bad", [dict(threshold=-2), dict(window=0), dict(dwell=-1), dict(monitor="both"), dict(begin="x")], ids=str
)
def test_parameters_out_of_bounds_are_refused(bad):
    with pytest.raises(BadInput, match=next(iter(bad))):
        wb.EntropyAdaptive(**bad)

"""The figures of a run, from literal runs whose answers are known."""

from dataclasses import replace

import pytest

from workbench.trace import Recorder, Step
from workbench.trace.summary import repeated_4gram_share

NAMES = {
    "num_drafts", "num_draft_tokens", "num_accepted_tokens", "mean_acceptance_length", "draft_acceptance_rate",
    "acceptance_by_position", "acceptance_tested", "mean_acceptance_length_no_bonus", "tokens_per_target_forward",
    "target_forwards", "draft_forwards", "entropy_raw_nats", "repeated_4gram_share", "cache_bytes",
    "bits_per_element", "full_cache_bytes", "recording_ms",
    "tokens_per_second", "time_to_first_token_ms", "modelled_speedup", "measured_speedup",
    "guarantee", "verified", "rounds", "tokens", "end_reason",
    "mean_acceptance_length_per_request", "mean_acceptance_length_per_request_no_bonus",
}  # fmt: skip


def test_acceptance_figures_of_a_known_run(made_up):
    """Three drafts of 4 with 2, 4 and 0 accepted, and a plain round that must not count as a draft."""
    figures = made_up.record([(4, 2), (4, 4), (0, 0), (4, 0)]).trace.summary()
    assert set(figures) == NAMES
    assert (figures["num_drafts"], figures["num_draft_tokens"], figures["num_accepted_tokens"]) == (3, 12, 6)
    assert figures["mean_acceptance_length"] == 3.0 and figures["mean_acceptance_length_no_bonus"] == 2.0
    assert figures["draft_acceptance_rate"] == 0.5
    assert figures["acceptance_by_position"] == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3])
    assert figures["acceptance_tested"] == 6 / 8  # two rejections; five nodes behind them were never tested
    assert (figures["tokens"], figures["target_forwards"], figures["draft_forwards"]) == (10, 4, 12)
    assert figures["tokens_per_target_forward"] == 2.5
    assert figures["guarantee"] == "exact" and figures["end_reason"] is None


def passes(*rows):
    columns = zip(*rows, strict=True)
    return dict(zip(("phase", "model", "weight_bytes", "kv_read_bytes"), map(list, columns), strict=True))


def test_the_modelled_speedup_is_the_ratio_of_bytes_read(made_up):
    """3 tokens for one target pass (1000 + 100 bytes) and two draft passes (100 + 10 each), prompt left out."""
    recorder = Recorder(made_up.run_event())
    recorder.round(Step("prefill", forwards=passes(("prefill", "target", 1000, 0))))
    tokens = {"token_id": [1, 2, 3], "source": ["d", "d", "bonus"]}
    draft = ("draft", "draft", 100, 10)
    recorder.round(
        Step(
            "chain",
            tokens,
            forwards=passes(draft, draft, ("target", "target", 1000, 100)),
            emitted=3,
            texts=list("abc"),
        )
    )
    assert recorder.trace.summary()["modelled_speedup"] == pytest.approx(3 * 1100 / (1100 + 2 * 110))


def test_a_round_of_the_draft_model_alone_is_compared_with_a_target_pass(made_up):
    recorder = Recorder(made_up.run_event())
    token = {"token_id": [1], "source": ["draft"]}
    for number, forward in enumerate((("draft", "draft", 100, 0), ("target", "target", 1000, 0))):
        recorder.round(Step("plain", token, forwards=passes(forward), emitted=1, texts=[str(number)]))
    assert recorder.trace.summary()["modelled_speedup"] == pytest.approx(2000 / 1100)


def test_plain_decoding_has_a_modelled_speedup_of_one(made_up):
    assert made_up.record([(0, 0)] * 3).trace.summary()["modelled_speedup"] == pytest.approx(1.0)


def test_times_and_the_measured_speedup(made_up):
    recorder = Recorder(made_up.run_event(baseline={"tokens_per_second": 250.0}))
    recorder.round(Step("prefill", ms={"total": 50.0}))
    for ms in (2.0, 2.0):
        step = Step("plain", {"token_id": [1], "source": ["target"]}, ms={"total": ms}, emitted=1)
        recorder.round(replace(step, texts=["x"]))
    figures = recorder.trace.summary()
    assert (figures["tokens_per_second"], figures["time_to_first_token_ms"]) == (500.0, 52.0)
    assert figures["measured_speedup"] == 2.0


def test_cache_and_entropy_figures(made_up):
    trace = made_up.record([(4, 2)] * 4).trace
    figures = trace.summary()
    assert figures["cache_bytes"] == {
        "last": trace.rounds["cache_bytes"].iloc[-1],
        "peak": trace.rounds["cache_bytes"].max(),
    }
    assert figures["bits_per_element"] == 32.0
    assert figures["entropy_raw_nats"]["mean"] == pytest.approx(trace.tokens["entropy_raw_nats"].mean())
    assert figures["entropy_raw_nats"]["q50"] == pytest.approx(trace.tokens["entropy_raw_nats"].median())


@pytest.mark.parametrize(
    ("ids", "share"),
    [([], 0.0), ([1, 1, 1], 0.0), ([1, 2, 3, 4], 0.0), ([1] * 8, 0.8), ([1, 2, 3, 4, 1, 2, 3, 4], 0.2)],
)
def test_repeated_4grams(ids, share):
    assert repeated_4gram_share(ids) == pytest.approx(share)


@pytest.mark.parametrize("rounds", [None, [], [(0, 0)]], ids=["run only", "prefill only", "one plain token"])
@pytest.mark.parametrize("level", ["off", "default"])
def test_figures_that_cannot_be_had_are_none_never_errors(made_up, rounds, level):
    recorder = Recorder(made_up.run_event(), level=level) if rounds is None else made_up.record(rounds, level=level)
    figures = recorder.trace.summary()
    assert set(figures) == NAMES
    assert figures["mean_acceptance_length"] is None and figures["acceptance_by_position"] == []
    assert figures["acceptance_tested"] is None and figures["measured_speedup"] is None

"""The losslessness meter: it finds what is so, and is not fooled by what only guarantees to be."""

import math
import sys
from dataclasses import dataclass

import pytest

import workbench as wb
from tests.speculation.tiny import tiny_target
from workbench.errors import BadInput
from workbench_kernels.verification import reference

PROMPTS = [[0, 1, 2, 3, 4, 0, 1], [3, 3, 1]]
QUICK = {"tokens": 12, "runs": 200, "progress": False}


@pytest.fixture(scope="module")
def target():
    tiny_target("tiny-draft", seed=5)
    return tiny_target()


def drafting(**parts) -> wb.Speculative:
    return wb.Speculative(drafter=wb.DraftModel("tiny-draft"), shape=wb.FixedLength(2), **parts)


@pytest.mark.parametrize(
    ("decoder", "badge", "holds"),
    [
        (wb.Autoregressive(), "exact", True),
        (drafting(), "exact", True),
        (drafting(verifier=wb.Rejection()), "distribution", True),
        (drafting(verifier=wb.PointMatch()), "distribution", True),
        (drafting(verifier=wb.Typical(epsilon=0.05)), "lossy", True),
        (drafting(verifier=wb.Greedy()), "exact", True),
    ],
    ids=["plain", "seeded", "rejection", "point", "typical", "greedy"],
)
def test_what_is_found_is_what_is_so(target, decoder, badge, holds):
    verdict = wb.lossless(decoder, target, PROMPTS, **QUICK)
    assert (verdict.badge if verdict.badge != "seeded" else "exact") == badge, verdict
    assert verdict.holds is holds
    if verdict.sampled in ("distribution", "lossy"):
        assert 8 <= verdict.cells <= 2**verdict.length and verdict.runs >= QUICK["runs"] // 2
        assert math.isfinite(verdict.tv) and math.isfinite(verdict.kl_nats)
        apart = verdict.tv > 2 * verdict.tv_noise or verdict.uncut_tv > verdict.uncut_tv_detectable
        assert apart is (verdict.sampled == "lossy")
    assert decoder.declared_name in str(verdict) and "badge" in verdict.table().index


def test_a_decoder_without_its_residual_step_is_found_out(target, monkeypatch):
    monkeypatch.setattr(reference, "residual", lambda p, q: p)
    verdict = wb.lossless(drafting(verifier=wb.Rejection()), target, PROMPTS, **{**QUICK, "runs": 400})
    assert verdict.sampled == "lossy" and verdict.holds is False and "DOES NOT HOLD" in str(verdict)


@dataclass(frozen=True)
class Boaster(wb.Decoder):
    """Claims to be exact, and takes the second best token at every third place."""

    declared_name = "boaster"

    def guarantee(self, sampling):
        return "exact" if sampling.greedy else "seeded"

    def decode_round(self, state, r):
        dist = r.dist(r.advance("target").logits)
        token = (
            int(dist.raw[0].topk(2).indices[1]) if len(state.tokens) % 3 == 0 else r.choose(dist, 0, len(state.tokens))
        )
        r.append(dist, [0], [token], ["target"])


def test_a_decoder_of_the_users_own_that_only_claims_is_found_out(target):
    verdict = wb.lossless(Boaster(), target, PROMPTS, **QUICK)
    assert verdict.greedy == "lossy" and "parts at token" in verdict.greedy_note
    assert verdict.sampled == "lossy" and verdict.holds is False


def test_a_near_tie_is_named_numeric(target, monkeypatch):
    monkeypatch.setitem(sys.modules["workbench.experiments.lossless"].TIES, target.dtype, 100.0)
    verdict = wb.lossless(Boaster(), target, PROMPTS, **QUICK)
    assert verdict.greedy == "numeric" and "near-tie" in verdict.greedy_note


def test_it_holds_under_a_cache_stack_too(target):
    verdict = wb.lossless(drafting(), target, PROMPTS, cache=wb.StreamingLLM(sinks=2, window=6), **QUICK)
    assert verdict.greedy == "exact" and verdict.sampled == "seeded"


def test_bad_input_is_refused_before_any_work(target):
    with pytest.raises(BadInput, match="100 or more runs"):
        wb.lossless(wb.Autoregressive(), target, PROMPTS, runs=5)
    with pytest.raises(BadInput, match="unknown setting"):
        wb.lossless(wb.Autoregressive(), target, PROMPTS, budget=3)

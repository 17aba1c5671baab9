"""Mirostat and Entropy Adaptive Decoding: identities, degenerate settings that must equal a plain decoder, and proof
that the controllers act."""

import math

import pytest

import workbench as wb

TOKENS = 48


@pytest.fixture(scope="module")
def prompt(held_out):
    return min(held_out, key=len)


def figures(trace, name: str) -> list:
    return [event["figures"][name] for event in trace.steps() if event["figures"]]


class TestMirostat:
    def test_telescoping_identity(self, toy):
        """mean surprise − tau = (mu_1 − mu_{n+1}) / (eta·n), an algebraic identity where mu is never frozen."""
        decoder = wb.Mirostat(tau=1.2, eta=0.3, freeze=False)
        s = wb.Session(toy, [0, 1], decoder, max_new_tokens=60, seed=4)
        s.run()
        mu = s.state.memory["mu"]
        mean = s.state.memory["total"] / 60
        assert mean - 1.2 == pytest.approx((2 * 1.2 - mu) / (0.3 * 60), abs=1e-12)

    @pytest.mark.parametrize("tau", [0.8, 1.2])
    def test_holds_a_target_below_the_models_entropy(self, tau):
        """Over 1000 tokens the mean surprise is within the bound of 0.05 bits of tau."""
        toy = wb.ToyModel(vocab_size=6, seed=3, sharpness=0.8, context=2048)
        trace = wb.decode(toy, [0, 1], wb.Mirostat(tau=tau), max_new_tokens=1000, seed=1)
        assert figures(trace, "mean_surprise_bits")[-1] == pytest.approx(tau, abs=0.05)

    def test_acts(self, lm, prompt):
        """Some token is cut, and the text is not the uncut sampler's."""
        held = wb.decode(lm, prompt, wb.Mirostat(tau=1.0), max_new_tokens=TOKENS, seed=2)
        free = wb.decode(lm, prompt, max_new_tokens=TOKENS, temperature=1.0, seed=2)
        assert (held.tokens["cut_by"] == "mirostat").any() and held.token_ids != free.token_ids
        assert held.run["claim"] == "own_law"
        assert (held.tokens["keep_size"] < lm.vocab_size).any()

    def test_a_target_out_of_reach_does_not_wind_up(self, toy):
        """tau above the model's entropy: nothing is cut, mu stays where it is with the guard, and runs away without."""
        mu = {}
        for freeze in (True, False):
            s = wb.Session(toy, [0, 1], wb.Mirostat(tau=6.0, freeze=freeze), max_new_tokens=50, seed=2)
            s.run()
            mu[freeze] = s.state.memory["mu"]
        assert mu[True] == 12.0 and mu[False] > 100

    def test_feedback_on_the_renormalised_law_holds_another_quantity(self, lm, prompt):
        texts = [
            wb.decode(lm, prompt, wb.Mirostat(tau=1.5, feedback=kind), max_new_tokens=TOKENS, seed=3).token_ids
            for kind in ("full", "renormalised")
        ]
        assert texts[0] != texts[1]

    @pytest.mark.parametrize("options", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 5}])
    def test_other_cuts_are_refused(self, toy, options):
        with pytest.raises(wb.BadInput, match="mirostat cuts the model's own law"):
            wb.decode(toy, [0, 1], wb.Mirostat(), **options)


class TestEntropyAdaptive:
    @pytest.mark.parametrize("begin", ["small", "large"])
    @pytest.mark.parametrize(("tau", "window", "dwell"), [(0.0, 1, 0), (2.0, 5, 3), (3.0, 3, 0)])
    def test_same_weights_equal_plain_decoding(self, toy, tau, window, dwell, begin):
        """Small = large: plain greedy for every setting; catches any fault of catching up."""
        wb.register_model("toy-twin", wb.ToyModel(vocab_size=4, seed=7, sharpness=1.2))
        decoder = wb.EntropyAdaptive(small="toy-twin", tau=tau, window=window, dwell=dwell, begin=begin)
        trace = wb.decode(toy, [0, 1, 2], decoder, max_new_tokens=40)
        assert trace.token_ids == wb.decode(toy, [0, 1, 2], max_new_tokens=40).token_ids

    def test_extreme_thresholds_are_the_single_models(self, lm, prompt):
        """tau = ∞ from the small model is the small model; tau = −1 from the large one is the large one."""
        small = wb.load("embedded-draft")
        never = wb.decode(lm, prompt, wb.EntropyAdaptive(tau=math.inf), max_new_tokens=TOKENS)
        assert never.token_ids == wb.decode(small, prompt, max_new_tokens=TOKENS).token_ids
        always = wb.decode(lm, prompt, wb.EntropyAdaptive(tau=-1, begin="large"), max_new_tokens=TOKENS)
        assert always.token_ids == wb.decode(lm, prompt, max_new_tokens=TOKENS).token_ids

    def test_switches_by_the_rule(self, lm, prompt):
        """Both models write; switches are at least `dwell` apart; each is a decision with its cost."""
        dwell = 4
        decoder = wb.EntropyAdaptive(tau=2.0, window=3, dwell=dwell)
        trace = wb.decode(lm, prompt, decoder, max_new_tokens=96)
        rounds = [event["round"] for event in trace.steps() if event["figures"] and event["figures"]["switched"]]
        assert len(rounds) >= 2 and all(b - a >= dwell for a, b in zip(rounds, rounds[1:], strict=False))
        assert set(trace.tokens["model"]) == {"target", "draft"}
        decisions = [e for e in trace.log if e["type"] == "decision"]
        assert [d["round"] for d in decisions] == rounds
        assert all(d["cost"]["catch_up_tokens"] >= 0 for d in decisions)

    def test_share_on_the_large_model_falls_with_tau(self, lm, prompt):
        """Watching the small model on one forced text, without dwell: the share is non-increasing in tau."""
        text = wb.decode(lm, prompt, max_new_tokens=TOKENS, temperature=1.0, seed=1).token_ids
        shares = []
        for tau in (0.0, 1.0, 2.0, 4.0, 8.0):
            decoder = wb.EntropyAdaptive(tau=tau, window=3, dwell=0, monitor="small")
            trace = wb.decode(lm, prompt, decoder, force=text)
            assert trace.token_ids == text
            shares.append(figures(trace, "share_on_large")[-1])
        assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]

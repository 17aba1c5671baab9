"""Decoders that guarantee the target's distribution and do not follow it: each is found out, and by the count meant for
it."""

from dataclasses import dataclass, replace

import pytest

import workbench as wb
from tests.decoders.quick_toy import QuickToy
from workbench.experiments.counting import detectable, p_value
from workbench.speculation.tree import POINT, DraftTree
from workbench.speculation.verifiers import Rejection

PROMPT = [[0, 1, 2, 3, 1]]
TOY = QuickToy(vocab_size=12, seed=7, sharpness=1.2)
FINE = 1e-3


def measured(decoder, runs=120, **settings):
    settings = {"temperature": 1.0, **settings}
    return wb.lossless(decoder, TOY, PROMPT, tokens=12, runs=runs, progress=False, **settings)


class Plain(wb.Decoder):
    """Plain decoding with noise of its own, so that seeds differ and runs are counted."""

    declared_name = "plain-distribution"

    def guarantee(self, sampling):
        return "exact" if sampling.greedy else "distribution"

    def dist(self, state, logits):
        return state.settings.sampling.dist(logits, lambda row: state.tokens)

    def place(self, state):
        return len(state.tokens)

    def decode_round(self, state, r):
        dist = self.dist(state, r.advance("target").logits)
        r.append(dist, [0], [dist.choose(0, state.settings.seed + 10**6, self.place(state))], ["target"])


class Truncating(Plain):
    """Draws from the target's four best tokens at most, whatever the settings say."""

    def dist(self, state, logits):
        sampling = state.settings.sampling
        cut = sampling if sampling.greedy else replace(sampling, top_k=min(4, sampling.top_k or 4))
        return cut.dist(logits, lambda row: state.tokens)


class Untruncating(Plain):
    """Knows nothing of top-p."""

    def dist(self, state, logits):
        return replace(state.settings.sampling, top_p=None).dist(logits, lambda row: state.tokens)


class Repeating(Plain):
    """In every other round the noise of the round before: each token alone follows the distribution, neighbours do
    not."""

    def place(self, state):
        return len(state.tokens) - state.rounds % 2


class Stale(Plain):
    """From the third round on the distribution of the round before, kept in its memory."""

    def dist(self, state, logits):
        now = super().dist(state, logits)
        kept = state.memory.get("kept", now)
        state.memory["kept"] = now
        return now if state.settings.sampling.greedy or len(state.new_tokens) < 3 else kept


@dataclass(frozen=True)
class Deep(Rejection):
    """When sampling, drafts of depth four and more stand untested."""

    declared_name = "deep"

    def verify(self, dist, tree, position, seed, choose):
        outcome = super().verify(dist, tree, position, seed, choose)
        if dist.greedy or len(outcome.path) < 3 or len(tree) < 5:
            return outcome
        nodes = list(range(1, len(tree)))
        token = dist.choose(nodes[-1], seed, position + len(nodes))
        return replace(outcome, path=nodes, fates=["accepted"] * len(tree), token=token, source="bonus")


@dataclass(frozen=True)
class Oracle(wb.Drafter):
    """Drafts what the toy likes best, three times, and then what it likes least."""

    declared_name = "oracle"

    def propose(self, state, r, shape, depth, seeded):
        tree = DraftTree([state.pending])
        for node in range(min(depth, 6)):
            dist = TOY.dist([*state.tokens, *tree.tokens[1:]])
            tree.add(node, int(dist.argmax() if node < 3 else dist.argmin()), POINT, None, "oracle")
        return tree


def test_an_honest_decoder_passes_and_the_verdict_says_what_was_covered():
    """n, length and width of both counts, and the total variation that would have shown."""
    found = measured(wb.Speculative(drafter=Oracle(), verifier=Rejection()), runs=240)
    assert found.sampled == "distribution" and found.holds is True
    assert (found.runs, found.length, found.width, found.uncut_length) == (120, 8, 2, 8)
    assert found.tv < found.tv_detectable < 1 and found.uncut_tv < found.uncut_tv_detectable < 1
    for words in (
        "120 runs of 8 tokens over the 2 likeliest",
        "120 runs of 8 tokens uncut",
        "on it shows at any place",
    ):
        assert words in str(found), found


def test_a_decoder_that_always_truncates_is_found_out():
    """Cut to the likeliest tokens it is honest: only whole distributions show it."""
    found = measured(Truncating())
    assert found.holds is False and found.sampled == "lossy" and found.uncut_p_value < 1e-8 < FINE < found.p_value


def test_a_verifier_that_lets_deep_drafts_stand_is_found_out():
    """Runs are longer than the deepest draft, so that its last token is counted too."""
    found = measured(wb.Speculative(drafter=Oracle(), verifier=Deep()), runs=100)
    assert found.greedy == "exact" and found.sampled == "lossy" and found.length == found.uncut_length == 8


@pytest.mark.parametrize("decoder", [Repeating(), Stale()], ids=["noise", "distribution"])
def test_what_is_carried_over_a_round_wrongly_is_found_out(decoder):
    found = measured(decoder)
    assert found.greedy == "exact" and found.sampled == "lossy" and found.uncut_p_value < 1e-8


def test_the_users_own_truncation_holds_in_both_counts():
    """It was replaced by the meter's, and a decoder that overlooked it passed."""
    own = {"top_k": 5, "top_p": 0.7, "temperature": 1.5}
    assert measured(Plain(), **own).sampled == "distribution"
    found = measured(Untruncating(), **own)
    assert found.sampled == "lossy" and found.uncut_p_value == 0


def test_a_difference_in_a_claim_of_equal_seeds_comes_with_its_margin():
    """Greedy and seeded texts: where they part, and how near the best two tokens were."""

    class Other(Plain):
        def guarantee(self, sampling):
            return "exact" if sampling.greedy else "seeded"

    said = measured(Other(), runs=100).sampled_note
    assert said.startswith("prompt 0 parts at token") and "nats apart with the seed's noise (p differs by" in said


def test_the_bound_is_the_difference_that_shows_in_19_of_20_tests():
    """Against the normal case, whose power is known: one degree of freedom, two halves."""
    from statistics import NormalDist

    bound = detectable(1000, 1, 1e-4)
    threshold = -NormalDist().inv_cdf(0.5e-4)
    power = 1 - NormalDist(2 * bound * 1000**0.5).cdf(threshold)
    assert 0.95 <= power < 0.99 and p_value(threshold**2, 1) == pytest.approx(1e-4)
    assert detectable(4000, 1, 1e-4) == pytest.approx(bound / 2) and detectable(1000, 50, 1e-4) > bound


def test_a_guarantee_that_there_is_not_is_refused_before_any_work():
    class Old(Plain):
        def guarantee(self, sampling):
            return "seed"

    with pytest.raises(wb.BadInput, match="answered 'seed'; expected one of exact, seeded, "):
        wb.decode(TOY, [0, 1], Old(), max_new_tokens=1)

"""Mirostat v2: its feedback distribution is an identity, so the mean surprise is held as exactly as promised."""

import math

import pytest

import workbench as wb
from workbench.engine.settings import Settings
from workbench.errors import BadInput
from workbench.rounds import State

N = 300


@pytest.fixture(scope="module")
def model():
    """Thirty-two tokens, on average about three bits of entropy."""
    return wb.ToyModel(vocab_size=32, seed=1, sharpness=2.0, context=4 * N)


def run(model, decoder: wb.Mirostat, seed: int = 0, steps: int = N) -> tuple[State, list[dict]]:
    """The state and every round's figures, unrounded."""
    state = decoder.start(model, [0, 1], Settings(seed=seed, max_new_tokens=steps))
    decoder.step(state)
    figures = []
    while not state.ended:
        step = decoder.step(state)
        figures.append({**step.figures, **{name: column[0] for name, column in step.tokens.items()}})
    return state, figures


@pytest.mark.parametrize("feedback", ["full", "renormalised"])
@pytest.mark.parametrize(("tau", "eta"), [(1.0, 1.0), (2.0, 0.3), (6.0, 0.1)])
def test_the_mean_surprise_telescopes(model, tau, eta, feedback):
    """mean − tau = (mu_1 − mu_{n+1}) / (eta · n), whatever was drawn."""
    decoder = wb.Mirostat(tau=tau, eta=eta, feedback=feedback, freeze=False)
    _, figures = run(model, decoder)
    mean = sum(f["surprise_bits"] for f in figures) / N
    assert mean - tau == pytest.approx((2 * tau - figures[-1]["mu_bits"]) / (eta * N), abs=1e-9)
    assert figures[-1]["mean_surprise_bits"] == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("tau", [2.0, 2.2, 2.4])
def test_below_the_models_entropy_the_target_is_held(model, tau):
    """Above what the best tokens alone cost and below the entropy, the error vanishes like 1/n; else it does not."""
    for seed in range(3):
        _, figures = run(model, wb.Mirostat(tau=tau), seed)
        assert abs(figures[-1]["mean_surprise_bits"] - tau) < 12 / N
    free = wb.decode(model, [0, 1], temperature=1.0, max_new_tokens=N)
    assert free.tokens["surprisal_nats"].mean() / math.log(2) > 2.6
    _, figures = run(model, wb.Mirostat(tau=0.5))
    assert figures[-1]["mean_surprise_bits"] > 1.3  # the best token is always kept, and costs more than this target


def test_it_cuts_what_it_says(model):
    """Every token had a surprise of at most mu, or was the best; the figures and the token's columns agree."""
    decoder = wb.Mirostat(tau=1.5)
    _, figures = run(model, decoder)
    mu, cut = 2 * decoder.tau, 0
    for f in figures:
        assert f["surprise_bits"] <= mu or f["rank"] == 1
        assert f["surprisal_nats"] / math.log(2) == pytest.approx(f["surprise_bits"], abs=1e-6)
        assert (f["cut_by"] == "mirostat") == (not f["saturated"]) == (f["keep_size"] < 32)
        assert f["p_sampled"] == pytest.approx(f["p_raw"] / f["kept_mass"], rel=1e-6)
        cut += f["cut_by"] == "mirostat"
        mu = f["mu_bits"]
    assert cut > N / 2
    trace = wb.decode(model, [0, 1], decoder, max_new_tokens=20)
    assert (trace.events["type"] == "decision").sum() == (trace.tokens["cut_by"] == "mirostat").sum() > 0
    assert trace.run["guarantee"] == "own"


def test_the_two_feedbacks_hold_different_quantities(model):
    full, _ = run(model, wb.Mirostat(tau=1.5))
    renormalised, _ = run(model, wb.Mirostat(tau=1.5, feedback="renormalised"))
    assert full.new_tokens != renormalised.new_tokens


def test_the_guard_against_winding_up(model):
    """Above the model's entropy mu rises until nothing is cut: frozen, it stays there; free, it grows without end."""
    tau = 6.0
    _, frozen = run(model, wb.Mirostat(tau=tau))
    _, free = run(model, wb.Mirostat(tau=tau, freeze=False))
    rarest = -model.table.log_softmax(-1).min().item() / math.log(2)
    assert max(f["mu_bits"] for f in frozen) <= rarest + tau
    assert free[-1]["mu_bits"] > 4 * (rarest + tau)
    assert frozen[-1]["saturated"] and all(f["saturated"] for f in free[-N // 2 :])


def test_it_reads_the_raw_distribution_and_refuses_to_share_it(model):
    for settings in (dict(temperature=0.7), dict(top_k=5), dict(top_p=0.9), dict(min_p=0.1)):
        with pytest.raises(BadInput, match="mirostat cuts the model's own distribution") as caught:
            wb.decode(model, [0, 1], wb.Mirostat(), **settings)
        assert "\n" not in str(caught.value)
    assert wb.decode(model, [0, 1], wb.Mirostat(), max_new_tokens=9, seed=3).token_ids == (
        wb.decode(model, [0, 1], wb.Mirostat(), max_new_tokens=9, seed=3, temperature=1.0).token_ids
    )


def test_a_huge_target_is_plain_sampling(model):
    plain = wb.decode(model, [0, 1], temperature=1.0, max_new_tokens=40, seed=5).token_ids
    assert wb.decode(model, [0, 1], wb.Mirostat(tau=20.0), max_new_tokens=40, seed=5).token_ids == plain
    tight = wb.decode(model, [0, 1], wb.Mirostat(tau=0.01, eta=0.01), max_new_tokens=40, seed=5).token_ids
    assert tight != plain

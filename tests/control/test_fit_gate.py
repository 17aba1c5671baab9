"""Thresholds from traces: the quantile that was asked for, the cut that a label draws, and what is too little."""

import numpy as np
import pytest

import workbench as wb
from workbench.errors import BadInput
from workbench.experiments.fitting import logistic


@pytest.fixture(scope="module")
def forced(lm, held_out):
    """The embedded model's own reading of three held-out texts."""
    texts = [lm.tokenizer.encode(text)[:160] for text in held_out[:3]]
    return [wb.decode(lm, ids[:20], force=ids[20:]) for ids in texts]


def test_a_quantile_is_that_of_all_tokens_and_the_gate_opens_on_the_rest(forced):
    values = np.concatenate([trace.tokens["entropy_raw_nats"] for trace in forced])
    gate = wb.fit_gate(forced, quantile=0.8)
    assert gate == wb.Gate(threshold=float(np.quantile(values, 0.8)), when="at least")
    assert np.mean(values >= gate.threshold) == pytest.approx(0.2, abs=0.01)
    mean = wb.fit_gate(forced[0], quantile=0.5, window=5)
    assert mean.window == 5 and mean.threshold != wb.fit_gate(forced[0], quantile=0.5).threshold
    text = wb.decode("embedded", "def f(x):", wb.AdaDec(threshold=gate.threshold), max_new_tokens=8)
    assert len(text.token_ids) == 8


def test_a_label_is_told_apart_better_than_by_any_constant(forced):
    """Where the reference is not the model's first choice; margins are low there, so that gate opens below."""
    wrong = np.concatenate([trace.tokens["rank"] > 1 for trace in forced])
    for signal, column in (("entropy", "entropy_raw_nats"), ("margin", "margin")):
        gate = wb.fit_gate(forced, signal, label="rank > 1")
        values = np.concatenate([trace.tokens[column] for trace in forced])
        assert gate.when == ("at least" if signal == "entropy" else "below")
        says = values >= gate.threshold if signal == "entropy" else values < gate.threshold
        assert np.mean(says == wrong) > max(np.mean(wrong), 1 - np.mean(wrong)) + 0.05
    assert gate == wb.fit_gate(forced, "margin", label=lambda row: row["rank"] > 1)


def test_the_regression_is_the_maximum_of_the_likelihood():
    from scipy.optimize import minimize

    random = np.random.default_rng(0)
    x = random.normal(3, 2, 400)
    y = random.random(400) < 1 / (1 + np.exp(-(1.5 * x - 4)))

    def loss(w):
        z = w[0] * x + w[1]
        return np.sum(np.logaddexp(0, -np.where(y, z, -z)))

    assert logistic(x, y, ridge=0.0) == pytest.approx(minimize(loss, [0, 0], tol=1e-12).x, abs=1e-4)
    assert logistic(np.ones(40), np.arange(40) < 20)[0] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(logistic(np.arange(40.0), np.arange(40) < 20)).all()  # told apart exactly


def test_too_little_is_refused_in_a_line(forced, toy):
    short, greedy = wb.decode(toy, [0, 1], max_new_tokens=9), wb.decode(toy, [0, 1], max_new_tokens=60)
    for given, why in (
        ((short, "entropy", 0.5), "at least 20 tokens, got 9"),
        (([], "entropy", 0.5), "got 0"),
        ((greedy, "entropy", None, "rank > 1"), "20 tokens of each kind, got 0"),
        ((wb.decode(toy, [0], max_new_tokens=60, level="off"), "entropy", 0.5), "got 0"),
        ((forced, "renyi2", 0.5), "traces hold no raw renyi2"),
        ((forced, "entropy"), "a quantile or a label"),
        ((forced, "entropy", 0.5, "rank > 1"), "a quantile or a label"),
        ((forced, "entropy", None, "rank >"), "condition"),
        ((["run.wb"], "entropy", 0.5), "expected a trace or a list"),
        ((None, "entropy", 0.5), "expected a trace or a list"),
        ((forced, "entropy", None, 3), "condition"),
        ((forced, "entropy", 1.5), "quantile"),
    ):
        with pytest.raises(BadInput, match=why) as caught:
            wb.fit_gate(*given)
        assert "\n" not in str(caught.value)

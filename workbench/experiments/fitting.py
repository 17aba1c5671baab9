"""Thresholds for gates, from traces: a share of the tokens, or what tells a model's mistakes from the rest."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from workbench import conditions
from workbench.control.gate import Gate
from workbench.errors import BadInput, shown
from workbench.trace import Trace

COLUMNS = {  # where a trace holds a signal
    ("entropy", "raw"): "entropy_raw_nats", ("entropy", "sampled"): "entropy_sampled_nats",
    ("varentropy", "raw"): "varentropy_nats2", ("margin", "raw"): "margin", ("surprise", "raw"): "surprisal_nats",
}  # fmt: skip
LEAST = 20  # tokens, of each kind where there are labels


def fit_gate(
    traces: Trace | Sequence[Trace],
    signal: str = "entropy",
    quantile: float | None = None,
    label: str | Callable[[Mapping[str, Any]], bool] | None = None,
    window: int = 1,
    of: str = "raw",
) -> Gate:
    """A gate with the threshold that traces give, in nats or whatever the signal's unit is, as `AdaDec` takes it:

        gate = wb.fit_gate(wb.decode(lm, prompt, max_new_tokens=200), quantile=0.8)
        trace = wb.decode(lm, prompt, wb.AdaDec(threshold=gate.threshold))

    quantile: the threshold is that quantile of the signal over all tokens. label: it tells tokens where this holds from
    the others: a condition such as "rank > 1", or a callable on a row of the tokens table. For mistakes of the model
    the traces are of forced text (`wb.decode(…, force=reference)`). window: of the gate; the signal is averaged so.

    A label is fitted as AdaDec learns its threshold ("AdaDec: A Uncertainty-Guided Adaptive Decoding Framework for
    LLM-based Code Generation", https://arxiv.org/abs/2506.08980; https://github.com/SYSUSELab/AdaDec): a logistic
    regression on four fifths of the tokens, as many of either kind, then the cut of best accuracy on the rest.

    Raises BadInput where traces lack the signal, or hold fewer than 20 tokens (of each kind).
    """
    if (quantile is None) == (label is None):
        raise BadInput("fit_gate: expected a quantile or a label, one of them")
    gate = Gate(signal, threshold=0.0, quantile=quantile, window=window, of=of)  # checks the rest
    if (column := COLUMNS.get((signal, of))) is None:
        known = ", ".join(f"{name} ({kind})" for name, kind in COLUMNS)
        raise BadInput(f"fit_gate: traces hold no {of} {signal}; expected one of {known}")
    holds = label if callable(label) or label is None else conditions.parse(label)
    values, labels = [], []
    for trace in traces if isinstance(traces, list | tuple) else [traces]:
        if not isinstance(trace, Trace):
            raise BadInput(f"fit_gate: expected a trace or a list of them, got {shown(trace)}")
        tokens = trace.tokens.dropna(subset=[column])
        values += tokens[column].rolling(window, min_periods=1).mean().tolist()
        labels += [bool(holds(row)) for row in tokens.to_dict("records")] if holds else []
    fewest = min(sum(labels), len(labels) - sum(labels)) if holds else len(values)
    if fewest < LEAST:
        what = "tokens of each kind" if holds else "tokens"
        raise BadInput(f"fit_gate: expected at least {LEAST} {what}, got {fewest}; give more traces")
    if not holds:
        return Gate(signal, float(np.quantile(values, gate.quantile)), when="at least", window=window, of=of)
    threshold, rises = _best_cut(np.array(values), np.array(labels))
    return Gate(signal, threshold, when="at least" if rises else "below", window=window, of=of)


def _best_cut(x: np.ndarray, y: np.ndarray) -> tuple[float, bool]:
    """The value that tells labels y [n] apart by x [n], and whether they hold above it."""
    random = np.random.default_rng(42)
    order = random.permutation(len(x))
    train, rest = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]
    yes, no = train[y[train]], train[~y[train]]
    count = min(len(yes), len(no))
    train = np.concatenate([random.choice(part, count, replace=False) for part in (yes, no)])
    slope, bias = logistic(x[train], y[train])
    chances = np.arange(1, 100) / 100
    cuts = (np.log(chances / (1 - chances)) - bias) / slope
    right = [np.mean((x[rest] >= cut if slope > 0 else x[rest] < cut) == y[rest]) for cut in cuts]
    return float(cuts[int(np.argmax(right))]), slope > 0


def logistic(x: np.ndarray, y: np.ndarray, ridge: float = 1e-4) -> tuple[float, float]:
    """Slope and bias of the logistic regression of y on x, by Newton's steps; `ridge` bounds them where x tells all."""
    mean, scale = x.mean(), x.std() or 1.0
    rows = np.stack([(x - mean) / scale, np.ones(len(x))], 1)
    weights = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-rows @ weights))
        slope = rows.T @ (y - p) - ridge * weights
        step = np.linalg.solve((rows * (p * (1 - p))[:, None]).T @ rows + ridge * np.eye(2), slope)
        weights += step
        if math.sqrt(step @ step) < 1e-10:
            break
    return weights[0] / scale or 1e-12, weights[1] - weights[0] * mean / scale

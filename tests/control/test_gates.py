"""Signals against the definitions, gates against a plain rule, and three decoders against what they were before."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import workbench as wb
from tests.decoders import before
from workbench import web
from workbench.control.gate import HEARD
from workbench.engine.distribution import Distribution
from workbench.errors import BadInput

PROMPT = [0, 1, 2, 3]


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_signals_are_their_definitions(seed):
    """By hand, in plain Python, with a token that cannot be drawn among the sampled ones."""
    logits = 3 * torch.randn(1, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cut = wb.Sampling(temperature=1.0, top_k=5).dist(logits, lambda row: [])
    for of in ("raw", "sampled"):
        p = [float(x) for x in cut.probs(0)] if of == "sampled" else logits[0].softmax(-1).tolist()
        p = sorted((x for x in p if x), reverse=True)
        mean = -sum(x * math.log(x) for x in p)
        wanted = {
            "entropy": mean,
            "renyi2": -math.log(sum(x * x for x in p)),
            "varentropy": sum(x * (-math.log(x) - mean) ** 2 for x in p),
            "max_p": p[0],
            "margin": p[0] - p[1],
            "logit_gap": math.log(p[0] / p[1]),
        }
        found = {name: wb.signals.read(name, cut, 0, of) for name in wanted}
        assert found == pytest.approx(wanted, abs=1e-12)
        assert set(wb.signals.UNITS) == {*wanted, "energy", "surprise"}
    assert wb.signals.read("surprise", cut, token=4) == pytest.approx(-math.log(logits[0].softmax(-1)[4]))
    moved = wb.Sampling(temperature=1.0).dist(logits + 7, lambda row: [])
    assert wb.signals.read("energy", moved) == pytest.approx(wb.signals.read("energy", cut) - 7)
    assert wb.signals.read("entropy", moved) == pytest.approx(wb.signals.read("entropy", cut))


def test_what_cannot_be_read_is_refused_in_a_line():
    dist = wb.Sampling().dist(torch.zeros(1, 4), lambda row: [])
    for name, of, why in (("entropi", "raw", "expected one of entropy"), ("surprise", "raw", "expected a token"),
                          ("energy", "sampled", "the raw"), ("entropy", "sampled", "temperature 0")):  # fmt: skip
        with pytest.raises(BadInput, match=why):
            wb.signals.read(name, dist, 0, of)
    for given in ({}, {"threshold": 1.0, "signal": "margin", "unit": "bits"}, {"quantile": 1.5}, {"threshold": "x"}):
        with pytest.raises(BadInput) as caught:
            wb.Gate(**given)
        assert "\n" not in str(caught.value)


# -- gates -------------------------------------------------------------------------------------------------------------


def plainly(gate: wb.Gate, values: list[float]) -> list[bool]:
    """When a gate is open, said again over the whole list."""
    means = [np.mean(values[max(0, i + 1 - gate.window) : i + 1]) for i in range(len(values))]
    open, at, found = False, -gate.dwell, []
    for i, mean in enumerate(means):
        limit = gate.threshold
        if gate.quantile is not None:
            limit = np.quantile(means[max(0, i - HEARD) : i], gate.quantile) if i else None
        if limit is not None and i - at >= gate.dwell:
            slack = gate.hysteresis if open else 0.0
            wants = {"above": mean > limit - slack, "at least": mean >= limit - slack, "below": mean < limit + slack}
            if wants[gate.when] != open:
                open, at = not open, i
        found.append(open)
    return found


GATES = [
    wb.Gate(threshold=1.5), wb.Gate(threshold=1.5, when="below", hysteresis=0.5),
    wb.Gate(threshold=2.0, when="at least"),
    wb.Gate(threshold=1.5, window=3, dwell=4), wb.Gate(quantile=0.8), wb.Gate(quantile=0.5, window=2, dwell=2),
    wb.Gate(quantile=0.3, when="below", hysteresis=0.25), wb.Gate(threshold=math.inf, when="below"),
]  # fmt: skip


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_a_gate_opens_and_shuts_as_a_plain_rule_says(gate):
    values = [float(x) / 4 for x in np.random.default_rng(5).integers(0, 13, 600)]
    memory: dict = {}
    found = [gate.hear(value, memory, "g") for value in values]
    wanted = plainly(gate, values)
    assert [one.open for one in found] == wanted
    assert [one.changed for one in found] == [a != b for a, b in pairwise([False, *wanted])]
    if gate.threshold != math.inf:
        assert 1 < sum(one.changed for one in found) < 500
    kept = dict(memory)  # a fork: what it held stays what it was
    gate.hear(1.0, memory, "g")
    assert kept["g"] != memory["g"]


# -- the decoders that use them ----------------------------------------------------------------------------------------

DECODERS = {
    "switching": (wb.EntropyAdaptive, before.Switching, [
        {"threshold": t, "window": w, "dwell": d, "monitor": m, "begin": b}
        for t, w, d, m, b in ((1.2, 3, 2, "active", "small"), (1.5, 5, 10, "small", "large"),
                              (0.0, 1, 0, "active", "large"), (1.4, 1, 3, "small", "small"))]),
    "holding": (wb.Mirostat, before.Holding, [
        {}, {"tau": 1.0, "eta": 0.3}, {"tau": 6.0, "feedback": "renormalised"}, {"tau": 1.5, "freeze": False}]),
    "looking": (wb.AdaDec, before.Looking, [
        {"threshold": 0.9}, {"threshold": 0.0, "candidates": 2}, {"threshold": 1.2, "lookahead": 2}]),
}  # fmt: skip


def facts(trace: wb.Trace) -> list:
    columns = trace.tokens[["token_id", "source", "model", "cut_by"]].astype(str).values.tolist()
    figures = [{**event.get("figures", {})} for event in trace.steps()]
    return [columns, figures, [e["action"] for e in trace.log if e["type"] == "decision"]]


@pytest.mark.parametrize("name", DECODERS)
def test_texts_figures_and_actions_are_those_of_before(name, toy, lm, held_out):
    """On the toy for every row of settings and two seeds, on the embedded pair for one, with a fork in mid-run."""
    now, old, rows = DECODERS[name]
    small = {"small": "toy-draft"} if name == "switching" else {}
    acted, texts = 0, set()
    for row in rows:
        for seed in range(2):
            given = {"max_new_tokens": 40, "seed": seed, "temperature": 0.0 if name == "looking" else 1.0}
            found, wanted = (wb.decode(toy, PROMPT, cls(**row, **small), **given) for cls in (now, old))
            assert facts(found) == facts(wanted), row
            acted += len(facts(found)[2])
            texts.add(tuple(found.token_ids))
    assert acted > 10 and len(texts) > 2
    given = {"max_new_tokens": 24, "seed": 1, "temperature": 0.0 if name == "looking" else 1.0}
    row = {"threshold": 2.0, "window": 3, "dwell": 2} if name == "switching" else {}
    runs = []
    for cls in (now, old):
        session = wb.Session(lm, held_out[1][-300:], cls(**row), **given)
        session.run(rounds=9)
        branch = session.fork()
        session.run()
        branch.run()
        assert branch.trace.token_ids == session.trace.token_ids
        runs.append(facts(session.trace))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("decoder", [
    wb.EntropyAdaptive("toy-draft", window=4, dwell=3, quantile=0.6), wb.AdaDec(quantile=0.7, lookahead=3),
    wb.Mirostat(tau=1.2), wb.Mirostat(tau=1.2, version=1),
], ids=str)  # fmt: skip
def test_a_run_forked_or_done_again_in_mid_window_is_the_straight_run(toy, decoder):
    greedy = decoder.declared_name == "adadec"
    given = {"max_new_tokens": 40, "seed": 4, "temperature": 0.0 if greedy else 1.0}
    straight = wb.decode(toy, PROMPT, decoder, **given)
    assert len([e for e in straight.log if e["type"] == "decision"]) > 2
    session = wb.Session(toy, PROMPT, decoder, **given)
    while session.length < 18:
        session.step()
    branch = session.fork()
    session.run()
    session._snapshots = {}  # done again from the beginning
    again = session.fork(at=17, token=session.trace.token_ids[17])
    for one in (branch, again):
        one.run()
    assert session.trace.token_ids == branch.trace.token_ids == again.trace.token_ids == straight.token_ids
    assert facts(session.trace) == facts(branch.trace) == facts(straight)


@pytest.mark.parametrize(("neutral", "plain"), [
    (wb.AdaDec(threshold=math.inf), {}), (wb.EntropyAdaptive("toy-target", quantile=0.5, dwell=0, window=1), {}),
    (wb.EntropyAdaptive("toy-draft", threshold=-1, dwell=0, window=1, begin="large"), {"temperature": 1.0}),
    (wb.Mirostat(tau=20), {"temperature": 1.0}), (wb.Mirostat(tau=20, version=1), {"temperature": 1.0}),
], ids=str)  # fmt: skip
def test_neutral_settings_are_plain_decoding(toy, neutral, plain):
    given = {"max_new_tokens": 40, "seed": 6, **plain}
    assert wb.decode(toy, PROMPT, neutral, **given).token_ids == wb.decode(toy, PROMPT, **given).token_ids


def test_a_quantile_fires_on_its_share_where_a_number_fires_everywhere(lm, held_out):
    """On the embedded model a paper's threshold acts on most tokens, a quantile on about its share."""
    given = {"max_new_tokens": 60, "force": lm.tokenizer.encode(held_out[2])[:60]}
    shares = {}
    for name, gate in (("number", wb.Gate(threshold=1.0)), ("quantile", wb.Gate(quantile=0.8))):
        entropies = wb.decode(lm, held_out[1][-300:], **given).tokens["entropy_raw_nats"]
        memory: dict = {}
        shares[name] = np.mean([gate.hear(value, memory, "g").open for value in entropies])
    assert shares["number"] > 0.4 > 0.35 > shares["quantile"] > 0.05


@pytest.mark.parametrize(
    ("decoder", "name", "unit"),
    [
        (wb.EntropyAdaptive("toy-draft", threshold=1.5, window=2, dwell=0), "mean entropy", "bits"),
        (wb.Mirostat(tau=1.2), "surprise", "bits"),
        (wb.AdaDec(threshold=0.9), "entropy", "nats"),
    ],
    ids=lambda value: getattr(value, "declared_name", None),
)
def test_every_decision_has_one_shape_and_is_drawn(toy, tmp_path, decoder, name, unit):
    given = {} if decoder.declared_name == "adadec" else {"temperature": 1.0, "seed": 2}
    wb.decode(toy, PROMPT, decoder, max_new_tokens=20, force={3: 1}, out=tmp_path / "run.wb", **given)
    trace = wb.Trace.load(tmp_path / "run.wb")
    decisions = [event for event in trace.log if event["type"] == "decision"]
    acts = [event for event in decisions if event["controller"] != "user"]
    assert len(acts) > 1 and len(decisions) == len(acts) + 1
    for act in acts:
        (signal,) = act["signals"]
        assert (signal["name"], signal["unit"]) == (name, unit) and isinstance(act["threshold"], float)
    drawn = web.payload(trace)["decisions"]
    assert drawn["signals"].count(None) == 1 and f"{name} " in next(filter(None, drawn["signals"]))


# -- Mirostat 1 --------------------------------------------------------------------------------------------------------


def by_the_paper(model, prompt: list[int], tau: float, eta: float, seed: int, n: int) -> tuple[list[int], list[float]]:
    """The first algorithm, straightforwardly: sums over a list of probabilities, then a cut to k + 1 of them."""
    tokens, mu, surprises = list(prompt), 2 * tau, []
    for _ in range(n):
        p = model.dist(tokens).tolist()
        order = sorted(range(len(p)), key=lambda i: -p[i])
        ordered = [p[i] for i in order]
        over = under = 0.0
        for i in range(min(100, len(p) - 1)):
            t, b = math.log((i + 2) / (i + 1)), math.log(ordered[i] / ordered[i + 1])
            over, under = over + t * b, under + t * t
        s = over / under
        eps = s - 1
        k = round(min((eps * 2**mu / (1 - len(p) ** -eps)) ** (1 / s), len(p))) + 1
        kept = torch.full((len(p),), -torch.inf, dtype=torch.float64)
        kept[order[:k]] = torch.tensor(p, dtype=torch.float64)[order[:k]].log()
        whole = len(ordered[:k]) == len(p)
        token = Distribution(kept[None], kept[None].log_softmax(-1), [()]).choose(0, seed, len(tokens))
        surprises.append(-math.log2(p[token]))
        if not (whole and surprises[-1] < tau):
            mu -= eta * (surprises[-1] - tau)
        tokens.append(token)
    return tokens[len(prompt) :], surprises


def test_the_first_algorithm_is_that_of_the_paper_and_holds_its_target():
    model = wb.ToyModel(vocab_size=150, seed=3, sharpness=2.0, context=400)
    for tau, seed in ((1.0, 3), (3.0, 0), (3.5, 1), (4.0, 2)):
        tokens, surprises = by_the_paper(model, [0, 1], tau, 1.0, seed, 120)
        trace = wb.decode(model, [0, 1], wb.Mirostat(tau=tau, version=1), max_new_tokens=120, seed=seed)
        assert trace.token_ids == tokens
        assert abs(np.mean(surprises) - tau) < 0.15 or tau == 1  # less than the likeliest tokens cost
    second = wb.decode(model, [0, 1], wb.Mirostat(tau=2.0), max_new_tokens=120, seed=0)
    assert second.token_ids != wb.decode(model, [0, 1], wb.Mirostat(tau=2.0, version=1), max_new_tokens=120).token_ids


@pytest.mark.parametrize(("s", "size", "bits"), [(1.4, 5000, 4.0), (2.0, 1000, 3.0), (1.0, 300, 5.0), (0.7, 400, 6.0)])
def test_the_size_of_the_cut_on_a_zipf_distribution(s, size, bits):
    """p ∝ 1/i^s has the exponent s exactly; so the formula can be worked out by hand, its limit at s = 1 too."""
    from workbench.decoders.mirostat import zipf_size

    logp = (-s * torch.arange(1, size + 1, dtype=torch.float64).log()).log_softmax(-1)
    shuffled = logp[torch.randperm(size, generator=torch.Generator().manual_seed(1))]
    factor = (s - 1) / (1 - size ** (1 - s)) if s != 1 else 1 / math.log(size)
    assert zipf_size(shuffled, bits) == round((factor * 2**bits) ** (1 / s))
    assert zipf_size(shuffled, 500.0) == size and zipf_size(shuffled, -500.0) == 0
    assert zipf_size(torch.zeros(7).log_softmax(-1), 1.0) == 0 and zipf_size(torch.zeros(7), 3.0) == 7  # uniform

"""The distribution sampled from against transformers' own warpers, and the statistics against their formulas in
float64."""

import math

import pytest
import torch
from transformers import generation as warpers

import workbench as wb
from workbench.engine.distribution import Distribution, draw
from workbench.engine.sampling import Sampling
from workbench.errors import BadInput, NumericalError

PREFIX = [1, 2, 3, 2]


def logits(rows: int = 6, vocab: int = 50, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab, generator=generator, dtype=torch.float64) * 3).to(dtype)


def prefixes(row: int) -> list[int]:
    return PREFIX


def theirs(scores: torch.Tensor, **settings) -> torch.Tensor:
    """transformers' warpers in transformers' order."""
    chain = []
    if settings.get("temperature", 1.0) != 1.0:
        chain.append(warpers.TemperatureLogitsWarper(settings["temperature"]))
    if settings.get("top_k"):
        chain.append(warpers.TopKLogitsWarper(settings["top_k"]))
    if settings.get("top_p"):
        chain.append(warpers.TopPLogitsWarper(settings["top_p"]))
    if settings.get("min_p"):
        chain.append(warpers.MinPLogitsWarper(settings["min_p"]))
    if settings.get("typical_p"):
        chain.append(warpers.TypicalLogitsWarper(settings["typical_p"]))
    for warper in chain:
        scores = warper(torch.tensor([PREFIX] * len(scores)), scores)
    return scores.softmax(-1)


SETTINGS = [
    dict(temperature=1.0),
    dict(temperature=0.3),
    dict(temperature=2.5),
    dict(temperature=1.0, top_k=1),
    dict(temperature=1.0, top_k=7),
    dict(temperature=1.0, top_k=5000),
    dict(temperature=1.0, top_p=0.05),
    dict(temperature=1.0, top_p=0.9),
    dict(temperature=1.0, min_p=0.1),
    dict(temperature=1.0, typical_p=0.2),
    dict(temperature=1.0, typical_p=0.95),
    dict(temperature=0.7, top_k=20, top_p=0.8),
    dict(temperature=1.3, top_k=30, top_p=0.9, min_p=0.05, typical_p=0.9),
    dict(temperature=0.5, top_p=0.95, min_p=0.02),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(f"{k}={v}" for k, v in s.items()))
@pytest.mark.parametrize("seed", range(4))
def test_distributions_equal_those_of_transformers(settings, seed):
    scores = logits(seed=seed)
    dist = Sampling(**settings).dist(scores, prefixes)
    expected = theirs(scores, **settings)
    for row in range(len(scores)):
        assert torch.allclose(dist.probs(row), expected[row], atol=1e-12)
        kept = int((expected[row] > 0).sum())
        assert dist.statistics([0], [row])["keep_size"] == [kept]
        assert bool(dist.cut_by[row]) == (kept < 50)
    assert torch.allclose(dist.raw, scores.log_softmax(-1), atol=1e-12)  # the raw distribution is apart from all this


def test_cut_by_names_what_removed_tokens_in_order():
    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)

    def cut(**settings):
        return Sampling(temperature=1.0, **settings).dist(scores, prefixes).statistics([0])["cut_by"]

    assert cut() == [None]
    assert cut(top_k=5) == [None]
    assert cut(top_k=4) == ["top_k"]
    assert cut(top_k=4, top_p=0.9) == ["top_k+top_p"]
    assert cut(min_p=0.2) == ["min_p"]
    assert cut(top_k=2, min_p=1e-6) == ["top_k"]
    assert cut(processors=[ban(2)], top_k=2) == ["processors+top_k"]


def ban(*tokens: int):
    def processor(ids, scores):
        out = scores.clone()
        out[:, list(tokens)] = -torch.inf
        return out

    return processor


def test_processors_come_first_and_see_the_prefix():
    seen = []

    def halve(ids, scores):
        seen.append(ids.tolist())
        return scores / 2

    dist = Sampling(temperature=2.0, processors=[halve, ban(0)]).dist(logits(2), lambda row: [*PREFIX, row])
    assert seen == [[[*PREFIX, 0]], [[*PREFIX, 1]]]
    expected = (logits(2) / 4).masked_fill(torch.arange(50) == 0, -torch.inf).softmax(-1)
    assert torch.allclose(dist.probs(1), expected[1], atol=1e-12)
    assert torch.allclose(dist.raw, logits(2).log_softmax(-1))


def test_statistics_equal_their_formulas():
    """entropy = −Σ p log p; varentropy = Σ p (log p)² − entropy²; surprisal = −log p; rank; margin = p1 − p2."""
    scores = logits(5)
    dist = Sampling(temperature=0.7, top_k=10).dist(scores, prefixes)
    tokens = [3, 8, 0, int(scores[3].argmax()), 11]
    found = dist.statistics(tokens)
    for row, token in enumerate(tokens):
        logp = scores[row].log_softmax(-1)
        p, ordered = logp.exp(), logp.exp().sort(descending=True).values
        entropy = -(p * logp).sum().item()
        q = dist.probs(row)
        q = q[q > 0]
        expected = {
            "entropy_raw_nats": entropy,
            "varentropy_nats2": (p * (logp + entropy) ** 2).sum().item(),
            "surprisal_nats": -logp[token].item(),
            "p_raw": p[token].item(),
            "rank": int((p > p[token]).sum()) + 1,
            "margin": (ordered[0] - ordered[1]).item(),
            "entropy_sampled_nats": -(q * q.log()).sum().item(),
            "p_sampled": dist.probs(row)[token].item(),
            "keep_size": 10,
        }
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value, abs=1e-10), name
        ids, probs = found["topk_raw"][row]
        assert ids == logp.topk(5).indices.tolist()
        assert probs == pytest.approx(p[ids].tolist())
    assert dist.statistics([tokens[3], tokens[1]], [3, 1])["surprisal_nats"] == pytest.approx(
        [found["surprisal_nats"][3], found["surprisal_nats"][1]]
    )


def test_statistics_of_a_known_distribution_of_two_tokens():
    """p = (3/4, 1/4): H = log 4 − ¾ log 3, varentropy = 3/16 (log 3)²."""
    dist = Sampling(temperature=1.0).dist(torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64), prefixes)
    found = {name: column[0] for name, column in dist.statistics([1]).items()}
    assert found["entropy_raw_nats"] == pytest.approx(math.log(4) - 0.75 * math.log(3), abs=1e-14)
    assert found["varentropy_nats2"] == pytest.approx(3 / 16 * math.log(3) ** 2, abs=1e-14)
    assert found["surprisal_nats"] == pytest.approx(math.log(4), abs=1e-14)
    assert (found["rank"], found["keep_size"], found["cut_by"]) == (2, 2, None)
    assert found["margin"] == pytest.approx(0.5)
    assert found["p_raw"] == found["p_sampled"] == pytest.approx(0.25)


def test_removed_tokens_do_no_harm_to_the_figures():
    """A distribution with one token left, at a very low temperature, in fp32: all figures finite, entropy exactly
    zero."""
    dist = Sampling(temperature=0.01, top_k=1, processors=[ban(*range(40))]).dist(logits(dtype=torch.float32), prefixes)
    for name, column in dist.statistics([45] * 6).items():
        for value in column:
            if isinstance(value, float):
                assert math.isfinite(value) or name == "p_sampled", name
    assert dist.statistics([45])["entropy_sampled_nats"] == [0.0]
    assert all(dist.choose(row, 0, row) >= 40 for row in range(6))


def test_extreme_logits_stay_finite():
    scores = torch.tensor([[3e38, -3e38, 0.0]])
    found = Sampling(temperature=1.0).dist(scores, prefixes).statistics([1])
    assert found["entropy_raw_nats"] == [0.0] and found["rank"][0] > 1
    assert math.isfinite(found["varentropy_nats2"][0])


def test_greedy_takes_the_lowest_id_of_a_tie():
    scores = torch.zeros(2, 300, dtype=torch.bfloat16)
    scores[0, [7, 123, 280]] = 1.0
    dist = Sampling().dist(scores, prefixes)
    assert [dist.choose(row, 5, 9) for row in (0, 1)] == [7, 0]
    found = dist.statistics([7, 0])
    assert (
        found["p_sampled"] == [1.0, 1.0] and found["keep_size"] == [1, 1] and found["entropy_sampled_nats"] == [0.0] * 2
    )
    assert found["cut_by"] == ["greedy", "greedy"]
    assert found["p_raw"][1] == pytest.approx(1 / 300)


def test_keyed_draws_follow_the_distribution_and_the_key():
    """Gumbel-max over 4000 positions: chi-square on the distribution sampled from; cut tokens never come."""
    from scipy import stats

    dist = Sampling(temperature=1.0, top_k=5).dist(logits(1), prefixes)
    counts = torch.zeros(50)
    for position in range(4000):
        counts[dist.choose(0, 3, position)] += 1
    p = dist.probs(0)
    assert counts[p == 0].sum() == 0
    assert stats.chisquare(counts[p > 0].numpy(), (p[p > 0] * 4000).numpy()).pvalue > 1e-4
    assert dist.choose(0, 3, 17) == dist.choose(0, 3, 17)
    assert len({dist.choose(0, seed, 17) for seed in range(50)}) > 1


def test_drawing_several_is_without_replacement_and_starts_with_the_single_draw():
    row = Sampling(temperature=1.0, top_k=4).dist(logits(1), prefixes).scores[0]
    for position in range(50):
        several = draw(row, 0, "draft", position, 3)
        assert several[0] == draw(row, 0, "draft", position)
        assert len(set(several)) == 3
    assert len(draw(row, 0, "draft", 0, 9)) == 4  # no more than the support


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_logits_are_named(bad):
    scores = logits()
    scores[2, 7] = bad
    with pytest.raises(NumericalError, match="NaN or infinite logits"):
        Sampling().dist(scores, prefixes)


def test_a_processor_that_rules_everything_out_is_named():
    with pytest.raises(NumericalError, match="ruled out every token"):
        Sampling(processors=[ban(*range(50))]).dist(logits(1), prefixes)


class Broken(wb.ToyModel):
    """Gives bad logits once its context has grown to a length."""

    def __init__(self, at: int, value: float):
        super().__init__()
        self.at, self.value = at, value

    def forward(self, tokens, positions, *rest, **options):
        out = super().forward(tokens, positions, *rest, **options)
        if max(positions) >= self.at:
            out.logits = out.logits.clone()
            out.logits[-1, 1] = self.value
        return out


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("speculative", [False, True], ids=["plain", "speculative"])
def test_bad_logits_end_the_run_with_the_trace_kept(value, speculative, tmp_path):
    decoder = wb.Speculative(drafter=wb.CopySpec(ngram=1)) if speculative else None
    out = tmp_path / "run.wb"
    with pytest.raises(NumericalError) as caught:
        wb.decode(Broken(9, value), [0, 1, 2], decoder, temperature=1.0, out=out, max_new_tokens=20)
    assert "\n" not in str(caught.value)
    for trace in (caught.value.trace, wb.Trace.load(out)):
        assert 1 <= len(trace.token_ids) <= 7
        assert trace.end["reason"] == "error" and "NaN or infinite" in trace.end["message"]


def test_any_error_of_a_processor_keeps_the_trace():
    def fails(ids, scores):
        if ids.shape[1] > 5:
            raise KeyError("my own bug")
        return scores

    with pytest.raises(KeyError) as caught:
        wb.decode(wb.ToyModel(), [0, 1, 2], processors=[fails], max_new_tokens=20)
    assert len(caught.value.trace.token_ids) == 3
    assert caught.value.trace.end["reason"] == "error"


@pytest.mark.parametrize(
    "settings",
    [dict(temperature=-1), dict(temperature="hot"), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5), dict(min_p=2),
     dict(typical_p=0), dict(processors=[3]), dict(temperature=math.nan)],
    ids=str,
)  # fmt: skip
def test_settings_out_of_bounds_are_refused_in_one_line(settings):
    with pytest.raises(BadInput, match=next(iter(settings))) as caught:
        Sampling(**settings)
    assert "\n" not in str(caught.value)


def test_raw_and_sampled_distributions_are_one_where_nothing_is_changed():
    dist = Sampling(temperature=1.0).dist(logits(), prefixes)
    assert isinstance(dist, Distribution) and dist.scores is dist.raw and not dist.greedy

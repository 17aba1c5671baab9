"""Settings of a run: what is taken, what is refused in one line, and what odd values mean."""

import itertools
import math

import numpy as np
import pytest
import torch
from transformers import TopKLogitsWarper

import workbench as wb
from workbench.engine.sampling import Sampling
from workbench.engine.settings import Settings
from workbench.errors import BadInput, NumericalError, WorkbenchError
from workbench_kernels.noise import reference as noise

HUGE = 10**5000  # longer than Python prints


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("stop", value) for value in (5, 0, False, b"ab", {"a": 1}, ["a", ""], "", [b"a"], [[]], str, HUGE)],
        *[("force", value) for value in ([1.7], 5, "12", b"12", {"x": 3}, {-5: 3}, {10**9: 3}, {1.5: 3}, {0: "a"},
                                         {0: -1}, [True], [HUGE], {HUGE: 1}, [4], np.eye(2), {True: 1}, range(10**12))],
        *[("processors", value) for value in (5, "ab", [3], {"a": 1}, TopKLogitsWarper, [None], np.zeros(2), {len})],
        *[("seed", value) for value in (-1, 2**63, 1.0, "1", True, None, HUGE, np.float64(1), np.array([1]))],
        *[("sample", value) for value in (-1, 2**63, 1.5, "1", True, None)],
        *[("max_new_tokens", value) for value in (0, -1, 1.0, "9", True, None, np.array([3]))],
        *[("level", value) for value in (None, 1, "none", ["off"], np.array(["off", "off"]))],
        *[("prompt_rows", value) for value in (1, "yes", None)],
        *[("ignore_eos", value) for value in (1, "yes", None, np.zeros(2))],
        *[("eos_ids", value) for value in (5, "12", [1.5], [-1], None, range(10**12))],
        *[("cache", value) for value in (5, "none", b"h2o", ["h2o", "h2o"], [], {}, wb.H2O, np.zeros((2, 2)))],
        *[("sampling", value) for value in (5, None, {"temperature": 1})],
        *[("temperature", value) for value in (-1, math.nan, math.inf, "1", True, None, HUGE, 1j, [1], np.ones(2))],
        *[("top_k", value) for value in (0, -1, 2.5, "3", True, math.inf, [3])],
        ("tempreature", 1),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_in_one_line(toy, name, value):
    """Named, before any work, and never with another library's exception."""
    with pytest.raises(BadInput, match=name) as caught:
        wb.Session(toy, [0, 1, 2], **{name: value})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_what_is_harmless_is_taken(toy):
    """Scalars and arrays of numpy and torch, one callable for a list of them, a set of texts in a fixed order."""
    asked = dict(seed=np.int64(3), max_new_tokens=torch.tensor(4), temperature=np.float32(0.5), top_k=2.0)
    plain = wb.decode(toy, [0, 1], seed=3, max_new_tokens=4, temperature=0.5, top_k=2)
    trace = wb.decode(toy, [0, 1], processors=lambda ids, scores: scores, stop=lambda new: np.False_, **asked)
    assert trace.token_ids == plain.token_ids and trace.run["seed"] == 3
    assert wb.decode(toy, [0, 1], force=np.array([1, 2])).token_ids == [1, 2]
    assert wb.decode(toy, [0, 1], force={np.int64(1): torch.tensor(3)}, max_new_tokens=2).token_ids[1] == 3
    assert Settings(stop={"b", "a", "c"}).stop == ("a", "b", "c")
    assert wb.decode(toy, [0, 1], sampling=Sampling(top_k=2, temperature=1), seed=3, temperature=0.5, max_new_tokens=4)


def test_a_fork_may_end_before_tokens_that_its_root_forces(toy):
    """What was asked for elsewhere is no error here."""
    root = wb.Session(toy, [0, 1], force={9: 1}, max_new_tokens=12)
    root.run(rounds=5)
    assert root.fork(at=2, max_new_tokens=4).settings.force[9] == 1


@pytest.mark.parametrize(
    ("temperature", "speculative"),
    [(5e-324, True), (1e-300, False), (1e-31, False), (1e-29, True), (1e-29, False), (1e-5, False)],
)
def test_the_coldest_temperatures_are_greedy(toy, temperature, speculative):
    """The limit of the distribution: the largest logit. Below 1e-30 the run is greedy, and says so."""
    decoder = wb.Speculative(drafter=wb.CopySpec(ngram=1)) if speculative else None
    trace = wb.decode(toy, [0, 1, 2], decoder, temperature=temperature, max_new_tokens=8)
    assert trace.token_ids == wb.decode(toy, [0, 1, 2], max_new_tokens=8).token_ids
    assert (trace.run["sampling"]["temperature"] == 0) == (temperature < 1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_that_overflow_over_the_temperature_keep_their_order(dtype):
    scores = torch.tensor([[3e38, -3e38, 2e38, 0.0], [-3e38, -2e38, -3e38, -3e38]], dtype=dtype)
    dist = Sampling(temperature=0.01, top_k=3, top_p=0.9).dist(scores, lambda row: [0])
    assert [dist.choose(row, 0, 3) for row in (0, 1)] == [0, 1]
    assert dist.probs(0).tolist() == [1, 0, 0, 0] and dist.statistics([0, 1])["p_sampled"] == [1, 1]


RETURNS = {
    "None": None,
    "shape": torch.zeros(4),
    "rows": torch.zeros(2, 4),
    "int": torch.zeros(1, 4, dtype=torch.int64),
    "list": [0.0] * 4,
}


@pytest.mark.parametrize("what", RETURNS)
def test_a_processor_that_returns_no_scores_is_named(toy, what):
    def careless(ids, scores):
        return RETURNS[what] if ids.shape[1] > 4 else scores

    with pytest.raises(BadInput, match="careless returned") as caught:
        wb.decode(toy, [0, 1, 2], processors=[careless], max_new_tokens=9)
    assert "\n" not in str(caught.value) and len(caught.value.trace.token_ids) == 2


@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_the_processor_that_spoils_the_scores_is_named(toy, value):
    def fine(ids, scores):
        return scores * 1

    def spoils(ids, scores):
        return scores * 0 + value

    with pytest.raises(NumericalError, match="spoils"):
        wb.decode(toy, [0, 1], processors=[fine, spoils, fine], temperature=1)


def test_scores_ruled_out_and_given_back_later_are_fine(toy):
    """As in stock: one processor rules out every token, a later one forces one."""
    chain = [lambda ids, scores: scores - math.inf, lambda ids, scores: scores.index_fill(1, torch.tensor([2]), 0.0)]
    assert wb.decode(toy, [0, 1], processors=chain, temperature=1, max_new_tokens=3).token_ids == [2, 2, 2]


def test_processors_may_work_in_place(toy):
    """They are given scores of their own: the raw columns are those without them."""

    def bans(ids, scores):
        scores[:, 1] = -math.inf
        return scores

    plain = wb.decode(toy, [0, 1], force=[0, 2, 3]).tokens
    found = wb.decode(toy, [0, 1], force=[0, 2, 3], processors=[bans], temperature=1, level="full")
    assert found.tokens["entropy_raw_nats"].tolist() == plain["entropy_raw_nats"].tolist()
    assert {1} <= set(itertools.chain(*(ids for ids, _ in found.tokens["topk_raw"])))


def test_a_stop_callable_that_says_neither_is_named(toy):
    def vague(new):
        return np.zeros(2)

    with pytest.raises(BadInput, match="stop: vague returned"):
        wb.decode(toy, [0, 1], stop=vague)


def test_a_sample_has_draws_of_its_own():
    """Sample 0 is the seed's run; others meet neither it, nor each other, nor the key of a purpose."""
    seeds = [noise.seed_of_sample(7, sample) for sample in range(50)]
    assert seeds[0] == 7 and len(set(seeds)) == 50
    draws = {noise.uniform(seed, purpose, 3) for seed in seeds for purpose in ("target", "draft", "accept", "residual")}
    assert len(draws) == 200
    assert Settings(seed=7, sample=4).noise_seed == seeds[4]


def test_messages_are_one_line_whatever_is_put_into_them():
    assert str(WorkbenchError("a\nb\r\nc\u2028d")) == "a b c d"

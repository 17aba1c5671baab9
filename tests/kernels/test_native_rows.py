"""Rows of logits by compiled code against torch: figures, the most probable token, the seeded draw."""

import shutil

import pytest
import torch

from workbench.engine.distribution import draw, figures
from workbench.engine.sampling import Sampling
from workbench.errors import NumericalError
from workbench_kernels.distribution import native
from workbench_kernels.native import COMPILERS
from workbench_kernels.noise import reference as noise

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler")
SIZES = (1, 3, 15, 16, 17, 100, 4096, 20_000)
# of logits: their spread; every second token ruled out, or as good as; many alike
KINDS = {"plain": 3.0, "wide": 40.0, "cut": 3.0, "never": 3.0, "alike": 2.0, "flat": 0.0}


def rows(size: int, kind: str, count: int = 3) -> torch.Tensor:
    x = torch.randn(count, size, generator=torch.Generator().manual_seed(size)) * KINDS[kind]
    if kind == "cut":
        x[:, 1::2] = -torch.inf
    if kind == "never":
        x[:, 1::2] = -1e30
    return x.round() if kind == "alike" else x


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_figures_are_those_of_torch(size, kind):
    """Against float64; sums are of 64 float32 parts, so to five digits."""
    x, top = rows(size, kind), min(5, size)
    code, ids = native.code_for(x), [0, (size - 1) // 2 * 2, size // 3 // 2 * 2]
    best, sane = native.best(code, x)
    assert best == [int((row == row.max()).int().argmax()) for row in x] and sane == bool(x.isfinite().all())
    found = torch.tensor(native.figures(code, x, ids, top), dtype=torch.float64)
    want = figures(x.double().log_softmax(-1), None, torch.tensor(ids)[:, None])
    torch.testing.assert_close(found[:, :4], want[:, :4], rtol=1e-5, atol=1e-5)
    values, places = found[:, 4 : 4 + top], found[:, 4 + top : -1].long()
    torch.testing.assert_close(values, want[:, 4 : 4 + top], rtol=1e-5, atol=1e-5)
    order = x.sort(descending=True, stable=True).indices[:, :top]  # the lowest id first among equals
    alive = values > -torch.inf
    assert torch.equal(places[alive], order[alive])
    assert found[:, -1].tolist() == (x > -torch.inf).sum(-1).tolist()


@needs_compiler
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_draws_are_those_of_all_noise_looked_at(size, kind):
    """The screen drops no token that wins."""
    scores = rows(size, kind, 1)[0].log_softmax(-1)
    alive = (scores > -torch.inf).nonzero()[:, 0]
    for position in range(40):
        for where in ({}, {"branch": 2}, {"hypothesis": 9}):
            sums = scores[alive].double() + noise.gumbel(5, "target", position, alive, **where)
            assert draw(scores, 5, "target", position, **where) == int(alive[sums.argmax()])


@needs_compiler
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 15, 16, 98])
def test_bad_numbers_are_seen_wherever_they_are(bad, at):
    x = rows(99, "plain", 2)
    x[1, at] = bad
    assert native.best(native.code_for(x), x)[1] is False
    with pytest.raises(NumericalError, match="NaN or infinite"):
        Sampling().dist(x, lambda row: [])


@needs_compiler
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_k": 9, "min_p": 0.01}], ids=str
)
def test_the_trace_says_the_same_either_way(settings, monkeypatch):
    """All columns, of all rows and of some; nobody else's rows are changed."""
    x, tokens = rows(300, "plain", 4), [5, 4, 7]
    columns = []
    for wish in ("auto", "torch"):
        monkeypatch.setenv("WORKBENCH_KERNELS", wish)
        assert (native.code_for(x) is None) == (wish == "torch")
        dist = Sampling(**settings).dist(x, lambda row: [])
        tokens = [dist.choose(row, 3, row) for row in range(4)]
        columns.append([tokens, dist.statistics(tokens), dist.statistics(tokens[1:3], [1, 2])])
    (ids, whole, some), (ids_, whole_, some_) = columns
    assert ids == ids_
    for found, want in ((whole, whole_), (some, some_)):
        assert list(found) == list(want)
        for name in want:
            for a, b in zip(flat(found[name]), flat(want[name]), strict=True):
                assert a == (pytest.approx(b, rel=1e-4, abs=1e-5) if isinstance(b, float) else b), name
    assert some["rank"] == whole["rank"][1:3]


def flat(value) -> list:
    return [x for part in value for x in flat(part)] if isinstance(value, list) else [value]


def test_what_compiled_code_does_not_take_is_left_to_torch():
    x = rows(16, "plain")
    assert {native.code_for(other) for other in (x.double(), x.T, x.bfloat16())} == {None}
    found, want = (Sampling().dist(part, lambda row: []).statistics([1, 2, 3]) for part in (x.double(), x))
    assert found["rank"] == want["rank"]


@needs_compiler
def test_ranks_do_not_depend_on_who_asked_before():
    """Two logits that log-softmax makes one: the same rank before and after somebody has looked at `raw`."""
    x = rows(40, "plain", 1)
    x[0, 1] = torch.nextafter(x[0, 0], torch.tensor(torch.inf))
    dist = Sampling().dist(x, lambda row: [])
    before = dist.statistics([0])["rank"]
    assert dist.raw.shape == x.shape and dist.statistics([0])["rank"] == before


@needs_compiler
def test_what_no_row_has_is_refused_before_memory_is_read():
    x = rows(50, "plain")
    dist = Sampling(temperature=1.0).dist(x, lambda row: [])
    for ids in ([60, 1, 2], [-1, 1, 2], [50, 1, 2]):
        with pytest.raises(IndexError, match="expected 3 in"):
            dist.statistics(ids)
    with pytest.raises(IndexError):
        native.figures(native.code_for(x), x, [1, 2], 5)
    for scores in (torch.full((20,), -torch.inf), torch.tensor([0.0, torch.nan, 1.0])):
        with pytest.raises(IndexError, match="expected no NaN"):
            draw(scores, 0, "target", 3)
    assert native.code_for(x[:0]) is None is native.code_for(x[:, :0])

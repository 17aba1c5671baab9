"""Statistics of attention without its matrix, over packed pages and dense keys, against the definition in float64."""

import pytest
import torch

from tests.kernels.attention_cases import EXACT, broken, expected, modules, paged, with_options
from tests.kernels.checks import Guarded, assert_close
from tests.kernels.interpreter import needs_interpreter
from workbench_kernels import segment_attention


def mass_of(scores: torch.Tensor, lse: torch.Tensor, heads: int):
    """From the definition: p = exp(score - lse), [R, H, n], the heads of a group added; and Σ -p log p."""
    p = (scores - lse[..., None]).exp().nan_to_num(0)
    return p.unflatten(1, (heads, -1)).sum(2), -torch.xlogy(p, p).sum(-1)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_mass_and_entropy_from_the_definition(rows, device):
    """Group of 3 (padded to 4), several row blocks at 40 rows, ragged heads; other segments in lse."""
    pages = paged(rows=rows, group=3, size=32, counts=(2, 1))
    _, lse, scores = expected(pages)
    lse = lse + 0.3
    for where, how in ((pages, "torch"), (pages.to(device), "triton")):
        given = lse.float().to(where.q.device)
        got = where.call(segment_attention.page_mass, given, implementation=how)
        want = mass_of(scores, lse, 2)
        assert got.mass.shape == (*want[0].shape[:-1], 2, 32)
        assert_close("mass", got.mass.flatten(-2), want[0], EXACT)
        assert_close("entropy", got.entropy, want[1], EXACT)


def test_mass_with_options(device):
    """A bias and a window weigh in the mass as in the output."""
    pages = paged(rows=3, group=2, size=80, counts=(3, 2))
    pages_options, meaning = with_options(pages)
    pages.options |= pages_options
    _, lse, scores = expected(pages, **meaning)
    for where, how in ((pages, "torch"), (pages.to(device), "triton")):
        got = where.call(segment_attention.page_mass, lse.float().to(where.q.device), implementation=how)
        want = mass_of(scores, lse, 2)
        assert_close("mass", got.mass.flatten(-2), want[0], EXACT)
        assert_close("entropy", got.entropy, want[1], EXACT)


def test_the_masses_of_all_segments_are_the_whole(device):
    """Pages and staged rows: the masses sum to 1 a row and head, the entropy shares to the entropy of the whole."""
    pages = paged(rows=4, group=2, size=32, counts=(3, 2)).to(device)
    draw = torch.Generator().manual_seed(1)
    k, v = (torch.randn(2, 4, 32, generator=draw).to(device) for _ in range(2))
    run = {"implementation": "triton"}
    pairs = [
        pages.call(segment_attention.attend_pages, **run),
        segment_attention.attend_staged(pages.q, k, v, pages.scale, "causal", **run),
    ]
    _, lse = segment_attention.merge(*zip(*pairs, strict=True), **run)
    parts = [
        pages.call(segment_attention.page_mass, lse, **run),
        segment_attention.segment_mass(pages.q, k, pages.scale, lse, mask="causal", **run),
    ]
    total = sum(part.mass.flatten(2).sum(-1) for part in parts)
    assert_close("mass", total, torch.full((4, 2), 2.0), EXACT)
    scores = [expected(pages.to("cpu"))[2]]
    staged = pages.q.cpu().double().unflatten(1, (2, 2)) @ k.cpu().double().mT * pages.scale
    staged = staged.flatten(1, 2).masked_fill(~torch.ones(4, 4, dtype=torch.bool).tril()[:, None], -torch.inf)
    scores.append(staged)
    p = torch.cat(scores, -1).softmax(-1)
    assert_close("entropy", sum(part.entropy for part in parts), -torch.xlogy(p, p).sum(-1), EXACT)
    assert_close("pages", parts[0].mass.flatten(2), p[..., :96].unflatten(1, (2, 2)).sum(2), EXACT)


def test_mass_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="expected log-sum-exps"):
        paged().call(segment_attention.page_mass, torch.zeros(3, 2))


def dense_case(rows: int):
    """q, k, a mask, and the scores [R, H, n] by mask: two KV heads of three query heads, 70 keys of 48 channels."""
    draw = torch.Generator().manual_seed(rows)
    q, k = torch.randn(rows, 6, 48, generator=draw), torch.randn(2, 70, 48, generator=draw)
    mask = torch.rand(rows, 70, generator=draw) < 0.6
    mask[-1] = False
    scores = (q.double().unflatten(1, (2, 3)) @ k.double().mT).flatten(1, 2) * 0.2
    causal = torch.ones(rows, 70, dtype=torch.bool).tril(70 - rows)
    hidden = {"none": ~torch.ones_like(mask), "causal": ~causal, "tree": ~mask}
    return q, k, mask, {name: scores.masked_fill(where[:, None], -torch.inf) for name, where in hidden.items()}


@pytest.mark.parametrize("rows", [3, 40])
def test_mass_of_dense_keys_from_the_definition(rows, device):
    """Every mask; a row that sees nothing gives nothing."""
    q, k, mask, scores = dense_case(rows)
    for name, given in (("none", None), ("causal", "causal"), ("tree", mask)):
        lse = scores[name].logsumexp(-1)
        want = mass_of(scores[name], lse, 2)
        for where, how in (("cpu", "torch"), (device, "triton")):
            given = given.to(where) if isinstance(given, torch.Tensor) else given
            got = segment_attention.segment_mass(
                *(q.to(where), k.to(where), 0.2, lse.float().to(where)),
                **{"mask": given, "implementation": how},
            )
            assert_close("mass", got.mass, want[0], EXACT)
            assert_close("entropy", got.entropy, want[1], EXACT)


def test_mass_over_no_keys(device):
    q, k = torch.randn(2, 4, 32, device=device), torch.zeros(2, 0, 32, device=device)
    got = segment_attention.segment_mass(q, k, 1.0, torch.zeros(2, 4, device=device), implementation="triton")
    assert got.mass.shape == (2, 2, 0) and (got.entropy == 0).all() and got.entropy.shape == (2, 4)


def guarded_mass(kernels, device: str) -> None:
    """Both kernels between guard zones, entropies filled with NaN: 3 heads of 4, 48 channels of 64, 70 keys of 96."""
    q, k, mask, scores = dense_case(3)
    plan = kernels.tiles.plan(q, 2, 48, 48)
    results, queries = kernels.scores.Results, kernels.scores.Queries
    ins = merged, wide, keys = [Guarded(t.to(device)) for t in (scores["tree"].logsumexp(-1).float(), q, k)]
    mass = Guarded(torch.full((3, 2, 70), torch.nan, device=device))
    entropy = Guarded(torch.full((3, 3, 6), torch.nan, device=device))
    words = segment_attention.mask_words(mask.to(device))
    kernels.dense.dense_attention_kernel[(plan.blocks, 3, 2)](
        results(mass.inside, entropy.inside, merged.inside),
        queries(wide.inside, 6 * 48, 48, 3),
        kernels.dense.Keys(keys.inside, None, 70 * 48, 48, 0, 0, None, words, 70),
        0.2,
        **{"MASK": "words", "MASS": True, "KEYS": 32, "TILE": plan.tile},
    )
    want = mass_of(scores["tree"], scores["tree"].logsumexp(-1), 2)
    assert_close("mass", mass.inside, want[0], EXACT)
    assert_close("entropy", entropy.inside.sum(0), want[1], EXACT)

    pages = paged(rows=3, group=3, size=48, counts=(3, 3)).to(device)
    _, lse, scores = expected(pages.to("cpu"))
    page_ins = merged, wide = [Guarded(t.to(device)) for t in (lse.float(), pages.q)]
    page_mass = Guarded(torch.full((3, 2, 3 * 32), torch.nan, device=device))
    page_entropy = Guarded(torch.full((2, 3, 6), torch.nan, device=device))
    kernels.paged.paged_attention_kernel[(plan.blocks, 2, 2)](
        results(page_mass.inside, page_entropy.inside, merged.inside),
        queries(wide.inside, 6 * 48, 48, 3),
        kernels.paged.Pages(pages.arena, pages.table, pages.count, None, None, None, 3, 0),
        pages.scale,
        **{"MASS": True, "KIND": kernels.paged.Kind.of(32, 3, "fp32"), "TILE": plan.tile},
    )
    want = mass_of(scores, lse, 2)
    assert_close("page mass", page_mass.inside, want[0], EXACT)
    assert_close("page entropy", page_entropy.inside.sum(0), want[1], EXACT)
    for guarded in (mass, entropy, page_mass, page_entropy, *ins, *page_ins):
        guarded.assert_untouched()


def test_the_kernels_stay_within_their_tensors(device):
    """NaN around every tensor: a stray load would poison, a stray store would show."""
    guarded_mass(modules(), device)


MUTANTS = {
    "row": ("scores.py", "* ROWS + tl.arange(0, ROWS)", "* ROWS + 1 + tl.arange(0, ROWS)"),
    "member": ("scores.py", "(member < tile.group)", "(member <= tile.group)"),
    "key": ("dense.py", "held = keys < live", "held = keys <= live"),
    "page": ("paged.py", "place = index * KIND.slots", "place = (index - 1) * KIND.slots"),
    "lse": ("scores.py", "tl.load(results.merged + place,", "tl.load(results.merged + place + 1,"),
}


@needs_interpreter
@pytest.mark.parametrize("name", MUTANTS)
def test_the_checks_catch_an_off_by_one(name, tmp_path, monkeypatch):
    """The kernels with one number wrong, compiled from a copy of their source, fail the very check above."""
    kernels = broken(tmp_path, monkeypatch, *MUTANTS[name])
    with pytest.raises(AssertionError):
        guarded_mass(kernels, "cpu")

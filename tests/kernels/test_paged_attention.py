"""Attention over packed pages against a float64 softmax over their slots, one at a time."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.aot import MOST_SHARED, compile_all
from tests.kernels.attention_cases import (
    EXACT,
    WIDTHS,
    Paged,
    broken,
    compare,
    expected,
    modules,
    paged,
    tolerance,
    with_options,
)
from tests.kernels.checks import Guarded, assert_close
from tests.kernels.interpreter import needs_interpreter
from workbench_kernels import segment_attention
from workbench_kernels.pages.layout import RAW, PageFormat

AXES = {
    "rows": (1, 3, 8),
    "group": (1, 2, 4, 8),
    "size": (32, 64, 80, 128, 256),
    "dtype": (torch.float32, torch.float16, torch.bfloat16),
    "raw": (torch.float32, torch.float16, torch.bfloat16),
    "page": (32, 64),
}


def pairwise() -> list[tuple]:
    """Cases in which every pair of settings of two axes meets."""
    every = list(itertools.product(*AXES.values()))

    def pairs(case):
        return set(itertools.combinations(enumerate(case), 2))

    missing = set().union(*map(pairs, every))
    cases = []
    while missing:
        cases.append(max(every, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(cases[-1])
    return cases


@pytest.mark.parametrize("case", pairwise(), ids=lambda c: "-".join(str(x).removeprefix("torch.") for x in c))
def test_equals_a_softmax_over_the_slots(case, device):
    """Rows, groups, head sizes, query and raw dtypes in every pairing; widths mixed in one call, ragged heads."""
    if case[5] == 64 and case[2] > (64 if case[3] == torch.float32 else 128):  # what the kernel refuses
        case = (*case[:5], 32)
    pages = paged(*case, counts=(3, 1))
    want = expected(pages)
    got = pages.call(segment_attention.attend_pages, implementation="torch")
    assert got[0].dtype == got[1].dtype == torch.float32
    compare(got, want, EXACT)
    there = pages.to(device)
    compare(there.call(segment_attention.attend_pages, implementation="triton"), want, tolerance(pages, device))


def test_every_pair_of_widths(device):
    """25 kinds of page in one table, head size and value size apart."""
    pages = paged(rows=1, group=4, size=64, value_size=32, raw=torch.bfloat16, counts=(len(WIDTHS), 3))
    kinds = {tuple(pages.arena[16 * u :][[8, 10]].tolist()) for u in pages.table[0].tolist()}
    assert len(kinds) >= 20
    compare(pages.to(device).call(segment_attention.attend_pages, implementation="triton"), expected(pages), EXACT)


@pytest.mark.parametrize("raw", AXES["raw"], ids=lambda d: str(d).removeprefix("torch."))
def test_raw_pages_equal_torch_sdpa(raw, device):
    """An independent formula: full raw pages are plain attention over the numbers that went in."""
    pages = paged(rows=3, group=4, size=64, raw=raw, counts=(5, 5), widths=[(RAW, RAW)], full=True)
    want = F.scaled_dot_product_attention(
        pages.q.transpose(0, 1)[None].double(), pages.k[None], pages.v[None], scale=pages.scale, enable_gqa=True
    )
    for where, how in ((pages, "torch"), (pages.to(device), "triton")):
        out, _ = where.call(segment_attention.attend_pages, implementation=how)
        assert_close("out", out, want[0].transpose(0, 1), EXACT)


def test_float64_is_kept_in_torch():
    pages = paged(dtype=torch.float64, raw=torch.float64)
    got = pages.call(segment_attention.attend_pages)
    assert got[0].dtype == torch.float64
    compare(got, expected(pages), 1e-12)


@pytest.mark.parametrize("splits", [2, 3, 8])
def test_splits_change_nothing(splits, device):
    """Seven pages in 2, 3 and 8 runs: ragged heads cut their own share, and runs without a page merge as nothing."""
    from workbench_kernels.segment_attention import paged as kernel

    pages = paged(rows=3, group=2, size=32, counts=(7, 5, 0))
    here, options = pages.to(device), segment_attention.PageOptions(**pages.options)
    got = kernel.attend_pages(here.q, here.arena, here.table, here.count, here.scale, options, splits)
    compare(got, expected(pages), EXACT)


@pytest.mark.parametrize("counts", [(0, 2), (0, 0)], ids=["one-head", "all-heads"])
def test_heads_without_pages(counts, device):
    """Out 0 and lse -inf, never NaN, also for a table without columns."""
    pages = paged(counts=counts) if any(counts) else paged(counts=(1, 1))
    pages.count = torch.tensor(counts, dtype=torch.int32)
    for table in (pages.table, *([] if any(counts) else [pages.table[:, :0]])):
        pages.table = table
        for where, how in ((pages, "torch"), (pages.to(device), "triton")):
            out, lse = where.call(segment_attention.attend_pages, implementation=how)
            assert (out[:, :2] == 0).all() and (lse[:, :2] == -torch.inf).all()
            assert lse[:, 2:].isfinite().all() == bool(counts[1])
            figures = where.call(segment_attention.page_mass, lse, implementation=how)
            assert figures.mass.shape == (3, 2, table.shape[1], 32) and (figures.mass[:, 0] == 0).all()
            assert (figures.entropy[:, :2] == 0).all()


def test_bias_and_window(device):
    """The window goes by position, not by place: pages are shuffled, and so are the slots in them."""
    pages = paged(rows=3, group=2, size=64, counts=(3, 2))
    pages_options, meaning = with_options(pages)
    pages.options |= pages_options
    want = expected(pages, **meaning)
    assert 0 < (want[2] > -torch.inf).sum() < (expected(pages)[2] > -torch.inf).sum()
    compare(pages.call(segment_attention.attend_pages, implementation="torch"), want, EXACT)
    compare(pages.to(device).call(segment_attention.attend_pages, implementation="triton"), want, EXACT)


def test_a_window_that_shows_nothing(device):
    pages = paged().to(device)
    blind = {"positions": torch.full((3,), 10_000, dtype=torch.int32, device=device), "window": 5}
    out, lse = pages.call(segment_attention.attend_pages, **blind, implementation="triton")
    assert (out == 0).all() and (lse == -torch.inf).all()


def test_dead_slots_may_hold_anything(device):
    """NaN in the keys and values of slots that are not live touches nobody."""
    pages = paged(rows=1, counts=(1, 1), widths=[(RAW, RAW)])
    want = expected(pages)
    form = PageFormat(32, 32, dtype=torch.float32)
    for h in range(2):
        at = 16 * int(pages.table[h, 0])
        for start, row in ((form.codes_k, form.row_k), (form.codes_v, form.row_v)):
            body = pages.arena[at + start : at + start + 32 * row].view(32, row)
            body[~pages.live[h]] = 255
    for where, how in ((pages, "torch"), (pages.to(device), "triton")):
        compare(where.call(segment_attention.attend_pages, implementation=how), want, EXACT)
        figures = where.call(segment_attention.page_mass, want[1].float().to(where.q.device), implementation=how)
        assert figures.mass.isfinite().all() and figures.mass.sum().item() == pytest.approx(4)


def test_a_prefix_in_pages_serves_many_sequences(device):
    """Rows of three sequences folded into one call give what each sequence gets by itself."""
    pages = paged(rows=6, counts=(3, 2)).to(device)
    together = pages.call(segment_attention.attend_pages, implementation="triton")
    rows = pages.q.clone()
    for start in range(0, 6, 2):
        pages.q = rows[start : start + 2]
        alone = pages.call(segment_attention.attend_pages, implementation="triton")
        compare([part[start : start + 2] for part in together], alone, EXACT)


def guarded_launch(kernels, device: str):
    """The kernel between guard zones, outputs filled with NaN; 3 rows of 4, 3 heads of 4, 48 channels of 64."""
    pages = paged(rows=3, group=3, size=48, counts=(3, 2)).to(device)
    q = Guarded(pages.q)
    out = Guarded(torch.full((2, 3, 6, 48), torch.nan, device=device))
    lse = Guarded(torch.full((2, 3, 6), torch.nan, device=device))
    plan = kernels.tiles.plan(q.inside, 2, 48, 48)
    kernels.paged.paged_attention_kernel[(plan.blocks, 2, 2)](
        kernels.scores.Results(out.inside, lse.inside, None),
        kernels.scores.Queries(q.inside, *q.inside.stride()[:2], 3),
        kernels.paged.Pages(pages.arena, pages.table, pages.count, None, None, None, 3, 0),
        pages.scale,
        **{"MASS": False, "KIND": kernels.paged.Kind.of(32, 3, "fp32"), "TILE": plan.tile},
    )
    compare(segment_attention.merge(out.inside, lse.inside), expected(pages.to("cpu")), EXACT)
    for guarded in (q, out, lse):
        guarded.assert_untouched()


def test_the_kernel_stays_within_its_tensors(device):
    """0xFF between the pages and NaN around the rest: a stray load would poison, a stray store would show."""
    guarded_launch(modules(), device)


MUTANTS = {
    "first-page": ("paged.py", "first = split * share", "first = split * share + 1"),
    "last-page": ("paged.py", "tl.minimum(first + share, count)", "tl.minimum(first + share, count - 1)"),
    "shift": ("paged_tiles.py", "channels // ROW * BITS", "channels // (ROW + 1) * BITS"),
    "value-zero": ("paged_tiles.py", "kind.slots * kind.groups,", "kind.slots * kind.groups + 1,"),
    "slot": ("paged.py", "((live >> slots.to(tl.int64)) & 1)", "((live >> (slots + 1).to(tl.int64)) & 1)"),
    "head": ("scores.py", "member < tile.group", "member <= tile.group"),
}


@needs_interpreter
@pytest.mark.parametrize("name", MUTANTS)
def test_the_checks_catch_an_off_by_one(name, tmp_path, monkeypatch):
    """The kernel with one number wrong, compiled from a copy of its source, fails the very check above."""
    kernels = broken(tmp_path, monkeypatch, *MUTANTS[name])
    with pytest.raises(AssertionError):
        guarded_launch(kernels, "cpu")


def test_dispatch_takes_refuses_and_falls_back(monkeypatch):
    pages = paged()
    assert segment_attention.choose(pages.q) == ("torch", "the query is on 'cpu'")
    assert segment_attention.choose(pages.q, implementation="torch") == ("torch", "asked for")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert segment_attention.choose(pages.q, arena=pages.arena, implementation="triton") == ("triton", "asked for")
    wrong = {
        "float64": ({"q": pages.q.double()}, "computes in float32, and the input is float64"),
        "raw": ({"options": pages.options | {"raw": torch.float64}}, "the input is float64"),
        "strided": ({"arena": pages.arena.repeat_interleave(2)[::2]}, "contiguous arena"),
        "unaligned": ({"arena": torch.cat([pages.arena[:1], pages.arena])[1:]}, "multiple of 16 bytes"),
        "size": (vars(paged(rows=1, size=272, counts=(1,))), "head sizes in multiples of 16 up to 256, got 272"),
        "slots": (vars(paged(rows=1, size=80, counts=(1,), page=64)), "64 slots up to a head size of 64 in this dtype"),
    }
    for change, reason in wrong.values():
        case = Paged(**(vars(pages) | change))
        with pytest.raises(RuntimeError, match=reason) as caught:
            case.call(segment_attention.attend_pages, implementation="triton")
        assert "\n" not in str(caught.value) and "implementation='torch'" in str(caught.value)
        if case.options["raw"] != torch.float64:
            compare(case.call(segment_attention.attend_pages), expected(case), EXACT)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="interpreter is off"):
        pages.call(segment_attention.attend_pages, implementation="triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        pages.call(segment_attention.attend_pages, implementation="triton")
    with pytest.raises(ValueError, match="expected 'auto', 'triton' or 'torch', got 'cuda'"):
        pages.call(segment_attention.attend_pages, implementation="cuda")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"q": torch.zeros(3, 4)}, "expected floating q"),
        ({"q": torch.zeros(3, 5, 32)}, "multiple of the KV heads, got 5 and 2"),
        ({"q": torch.zeros(3, 4, 40)}, "multiples of 16"),
        ({"arena": torch.zeros(64)}, "expected a uint8 arena"),
        ({"table": torch.zeros(2, 3)}, "expected an int32 table"),
        ({"count": torch.zeros(3, dtype=torch.int32)}, r"int32 counts \[Hk\]"),
        ({"options": {"group": 24}}, "multiples of 16 and of the group"),
        ({"options": {"bias": torch.zeros(4, 32)}}, "bias and page numbers together"),
        ({"options": {"window": 4}}, "row positions and a window together"),
        ({"options": {"positions": torch.zeros(3), "window": 4}}, "int32 row positions"),
        ({"options": {"bias": torch.zeros(4, 16), "numbers": torch.zeros(2, 3, dtype=torch.int32)}}, "float32 bias"),
        ({"options": {"bias": torch.zeros(4, 32), "numbers": torch.zeros(2, 3)}}, "int32 page numbers"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_pages_that_do_not_fit_are_refused(change, says):
    case = Paged(**(vars(paged()) | change))
    with pytest.raises(ValueError, match=says) as caught:
        case.call(segment_attention.attend_pages)
    assert "\n" not in str(caught.value)


def test_the_kernels_compile_for_gpus_that_are_not_here():
    """Ahead of time for sm80 and sm90: every option on, and every option off with padded head sizes and groups."""
    _, _, paged, scores, tiles = vars(modules()).values()
    jobs, kernel = [], paged.paged_attention_kernel
    every = paged.Pages("*u8", "*i32", "*i32", "*fp32", "*i32", "*i32", "i32", "i32")
    none = every._replace(bias=None, numbers=None, positions=None)
    for rows, size, dtype, page, merged, pages in (
        (8, 64, "bf16", 32, None, every),
        (8, 128, "bf16", 64, None, every),
        (1, 80, "fp32", 32, None, none),
        (8, 64, "fp16", 32, "*fp32", every),
    ):
        queries = torch.zeros(rows, 12, size, dtype=torch.float32 if dtype == "fp32" else torch.float16)
        plan = tiles.plan(queries, 4, size, size)
        constants = {"TILE": plan.tile, "KIND": paged.Kind.of(page, size // 16, dtype), "MASS": merged is not None}
        types = {"results": scores.Results("*fp32", "*fp32", merged), "scale": "fp32", "pages": pages}
        types |= {"queries": scores.Queries(f"*{dtype}", *["i32"] * 3)} | dict.fromkeys(constants, "constexpr")
        signature = {name: types[name] for name in kernel.arg_names}
        jobs.append((kernel.fn.__module__, kernel.__name__, signature, constants, {"num_warps": plan.num_warps}))
    found = [line.split()[1:] for line in compile_all(*jobs).splitlines()]
    assert len(found) == 8 and all(int(shared) <= MOST_SHARED[arch] for arch, shared in found)

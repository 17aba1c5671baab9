"""The seeded draw from filtered distributions: the reference against the engine, the kernels against the reference."""

import pytest
import torch

import workbench as wb
from tests.kernels.aot import compile_all
from tests.kernels.checks import Guarded, assert_close
from tests.kernels.faults import Allocations, broken, entry
from tests.kernels.interpreter import needs_interpreter
from workbench_kernels import distribution
from workbench_kernels.noise import reference

# float32 logits and sums inside: the log-sum-exp of thousands of logits keeps about six digits
TOLERANCE = 2e-5
SETTINGS = {
    "plain": {},
    "hot": {"temperature": 1.7},
    "greedy": {"temperature": 0.0},
    "top-k": {"top_k": 7},
    "top-1": {"top_k": 1, "temperature": 0.6},
    "top-p": {"top_p": 0.83},
    "cool-top-p": {"temperature": 0.7, "top_p": 0.95},
    "min-p": {"min_p": 0.03, "temperature": 1.3},
    "top-k-top-p": {"top_k": 20, "top_p": 0.81},
    "all": {"temperature": 1.4, "top_k": 31, "top_p": 0.93, "min_p": 0.011},
    "top-p-min-p": {"top_p": 0.91, "min_p": 0.07},
}


def logits(rows: int, cols: int, seed: int, spread: float = 2.5) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * spread


def tied(rows: int, cols: int, seed: int) -> torch.Tensor:
    """Logits on a coarse grid: every boundary of a filter falls among equals."""
    return (logits(rows, cols, seed) * 2).round() / 2


def same_draw(got: distribution.Sample, want: distribution.Sample) -> None:
    """The same tokens and kept sets exactly; figures to the tolerance."""
    for name in ("token", "kept", "threshold_id"):
        assert getattr(got, name).tolist() == getattr(want, name).tolist(), name
    assert_close("threshold", got.threshold, want.threshold, 0)
    for name in ("p", "lse", "entropy"):
        assert_close(name, getattr(got, name), getattr(want, name), TOLERANCE)


@pytest.mark.parametrize("make", [logits, tied])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_reference_takes_the_tokens_of_the_engine(name, make):
    """Token, kept set and entropy of `Sampling.distribution`, over 150 rows for each setting."""
    rows = make(150, 97, sum(map(ord, name)))
    settings = {"temperature": 1.0, **SETTINGS[name]}
    dist = wb.Sampling(**settings).dist(rows, lambda row: [])
    got = distribution.sample(rows, **settings, seed=11, positions=torch.arange(150) * 3)
    assert got.raw.implementation == "torch"
    assert got.token.tolist() == [dist.choose(row, 11, row * 3) for row in range(150)]
    columns = dist.statistics(got.token.tolist())
    assert got.kept.tolist() == columns["keep_size"]
    assert_close("p", got.p, torch.tensor(columns["p_sampled"]), TOLERANCE)
    assert_close("entropy", got.entropy, torch.tensor(columns["entropy_sampled_nats"]), TOLERANCE)
    if not dist.greedy and name not in ("plain", "hot"):
        ids = torch.arange(97)
        edge = got.threshold[:, None]
        kept = (rows > edge) | ((rows == edge) & (ids <= got.threshold_id[:, None]))
        assert torch.equal(kept, dist.scores > -torch.inf)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_kernels_equal_the_reference(name, device):
    """Rows without and with ties, half-precision ones, and tokens cut beforehand."""
    rows = torch.cat([logits(3, 90, 1), tied(4, 90, 2), logits(2, 90, 3).bfloat16().float()])
    rows[2, ::3] = rows[8, 5:] = -torch.inf
    rows[6, :89] = -torch.inf
    positions = torch.tensor([4, 4, 5, 6, 7, 80, 900, 1, 2])
    settings = {**SETTINGS[name], "seed": 3}
    got = distribution.sample(rows.to(device), **settings, positions=positions.to(device), implementation="triton")
    assert got.raw.implementation == "triton"
    same_draw(got, distribution.sample(rows, **settings, positions=positions))
    assert got.token[6] == 89 and got.kept[6] == 1 and got.p[6] == 1


def test_many_plain_draws(device):
    """The screen in float32 never changes a token: 120 draws from flat and sharp distributions."""
    for spread in (0.0, 1.0, 6.0):
        rows = logits(40, 100, 5, spread).to(device)
        got = distribution.sample(rows, seed=9, implementation="triton")
        want = distribution.sample(rows, seed=9, implementation="torch")
        assert got.token.tolist() == want.token.tolist()
        assert spread > 1 or len(set(want.token.tolist())) > 25


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_draws_that_float32_cannot_decide(scale, device):
    """Logits that undo the noise to the last bit of float32: only float64 tells who wins."""
    ids = torch.arange(1000)
    rows = torch.stack([scale - reference.gumbel(2, "target", at, ids) for at in range(8)]).float()
    got = distribution.sample(rows.to(device), seed=2, implementation="triton")
    assert got.token.tolist() == distribution.sample(rows, seed=2).token.tolist()


def test_noise_at_the_ends_of_the_unit_interval(device):
    """The hash's top 32 bits all ones: the token wins by 22 nats, and the screen alone could not say by how much."""
    golden, first = reference.GOLDEN, reference.FIRST
    inverse_first, inverse_second = pow(first, -1, 2**64), pow(reference.SECOND, -1, 2**64)

    def unmix(value: int) -> int:
        value = value ^ (value >> 31) ^ (value >> 62)
        value = value * inverse_second % 2**64
        value = value ^ (value >> 27) ^ (value >> 54)
        value = value * inverse_first % 2**64
        return value ^ (value >> 30) ^ (value >> 60)

    # the seed whose position 0 gives token 20 this hash, found by undoing the hash step by step
    key = (unmix(2**64 - 1 - 2**25) - 21 * golden) % 2**64
    key = (unmix(key) - golden) % 2**64
    key = (unmix(key) - reference.PURPOSES["target"] * golden) % 2**64
    seed = (unmix(key) - golden) % 2**64
    assert reference.gumbel(seed, "target", 0, torch.tensor([20]))[0] > 25
    rows = torch.zeros(1, 60)
    rows[0, 20] = -18.0
    rows[0, 21] = -torch.inf
    got = distribution.sample(rows.to(device), seed=seed, implementation="triton")
    assert got.token.tolist() == distribution.sample(rows, seed=seed).token.tolist() == [20]


@pytest.mark.parametrize("name", ["plain", "top-k", "cool-top-p", "all"])
def test_draws_over_several_tiles(name, device):
    """Boundaries and ties that lie in different programs' columns."""
    rows = torch.cat([logits(1, 5001, 8), tied(1, 5001, 9)]).to(device)
    got = distribution.sample(rows, **SETTINGS[name], seed=1, implementation="triton")
    want = distribution.sample(rows, **SETTINGS[name], seed=1, implementation="torch")
    same_draw(got, want)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_mass_that_meets_top_p_exactly(share, device):
    """Ten equal tokens: the smallest set that reaches p has 10 p of them, and a float32 p would say one more."""
    rows = torch.full((1, 40), -torch.inf)
    rows[0, 3:33:3] = 1.25
    got = distribution.sample(rows.to(device), top_p=share, implementation="triton")
    assert got.kept.tolist() == [round(10 * share)] and got.threshold_id.tolist() == [3 * round(10 * share)]


@pytest.mark.parametrize("name", ["plain", "greedy", "all"])
@pytest.mark.parametrize("poison", ["nan", "inf", "all-cut"])
def test_rows_that_are_no_distribution_are_flagged(poison, name, device):
    """Token -1 and NaN figures there, and nothing else is harmed."""
    rows = logits(3, 70, 6)
    rows[1, 40] = {"nan": torch.nan, "inf": torch.inf, "all-cut": 0.0}[poison]
    if poison == "all-cut":
        rows[1] = -torch.inf
    got = distribution.sample(rows.to(device), **SETTINGS[name], implementation="triton")
    want = distribution.sample(rows, **SETTINGS[name])
    same_draw(got, want)
    assert got.token[1] == -1 and got.kept[1] == 0 and got.p[1].isnan() and got.lse[1].isnan()
    assert (got.token[[0, 2]] >= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_logits(dtype, device):
    """Exact once read: the distribution is that of their float32 values."""
    rows = logits(3, 300, 10).to(dtype)
    for name in ("hot", "all"):
        got = distribution.sample(rows.to(device), **SETTINGS[name], implementation="triton")
        same_draw(got, distribution.sample(rows.float(), **SETTINGS[name]))


@pytest.mark.parametrize("name", ["plain", "all"])
def test_the_kernels_stay_within_their_tensors(name, device):
    """NaN around every tensor and between strided rows; outputs start as NaN and -7."""
    rows = Guarded(torch.full((2, 2105), torch.nan, device=device))
    rows.inside[:, :2100] = logits(2, 2100, 12).to(device)
    inside = rows.inside[:, :2100]
    with Allocations() as allocations:
        got = distribution.sample(inside, **SETTINGS[name], seed=4, implementation="triton")
    same_draw(got, distribution.sample(inside.clone(), **SETTINGS[name], seed=4, implementation="torch"))
    allocations.assert_untouched()
    rows.assert_untouched()


FAULTS = {
    "partial: the last column unseen": ("kernel", "mask=cols < logits.n_cols", "mask=cols < logits.n_cols - 1"),
    "partial: noise of the next token": (
        "kernel", "seeded_best(z, ~cut, col_offsets, noise_key)", "seeded_best(z, ~cut, col_offsets + 1, noise_key)"
    ),
    "combine: the last split unseen": ("kernel", "mask = splits < n_splits", "mask = splits < n_splits - 1"),
    "combine: a bound that one entry too few reaches": (
        "kernel", "axis=0) >= k\n        low", "axis=0) >= k - 1\n        low"
    ),
    "gather: a floor just too high": ("candidates", "& (x >= tl.load", "& (x > tl.load"),
    "gather: one place too far": ("candidates", "n_high) + tl.cumsum(", "n_high) + 1 + tl.cumsum("),
    "select: one token too many": ("candidates", "top_k.to(tl.float64)", "(top_k + 1).to(tl.float64)"),
    "select: the last candidate unseen": (
        "candidates", "z = tl.where(offsets < n_keys, sc", "z = tl.where(offsets < n_keys - 1, sc"
    ),
}  # fmt: skip


@needs_interpreter
@pytest.mark.parametrize("name", FAULTS)
def test_the_checks_find_an_off_by_one(name, tmp_path, monkeypatch):
    """The comparison with the reference fails for kernels that are broken by one."""
    from workbench_kernels.distribution import candidates, kernel

    module, old, new = FAULTS[name]
    rows = torch.full((2, 2060), -torch.inf)  # kept: a few of the first columns and the last one, or one in five groups
    rows[0, :40] = 0.01 * torch.arange(40)
    rows[0, -1] = 6.0
    rows[1, :320:64] = 0.01 * torch.arange(5)
    for settings in ({"top_k": 5}, {}):
        arguments = {**settings, "seed": 1, "implementation": "triton"}
        want = distribution.sample(rows, **arguments | {"implementation": "torch"})
        same_draw(distribution.sample(rows, **arguments), want)
    members = {"kernel": kernel, "candidates": candidates}
    monkeypatch.setattr(distribution, module, broken(members[module], old, new, tmp_path))
    with pytest.raises(AssertionError):
        for settings in ({"top_k": 5}, {}):
            arguments = {**settings, "seed": 1, "implementation": "triton"}
            with Allocations() as allocations:
                got = distribution.sample(rows, **arguments)
            want = distribution.sample(rows, **arguments | {"implementation": "torch"})
            same_draw(got, want)
            allocations.assert_untouched()


def test_strided_empty_and_double_logits(device):
    rows = logits(4, 60, 13).to(device)
    want = distribution.sample(rows, top_k=3, implementation="torch")
    same_draw(distribution.sample(rows.T.contiguous().T, top_k=3, implementation="triton"), want)
    assert distribution.sample(rows[:0], top_p=0.5, implementation="triton").token.shape == (0,)
    assert distribution.sample(rows.double()).p.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"temperature": -1.0}, "temperature of 0 or more, got -1.0"),
        ({"temperature": float("nan")}, "temperature of 0 or more, got nan"),
        ({"top_k": 0}, "top_k of 1 or more, got 0"),
        ({"top_p": 0.0}, r"top_p in \(0, 1\] and min_p in \[0, 1\], got 0.0"),
        ({"min_p": 1.5}, "got None and 1.5"),
        ({"positions": torch.zeros(2, dtype=torch.int32)}, r"int64 positions \[2\] on cpu, got torch.int32"),
        ({"logits": torch.zeros(3)}, r"sample: expected floating logits \[R, V\]"),
    ],
    ids=str,
)
def test_arguments_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        distribution.sample(**{"logits": torch.zeros(2, 100), **arguments})


def test_float64_logits_are_refused_with_a_reason(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="computes in float32, and the logits are float64"):
        distribution.sample(torch.zeros(1, 3, dtype=torch.float64), implementation="triton")


def tuples() -> dict:
    """The types of the kernels' arguments that are no int32."""
    from workbench_kernels.distribution import candidates, kernel

    floats, doubles, ints, longs = "*fp32", "*fp64", "*i32", "*i64"
    types = {"positions_ptr": longs, "floor_ptr": floats, "temperature": "fp32", "key": "i64", "top_p": "i64"}
    types |= {"figures": kernel.Figures(*[floats] * 3, longs, floats, floats, doubles)}
    types |= {"drawn": distribution.Sample(longs, floats, longs, floats, floats, floats, longs, None)}
    types |= {"left": kernel.Splits(floats, ints, floats, doubles, ints, "i32", "i32")}
    types |= {"logits": kernel.Logits("*bf16", "i64", "i32"), "cuts": kernel.Cuts("fp32", "fp32", "fp32")}
    return types | {"found": candidates.Keys(longs, ints, "i32")}


def test_the_kernels_compile_for_gpus_that_are_not_here():
    """Ahead of time for sm80 and sm90, with every branch in."""
    from workbench_kernels.distribution import candidates, kernel

    types, every = tuples(), {"BRANCHES": kernel.Branches(*[True] * 5)}
    done = compile_all(
        entry(kernel, "partial_fwd_kernel", types, {"BLOCK_SIZE": 2048} | every, 8),
        entry(kernel, "combine_fwd_kernel", types, {"SPLITS": 64, "GROUPS": 2048} | every),
        entry(candidates, "gather_fwd_kernel", types, {"BLOCK_SIZE": 2048}, 8),
        entry(candidates, "select_fwd_kernel", types, {"BLOCK": 1024} | every, 8),
    )
    assert len(done.splitlines()) == 8

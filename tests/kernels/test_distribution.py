"""Statistics of logits: the torch reference against formulas in float64, the Triton kernel against the reference."""

import subprocess
import sys

import pytest
import torch

from tests.kernels.aot import compile_all
from tests.kernels.checks import Guarded, assert_close
from tests.kernels.faults import Allocations, broken, entry
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.test_sampling_kernel import tuples
from workbench_kernels import distribution
from workbench_kernels.distribution import reference

NAMES = ("lse", "entropy", "varentropy", "argmax")
# float32 inside whatever comes in; the log-sum-exp of 10 000 logits keeps about six digits
TOLERANCE = 2e-5
SHAPES = {
    "one-column": (3, 1),
    "one-row": (1, 64),
    "odd": (4, 63),
    "hundred": (2, 100),
    "off-by-one": (3, 1023),
    "vocabulary": (2, 4096),
    "several-tiles": (2, 10_001),
}


def draw(name: str, dtype: torch.dtype = torch.float32, spread: float = 4.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(sum(map(ord, name)))
    return (torch.randn(*SHAPES[name], generator=draw, dtype=torch.float64) * spread).to(dtype)


def textbook(logits: torch.Tensor):
    """Row by row from the definitions, on the support only."""
    rows = []
    for row in logits.double().cpu():
        kept = row[row > -torch.inf]
        p = kept.softmax(0)
        entropy = -(p * p.log()).nansum()
        rows.append([row.logsumexp(0), entropy, (p * (-p.log() - entropy) ** 2).nansum(), row.argmax()])
    return torch.tensor(rows, dtype=torch.float64).unbind(1)


def compare(got, want, tolerance: float = TOLERANCE) -> None:
    for name, left, right in zip(NAMES, got, want, strict=False):
        assert_close(name, left, right, tolerance)


@pytest.mark.parametrize("name", SHAPES)
def test_reference_equals_the_definitions(name):
    compare(reference.statistics(draw(name, torch.float64)), textbook(draw(name, torch.float64)), 1e-10)
    compare(reference.statistics(draw(name)), textbook(draw(name)))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
@pytest.mark.parametrize("name", SHAPES)
def test_kernel_equals_the_reference(name, dtype, device):
    logits = draw(name, dtype).to(device)
    got = distribution.statistics(logits, implementation="triton")
    assert got.implementation == "triton"
    compare(got, reference.statistics(logits))
    compare(got, textbook(logits))


@pytest.mark.parametrize("spread", [1e-3, 30.0, 1e4], ids=["flat", "sharp", "one-hot"])
def test_kernel_over_flat_and_sharp_laws(spread, device):
    """A running maximum must neither overflow nor lose the small terms, wherever the maximum stands."""
    rising = draw("several-tiles", spread=spread).sort(-1).values.to(device)
    for logits in (rising, rising.flip(-1)):
        compare(distribution.statistics(logits, implementation="triton"), textbook(logits), 1e-4)


def test_kernel_with_cut_tokens(device):
    """-inf before, between and behind the kept tokens, whole tiles of it included; p log p is 0 there."""
    logits = draw("several-tiles")
    logits[0, :9000] = -torch.inf
    logits[1, 5::7] = -torch.inf
    logits[1, 4000:] = -torch.inf
    logits = logits.to(device)
    compare(distribution.statistics(logits, implementation="triton"), textbook(logits))


def test_known_laws(device):
    """Uniform over n: entropy ln n, varentropy 0. One token: 0 and 0."""
    logits = torch.full((2, 5000), 3.0)
    logits[1] = -torch.inf
    logits[1, 4321] = -2.0
    got = distribution.statistics(logits.to(device), implementation="triton")
    assert_close("entropy", got.entropy, torch.tensor([5000.0, 1.0]).log(), TOLERANCE)
    assert_close("varentropy", got.varentropy, torch.zeros(2), TOLERANCE)
    assert got.argmax.tolist() == [0, 4321]
    assert_close("lse", got.lse, torch.tensor([3.0 + torch.tensor(5000.0).log(), -2.0]), TOLERANCE)


@pytest.mark.parametrize("first", [0, 17, 2047, 2048, 9000])
def test_the_lowest_id_wins_a_tie(first, device):
    """Also where the equal tokens lie in different tiles."""
    logits = torch.zeros(1, 10_001)
    logits[0, [first, 9500, 10_000]] = 2.0
    assert distribution.statistics(logits.to(device), implementation="triton").argmax.tolist() == [first]


@pytest.mark.parametrize("poison", ["nan", "inf", "all-cut"])
def test_rows_that_are_no_law_say_so(poison, device):
    """Their entropy is NaN, and their neighbours are unharmed."""
    logits = draw("odd")
    logits[1, 40] = {"nan": torch.nan, "inf": torch.inf, "all-cut": 0.0}[poison]
    if poison == "all-cut":
        logits[1] = -torch.inf
    got = distribution.statistics(logits.to(device), implementation="triton")
    want = reference.statistics(logits)
    for part in (got, want):
        assert part[1][1].isnan() and part[2][1].isnan()
    others = [0, 2, 3]
    compare([part[others] for part in got[:4]], [part[others] for part in want])


@pytest.mark.parametrize("name", ["odd", "off-by-one", "several-tiles"])
def test_the_kernel_stays_within_its_tensors(name, device):
    """NaN around every tensor and between strided rows: a stray load would poison, a stray store would show."""
    rows, cols = SHAPES[name]
    logits = Guarded(torch.full((rows, cols + 5), torch.nan, device=device))
    logits.inside[:, :cols] = draw(name).to(device)
    with Allocations() as allocations:
        got = distribution.statistics(logits.inside[:, :cols], implementation="triton")
    compare(got, textbook(draw(name)))
    allocations.assert_untouched()
    logits.assert_untouched()


FAULTS = {
    "the last column unseen": ("mask=cols < logits.n_cols", "mask=cols < logits.n_cols - 1"),
    "one column too many": ("mask=cols < logits.n_cols", "mask=cols <= logits.n_cols"),
    "the last split unseen": ("mask = splits < n_splits", "mask = splits < n_splits - 1"),
    "the best of the next token": ("tl.where(x == best, col_offsets,", "tl.where(x == best, col_offsets + 1,"),
}


@needs_interpreter
@pytest.mark.parametrize("name", FAULTS)
def test_the_checks_find_an_off_by_one(name, tmp_path, monkeypatch):
    """The comparison above fails for kernels that are broken by one."""
    from workbench_kernels.distribution import kernel

    rows = torch.full((2, 4100), torch.nan)
    rows[:, :4097] = torch.arange(4097) * 1e-3  # rising: the last columns count
    logits = rows[:, :4097]
    want = reference.statistics(logits)
    compare(distribution.statistics(logits, implementation="triton"), want)
    monkeypatch.setattr(distribution, "kernel", broken(kernel, *FAULTS[name], tmp_path))
    with pytest.raises(AssertionError):
        compare(distribution.statistics(logits, implementation="triton"), want)


def test_strided_and_empty_logits(device):
    logits = draw("hundred").to(device)
    compare(distribution.statistics(logits.T.contiguous().T, implementation="triton"), textbook(logits))
    compare(distribution.statistics(logits[:, 3:77], implementation="triton"), textbook(logits[:, 3:77]))
    assert distribution.statistics(logits[:0], implementation="triton").lse.shape == (0,)


def test_dispatch_takes_refuses_and_falls_back(monkeypatch):
    logits = draw("odd")
    assert distribution.choose(logits).name == "torch"  # auto on a CPU: the interpreter is for tests only
    assert distribution.statistics(logits).implementation == "torch"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert distribution.choose(logits, "triton").name == "triton"
    with pytest.raises(RuntimeError, match="computes in float32, and the logits are float64"):
        distribution.choose(logits.double(), "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="interpreter is off.*implementation='torch'"):
        distribution.statistics(logits, implementation="triton")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="Triton is not installed"):
        distribution.choose(logits, "triton")
    with pytest.raises(ValueError, match="expected 'auto', 'triton' or 'torch', got 'cuda'"):
        distribution.choose(logits, "cuda")


@pytest.mark.parametrize("logits", [torch.zeros(3), torch.zeros(2, 0), torch.zeros(2, 3, dtype=torch.int64)])
def test_logits_that_do_not_fit_are_refused(logits):
    with pytest.raises(ValueError, match=r"expected floating logits \[R, V\]"):
        distribution.statistics(logits)


def test_the_kernels_compile_for_gpus_that_are_not_here():
    """Ahead of time for sm80 and sm90, as `statistics` launches them."""
    from workbench_kernels.distribution import kernel

    plain = kernel.Branches(*[False] * 5)
    done = compile_all(
        entry(kernel, "partial_fwd_kernel", tuples(), {"BLOCK_SIZE": 2048, "BRANCHES": plain}, 8),
        entry(kernel, "combine_fwd_kernel", tuples(), {"SPLITS": 64, "GROUPS": 2048, "BRANCHES": plain}),
    )
    assert len(done.splitlines()) == 4


def test_importing_the_package_does_not_import_triton():
    """Where Triton has no wheels the torch references still work."""
    code = "import sys; from workbench_kernels import distribution, pages, segment_attention, verification"
    code += "; print('triton' in sys.modules, pages.choose('cpu')[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False torch\n"

"""Keys turned to other positions: the unit rotation, no drift, and the Triton kernels against the torch reference."""

import pytest
import torch

from tests.kernels.checks import Guarded, assert_close
from tests.kernels.interpreter import needs_interpreter
from tests.kernels.test_pages import broken
from workbench_kernels import pages
from workbench_kernels.pages import reference

# rotated and partial head sizes: (head size, frequencies)
SIZES = {"32": (32, 16), "80-partial": (80, 20), "96": (96, 48), "128-partial": (128, 32), "256": (256, 128)}


@pytest.fixture(autouse=True)
def nan_filled_memory():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def frequencies(count: int, base: float = 10_000.0) -> torch.Tensor:
    return base ** (-torch.arange(count) / count)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def places(*shape: int, seed: int = 0, below: int = 4000) -> torch.Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def bake(k: torch.Tensor, at: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    """The rotary embedding of Llama in float64: x cos + rotate_half(x) sin, channels beyond 2 F as they are."""
    k, count = k.double(), 2 * len(inv_freq)
    angle = at.double()[..., None] * inv_freq.double()
    angle = torch.cat([angle, angle], -1)
    x, rest = k[..., :count], k[..., count:]
    turned = torch.cat([-x[..., count // 2 :], x[..., : count // 2]], -1)
    return torch.cat([x * angle.cos() + turned * angle.sin(), rest], -1)


@pytest.mark.parametrize("name", SIZES)
def test_a_turned_key_is_one_baked_there(name, device):
    """Angles of up to 4000 radians keep 4000 · 2^-24 in float32, twice (cosine and sine), on keys of up to 5."""
    size, count = SIZES[name]
    inv_freq = frequencies(count)
    k, origin, target = draw(2, 45, size), places(2, 45), places(2, 45, seed=1)
    baked = bake(k, origin, inv_freq).float()
    for act in ("torch", "triton"):
        got = pages.rotate(
            baked.to(device), origin.to(device), target.to(device), inv_freq.to(device), implementation=act
        )
        assert_close(name, got, bake(k, target, inv_freq), 2e-3)
        near = (target - origin).abs() < 64
        assert_close(name, got.cpu()[near], bake(k, target, inv_freq)[near], 2e-5)
        assert torch.equal(got[..., 2 * count :].cpu(), baked[..., 2 * count :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SIZES)
def test_kernel_equals_the_reference(name, dtype, device):
    """Cosines of two libraries differ in the last place; half-precision results by one unit."""
    size, count = SIZES[name]
    wide = torch.full((3, 33, 2 * size), torch.nan)  # keys in a strided tensor, NaN beside them
    wide[..., :size] = draw(3, 33, size)
    k = wide.to(dtype).to(device)[..., :size]
    origin, target = places(33).to(device), places(3, 33, seed=2, below=100_000).int().to(device)
    inv_freq = frequencies(count).to(device)
    got = pages.rotate(k, origin, target, inv_freq, implementation="triton")
    assert got.dtype == dtype and got.is_contiguous()
    assert_close(name, got, reference.rotate(k, origin, target, inv_freq), 2 * torch.finfo(dtype).eps * 5)


def test_there_and_back(device):
    """Within 1e-6 of the largest key in float32, over any distance: the same angle is taken twice."""
    k, inv_freq = draw(2, 40, 64).to(device), frequencies(32).to(device)
    here, there = places(2, 40).to(device), places(2, 40, seed=1, below=200_000).to(device)
    moved = pages.rotate(k, here, there, inv_freq, implementation="triton")
    assert (moved - k).abs().max() > 1
    back = pages.rotate(moved, there, here, inv_freq, implementation="triton")
    assert (back - k).abs().max() <= 1e-6 * k.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moves_from_the_origin_never_add_up(dtype):
    """200 moves: each as good as a single one. Moving the moved keys instead drifts, by percents in bfloat16."""
    k, inv_freq, origin = draw(1, 16, 64), frequencies(32), places(1, 16)
    baked = bake(k, origin, inv_freq).to(dtype)
    chained, at = baked, origin
    for move in range(200):
        target = places(1, 16, seed=move)
        kept = pages.rotate(baked, origin, target, inv_freq)
        chained = pages.rotate(chained, at, target, inv_freq)
        at = target
    exact = bake(k, at, inv_freq)
    kept, chained = ((t.double() - exact).norm() / exact.norm() for t in (kept, chained))
    assert kept < (0.005 if dtype == torch.bfloat16 else 1e-4)
    if dtype == torch.bfloat16:
        assert chained > 0.02
    assert pages.rotate(baked, origin, origin, inv_freq).equal(baked)


def test_the_kernel_stays_within_its_tensors(device):
    """NaN around every tensor: a stray load would poison, a stray store would show."""
    from workbench_kernels.pages import kernel_common, kernel_rotation

    k, out = Guarded(draw(2, 33, 80).to(device)), Guarded(torch.zeros(2, 33, 80, device=device))
    inv_freq = Guarded(frequencies(20).to(device))
    origin, target = places(2, 33).to(device), places(2, 33, seed=1).to(device)
    kernel_rotation.rotate_kernel[(2, 2)](
        out.inside, kernel_common.Rows(k.inside, 33 * 80, 80), (origin, 33), (target, 33), inv_freq.inside, 33,
        CHANNELS=kernel_rotation.Channels.of(80, inv_freq.inside),
    )  # fmt: skip
    want = reference.rotate(k.inside, origin, target, inv_freq.inside)
    assert_close("keys", out.inside, want, 2e-6)
    for tensor in (k, out, inv_freq):
        tensor.assert_untouched()


@needs_interpreter
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pair < channels.half)[None", "pair < channels.half - 1)[None"),
        ("in_stride + channels.half + pair", "in_stride + channels.half - 1 + pair"),
        ("there = key < n_keys", "there = key < n_keys - 1"),
        ("rest = 2 * channels.half + tl", "rest = 2 * channels.half + 1 + tl"),
        ("x * cos - y * sin", "x * cos + y * sin"),
    ],
    ids=["last-frequency", "partner", "last-key", "rest", "sign"],
)
def test_closeness_sees_a_kernel_that_is_off_by_one(old, new, tmp_path):
    """The same comparison as above; what a broken kernel does not write is NaN."""
    kernel = broken(tmp_path, "kernel_rotation", old, new)
    inputs = [t for t in (draw(2, 33, 80), places(2, 33), places(2, 33, seed=1), frequencies(20))]
    got, want = kernel.rotate(*inputs), reference.rotate(*inputs)
    with pytest.raises(AssertionError):
        assert_close("keys", got, want, 2e-6)


def test_what_does_not_fit_is_refused(monkeypatch):
    """With one line that says what was expected."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    k, at, inv_freq = draw(2, 5, 32), places(2, 5), frequencies(16)
    with pytest.raises(ValueError, match=r"expected 1 to 16 frequencies on cpu, got \[17\]"):
        pages.rotate(k, at, at, frequencies(17))
    with pytest.raises(ValueError, match=r"expected floating keys \[Hk, n, D\], got torch.int64"):
        pages.rotate(k.long(), at, at, inv_freq)
    with pytest.raises(ValueError, match=r"rotate: expected int32 or int64 indices \[5\], got torch.int64 \[4\]"):
        pages.rotate(k, at[0, :4], at, inv_freq)
    with pytest.raises(RuntimeError, match="something is float64"):
        pages.rotate(k.double(), at, at, inv_freq, implementation="triton")

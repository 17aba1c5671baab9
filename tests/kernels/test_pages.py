"""Packed pages: the invariants of the format on the torch reference, the Triton kernels against it byte for byte."""

import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.kernels.interpreter import needs_interpreter
from workbench_kernels import pages
from workbench_kernels.pages import ALIGN, GAINS, RAW, PageFormat, reference

FILL = 0xA5
FORMS = {
    "32-8-8": PageFormat(32, 32, 8, 8, 16),
    "48-4-2": PageFormat(48, 64, 4, 2, 32),
    "80-2-4": PageFormat(80, 80, 2, 4, 80),
    "96-8-2": PageFormat(96, 96, 8, 2, 16),
    "128-4-8": PageFormat(128, 128, 4, 8, 128),
    "240-2-2": PageFormat(256, 240, 2, 2, 48),
    "raw-raw": PageFormat(64, 80, RAW, RAW, 16, torch.bfloat16),
    "raw-2": PageFormat(80, 64, RAW, 2, 32, torch.float32),
    "16-raw": PageFormat(64, 16, 16, RAW, 16, torch.float16),
    "4-16": PageFormat(32, 48, 4, 16, 16),
    "4-4-64": PageFormat(64, 48, 4, 4, 48, slots=64),
    "raw-2-64": PageFormat(32, 64, RAW, 2, 16, torch.bfloat16, slots=64),
}
CODED = {name: form for name, form in FORMS.items() if form.bits_k in GAINS and form.bits_v in GAINS}


@pytest.fixture(autouse=True)
def nan_filled_memory():
    """Fresh tensors hold NaN (integers their largest value), so that an output nobody wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arena_for(form: PageFormat, n: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """An arena of n pages in shuffled order with guard bytes around each, and their offsets."""
    stride = form.bytes // ALIGN + 3
    draw = torch.Generator().manual_seed(n)
    arena = torch.full(((n * stride + 3) * ALIGN,), FILL, dtype=torch.uint8)
    return arena.to(device), (3 + stride * torch.randperm(n, generator=draw)).to(torch.int32).to(device)


def assert_guards(arena: torch.Tensor, offsets: torch.Tensor, form: PageFormat) -> None:
    around = torch.ones(len(arena), dtype=torch.bool)
    for offset in offsets.tolist():
        around[offset * ALIGN : offset * ALIGN + form.bytes] = False
    assert (arena.cpu()[around] == FILL).all(), "a kernel wrote outside its pages"


def hard(size: int, dtype: torch.dtype = torch.float32, slots: int = 32) -> torch.Tensor:
    """[6, slots, size]: plain, constant channels, one outlier, subnormal with -0, mixed magnitudes, far from 0."""
    x = torch.randn(6, slots, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    x[1] = torch.linspace(0.1, 0.11, size)
    x[2] *= 1e-3
    x[2, 3, 5] = 6e4
    x[3] *= 1e-33 if dtype == torch.bfloat16 else 1e-40  # the interpreter misreads subnormal bfloat16
    x[3, ::2] = -0.0
    x[4] *= torch.logspace(-9, 3, size, dtype=torch.float64)
    x[5] += 1000
    return x.to(dtype)


def rows_of(form: PageFormat, dtype: torch.dtype | None = None, full: bool = False) -> tuple[torch.Tensor, ...]:
    """What goes into six pages: k, v, positions, and used slots, of the last three a part unless `full`."""
    k, v = (hard(size, dtype or form.dtype, form.slots) for size in (form.head_dim, form.value_dim))
    positions = (torch.arange(6 * form.slots).view(6, form.slots) * 7919) % 100_003
    return k, v, positions, torch.tensor([form.slots] * 3 + ([form.slots] * 3 if full else [form.slots // 2 + 1, 1, 0]))


def packed(form: PageFormat, dtype: torch.dtype | None = None, full: bool = False) -> torch.Tensor:
    return reference.pack(*rows_of(form, dtype, full), form)


def steps_of(page: torch.Tensor, form: PageFormat) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(step, zero) in float64 of keys [n, 1, D] and of values [n, slots, Dv], read from the bytes."""
    n = len(page)
    keys = page[:, form.scale_k : form.scale_v].contiguous().view(torch.float16).double().view(n, 2, 1, -1)
    values = page[:, form.scale_v : form.codes_k].contiguous().view(torch.float16).double().view(n, 2, form.slots, -1)
    values = values.repeat_interleave(form.group, -1)
    return [(keys[:, 0], keys[:, 1]), (values[:, 0], values[:, 1])]


def codes_of(page: torch.Tensor, form: PageFormat) -> list[torch.Tensor]:
    n = len(page)
    keys, values = page[:, form.codes_k : form.codes_v], page[:, form.codes_v :]
    parts = (keys, form.bits_k), (values, form.bits_v)
    return [reference.unplanar(rows.reshape(n, form.slots, -1), bits) for rows, bits in parts]


def broken(tmp_path: Path, name: str, old: str, new: str):
    """A module of the package with its source changed: what a check must catch."""
    source = Path(importlib.import_module(f"workbench_kernels.pages.{name}").__file__).read_text()
    assert old in source
    path = tmp_path / f"broken_{name}.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bound_excess(pack, form: PageFormat) -> float:
    """The largest |x - x̂| beyond half a step, over live slots and in units of what float32 may add to it."""
    k, v, *_ = rows = rows_of(form, torch.float32, full=True)
    page = pack(*rows, form)
    worst = -torch.inf
    got = reference.unpack(page, form)[:2]
    for x, y, (step, _), bits in zip((k, v), got, steps_of(page, form), (form.bits_k, form.bits_v), strict=True):
        x = x.double()
        # x - z, the quotient and x̂ are rounded to float32: 2^-24 of the largest x each, and of 255 steps
        slack = 4 * 2**-23 * x.abs().amax((1, 2), keepdim=True) + 1e-4 * step
        worst = max(worst, (((x - y.double()).abs() - GAINS[bits] * step / 2) / slack).max().item())
    return worst


@pytest.mark.parametrize("form", CODED.values(), ids=CODED)
def test_the_error_is_at_most_half_a_step(form):
    """On every kind of data that breaks a scale; the slack is what float32 adds."""
    assert bound_excess(reference.pack, form) <= 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("zero.float() > low, lower, bits", "zero.float() > low, bits, bits"),
        ("step.float() < wide, bits + 1, bits", "step.float() < wide, bits, bits"),
    ],
    ids=["zero-to-nearest", "step-to-nearest"],
)
def test_the_bound_sees_steps_rounded_the_wrong_way(tmp_path, old, new):
    """Zeros must be rounded down and steps up, or values fall off the grid."""
    assert bound_excess(broken(tmp_path, "reference", old, new).pack, FORMS["32-8-8"]) > 1


@pytest.mark.parametrize("form", CODED.values(), ids=CODED)
def test_codes_are_those_of_direct_rounding(form):
    """In float64 from the stored steps, at the page's own width; only ties within float32's reach may differ."""
    page = packed(form, full=True)
    for x, codes, (step, zero), bits in zip(
        rows_of(form)[:2], codes_of(page, form), steps_of(page, form), (form.bits_k, form.bits_v), strict=True
    ):
        exact = (x.double() - zero) / (GAINS[bits] * step)
        near = (exact - exact.floor() - 0.5).abs() < 1e-4
        direct = exact.round().clamp(0, 2**bits - 1)
        assert torch.equal(codes[~near].double(), direct[~near])
        assert ((codes - direct).abs() <= 1).all() and near.double().mean() < 0.02


@pytest.mark.parametrize("form", CODED.values(), ids=CODED)
def test_coding_what_was_decoded_changes_nothing(form):
    """On the stored steps: quantising is a projection."""
    page = packed(form)
    for x, codes, (step, zero), bits in zip(
        reference.unpack(page, form)[:2], codes_of(page, form), steps_of(page, form), (form.bits_k, form.bits_v),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(reference.to_codes(x, step.half(), zero.half(), bits), codes)


@pytest.mark.parametrize("bits", GAINS)
@pytest.mark.parametrize("size", [16, 32, 64, 80, 96, 128])
def test_planar_rows_round_trip(bits, size):
    """And byte and shift of a channel are those the layout names."""
    codes = torch.randint(0, 2**bits, (3, 32, size), generator=torch.Generator().manual_seed(size))
    rows = reference.planar(codes, bits)
    assert rows.shape[-1] == size * bits // 8 and torch.equal(reference.unplanar(rows, bits), codes)
    channel = size - 1  # by the definition of the layout
    width = size * bits // 8
    byte = rows[..., channel % width].int()
    assert torch.equal(byte >> bits * (channel // width) & (2**bits - 1), codes[..., channel])


@pytest.mark.parametrize("name", FORMS)
def test_kernel_packs_the_same_bytes(name, device):
    """Into an arena, between guard bytes, for every float it takes; full, partly filled and empty pages."""
    form = FORMS[name]
    for dtype in {form.dtype, torch.bfloat16 if name == "80-2-4" else form.dtype}:
        arena, offsets = arena_for(form, 6, device)
        rows = (x.to(device) for x in rows_of(form, dtype))
        out = pages.pack(*rows, form, arena, offsets, implementation="triton")
        assert out is arena
        assert torch.equal(reference.fetch(arena, offsets, form).cpu(), packed(form, dtype))
        assert_guards(arena, offsets, form)


def test_kernel_packs_strided_rows_as_new_pages(device):
    """As a model gives them: heads beside each other, NaN in the gaps, channels far apart."""
    form = FORMS["48-4-2"]
    *_, positions, used = rows_of(form)
    wide = torch.full((6, 32, 3, 70), torch.nan)
    wide[:, :, 1, :48] = hard(48)
    v = hard(64).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    names = positions.int().to(device), used.int().to(device)
    got = pages.pack(wide.to(device)[:, :, 1, :48], v.to(device), *names, form, implementation="triton")
    assert torch.equal(got.cpu(), packed(form))


@pytest.mark.parametrize("name", FORMS)
def test_kernel_reads_the_same_numbers(name, device):
    """Whole pages and single slots in any order; codes times gain and step are exact, one sum rounds, and equally."""
    form = FORMS[name]
    arena, offsets = arena_for(form, 6, device)
    reference.put(arena, offsets, form, packed(form).to(device))
    want = reference.unpack(packed(form), form)
    got = pages.unpack(arena, form, offsets, implementation="triton")
    for left, right in zip(got, want, strict=True):
        assert torch.equal(left.cpu(), right)
    pick = torch.randperm(6 * form.slots, generator=torch.Generator().manual_seed(0))[:45].view(5, 9)
    where, slots = offsets[pick.to(device) // form.slots], pick.to(device) % form.slots
    where[2, 3] = -1
    for act in ("triton", "torch"):
        got = pages.gather(arena, form, where, slots, implementation=act)
        for left, right in zip(got, want, strict=True):
            right = right.flatten(0, 1)[pick].clone()
            right[2, 3] = 0
            assert torch.equal(left.cpu(), right)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_kernel_reads_into_half_precision(dtype, device):
    """One unit in the last place: the interpreter cuts bfloat16 off where a GPU rounds."""
    form = FORMS["32-8-8"]
    page = packed(form)
    want = reference.unpack(page, form)
    got = pages.unpack(page.to(device), form, dtype=dtype, implementation="triton")
    for left, right in zip(got[:2], want[:2], strict=True):
        assert left.dtype == dtype
        error = (left.cpu().double() - right.double()).abs()
        assert (error <= torch.finfo(dtype).eps * right.abs() + torch.finfo(dtype).tiny * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_raw_round_trip_is_bit_exact(dtype, device):
    """All patterns: NaN, infinities and -0 too; 16-bit pages do the same for finite float16."""
    form = PageFormat(64, 32, RAW, RAW, 16, dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    draw = torch.Generator().manual_seed(1)
    k, v = (torch.randint(-(2**63), 2**63 - 1, (2, 32, d), generator=draw).to(bits) for d in (64, 32))
    at, used = torch.arange(64, device=device).view(2, 32), torch.full((2,), 32, device=device)
    page = pages.pack(k.view(dtype).to(device), v.view(dtype).to(device), at, used, form, implementation="triton").cpu()
    assert torch.equal(page[:, form.codes_k : form.codes_v].contiguous().view(bits).view_as(k), k)
    assert torch.equal(page[:, form.codes_v :].contiguous().view(bits).view_as(v), v)
    if dtype == torch.float16:
        x = torch.randn(2, 32, 64, generator=draw).half()
        half = replace(form, bits_k=16, bits_v=16, value_dim=64)
        page = pages.pack(x.to(device), x.to(device), at, used, half, implementation="triton")
        got = pages.unpack(page, half, implementation="triton")
        assert torch.equal(got[0].cpu().half(), x) and torch.equal(got[1].cpu().half(), x)


@pytest.mark.parametrize(
    ("name", "to_k", "to_v"),
    [
        ("32-8-8", 4, 2),
        ("32-8-8", 8, 4),
        ("32-8-8", 2, 8),
        ("80-4-4", 2, 4),
        ("96-8-4", 4, 2),
        ("raw-8", RAW, 2),
        ("8-4-64", 4, 2),
    ],
)
def test_demoting_equals_packing_narrower(name, to_k, to_v, device):
    """Byte for byte, on data with exact ties in it, with the steps untouched."""
    form = {
        "32-8-8": FORMS["32-8-8"],
        "80-4-4": PageFormat(80, 80, 4, 4, 80),
        "96-8-4": PageFormat(96, 96, 8, 4, 16),
        "raw-8": PageFormat(32, 64, RAW, 8, 32, torch.bfloat16),
        "8-4-64": PageFormat(32, 64, 8, 4, 32, slots=64),
    }[name]
    to = replace(form, bits_k=to_k, bits_v=to_v)
    arena, offsets = arena_for(form, 6, device)
    out, out_offsets = arena_for(to, 6, device)
    page = packed(form)
    reference.put(arena, offsets, form, page.to(device))
    assert pages.demote(arena, form, to, offsets, out, out_offsets, implementation="triton") is out
    got = reference.fetch(out, out_offsets, to).cpu()
    assert torch.equal(got, packed(to))
    assert torch.equal(got, pages.demote(page, form, to))  # the reference, on rows
    assert torch.equal(got[:, 16 : to.codes_k], page[:, 16 : form.codes_k])
    assert torch.equal(reference.fetch(arena, offsets, form).cpu(), page)
    assert_guards(arena, offsets, form)
    assert_guards(out, out_offsets, to)


def test_two_small_steps_down_are_one_large_step():
    """8 -> 4 -> 2 bits for all 256 codes: equal to 8 -> 2 and to the nearest multiple; even gains would not do it."""
    codes = torch.arange(256)
    four = reference.coarser(codes, 1, 17)
    assert torch.equal(four, (codes / 17).round().int()) and four.max() == 15
    two = reference.coarser(four, 17, 85)
    assert torch.equal(two, (codes / 85).round().int()) and two.max() == 3
    assert torch.equal(two, reference.coarser(codes, 1, 85))
    even = reference.coarser(reference.coarser(codes, 1, 16), 16, 80)
    assert not torch.equal(even, (codes / 80).round().int())


CONTROLS = {
    "used": ("kernel_pack", "live = slot < used", "live = slot <= used"),
    "value-slots": ("kernel_pack", "live = slots < used", "live = slots + 1 < used"),
    "part": ("kernel_pack", "channel = part * side.row + column", "channel = part * side.row + column + 1"),
    "rounding": ("kernel_pack", "level + 0.5", "level"),
    "true-division": ("kernel_pack", "half.to(tl.float32) < x, bits + 1, bits", "half.to(tl.float32) < x, bits, bits"),
}


@needs_interpreter
@pytest.mark.parametrize("control", CONTROLS)
def test_byte_equality_sees_a_kernel_that_is_off_by_one(control, tmp_path):
    """The comparison of the tests above, on kernels with one character or two changed."""
    name, old, new = CONTROLS[control]
    form = FORMS["48-4-2"]
    arena, offsets = arena_for(form, 6)
    broken(tmp_path, name, old, new).pack(*rows_of(form), form, arena, offsets)
    assert not torch.equal(reference.fetch(arena, offsets, form).cpu(), packed(form))


@needs_interpreter
def test_guard_bytes_see_a_store_beyond_the_page(tmp_path):
    """One byte too far in every row of values: the last row's leaves the page."""
    form = FORMS["48-4-2"]
    arena, offsets = arena_for(form, 6)
    at = "tl.store(rows_ptr + slot * side.row + column, packed"
    kernel = broken(tmp_path, "kernel_pack", at, at.replace("column", "column + 1"))
    kernel.pack(*rows_of(form), form, arena, offsets)
    with pytest.raises(AssertionError, match="wrote outside its pages"):
        assert_guards(arena, offsets, form)


READ_CONTROLS = {
    "steps": ("+ channel // side.group", "+ (channel + 1) // side.group", "unpack"),
    "shift": ("raw.to(tl.int32) >> (part * side.bits)", "raw.to(tl.int32) >> (part * side.bits + 1)", "unpack"),
    "ratio": ("(code + RATIO // 2) // RATIO", "(code + RATIO // 2 + 1) // RATIO", "demote"),
    "source": ("channel % side.row", "(channel + 1) % side.row", "demote"),
}


@needs_interpreter
@pytest.mark.parametrize("control", READ_CONTROLS)
def test_equality_sees_a_reader_that_is_off_by_one(control, tmp_path):
    """The same for reading and demoting."""
    old, new, what = READ_CONTROLS[control]
    form, to = FORMS["32-8-8"], replace(FORMS["32-8-8"], bits_k=4, bits_v=4)
    kernel = broken(tmp_path, "kernel_read", old, new)
    offsets = torch.arange(6) * (form.bytes // ALIGN)
    arena = packed(form).view(-1)
    if what == "unpack":
        got = kernel.read(arena, form, offsets, None, torch.float32)[:2]
        want = reference.unpack(packed(form), form)[:2]
        assert not all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))
    else:
        out = torch.zeros(6, to.bytes, dtype=torch.uint8)
        kernel.demote(arena, form, to, offsets, out.view(-1), torch.arange(6) * (to.bytes // ALIGN))
        assert not torch.equal(out.cpu(), packed(to))

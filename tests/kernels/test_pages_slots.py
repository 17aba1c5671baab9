"""Acts on single slots: scatter, move, compact, merge, evict, by their invariants and against the torch reference."""

from dataclasses import replace

import pytest
import torch

from tests.kernels.interpreter import needs_interpreter
from tests.kernels.test_pages import arena_for, assert_guards, broken
from workbench_kernels import pages
from workbench_kernels.pages import ALIGN, RAW, SLOTS, PageFormat, reference

FORMS = {
    "raw-bfloat16": PageFormat(64, 80, RAW, RAW, 16, torch.bfloat16),
    "raw-float32": PageFormat(80, 32, RAW, RAW, 16, torch.float32),
    "16-raw": PageFormat(32, 48, 16, RAW, 16, torch.float32),
    "16-16": PageFormat(96, 16, 16, 16, 16, torch.float16),
}
MOVED = FORMS | {"raw-float64": PageFormat(32, 16, RAW, RAW, 16, torch.float64)}  # bit patterns, whatever they mean
FLAGS = 3  # in the header beside the count of used slots; no act may change them


@pytest.fixture(autouse=True)
def nan_filled_memory():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def opened(form: PageFormat, n: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """An arena of n open pages without slots; rows hold NaN patterns, as memory that was used before might."""
    arena, offsets = arena_for(form, n, device)
    reference.put(arena, offsets, form, torch.full((n, form.bytes), 255, dtype=torch.uint8, device=device))
    pages.blank(arena, offsets, form, birth=9)
    arena[offsets.long() * ALIGN + 8] = FLAGS
    return arena, offsets


def headers(arena: torch.Tensor, offsets: torch.Tensor) -> list[tuple[set[int], int, int]]:
    """(live slots, flags, used slots) of each page."""
    out = []
    for offset in offsets.tolist():
        head = arena[offset * ALIGN :][:16].tolist()
        mask = int.from_bytes(bytes(head[:4]), "little")
        out.append(({slot for slot in range(SLOTS) if mask >> slot & 1}, head[8], head[9]))
    return out


def filled(form: PageFormat, n: int, device: str, used: int = SLOTS):
    """An arena of n packed pages, with what they hold."""
    arena, offsets = arena_for(form, n, device)
    draw = torch.Generator().manual_seed(n)
    k, v = (torch.randn(n, SLOTS, d, generator=draw) for d in (form.head_dim, form.value_dim))
    positions = torch.randperm(1000, generator=draw)[: n * SLOTS].view(n, SLOTS)
    count = torch.full((n,), used)
    reference.put(arena, offsets, form, reference.pack(k, v, positions, count, form).to(device))
    arena[offsets.long() * ALIGN + 8] = FLAGS
    return arena, offsets, *reference.unpack(reference.fetch(arena, offsets, form).cpu(), form)


def staged(form: PageFormat, device: str):
    """Two heads, 50 staged rows, 45 of them chosen (two entries are none), into two pages a head: 32 and 13 slots."""
    draw = torch.Generator().manual_seed(3)
    k = torch.randn(2, 50, form.head_dim, generator=draw).to(form.dtype)
    v = torch.randn(50, 2, form.value_dim, generator=draw).to(form.dtype).transpose(0, 1)
    rows = torch.randperm(50, generator=draw)[:45]
    rows[[7, 44]] = -1
    positions = torch.arange(45) + 70_000
    page = (torch.arange(45) // SLOTS + torch.tensor([[0], [2]])).to(device)
    slots = (torch.arange(45) % SLOTS).expand(2, 45).to(torch.int32).to(device)
    return k.to(device), v.to(device), rows.to(device), positions.to(device), page, slots


@pytest.mark.parametrize("name", MOVED)
def test_what_is_scattered_is_there(name, device):
    form = MOVED[name]
    k, v, rows, positions, page, slots = staged(form, device)
    arenas = []
    for act in ("torch", "triton"):
        arena, offsets = opened(form, 4, device)
        named = offsets[page]
        named[1, 20] = -1
        pages.scatter(arena, form, k, v, rows, positions, named, slots, implementation=act)
        assert_guards(arena, offsets, form)
        arenas.append(arena)
    assert torch.equal(*arenas)
    for head in range(2):
        kept = [entry for entry in range(45) if entry not in (7, 44) and (head, entry) != (1, 20)]
        got = pages.gather(arena, form, named[head, kept], slots[head, kept])
        assert torch.equal(got[0], k[head, rows[kept]].to(form.element(form.bits_k)).to(got[0].dtype))
        assert torch.equal(got[1], v[head, rows[kept]].to(form.element(form.bits_v)).to(got[1].dtype))
        assert torch.equal(got[2], positions[kept]) and got[3].all()
        for i, (live, flags, used) in enumerate(headers(arena, offsets[2 * head : 2 * head + 2])):
            assert live == {entry - SLOTS * i for entry in kept if entry // SLOTS == i}
            assert (flags, used) == (FLAGS, max(live) + 1)


def test_scattering_one_by_one_equals_all_at_once(device):
    """Speculative and plain decoding write the same bytes: how many rows a commit holds leaves no trace."""
    form = FORMS["raw-float32"]
    k, v, rows, positions, page, slots = staged(form, device)
    rows = rows.abs()
    whole, offsets = opened(form, 4, device)
    pages.scatter(whole, form, k, v, rows, positions, offsets[page], slots, implementation="triton")
    parts, _ = opened(form, 4, device)
    for i in (slice(0, 1), slice(1, 30), slice(30, 45)):
        one = offsets[page][:, i], slots[:, i]
        pages.scatter(parts, form, k, v, rows[i], positions[i], *one, implementation="triton")
    assert torch.equal(whole, parts)


@pytest.mark.parametrize("name", MOVED)
def test_moved_slots_are_the_same_elsewhere(name, device):
    """Holes of one page are filled from another, side arrays too; nothing else changes by a byte."""
    form = MOVED[name]
    sources, targets = [30, 31, 4, 9, 12], [1, 0, 17, 31, 12]  # pages 2 -> 0; the last entry goes where it is
    arenas, sides = [], []
    for act in ("torch", "triton"):
        arena, offsets, k, v, positions, _ = filled(form, 3, device)
        pages.evict(arena, offsets[0].expand(4), torch.tensor(targets[:4], device=device), implementation=act)
        here, there = offsets[[2, 2, 2, -1, 2]], offsets[[0, 0, 0, 0, 2]]
        here[3] = -1
        numbers, to_numbers = torch.tensor([2] * 5, device=device), torch.tensor([0, 0, 0, 0, 2], device=device)
        bias, score = (torch.arange(3.0 * SLOTS, device=device).view(3, SLOTS) + 1000 * i for i in range(2))
        slot, to_slot = (torch.tensor(t, device=device) for t in (sources, targets))
        pages.move(arena, form, here, slot, there, to_slot, (bias, score), numbers, to_numbers, implementation=act)
        assert_guards(arena, offsets, form)
        arenas.append(arena)
        sides.append(torch.stack([bias, score]).cpu())
    assert torch.equal(*arenas) and torch.equal(*sides)
    got = reference.unpack(reference.fetch(arena, offsets, form).cpu(), form)
    for left, right in zip(got[:3], (k, v, positions), strict=True):
        want = right.clone()
        want[0, targets[:3]] = right[2, sources[:3]]
        assert torch.equal(left, want)
    everything = set(range(SLOTS))
    expected = [everything - {31}, everything, everything - {30, 31, 4}]
    assert headers(arena, offsets) == [(live, FLAGS, SLOTS) for live in expected]
    assert sides[0][1, 0, [1, 0, 17, 31]].tolist() == [1094.0, 1095.0, 1068.0, 1031.0]


@pytest.mark.parametrize(("bits_k", "bits_v"), [(8, 4), (RAW, 2), (2, 16), (RAW, RAW)])
def test_compacting_copies_codes_where_steps_are_shared(bits_k, bits_v, device):
    """Page 0 is gathered from one page and page 1 from two: only the keys of the latter can be coded anew."""
    form = PageFormat(48, 64, bits_k, bits_v, 32)
    arena, offsets, k, v, positions, _ = filled(form, 4, device)
    slots = torch.arange(SLOTS).roll(5).repeat(2, 1)
    page = torch.tensor([[1], [2]]).repeat(1, SLOTS)
    page[1, 8:] = 3
    used = torch.tensor([20, 32])
    before = arena.clone()
    to = offsets[[1, 0]]  # the first lands on the page it comes from
    anew = pages.compact(
        arena, form, offsets[page.to(device)], slots.to(device), used.to(device), to, 4, implementation="triton"
    )
    assert anew.tolist() == [False, bits_k in (8, 2)]
    got = reference.unpack(reference.fetch(arena, to, form).cpu(), form)
    live = torch.arange(SLOTS) < used[:, None]
    assert torch.equal(got[3], live)
    assert torch.equal(got[2][live], positions[page, slots][live])
    assert torch.equal(got[1][live], v[page, slots][live])
    want = k[page, slots]
    assert torch.equal(got[0][0, :20], want[0, :20])
    if anew[1]:
        gain = {8: 1, 2: 85}[bits_k]
        steps = reference.fetch(arena, to, form)[1, form.scale_k :][: 2 * 48].view(torch.float16).cpu()
        error = (got[0][1] - want[1]).abs()
        assert (error <= gain * steps.float() / 2 * 1.001 + 1e-5).all() and error.max() > 0
    else:
        assert torch.equal(got[0][1], want[1])
    assert_guards(arena, offsets, form)
    assert torch.equal(reference.fetch(arena, offsets[2:], form), reference.fetch(before, offsets[2:], form))


def loop_merge(rows: torch.Tensor, plan) -> torch.Tensor:
    """[n, SLOTS, D] float64 -> the same after merges (page, slot, own, sources [(page, slot, weight)])."""
    out = rows.clone()
    for page, slot, own, sources in plan:
        out[page, slot] = own * rows[page, slot]
        for source, number, weight in sources:
            out[page, slot] += weight * rows[source, number]
    return out


PLAN = [
    (0, 3, 0.5, [(0, 4, 0.25), (2, 31, 0.25)]),
    (1, 0, 1.0, [(0, 5, -2.0), (0, 6, 0.125), (2, 0, 0.7)]),
    (2, 17, 0.0, []),
]


def as_lists(plan, offsets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Arguments of `merge`: sources padded with none, and a target that is none."""
    m = len(plan) + 1
    where, slots, weights = torch.full((m, 3), -1), torch.zeros(m, 3, dtype=torch.int64), torch.zeros(m, 3)
    to, to_slots, own = torch.full((m,), -1), torch.zeros(m, dtype=torch.int64), torch.ones(m)
    where[-1, 0] = offsets[1]  # of no target, so it stays
    for i, (page, slot, mine, sources) in enumerate(plan):
        to[i], to_slots[i], own[i] = offsets[page], slot, mine
        for j, (source, number, weight) in enumerate(sources):
            where[i, j], slots[i, j], weights[i, j] = offsets[source], number, weight
    return tuple(t.to(offsets.device) for t in (where, slots, weights, to, to_slots, own))


@pytest.mark.parametrize("name", FORMS)
def test_merges_equal_a_loop(name, device):
    """Over all sources of all targets in float64; targets keep positions, sources die, all else keeps its bytes."""
    form = FORMS[name]
    for act in ("torch", "triton"):
        arena, offsets, k, v, positions, _ = filled(form, 3, device)
        pages.merge(arena, form, *as_lists(PLAN, offsets), implementation=act)
        got = reference.unpack(reference.fetch(arena, offsets, form).cpu(), form)
        for left, right, bits in ((got[0], k, form.bits_k), (got[1], v, form.bits_v)):
            # float32 sums, then one rounding (the interpreter cuts bfloat16 off: a whole unit in the last place)
            eps = torch.finfo(form.element(bits)).eps
            error = (left.double() - loop_merge(right.double(), PLAN)).abs()
            assert (error <= eps * left.abs() + 1e-6).all()
            untouched = torch.ones(3, SLOTS, dtype=torch.bool)
            untouched[[0, 1, 2], [3, 0, 17]] = False
            assert torch.equal(left[untouched], right[untouched])
        assert torch.equal(got[2], positions)
        everything = set(range(SLOTS))
        expected = [everything - {4, 5, 6}, everything, everything - {31, 0}]
        assert headers(arena, offsets) == [(live, FLAGS, SLOTS) for live in expected]
        assert_guards(arena, offsets, form)


def test_evicting_clears_bits_alone(device):
    """Of any kind of page; slot 31 is the sign of a word; naming a slot twice or one already dead is harmless."""
    form = PageFormat(32, 32, 4, 2, 16)
    for act in ("torch", "triton"):
        arena, offsets, *_ = filled(form, 3, device, used=20)
        before = arena.clone()
        named = offsets[torch.tensor([[0, 0, 2], [0, 1, 2]], device=device)]
        named[1, 2] = -1
        slots = torch.tensor([[0, 19, 31], [0, 7, 5]], device=device)
        pages.evict(arena, named, slots, implementation=act)
        alive = set(range(20))
        assert [live for live, _, _ in headers(arena, offsets)] == [alive - {0, 19}, alive - {7}, alive]
        masks = (offsets.long()[:, None] * ALIGN + torch.arange(4, device=device)).flatten()
        arena[masks] = before[masks]
        assert torch.equal(arena, before)


CONTROLS = {
    "scatter-rows": ("scatter", "row_at(arena.k, offset, slot, K), k.", "row_at(arena.k, offset, slot ^ 1, K), k."),
    "scatter-mask": ("scatter", "(row >= 0) & (offset >= 0)", "(row >= 1) & (offset >= 0)"),
    "scatter-used": ("scatter", "((slot + 1) << 8) | flags", "(slot << 8) | flags"),
    "scatter-flags": ("scatter", "((slot + 1) << 8) | flags", "((slot + 1) << 8)"),
    "scatter-end": ("scatter", "inside = entry < n_entries\n    row", "inside = entry < n_entries - 1\n    row"),
    "move-position": ("move", "to_offset * 4 + 4 + to_slot", "to_offset * 4 + 5 + to_slot"),
    "move-bits": ("move", "~(one << slot)", "~(one << (slot ^ 1))"),
    "merge-sources": ("merge", "for source in range(n_sources)", "for source in range(n_sources - 1)"),
    "evict-end": ("evict", "entry, entry < n_entries)", "entry, entry < n_entries - 1)"),
}


def acted(module, what: str, device: str) -> torch.Tensor:
    """The arena after one act, by a module of kernels or by the reference."""
    form = FORMS["raw-float32"]
    if what == "scatter":
        k, v, rows, positions, page, slots = staged(form, device)
        arena, offsets = opened(form, 4, device)
        rows[44] = 0
        module.scatter(arena, k, v, rows, positions, offsets[page], slots, form)
        return arena
    arena, offsets, *_ = filled(form, 3, device)
    two = torch.tensor([4, 9], device=device)
    if what == "move":
        module.move(arena, offsets[[2, 2]], two, offsets[[0, 0]], two + 1, form, (), None, None)
    elif what == "merge":
        module.merge(arena, *as_lists(PLAN, offsets), form)
    else:
        module.evict(arena, offsets[[2, 2]], two)
    return arena


@pytest.mark.parametrize("what", ["scatter", "move", "merge", "evict"])
def test_the_act_of_the_controls_is_right_when_unbroken(what, device):
    """So that a control fails for what was broken in it."""
    from workbench_kernels.pages import kernel_slots

    same = acted(kernel_slots, what, device) == acted(reference, what, device)
    assert same.double().mean() > 0.98 if what == "merge" else same.all()  # merges may round elsewhere


@needs_interpreter
@pytest.mark.parametrize("control", CONTROLS)
def test_equality_sees_an_act_that_is_off_by_one(control, tmp_path):
    """The comparison of the tests above, on kernels with a slot, row or bound changed by one."""
    what, old, new = CONTROLS[control]
    got = acted(broken(tmp_path, "kernel_slots", old, new), what, "cpu")
    want = acted(reference, what, "cpu")
    assert not torch.equal(got, want)
    if what == "merge":  # more than rounding
        form = FORMS["raw-float32"]
        _, offsets, *_ = filled(form, 3, "cpu")
        left, right = (reference.unpack(reference.fetch(t, offsets, form), form)[0] for t in (got, want))
        assert (left - right).abs().max() > 1e-2


def test_acts_refuse_what_does_not_fit(monkeypatch):
    """Coded pages above all: writing one slot would change the steps of others."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    form = FORMS["raw-float32"]
    coded = replace(form, bits_v=4)
    arena, offsets, *_ = filled(form, 3, "cpu")
    slots = torch.zeros(3, dtype=torch.int64)
    k, v = torch.zeros(3, 5, 80), torch.zeros(3, 5, 32)
    one = torch.zeros(1, dtype=torch.int64)
    at = offsets[:, None], slots[:, None]
    with pytest.raises(ValueError, match="scatter: expected raw or 16-bit pages, got 4-bit codes; unpack and pack"):
        pages.scatter(arena, coded, k, v, one, one, *at)
    with pytest.raises(ValueError, match=r"scatter: expected floating k \[3, 5, 80\] on cpu"):
        pages.scatter(arena, form, v, v, one, one, *at)
    with pytest.raises(ValueError, match=r"scatter: expected int32 or int64 indices \[3, 1\], got .* \[3\]"):
        pages.scatter(arena, form, k, v, one, one, offsets, slots)
    with pytest.raises(ValueError, match="move: expected raw or 16-bit"):
        pages.move(arena, coded, offsets, slots, offsets, slots)
    with pytest.raises(ValueError, match="at most two side arrays, with numbers"):
        pages.move(arena, form, offsets, slots, offsets, slots, (torch.zeros(3, SLOTS),))
    with pytest.raises(ValueError, match=r"float32 side arrays \[pages, 32\] on cpu, got torch.float64"):
        pages.move(arena, form, offsets, slots, offsets, slots, (torch.zeros(3, SLOTS).double(),), slots, slots)
    with pytest.raises(ValueError, match="merge: expected weights"):
        pages.merge(arena, form, *at, torch.ones(3, 2), offsets, slots, torch.ones(3))
    with pytest.raises(ValueError, match="evict: expected a contiguous uint8 arena"):
        pages.evict(arena.view(torch.int32), offsets, slots)
    with pytest.raises(ValueError, match="gather: expected int32 or int64 indices"):
        pages.gather(arena, form, offsets, slots.float())
    double = replace(form, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="computes in float32, and something is float64"):
        pages.merge(arena, double, *at, torch.ones(3, 1), offsets, slots, torch.ones(3), implementation="triton")

"""Attention over the live slots of a run against the formula, row by row, whatever lies behind the live slots."""

import importlib
from types import SimpleNamespace

import pytest
import torch

from tests.kernels.aot import compile_all
from tests.kernels.attention_cases import EXACT, TF32, broken, compare, dense
from tests.kernels.checks import Guarded
from tests.kernels.interpreter import needs_interpreter
from workbench_kernels import segment_attention

# rows, KV heads, group, head size, value size, capacity, committed, staged
SHAPES = {
    "one-row": (1, 2, 1, 16, 16, 64, 40, 1),
    "gqa-3": (5, 2, 3, 48, 32, 160, 90, 7),
    "straddling": (8, 1, 2, 32, 32, 128, 59, 40),  # staged slots lie in two tiles, and need two words
    "nothing-committed": (3, 1, 4, 64, 64, 64, 0, 3),
    "full": (4, 1, 2, 16, 16, 96, 92, 4),
    "hidden-row": (2, 1, 1, 16, 16, 64, 0, 2),  # the first row sees nothing
}


def case(name: str, dtype=torch.float32, device: str = "cpu"):
    """q, k, v (NaN behind the live slots), base, visible [R, staged], scale; and what float64 gives."""
    rows, kv_heads, group, size, value_size, capacity, base, staged = SHAPES[name]
    draw = torch.Generator().manual_seed(len(name))
    q = torch.randn(rows, kv_heads * group, size, generator=draw).to(dtype)
    k = torch.full((kv_heads, capacity, size), torch.nan, dtype=dtype)
    v = torch.full((kv_heads, capacity, value_size), torch.nan, dtype=dtype)
    live = base + staged
    k[:, :live] = torch.randn(kv_heads, live, size, generator=draw).to(dtype)
    v[:, :live] = torch.randn(kv_heads, live, value_size, generator=draw).to(dtype)
    visible = torch.rand(rows, staged, generator=draw) < 0.5
    visible[-1, -1] = True
    if name == "hidden-row":
        visible[0] = False
    mask = torch.cat([torch.ones(rows, base, dtype=torch.bool), visible], 1)
    scale = size**-0.5
    want = dense(q, k[:, :live], v[:, :live], scale, mask)
    return [t.to(device) for t in (q, k, v)], base, visible.to(device), scale, want


def attend(kernels, inputs, base, visible, scale, splits=None):
    words = segment_attention.mask_words(visible)
    where = torch.tensor([base], dtype=torch.int32, device=visible.device)
    return kernels.attend_live(*inputs, where, words, visible.shape[1], scale, splits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", SHAPES)
def test_live_attention_is_the_formula(name, dtype, device):
    """16-bit inputs are rounded before both, so only the products' precision differs."""
    from workbench_kernels.segment_attention import live

    inputs, base, visible, scale, want = case(name, dtype, device)
    within = TF32 if device == "cuda" and dtype != torch.float32 else EXACT
    compare(attend(live, inputs, base, visible, scale), want, within)


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
def test_splits_change_nothing_even_where_they_are_empty(splits, device):
    """More splits than tiles: shares without a key merge to nothing."""
    from workbench_kernels.segment_attention import live

    inputs, base, visible, scale, want = case("gqa-3", device=device)
    compare(attend(live, inputs, base, visible, scale, splits), want, EXACT)


def test_the_length_is_read_from_the_device(device):
    """The same launch arguments serve every length: what a captured graph relies on."""
    from workbench_kernels.segment_attention.live import attend_live

    (q, k, v), base, visible, scale, _ = case("gqa-3", device=device)
    words = segment_attention.mask_words(visible)
    where = torch.zeros(1, dtype=torch.int32, device=device)
    for length in (base, 0, 65):
        where.fill_(length)
        live = length + visible.shape[1]
        mask = torch.cat([torch.ones(len(q), length, dtype=torch.bool), visible.cpu()], 1)
        want = dense(q.cpu(), k[:, :live].cpu(), v[:, :live].cpu(), scale, mask)
        compare(attend_live(q, k, v, where, words, visible.shape[1], scale), want, EXACT)


def guarded_live(kernels, device: str) -> None:
    """The kernel between guard zones, outputs filled with NaN, NaN in every slot that is not live."""
    inputs, base, visible, scale, want = case("straddling", device=device)
    q, k, v = inputs = [Guarded(t) for t in inputs]
    words = segment_attention.mask_words(visible)
    shape = (2, *q.inside.shape[:2], v.inside.shape[2])
    out, lse, all_out, all_lse = (
        Guarded(torch.full(s, torch.nan, device=device)) for s in (shape, shape[:3], shape[1:], shape[1:3])
    )
    plan = kernels.tiles.tile(q.inside, 1, 32, 32)
    kernels.live.live_attention_fwd_kernel[(plan.blocks, 2, 1)](
        *(out.inside, lse.inside, q.inside, k.inside, v.inside),
        *(torch.tensor([base], dtype=torch.int32, device=device), words),
        *(64, 32, 128 * 32, 32, 128 * 32, 32, 2, 8, 40, scale),
        **{"BLOCK_KEYS": 32, **plan.constants},
    )
    kernels.merging.merge_fwd_kernel[(16,)](
        *(all_out.inside, all_lse.inside, out.inside, lse.inside, None, 16, 2),
        **{"VALUE_DIM": 32, "BLOCK_V": 32, "BLOCK_S": 2},
    )
    compare((all_out.inside, all_lse.inside), want, EXACT)
    for guarded in (*inputs, out, lse, all_out, all_lse):
        guarded.assert_untouched()


def test_the_kernel_stays_within_its_tensors(device):
    from workbench_kernels.segment_attention import live, merging, tiles

    guarded_live(SimpleNamespace(live=live, merging=merging, tiles=tiles), device)


MUTANTS = {
    "last-key": ("live = base + n_staged", "live = base + n_staged - 1"),
    "beyond": ("live = base + n_staged", "live = base + n_staged + 1"),
    "bit": ("tl.where(flying, keys - base, 0)", "tl.where(flying, keys - base + 1, 0)"),
    "word": ("(bit // 32)[None, :]", "(bit // 33)[None, :]"),
    "committed": ("(keys < base)[None, :] |", "(keys < base - 1)[None, :] |"),
    "value-row": ("* v_row_stride", "* (v_row_stride - 1)"),
}


@needs_interpreter
@pytest.mark.parametrize("name", MUTANTS)
def test_the_checks_catch_an_off_by_one(name, tmp_path, monkeypatch):
    """The kernel with one number wrong, compiled from a copy of its source, fails the very check above."""
    kernels = broken(tmp_path, monkeypatch, "live.py", *MUTANTS[name])
    package = kernels.merging.__name__.rpartition(".")[0]
    kernels.live = importlib.import_module(f"{package}.live")
    with pytest.raises(AssertionError):
        guarded_live(kernels, "cpu")


def test_arguments_that_do_not_fit_are_refused():
    from workbench_kernels.segment_attention.live import attend_live

    q, k, v = torch.zeros(2, 4, 16), torch.zeros(2, 32, 16), torch.zeros(2, 32, 16)
    base, words = torch.zeros(1, dtype=torch.int32), torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"staged rows in \[0, 32\], got 33"):
        attend_live(q, k, v, base, words, 33, 1.0)
    with pytest.raises(ValueError, match=r"int32 base \[1\] on cpu, got torch.int64 \[1\]"):
        attend_live(q, k, v, base.long(), words, 3, 1.0)
    with pytest.raises(ValueError, match=r"int32 words \[2, 2\] on cpu, got torch.int32 \[2, 1\]"):
        attend_live(q, torch.zeros(2, 64, 16), torch.zeros(2, 64, 16), base, words, 33, 1.0)
    with pytest.raises(ValueError, match="KV heads"):
        attend_live(q[:, :3], k, v, base, words, 3, 1.0)


def test_the_kernel_compiles_for_gpus_that_are_not_here():
    """Ahead of time for sm80 and sm90: one bfloat16 row of an 8B model's shape, and a float32 tree of wide heads."""
    from workbench_kernels.segment_attention import live, tiles

    jobs = []
    for dtype, rows, keys in ((torch.bfloat16, 1, 64), (torch.float32, 12, 32)):
        plan = tiles.tile(torch.zeros(rows, 32, 128, dtype=dtype), 8, 128, 128)
        constants = plan.constants | {"BLOCK_KEYS": keys}
        name = "bf16" if dtype == torch.bfloat16 else "fp32"
        types = dict.fromkeys(live.live_attention_fwd_kernel.arg_names, "i32") | {"scale": "fp32"}
        types |= {f"{n}_ptr": f"*{name}" for n in "qkv"} | {f"{n}_ptr": "*fp32" for n in ("out", "lse")}
        types |= {"base_ptr": "*i32", "words_ptr": "*i32"} | dict.fromkeys(constants, "constexpr")
        options = {"num_warps": plan.num_warps, "num_stages": 2}
        jobs.append((live.__name__, "live_attention_fwd_kernel", types, constants, options))
    assert compile_all(*jobs).count("live_attention_fwd_kernel") == 4

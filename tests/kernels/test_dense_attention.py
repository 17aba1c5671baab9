"""Staged rows, shared prefixes and the live slots of a run, row by row against a dense softmax in float64."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from tests.kernels.aot import MOST_SHARED, compile_all
from tests.kernels.attention_cases import EXACT, TF32, broken, compare, dense, modules
from tests.kernels.checks import Guarded
from tests.kernels.interpreter import needs_interpreter
from workbench_kernels import segment_attention

# rows, query heads, KV heads, keys, head size, value size, query rows of a tile not always full, keys not always whole
STAGED = {
    "one-row": (1, 4, 4, 1, 32, 32),
    "chain": (8, 4, 2, 8, 64, 64),
    "gqa-3": (7, 6, 2, 33, 80, 48),
    "gqa-8": (3, 8, 1, 100, 128, 128),
    "wide-head": (3, 2, 1, 65, 256, 256),
    "word-edges": (2, 2, 1, 64, 32, 32),
}
DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
NAMES = {"fp32": "float32", "bf16": "bfloat16"}


def staged(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu"):
    rows, heads, kv_heads, n, size, value_size = STAGED[name]
    draw = torch.Generator().manual_seed(sum(map(ord, name)))
    shapes = (rows, heads, size), (kv_heads, n, size), (kv_heads, n, value_size)
    q, k, v = (torch.randn(*shape, generator=draw).to(dtype) for shape in shapes)
    mask = torch.rand(rows, n, generator=draw) < 0.6
    mask[0], mask[0, -1] = False, True  # the last key of the last word alone
    return [t.to(device) for t in (q, k, v)], size**-0.5, mask


def within(dtype: torch.dtype, device: str) -> float:
    """On a GPU 16-bit queries go with tf32 products, which round probabilities to 11 bits."""
    return TF32 if device == "cuda" and dtype != torch.float32 else EXACT


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
@pytest.mark.parametrize("name", STAGED)
def test_staged_rows_under_every_mask(name, dtype, device):
    """No mask, causal (rows are the last of the keys), and a tree mask as bools and as words."""
    (q, k, v), scale, mask = staged(name, dtype)
    rows, n = mask.shape
    last = torch.ones(rows, n, dtype=torch.bool).tril(n - rows)
    there = [t.to(device) for t in (q, k, v)]
    words = segment_attention.mask_words(mask)
    for given, meant in ((None, None), ("causal", last), (mask, mask), (words, mask)):
        want = dense(q, k, v, scale, meant)
        compare(segment_attention.attend_staged(q, k, v, scale, given, "torch"), want, EXACT)
        given = given.to(device) if isinstance(given, torch.Tensor) else given
        got = segment_attention.attend_staged(*there, scale, given, "triton")
        compare(got, want, within(dtype, device))


def test_staged_keys_may_be_views_and_rows_may_see_nothing(device):
    """A slice of a larger buffer, transposed heads; a blind row has out 0 and lse -inf."""
    (q, k, v), scale, mask = staged("gqa-3")
    mask[2] = False
    buffer = torch.full((40, 2, 128), torch.nan, device=device)
    buffer[:33, :, :80], buffer[:33, :, 80:] = k.transpose(0, 1), v.transpose(0, 1)
    views = buffer[:33, :, :80].transpose(0, 1), buffer[:33, :, 80:].transpose(0, 1)
    got = segment_attention.attend_staged(q.to(device), *views, scale, mask.to(device), "triton")
    compare(got, dense(q, k, v, scale, mask), EXACT)
    assert (got[0][2] == 0).all() and (got[1][2] == -torch.inf).all()
    empty = segment_attention.attend_staged(q.to(device), *(t[:, :0] for t in views), scale, None, "triton")
    assert (empty[0] == 0).all() and (empty[1] == -torch.inf).all()


def test_words_hold_a_bit_a_pair():
    """More than 32 keys, bit 31 included; and back."""
    chain = torch.ones(70, 70, dtype=torch.bool).tril()
    words = segment_attention.mask_words(chain)
    assert words.dtype == torch.int32 and words.shape == (70, 3) and words[:3, 0].tolist() == [1, 3, 7]
    assert torch.equal(segment_attention.words_mask(words, 70), chain)


@pytest.mark.parametrize("shape", [(1, 1, 4, 2, 40, 32), (5, 3, 6, 2, 70, 80)], ids=["one", "many"])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
def test_a_prefix_is_shared_by_all_sequences(shape, dtype, device):
    """B sequences, R rows each, over one prefix: each row gets what it gets alone."""
    batch, rows, heads, kv_heads, n, size = shape
    draw = torch.Generator().manual_seed(n)
    q = torch.randn(batch, rows, heads, size, generator=draw).to(dtype)
    k, v = (torch.randn(kv_heads, n, size, generator=draw).to(dtype) for _ in range(2))
    for where, how in (("cpu", "torch"), (device, "triton")):
        out, lse = segment_attention.attend_prefix(*(t.to(where) for t in (q, k, v)), size**-0.5, how)
        assert out.shape == q.shape and lse.shape == q.shape[:3]
        for b in range(batch):
            compare((out[b], lse[b]), dense(q[b], k, v, size**-0.5), within(dtype, where))


@pytest.mark.parametrize("splits", [2, 3, 9])
def test_splitting_a_prefix_changes_nothing(splits, device):
    """Runs of unequal length, and runs without a key."""
    from workbench_kernels.segment_attention import dense as kernel

    (q, k, v), scale, _ = staged("gqa-8", device=device)
    compare(kernel.attend_dense(q, k, v, scale, splits=splits), dense(q.cpu(), k.cpu(), v.cpu(), scale), EXACT)


# rows, KV heads, group, head size, value size, capacity, committed, staged
SHAPES = {
    "one-row": (1, 2, 1, 16, 16, 64, 40, 1),
    "gqa-3": (5, 2, 3, 48, 32, 160, 90, 7),
    "straddling": (8, 1, 2, 32, 48, 128, 59, 40),  # staged slots lie in two tiles, and need two words
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


def attend_live(inputs, base, visible, scale, splits=None):
    words = segment_attention.mask_words(visible)
    where = torch.tensor([base], dtype=torch.int32, device=visible.device)
    return segment_attention.attend_live(*inputs, where, words, visible.shape[1], scale, splits)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPES.values())
@pytest.mark.parametrize("name", SHAPES)
def test_live_attention_is_the_formula(name, dtype, device):
    """16-bit inputs are rounded before both, so only the products' precision differs."""
    inputs, base, visible, scale, want = case(name, dtype, device)
    compare(attend_live(inputs, base, visible, scale), want, within(dtype, device))


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
def test_splits_change_nothing_even_where_they_are_empty(splits, device):
    """More splits than tiles: shares without a key merge to nothing."""
    inputs, base, visible, scale, want = case("gqa-3", device=device)
    compare(attend_live(inputs, base, visible, scale, splits), want, EXACT)


def test_the_length_is_read_from_the_device(device):
    """The same launch arguments serve every length: what a captured graph relies on."""
    (q, k, v), base, visible, scale, _ = case("gqa-3", device=device)
    words = segment_attention.mask_words(visible)
    where = torch.zeros(1, dtype=torch.int32, device=device)
    for length in (base, 0, 65):
        where.fill_(length)
        n = length + visible.shape[1]
        mask = torch.cat([torch.ones(len(q), length, dtype=torch.bool), visible.cpu()], 1)
        want = dense(q.cpu(), k[:, :n].cpu(), v[:, :n].cpu(), scale, mask)
        compare(segment_attention.attend_live(q, k, v, where, words, visible.shape[1], scale), want, EXACT)


def guarded_dense(kernels, device: str) -> None:
    """The kernel between guard zones, outputs filled with NaN; NaN in every slot that is not live. Then the merge."""
    inputs, base, visible, scale, want = case("straddling", device=device)
    q, k, v = inputs = [Guarded(t) for t in inputs]
    words = segment_attention.mask_words(visible)
    shape = (2, *q.inside.shape[:2], v.inside.shape[2])
    out, lse, all_out, all_lse = outputs = [
        Guarded(torch.full(s, torch.nan, device=device)) for s in (shape, shape[:3], shape[1:], shape[1:3])
    ]
    where = torch.tensor([base], dtype=torch.int32, device=device)
    plan = kernels.tiles.plan(q.inside, 1, 32, 48)
    kernels.dense.dense_attention_kernel[(plan.blocks, 2, 1)](
        kernels.scores.Results(out.inside, lse.inside, None),
        kernels.scores.Queries(q.inside, 64, 32, 8),
        kernels.dense.Keys(k.inside, v.inside, 128 * 32, 32, 128 * 48, 48, where, words, 40),
        scale,
        **{"MASK": "words", "MASS": False, "KEYS": 32, "TILE": plan.tile},
    )
    kernels.merging.merge_fwd_kernel[(16,)](
        *(all_out.inside, all_lse.inside, out.inside, lse.inside, 16, 2),
        **{"VALUE_DIM": 48, "BLOCK_V": 64, "BLOCK_S": 2},
    )
    compare((all_out.inside, all_lse.inside), want, EXACT)
    for guarded in (*inputs, *outputs):
        guarded.assert_untouched()


def test_the_kernels_stay_within_their_tensors(device):
    """NaN around every tensor: a stray load would poison, a stray store would show."""
    guarded_dense(modules(), device)


MUTANTS = {
    "last-key": ("dense.py", "live = base + segment.n_staged", "live = base + segment.n_staged - 1"),
    "beyond": ("dense.py", "live = base + segment.n_staged", "live = base + segment.n_staged + 1"),
    "value-row": ("dense.py", "* segment.v_row_stride", "* (segment.v_row_stride - 1)"),
    "bit": ("scores.py", "tl.where(staged, keys - base, 0)", "tl.where(staged, keys - base + 1, 0)"),
    "word": ("scores.py", "(bit // 32)[None, :]", "(bit // 33)[None, :]"),
    "committed": ("scores.py", "(keys < base)[None, :] |", "(keys < base - 1)[None, :] |"),
    "channel": ("merging.py", "acc / total, mask=channels < VALUE_DIM", "acc / total, mask=channels <= VALUE_DIM"),
    "segment": ("merging.py", "inside = segments < n_segments", "inside = segments < n_segments - 1"),
}


@needs_interpreter
@pytest.mark.parametrize("name", MUTANTS)
def test_the_checks_catch_an_off_by_one(name, tmp_path, monkeypatch):
    """The kernels with one number wrong, compiled from a copy of their source, fail the very check above."""
    kernels = broken(tmp_path, monkeypatch, *MUTANTS[name])
    with pytest.raises(AssertionError):
        guarded_dense(kernels, "cpu")


def test_head_sizes_that_triton_refuses_fall_back(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    q, k = torch.randn(2, 2, 40), torch.randn(1, 3, 40)
    assert segment_attention.choose(q).name == "torch"
    with pytest.raises(RuntimeError, match="multiples of 16 up to 256, got 40; use implementation='torch'"):
        segment_attention.attend_staged(q, k, k, 1.0, implementation="triton")
    compare(segment_attention.attend_staged(q, k, k, 1.0), dense(q, k, k, 1.0), EXACT)
    with pytest.raises(RuntimeError, match="the input is float64"):
        segment_attention.merge([k.double()], [k[..., 0]], implementation="triton")
    with pytest.raises(RuntimeError, match="the input is float64"):
        segment_attention.merge([q[..., :32]], [q[..., 0].double()], implementation="triton")


Q, K, V = torch.zeros(2, 4, 8), torch.zeros(2, 3, 8), torch.zeros(2, 3, 6)


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.ones(2, 4, dtype=torch.bool), r"bool mask \[2, 3\] or int32 words \[2, 1\]"),
        (torch.ones(2, 2, dtype=torch.int32), r"int32 words \[2, 1\], got torch.int32 \[2, 2\]"),
        (torch.ones(2, 3), "got torch.float32"),
        ("tree", "None, 'causal' or a tensor, got 'tree'"),
    ],
    ids=["bools", "words", "dtype", "name"],
)
def test_staged_masks_that_do_not_fit_are_refused(mask, says):
    with pytest.raises(ValueError, match=says):
        segment_attention.attend_staged(Q, K, V, 1.0, mask)
    with pytest.raises(ValueError, match="2 rows and 1 keys"):
        segment_attention.attend_staged(Q, K[:, :1], V[:, :1], 1.0, "causal")
    with pytest.raises(ValueError, match=r"expected q \[B, R, H, D\]"):
        segment_attention.attend_prefix(Q, K, V, 1.0)


def test_arguments_that_do_not_fit_are_refused():
    attend_live = segment_attention.attend_live
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


def test_splits_fill_a_device_once(monkeypatch):
    """As many programs as run at once, of which registers, shared memory or threads decide; a launch asks its compiled
    kernel, once a kind. Registers and shared memory are those that Triton 3.7 gives the kernels on sm90."""
    merging, tiles = modules().merging, modules().tiles
    h200 = SimpleNamespace(
        warp_size=32, regs_per_multiprocessor=65536, shared_memory_per_multiprocessor=228 * 1024,
        max_threads_per_multi_processor=2048, multi_processor_count=132,
    )  # fmt: skip
    assert [tiles.resident_programs(registers, shared, 4, h200) // 132 for registers, shared in
            ((168, 49408), (182, 66048), (128, 45056), (32, 0), (255, 230 * 1024))] == [3, 2, 4, 16, 1]  # fmt: skip
    assert tiles.split_count(512, 8, 396) == 49 and tiles.split_count(20, 8, 396) == 10
    assert tiles.split_count(512, 400, 396) == tiles.split_count(1, 8, 396) == 1
    asked = []

    class Kernel:
        __name__ = "kernel"

        def warmup(self, results, queries, *arguments, grid, **constants):
            asked.append(constants)
            return SimpleNamespace(run=None, n_regs=168, metadata=SimpleNamespace(shared=49408, num_warps=4))

    q = MagicMock(is_cuda=True, device="cuda", stride=lambda: (1, 1, 1))
    monkeypatch.setattr(merging, "_resident", {})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: h200)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    for mask in ("none", "words", "none"):
        assert merging._resident_of(Kernel(), q, None, (torch.zeros(1), 3), {"MASK": mask}) == 3 * 132
    assert [constants["MASK"] for constants in asked] == ["none", "words"]


def test_the_kernels_compile_for_gpus_that_are_not_here():
    """Ahead of time for sm80 and sm90: one row and a whole tree of an 8B model under a mask, wide float32 heads,
    masses, the merge; of shared memory no more than every GPU since sm80 has."""
    attention, merging, _, scores, tiles = vars(modules()).values()
    jobs = []
    for dtype, rows, size, keys, more, base, words in (
        ("bf16", 1, 128, 64, {"MASK": "words", "MASS": False}, "*i32", "*i32"),
        ("bf16", 64, 128, 64, {"MASK": "words", "MASS": False}, "*i32", "*i32"),
        ("fp32", 12, 128, 32, {"MASK": "none", "MASS": False}, "*i32", None),
        ("fp32", 1, 256, 16, {"MASK": "none", "MASS": False}, "*i32", None),
        ("fp32", 8, 80, 32, {"MASK": "causal", "MASS": True}, None, None),
    ):
        plan = tiles.plan(torch.zeros(rows, 32, size, dtype=getattr(torch, NAMES[dtype])), 8, size, size)
        constants = {"TILE": plan.tile, "KEYS": keys} | more
        types = {"results": scores.Results("*fp32", "*fp32", "*fp32" if more["MASS"] else None)}
        types |= {"queries": scores.Queries(f"*{dtype}", *["i32"] * 3)}
        types |= {"segment": attention.Keys(f"*{dtype}", f"*{dtype}", *["i32"] * 4, base, words, "i32")}
        types["scale"] = "fp32"
        types |= dict.fromkeys(constants, "constexpr")
        options = {"num_warps": plan.num_warps, "num_stages": 2}
        jobs.append((attention.__name__, "dense_attention_kernel", types, constants, options))
    constants = {"VALUE_DIM": 128, "BLOCK_V": 128, "BLOCK_S": 16}
    types = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in merging.merge_fwd_kernel.arg_names}
    jobs.append((merging.__name__, "merge_fwd_kernel", types | dict.fromkeys(constants, "constexpr"), constants, {}))
    found = [line.split()[1:] for line in compile_all(*jobs).splitlines()]
    assert len(found) == 12 and all(int(shared) <= MOST_SHARED[arch] for arch, shared in found)

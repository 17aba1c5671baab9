"""Staged rows under their masks and prefixes that sequences share, against a dense softmax in float64."""

from types import SimpleNamespace

import pytest
import torch

from tests.kernels.aot import compile_all
from tests.kernels.attention_cases import broken, compare, dense
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
    return 4e-3 if device == "cuda" and dtype != torch.float32 else 2e-5


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
        compare(segment_attention.attend_staged(q, k, v, scale, given, "torch"), want, 2e-5)
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
    compare(got, dense(q, k, v, scale, mask), 2e-5)
    assert (got[0][2] == 0).all() and (got[1][2] == -torch.inf).all()
    empty = segment_attention.attend_staged(q.to(device), *(t[:, :0] for t in views), scale, None, "triton")
    assert (empty[0] == 0).all() and (empty[1] == -torch.inf).all()


def test_ancestor_words_of_a_tree():
    """Parents -1 0 0 1 1 2 3: node 6 sees 0, 1, 3 and itself; words hold more than 32 nodes, bit 31 included."""
    words = segment_attention.ancestor_words([-1, 0, 0, 1, 1, 2, 3])
    assert words.dtype == torch.int32 and words[:, 0].tolist() == [1, 3, 5, 11, 19, 37, 75]
    chain = segment_attention.ancestor_words(range(-1, 69))
    assert chain.shape == (70, 3)
    assert torch.equal(segment_attention.words_mask(chain, 70), torch.ones(70, 70, dtype=torch.bool).tril())
    with pytest.raises(ValueError, match=r"the parent of node 1 in \[-1, 1\), got 1"):
        segment_attention.ancestor_words([-1, 1])


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
    compare(kernel.attend_dense(q, k, v, scale, splits=splits), dense(q.cpu(), k.cpu(), v.cpu(), scale), 2e-5)


def guarded_dense(kernels, device: str) -> None:
    """The kernel between guard zones, outputs filled with NaN, under a tree mask; then the merge of its splits."""
    (q, k, v), scale, mask = staged("gqa-3", device=device)
    inputs = [Guarded(t) for t in (q, k, v)]
    words = segment_attention.mask_words(mask.to(device))
    out, lse, all_out, all_lse = (
        Guarded(torch.full(shape, torch.nan, device=device)) for shape in ((2, 7, 6, 48), (2, 7, 6), (7, 6, 48), (7, 6))
    )
    plan = kernels.tiles.tile(q, 2, 80, 48)
    kernels.dense.dense_attention_fwd_kernel[(plan.blocks, 2, 2)](
        *(out.inside, lse.inside, *(t.inside for t in inputs), words),
        *(6 * 80, 80, 33 * 80, 80, 33 * 48, 48, 2, 7, 33, scale),
        **{"MASK": "words", "BLOCK_KEYS": 32, **plan.constants},
    )
    kernels.merging.merge_fwd_kernel[(42,)](
        *(all_out.inside, all_lse.inside, out.inside, lse.inside, None, 42, 2),
        **{"VALUE_DIM": 48, "BLOCK_V": 64, "BLOCK_S": 2},
    )
    compare((all_out.inside, all_lse.inside), dense(*(t.cpu() for t in (q, k, v)), scale, mask), 2e-5)
    for guarded in (*inputs, out, lse, all_out, all_lse):
        guarded.assert_untouched()


def test_the_kernels_stay_within_their_tensors(device):
    """NaN around every tensor: a stray load would poison, a stray store would show."""
    from workbench_kernels.segment_attention import dense, merging, tiles

    guarded_dense(SimpleNamespace(dense=dense, merging=merging, tiles=tiles), device)


MUTANTS = {
    "last-key": ("dense.py", "(split + 1) * share, n_keys)", "(split + 1) * share, n_keys - 1)"),
    "value-row": ("dense.py", "* v_row_stride", "* (v_row_stride - 1)"),
    "bit": ("scores.py", "(keys[None, :] - start)", "(keys[None, :] - start + 1)"),
    "word": ("scores.py", "+ start // 32", "+ start // 33"),
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
    compare(segment_attention.attend_staged(q, k, k, 1.0), dense(q, k, k, 1.0), 2e-5)
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


def test_the_kernels_compile_for_gpus_that_are_not_here():
    """Ahead of time for sm80 and sm90: bfloat16 under words, float32 at the widest tile, the merge with sigmas."""
    from workbench_kernels.segment_attention import dense as attention
    from workbench_kernels.segment_attention import merging, tiles

    jobs = []
    for dtype, rows, size, mask, keys in (("bf16", 8, 64, "words", 32), ("fp32", 8, 128, "none", 32)):
        queries = torch.zeros(rows, 12, size, dtype=torch.float32 if dtype == "fp32" else torch.bfloat16)
        plan = tiles.tile(queries, 4, size, size)
        constants = (
            plan.constants | {"MASK": mask, "BLOCK_KEYS": keys} | ({} if mask == "words" else {"words_ptr": None})
        )
        names = attention.dense_attention_fwd_kernel.arg_names
        types = dict.fromkeys(names, "i32") | {"scale": "fp32", "words_ptr": "*i32"}
        types |= {f"{name}_ptr": f"*{dtype}" for name in "qkv"} | {f"{name}_ptr": "*fp32" for name in ("out", "lse")}
        types |= dict.fromkeys(constants, "constexpr")
        options = {"num_warps": plan.num_warps, "num_stages": 2}
        jobs.append((attention.__name__, "dense_attention_fwd_kernel", types, constants, options))
    constants = {"VALUE_DIM": 128, "BLOCK_V": 128, "BLOCK_S": 16}
    types = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in merging.merge_fwd_kernel.arg_names}
    jobs.append((merging.__name__, "merge_fwd_kernel", types | dict.fromkeys(constants, "constexpr"), constants, {}))
    shared = [int(line.split()[2]) for line in compile_all(*jobs).splitlines()]
    assert len(shared) == 6 and max(shared) <= 99 * 1024  # what a block may have on every GPU from sm80 on

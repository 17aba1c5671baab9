"""Segment attention against torch's own attention and a dense softmax in float64, and the invariants of merging."""

import random

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.attention_cases import compare, dense
from tests.kernels.checks import assert_close
from workbench_kernels import segment_attention
from workbench_kernels.segment_attention import reference

# dtype -> tolerance: inside is float32, so half-precision inputs cost nothing beyond their own rounding
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-5, torch.float16: 2e-5}
# rows, query heads, KV heads, keys, head size, value size
SHAPES = {
    "one-row": (1, 4, 4, 17, 32, 32),
    "one-key": (3, 4, 2, 1, 32, 32),
    "gqa-2": (5, 4, 2, 63, 64, 64),
    "gqa-3": (7, 6, 2, 100, 96, 96),
    "gqa-8": (4, 8, 1, 33, 128, 128),
    "odd-head": (2, 5, 5, 31, 80, 48),
    "wide-head": (3, 2, 1, 65, 256, 256),
    "long": (2, 4, 2, 1023, 32, 32),
}


def inputs(name: str, dtype: torch.dtype):
    rows, heads, kv_heads, n, size, value_size = SHAPES[name]
    draw = torch.Generator().manual_seed(sum(map(ord, name)))
    q, k, v = (
        torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)
        for shape in ((rows, heads, size), (kv_heads, n, size), (kv_heads, n, value_size))
    )
    mask = torch.rand(rows, n, generator=draw) < 0.7
    mask[0] = True
    bias = torch.randn(kv_heads, n, generator=draw, dtype=torch.float64).to(dtype)
    return q, k, v, size**-0.5, mask, bias


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("name", SHAPES)
def test_equals_dense_softmax(name, dtype):
    """With mask and bias, every shape and dtype; the pair comes back in float32, or float64 where that came in."""
    q, k, v, scale, mask, bias = inputs(name, dtype)
    out, lse = reference.attend(q, k, v, scale, mask, bias)
    want_out, want_lse = dense(q, k, v, scale, mask, bias)
    assert out.dtype == lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_close("out", out, want_out, TOLERANCE[dtype])
    assert_close("lse", lse, want_lse, TOLERANCE[dtype])


@pytest.mark.parametrize("name", SHAPES)
def test_equals_torch_sdpa(name):
    q, k, v, scale, mask, _ = inputs(name, torch.float64)
    for seen in (None, mask):
        out, _ = reference.attend(q, k, v, scale, seen)
        want = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None], k[None], v[None], attn_mask=seen, scale=scale, enable_gqa=True
        )
        assert_close("out", out, want[0].transpose(0, 1), 1e-12)


def test_kv_heads_may_see_different_keys():
    """A mask [Hk, R, n] is each head's own mask."""
    q, k, v, scale, mask, _ = inputs("gqa-3", torch.float32)
    masks = torch.stack([mask, mask.flip(1)])
    got = reference.attend(q, k, v, scale, masks)
    for h, span in enumerate((slice(0, 3), slice(3, 6))):
        want = dense(q[:, span], k[h : h + 1], v[h : h + 1], scale, masks[h])
        compare([part[:, span] for part in got], want, TOLERANCE[torch.float32])


def test_a_bias_of_log_m_counts_a_key_m_times():
    q, k, v, scale, _, _ = inputs("gqa-2", torch.float64)
    times = torch.arange(k.shape[1]) % 3 + 1
    out, lse = reference.attend(q, k, v, scale, bias=times.double().log())
    want = reference.attend(q, k.repeat_interleave(times, 1), v.repeat_interleave(times, 1), scale)
    assert_close("out", out, want[0], 1e-12)
    assert_close("lse", lse, want[1], 1e-12)


@pytest.mark.parametrize("blind", ["empty", "masked"])
def test_rows_that_see_nothing(blind):
    """Out 0 and lse -inf, never NaN; and merging such a segment changes nothing, not even by rounding."""
    q, k, v, scale, _, _ = inputs("gqa-2", torch.float32)
    whole = reference.attend(q, k, v, scale)
    if blind == "empty":
        out, lse = reference.attend(q, k[:, :0], v[:, :0], scale)
    else:
        out, lse = reference.attend(q, k, v, scale, mask=torch.zeros(q.shape[0], k.shape[1], dtype=torch.bool))
    assert (out == 0).all() and (lse == -torch.inf).all()
    merged = segment_attention.merge([out, whole[0]], [lse, whole[1]])
    assert torch.equal(merged[0], whole[0]) and torch.equal(merged[1], whole[1])
    nothing = segment_attention.merge([out, out], [lse, lse])
    assert (nothing[0] == 0).all() and (nothing[1] == -torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", SHAPES)
def test_splitting_anywhere_and_merging_changes_nothing(name, dtype):
    """A segment cut at random places, empty parts included, merges to what it was; in any order."""
    q, k, v, scale, mask, bias = inputs(name, dtype)
    want = reference.attend(q, k, v, scale, mask, bias)
    draw = random.Random(name)
    for parts in (2, 3, 7):
        cuts = sorted(draw.randint(0, k.shape[1]) for _ in range(parts - 1))
        spans = list(zip([0, *cuts], [*cuts, k.shape[1]], strict=True))
        draw.shuffle(spans)
        pairs = [reference.attend(q, k[:, a:b], v[:, a:b], scale, mask[:, a:b], bias[:, a:b]) for a, b in spans]
        out, lse = segment_attention.merge(*zip(*pairs, strict=True))
        assert_close("out", out, want[0], TOLERANCE[dtype])
        assert_close("lse", lse, want[1], TOLERANCE[dtype])


def test_scores_beyond_the_range_of_exp():
    """Scores of ±1e4 overflow a bare exp; log-sum-exp must not."""
    q = torch.tensor([[[1e4]], [[-1e4]]])
    k, v = torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[3.0], [5.0]]])
    pairs = [reference.attend(q, k[:, j : j + 1], v[:, j : j + 1], 1.0) for j in range(2)]
    out, lse = segment_attention.merge(*zip(*pairs, strict=True))
    assert out.flatten().tolist() == [3.0, 5.0]
    assert lse.flatten().tolist() == [1e4, 0.0]


Q, K, V = torch.zeros(2, 4, 8), torch.zeros(2, 3, 8), torch.zeros(2, 3, 6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((Q[0], K, V, 1.0), "expected q"),
        ((Q[..., :7], K, V, 1.0), "head size"),
        ((Q, K[:, :2], V, 1.0), "number of keys"),
        ((Q[:, :3], K, V, 1.0), "multiple of the KV heads, got 3 and 2"),
        ((Q.double(), K, V, 1.0), "one floating dtype"),
        ((Q, K, V, 1.0, torch.ones(2, 3)), "bool mask"),
        ((Q, K, V, 1.0, torch.ones(2, 4, dtype=torch.bool)), r"mask \[2, 3\]"),
    ],
    ids=["q-rank", "head-size", "keys", "heads", "dtype", "mask-dtype", "mask-shape"],
)
def test_attend_staged_refuses_what_does_not_fit(arguments, says):
    with pytest.raises(ValueError, match=says) as caught:
        segment_attention.attend_staged(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([], []), "got 0 and 0"),
        (([Q], []), "got 0 and 1"),
        (([Q, Q[:1]], [Q[..., 0], Q[:1, :, 0]]), "segment 1"),
    ],
    ids=["none", "lses", "shapes"],
)
def test_merge_refuses_what_does_not_fit(arguments, says):
    with pytest.raises(ValueError, match=says) as caught:
        segment_attention.merge(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("segments", [1, 2, 17, 40])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"]
)
def test_merge_kernel_equals_the_reference(dtype, segments, device):
    """More segments than a tile holds, empty ones among them, a row that sees none; sequences and stacked tensors."""
    draw = torch.Generator().manual_seed(segments)
    outs = torch.randn(segments, 2, 3, 48, generator=draw).to(dtype)
    lses = (torch.randn(segments, 2, 3, generator=draw) * 20).to(dtype)
    lses[torch.rand(segments, 2, 3, generator=draw) < 0.3] = -torch.inf
    lses[:, 0, 1] = -torch.inf
    outs[lses == -torch.inf] = 0
    want = segment_attention.merge(list(outs.double()), list(lses.double()))
    assert (want[0][0, 1] == 0).all() and want[1][0, 1] == -torch.inf
    stacked = outs.to(device), lses.to(device)
    for given in (stacked, [list(part) for part in stacked]):
        got = segment_attention.merge(*given, "triton")
        assert got[0].dtype == torch.float32
        compare(got, want, 2e-5)


def test_merging_an_empty_segment_is_exact(device):
    """Not even a rounding: weight 1 on the other."""
    draw = torch.Generator().manual_seed(2)
    out, lse = (torch.randn(*shape, generator=draw).to(device) for shape in ((2, 2, 32), (2, 2)))
    merged = segment_attention.merge([out * 0, out], [torch.full_like(lse, -torch.inf), lse], implementation="triton")
    assert torch.equal(merged[0], out) and torch.equal(merged[1], lse)

"""The table of operations: how each one is called, on which inputs, and how much it must at least move and multiply.

An operation prepares a `Call` from a device, a dtype and a shape, which is small by default. Its work is (bytes,
floating-point operations): every input read once, every output written once, and the products of matrices.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench_kernels import distribution, pages, segment_attention, verification
from workbench_kernels.pages import ALIGN, RAW, PageFormat
from workbench_kernels.pages.layout import HEADER
from workbench_kernels.segment_attention.reference import attend

SLOTS = 32  # of a page here
MIXED = ((RAW, RAW), (16, 8), (8, 4), (4, 2), (2, 16))  # widths of keys and values, page by page
ROUNDING = 2e-5  # float32 sums of another order; the kernel tests hold the kernels to the same figure


class Call(NamedTuple):
    """One call of an operation on inputs of its own.

    Attributes
    ----------
    run: with `triton` or `torch`, calls it and returns its tensors.
    tensors: the inputs by name, for baselines.
    read: what the call has left, in place of what it returned.
    tolerance: of |got - want| / max(1, |want|); integers, infinities and NaNs must be equal.
    """

    run: Callable[[str], tuple[Tensor, ...]]
    tensors: dict[str, Tensor]
    read: Callable[[], tuple[Tensor, ...]] | None = None
    tolerance: float = ROUNDING


class Operation(NamedTuple):
    """A row of the table: prepare(device, dtype, **shape) gives the call, work(dtype, **shape) its bytes, or both."""

    prepare: Callable[..., Call]
    work: Callable[..., int | tuple[int, int]] | None = None

    def __call__(self, *on, **shape) -> Call:
        return self.prepare(*on, **shape)

    def floor(self, dtype: torch.dtype, **shape) -> tuple[int, int]:
        """(bytes, floating-point operations) that no implementation can go below."""
        found = self.work(dtype, **shape)
        return found if isinstance(found, tuple) else (found, 0)


def _call(function: Callable, tensors: dict, *arguments, read=None, tolerance=ROUNDING, **fixed) -> Call:
    """A call with these arguments, of which text names one of the tensors."""
    arguments = [tensors[part] if isinstance(part, str) else part for part in arguments]

    def run(how: str) -> tuple[Tensor, ...]:
        out = function(*arguments, **fixed, implementation=how)
        return tuple(part for part in (out if isinstance(out, tuple) else (out,)) if isinstance(part, Tensor))

    return Call(run, tensors, read, tolerance)


def draw(device: str, dtype: torch.dtype, *shape: int) -> Tensor:
    """Normal numbers, the same for the same shape."""
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


# -- attention ----------------------------------------------------------------------------------------------------


def paged(device, dtype, rows, kv_heads, group, size, count, widths) -> dict[str, Tensor]:
    """Queries, `count` full pages a head of the widths in turn, and the dense keys and values they were packed from."""
    forms = [PageFormat(size, size, *pair, dtype=dtype) for pair in widths]
    total = kv_heads * count
    kind = torch.arange(total, device=device) % len(forms)
    units = torch.tensor([form.bytes // ALIGN for form in forms], device=device)[kind]
    starts = units.cumsum(0) - units
    arena = torch.zeros(int(units.sum()) * ALIGN, dtype=torch.uint8, device=device)
    k, v = draw(device, dtype, total, SLOTS, size), draw(device, dtype, total, SLOTS, size + 1)[..., :size]
    positions = torch.arange(count * SLOTS, device=device).view(count, SLOTS).repeat(kv_heads, 1)
    for i, form in enumerate(forms):
        chosen = (kind == i).nonzero()[:, 0]
        used = torch.full_like(chosen, SLOTS)
        packed = (k[chosen], v[chosen], positions[chosen], used, form, arena, starts[chosen])
        pages.pack(*packed, check=False, implementation="torch")
    return {
        "q": draw(device, dtype, rows, kv_heads * group, size),
        "arena": arena,
        "table": starts.int().view(kv_heads, count),
        "count": torch.full((kv_heads,), count, dtype=torch.int32, device=device),
        "k": k.view(kv_heads, -1, size),
        "v": v.reshape(kv_heads, -1, size),
    }


PAGES = ("q", "arena", "table", "count")


def attend_pages(device, dtype, rows=2, kv_heads=2, group=2, size=32, count=5, widths=MIXED) -> Call:
    t = paged(device, dtype, rows, kv_heads, group, size, count, widths)
    return _call(segment_attention.attend_pages, t, *PAGES, size**-0.5)


def page_mass(device, dtype, rows=2, kv_heads=2, group=2, size=32, count=5, widths=MIXED) -> Call:
    t = paged(device, dtype, rows, kv_heads, group, size, count, widths)
    held = (t[name] for name in PAGES)
    t["lse"] = segment_attention.attend_pages(*held, size**-0.5, implementation="torch")[1]
    return _call(segment_attention.page_mass, t, *PAGES, size**-0.5, "lse")


def dense(device, dtype, rows, kv_heads, group, size, keys) -> dict[str, Tensor]:
    q, k = draw(device, dtype, rows, kv_heads * group, size), draw(device, dtype, kv_heads, keys, size)
    return {"q": q, "k": k, "v": draw(device, dtype, kv_heads, size, keys).transpose(1, 2).contiguous()}


def attend_staged(device, dtype, rows=5, kv_heads=2, group=2, size=32) -> Call:
    """The nodes of a binary tree, each of which sees its ancestors."""
    t = dense(device, dtype, rows, kv_heads, group, size, rows)
    seen = torch.eye(rows, dtype=torch.bool, device=device)
    for node in range(1, rows):
        seen[node] |= seen[(node - 1) // 2]
    t["words"] = segment_attention.mask_words(seen)
    return _call(segment_attention.attend_staged, t, "q", "k", "v", size**-0.5, "words")


def attend_prefix(device, dtype, sequences=3, rows=2, kv_heads=2, group=2, size=32, keys=70) -> Call:
    t = dense(device, dtype, sequences * rows, kv_heads, group, size, keys)
    return _call(segment_attention.attend_prefix, t, t["q"].unflatten(0, (sequences, rows)), "k", "v", size**-0.5)


def attend_in_run(device, dtype, rows=3, kv_heads=2, group=2, size=32, keys=70, capacity=96) -> Call:
    """Committed keys and a chain of rows behind them, in a preallocated run; torch slices what Triton finds itself."""
    t = dense(device, dtype, rows, kv_heads, group, size, capacity)
    base = torch.tensor([keys], dtype=torch.int32, device=device)
    seen = torch.ones(rows, rows, dtype=torch.bool, device=device).tril()
    words, live = segment_attention.mask_words(seen), slice(None, keys + rows)
    t["mask"] = F.pad(seen, (keys, 0), value=True)
    t["live_k"], t["live_v"] = t["k"][:, live], t["v"][:, live]

    def run(how: str) -> tuple[Tensor, ...]:
        if how == "triton":
            return segment_attention.attend_live(t["q"], t["k"], t["v"], base, words, rows, size**-0.5)
        return attend(t["q"], t["live_k"], t["live_v"], size**-0.5, t["mask"])

    return Call(run, t)


def merge(device, dtype, segments=3, rows=2, heads=4, size=32) -> Call:
    outs, lses = (draw(device, torch.float32, segments, rows, heads, *rest) for rest in ((size,), ()))
    return _call(segment_attention.merge, {"outs": outs, "lses": lses}, "outs", "lses")


def segment_mass(device, dtype, rows=3, kv_heads=2, group=2, size=32, keys=70) -> Call:
    t = dense(device, dtype, rows, kv_heads, group, size, keys)
    t["lse"] = attend(t["q"], t["k"], t["v"], size**-0.5)[1]
    return _call(segment_attention.segment_mass, t, "q", "k", size**-0.5, "lse")


def sdpa(device, dtype, rows=3, kv_heads=2, group=2, size=32, keys=70) -> Call:
    """PyTorch's own attention, which the engine calls for a run of keys and values as it is."""
    t = dense(device, dtype, rows, kv_heads, group, size, keys)
    wide = (t["q"].transpose(0, 1)[None], t["k"][None], t["v"][None])

    def run(how: str) -> tuple[Tensor, ...]:
        if how == "torch":
            return (attend(t["q"], t["k"], t["v"], size**-0.5)[0],)
        return (F.scaled_dot_product_attention(*wide, enable_gqa=True)[0].transpose(0, 1),)

    return Call(run, t)


def _attention(dtype, rows, kv_heads, group, size, keys, held=None, masked=0, sequences=1, mass=False):
    """held: bytes of keys and values, dense by default; masked: keys of a row that have a bit of a mask."""
    queries, item = sequences * rows * kv_heads * group, dtype.itemsize
    held = 2 * kv_heads * keys * size * item if held is None else held
    moved = queries * (size * item + (8 if mass else 4 * size + 4)) + held + 4 * rows * -(-masked // 32)
    return moved, (2 if mass else 4) * queries * keys * size


def _attend_pages(dtype, kv_heads, size, count, widths, mass=False, **shape) -> tuple[int, int]:
    """Positions are read under a window only; for the mass header, key steps and key codes are."""
    total = kv_heads * count
    forms = [PageFormat(size, size, *widths[i % len(widths)], dtype=dtype) for i in range(total)]
    held = 4 * (total + kv_heads) + sum(
        HEADER + form.scale_v - form.scale_k + SLOTS * (form.row_k + 4) if mass else form.bytes - 4 * SLOTS
        for form in forms
    )
    dense = {"kv_heads": kv_heads, "size": size, "keys": count * SLOTS}
    return _attention(dtype, held=held, mass=mass, **dense, **shape)


# -- pages --------------------------------------------------------------------------------------------------------


def stored(device, dtype, count, size, widths=(RAW, RAW)) -> tuple[PageFormat, dict[str, Tensor]]:
    """`count` full pages of one kind in an arena, and the dense rows they were packed from."""
    t = paged(device, dtype, 1, 1, 1, size, count, (widths,))
    t["k"], t["v"] = (t[name].view(count, SLOTS, size) for name in ("k", "v"))
    t["offsets"] = t["table"][0]
    t["positions"] = torch.arange(count * SLOTS, device=device, dtype=torch.int32).view(count, SLOTS)
    t["used"] = torch.full((count,), SLOTS, dtype=torch.int32, device=device)
    return PageFormat(size, size, *widths, dtype=dtype), t


def pack(device, dtype, count=2, size=32, widths=(8, 4)) -> Call:
    form, t = stored(device, dtype, count, size, widths)
    held = ("k", "v", "positions", "used", form, "arena", "offsets")
    return _call(pages.pack, t, *held, check=False, tolerance=0.0)


def unpack(device, dtype, count=2, size=32, widths=(8, 4)) -> Call:
    form, t = stored(device, dtype, count, size, widths)
    return _call(pages.unpack, t, "arena", form, "offsets", tolerance=0.0)


def demote(device, dtype, count=2, size=32) -> Call:
    """8 to 4 bits."""
    form, t = stored(device, dtype, count, size, (8, 8))
    to = PageFormat(size, size, 4, 4, dtype=dtype)
    out = torch.zeros(count * to.bytes, dtype=torch.uint8, device=device)
    places = torch.arange(count, device=device) * (to.bytes // ALIGN)
    return _call(pages.demote, t, "arena", form, to, "offsets", out, places, tolerance=0.0)


def gather(device, dtype, count=2, size=32, widths=(8, 4)) -> Call:
    """Every slot, in a shuffled order."""
    form, t = stored(device, dtype, count, size, widths)
    order = draw(device, torch.float32, count * SLOTS).argsort()
    return _call(pages.gather, t, "arena", form, t["offsets"][order // SLOTS], order % SLOTS, tolerance=0.0)


def evict(device, dtype, count=2, size=32) -> Call:
    """Every other slot of each page."""
    _, t = stored(device, dtype, count, size)
    slots = torch.arange(0, SLOTS, 2, device=device).expand(count, -1).contiguous()
    named = t["offsets"][:, None].expand_as(slots).contiguous()
    return _call(pages.evict, t, "arena", named, slots, read=lambda: (t["arena"],), tolerance=0.0)


def frequencies(device, size) -> Tensor:
    return 10_000 ** -(torch.arange(0, size, 2, device=device) / size)


def rotate(device, dtype, kv_heads=2, keys=40, size=32) -> Call:
    k, origin = draw(device, dtype, kv_heads, keys, size), torch.arange(keys, device=device)
    t = {"k": k, "origin": origin, "target": origin.flip(0).contiguous(), "inv_freq": frequencies(device, size)}
    return _call(pages.rotate, t, *t)


def _page(dtype, size, widths=(RAW, RAW)) -> int:
    return PageFormat(size, size, *widths, dtype=dtype).bytes


def _unpack(dtype, count, size, widths) -> int:
    """To float32 rows, int64 positions and one byte of liveness a slot."""
    return count * (_page(dtype, size, widths) + 4 + SLOTS * (8 * size + 9))


# -- distributions and trees --------------------------------------------------------------------------------------


def statistics(device, dtype, rows=2, vocab=300) -> Call:
    return _call(distribution.statistics, {"logits": draw(device, dtype, rows, vocab) * 3}, "logits")


def sample(device, dtype, rows=2, vocab=300, temperature=0.8, top_k=40, top_p=0.9, min_p=None) -> Call:
    t = {"logits": draw(device, dtype, rows, vocab) * 3}
    return _call(distribution.sample, t, "logits", temperature, top_k, top_p, min_p, seed=1)


def verify(device, dtype, nodes=7, vocab=60) -> Call:
    """A binary tree of the likeliest tokens under each node, drawn from a proposal like the target."""
    logits, numbers = draw(device, dtype, 1, nodes, vocab) * 3, torch.arange(nodes, device=device)
    parents = torch.tensor([[(node - 1) // 2 if node else -1 for node in range(nodes)]], device=device)
    depths = torch.tensor([[(node + 1).bit_length() - 1 for node in range(nodes)]], device=device)
    best, order = logits[0].topk(2).indices, (numbers - 1).clamp_min(0)
    tokens = best[order // 2].gather(1, order[:, None] % 2).T.contiguous()
    proposals = (logits[0].float() + draw(device, torch.float32, nodes, vocab)).log_softmax(-1)
    held = (tokens, parents, depths, torch.ones_like(tokens), numbers[None], torch.tensor([11], device=device))
    return _call(verification.verify, {"logits": logits, "proposals": proposals}, "logits", *held, "proposals", 1, 2)


# -- the table ----------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Operation] = {
    "attention": Operation(sdpa),
    "attend_pages": Operation(attend_pages, _attend_pages),
    "attend_staged": Operation(attend_staged, lambda t, rows, **s: _attention(t, rows, keys=rows, masked=rows, **s)),
    "attend_prefix": Operation(attend_prefix, _attention),
    "attend_live": Operation(attend_in_run, lambda t, rows, keys, capacity, **s: (
        _attention(t, rows, keys=keys + rows, masked=rows, **s))),
    "merge": Operation(merge, lambda t, segments, rows, heads, size: (
        4 * (segments + 1) * rows * heads * (size + 1), 2 * segments * rows * heads * size)),
    "page_mass": Operation(page_mass, lambda t, **s: _attend_pages(t, mass=True, **s)),
    "segment_mass": Operation(segment_mass, lambda t, kv_heads, size, keys, **s: _attention(
        t, kv_heads=kv_heads, size=size, keys=keys, held=kv_heads * keys * (size * t.itemsize + 4), mass=True, **s)),
    "pages.pack": Operation(pack, lambda t, count, size, widths: (
        count * (SLOTS * (2 * size * t.itemsize + 4) + 8 + _page(t, size, widths)))),
    "pages.unpack": Operation(unpack, _unpack),
    "pages.demote": Operation(demote, lambda t, count, size: (
        count * (_page(t, size, (8, 8)) + _page(t, size, (4, 4)) + 12))),
    # an offset and a number per slot, in place of an offset per page
    "pages.gather": Operation(gather, lambda t, count, **s: _unpack(t, count, **s) + count * (12 * SLOTS - 4)),
    "pages.evict": Operation(evict, lambda t, count, size: count * (SLOTS // 2 * 12 + 8)),
    "pages.rotate": Operation(rotate, lambda t, kv_heads, keys, size: (
        2 * kv_heads * keys * size * t.itemsize + 16 * keys + 2 * size)),
    "statistics": Operation(statistics, lambda t, rows, vocab: rows * (vocab * t.itemsize + 20)),
    "sample": Operation(sample, lambda t, rows, vocab, **_: rows * (vocab * t.itemsize + 64)),
    # the distributions of all nodes, since nobody knows the path beforehand
    "verify": Operation(verify, lambda t, nodes, vocab: nodes * (vocab * (t.itemsize + 4) + 40)),
}  # fmt: skip

"""How each operation of `workbench_kernels` is called, said once for the self-tests and for the benchmarks.

A function of `OPERATIONS` takes a device, a dtype and a shape, small by default, makes inputs and returns the `Call`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from workbench_kernels import distribution, pages, segment_attention, verification
from workbench_kernels.dispatch import Choice
from workbench_kernels.pages import ALIGN, RAW, SLOTS, PageFormat

__all__ = ["MIXED", "OPERATIONS", "Call"]

MIXED = ((RAW, RAW), (16, 8), (8, 4), (4, 2), (2, 16))  # widths of keys and values, page by page
# float32 sums of another order; the kernel tests hold the kernels to the same figures
ROUNDING = 2e-5


class Call(NamedTuple):
    """One call of an operation on inputs of its own.

    Attributes
    ----------
    run: with `triton` or `torch`, calls it and returns its tensors.
    choice: what `auto` takes for these inputs, and why.
    tensors: the inputs by name, for baselines.
    read: what the call has left, in place of what it returned.
    tolerance: of |got - want| / max(1, |want|); integers, infinities and NaNs must be equal.
    """

    run: Callable[[str], Any]
    choice: Choice
    tensors: dict[str, torch.Tensor]
    read: Callable[[], tuple[torch.Tensor, ...]] | None = None
    tolerance: float = ROUNDING


def draw(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Normal numbers, the same for the same shape."""
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


# -- attention ----------------------------------------------------------------------------------------------------


def paged(device, dtype, rows, kv_heads, group, size, count, widths) -> dict[str, torch.Tensor]:
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


def attend_pages(device, dtype, rows=2, kv_heads=2, group=2, size=32, count=5, widths=MIXED) -> Call:
    t = paged(device, dtype, rows, kv_heads, group, size, count, widths)
    held = (t["q"], t["arena"], t["table"], t["count"], size**-0.5)
    choice = segment_attention.choose(t["q"], arena=t["arena"], dtypes=[dtype], sizes=[size])
    return Call(lambda how: segment_attention.attend_pages(*held, implementation=how), choice, t)


def page_mass(device, dtype, rows=2, kv_heads=2, group=2, size=32, count=5, widths=MIXED) -> Call:
    t = paged(device, dtype, rows, kv_heads, group, size, count, widths)
    held = (t["q"], t["arena"], t["table"], t["count"], size**-0.5)
    t["lse"] = segment_attention.attend_pages(*held, implementation="torch")[1]
    choice = segment_attention.choose(t["q"], arena=t["arena"], dtypes=[dtype, t["lse"].dtype])
    return Call(lambda how: segment_attention.page_mass(*held, t["lse"], implementation=how), choice, t)


def dense(device, dtype, rows, kv_heads, group, size, keys) -> dict[str, torch.Tensor]:
    q, k = draw(device, dtype, rows, kv_heads * group, size), draw(device, dtype, kv_heads, keys, size)
    return {"q": q, "k": k, "v": draw(device, dtype, kv_heads, size, keys).transpose(1, 2).contiguous()}


def attend_staged(device, dtype, rows=5, kv_heads=2, group=2, size=32) -> Call:
    """The nodes of a binary tree, each of which sees its ancestors."""
    t = dense(device, dtype, rows, kv_heads, group, size, rows)
    t["words"] = segment_attention.ancestor_words([(node - 1) // 2 for node in range(rows)], device)
    held = (t["q"], t["k"], t["v"], size**-0.5, t["words"])
    choice = segment_attention.choose(t["q"], t["v"])
    return Call(lambda how: segment_attention.attend_staged(*held, implementation=how), choice, t)


def attend_prefix(device, dtype, sequences=3, rows=2, kv_heads=2, group=2, size=32, keys=70) -> Call:
    t = dense(device, dtype, sequences * rows, kv_heads, group, size, keys)
    held = (t["q"].unflatten(0, (sequences, rows)), t["k"], t["v"], size**-0.5)
    choice = segment_attention.choose(t["q"], t["v"])
    return Call(lambda how: segment_attention.attend_prefix(*held, implementation=how), choice, t)


def attend_in_run(device, dtype, rows=3, kv_heads=2, group=2, size=32, keys=70, capacity=96) -> Call:
    """Committed keys and a chain of rows behind them, in a preallocated run; torch slices what Triton finds itself."""
    t = dense(device, dtype, rows, kv_heads, group, size, capacity)
    base = torch.tensor([keys], dtype=torch.int32, device=device)
    seen = torch.ones(rows, rows, dtype=torch.bool, device=device).tril()
    words, live = segment_attention.mask_words(seen), slice(None, keys + rows)
    t["mask"] = F.pad(seen, (keys, 0), value=True)
    t["live_k"], t["live_v"] = t["k"][:, live], t["v"][:, live]

    def run(how: str) -> tuple[torch.Tensor, ...]:
        if how == "triton":
            from workbench_kernels.segment_attention.live import attend_live

            return attend_live(t["q"], t["k"], t["v"], base, words, rows, size**-0.5)
        return segment_attention.attend(t["q"], t["live_k"], t["live_v"], size**-0.5, t["mask"])

    return Call(run, segment_attention.choose(t["q"], t["v"]), t)


def merge(device, dtype, segments=3, rows=2, heads=4, size=32) -> Call:
    outs, lses = (draw(device, torch.float32, segments, rows, heads, *rest) for rest in ((size,), ()))
    choice = segment_attention.choose(outs)
    return Call(
        lambda how: segment_attention.merge(outs, lses, implementation=how), choice, {"outs": outs, "lses": lses}
    )


def segment_mass(device, dtype, rows=3, kv_heads=2, group=2, size=32, keys=70) -> Call:
    t = dense(device, dtype, rows, kv_heads, group, size, keys)
    t["lse"] = segment_attention.attend(t["q"], t["k"], t["v"], size**-0.5)[1]
    held = (t["q"], t["k"], size**-0.5, t["lse"])
    choice = segment_attention.choose(t["q"], dtypes=[t["lse"].dtype])
    return Call(lambda how: segment_attention.segment_mass(*held, implementation=how), choice, t)


def sdpa(device, dtype, rows=3, kv_heads=2, group=2, size=32, keys=70) -> Call:
    """PyTorch's own attention, which the engine calls for a run of keys and values as it is."""
    t = dense(device, dtype, rows, kv_heads, group, size, keys)
    wide = (t["q"].transpose(0, 1)[None], t["k"][None], t["v"][None])

    def run(how: str) -> tuple[torch.Tensor, ...]:
        if how == "torch":
            return (segment_attention.attend(t["q"], t["k"], t["v"], size**-0.5)[0],)
        return (F.scaled_dot_product_attention(*wide, enable_gqa=True)[0].transpose(0, 1),)

    return Call(run, Choice("sdpa", "one run of keys and values is one call of PyTorch's attention"), t)


# -- pages --------------------------------------------------------------------------------------------------------


def stored(device, dtype, count, size, widths=(RAW, RAW)) -> tuple[PageFormat, dict[str, torch.Tensor]]:
    """`count` full pages of one kind in an arena, and the dense rows they were packed from."""
    t = paged(device, dtype, 1, 1, 1, size, count, (widths,))
    t["k"], t["v"] = (t[name].view(count, SLOTS, size) for name in ("k", "v"))
    t["offsets"] = t["table"][0]
    t["positions"] = torch.arange(count * SLOTS, device=device, dtype=torch.int32).view(count, SLOTS)
    t["used"] = torch.full((count,), SLOTS, dtype=torch.int32, device=device)
    return PageFormat(size, size, *widths, dtype=dtype), t


def pack(device, dtype, count=2, size=32, widths=(8, 4)) -> Call:
    form, t = stored(device, dtype, count, size, widths)
    held = (t["k"], t["v"], t["positions"], t["used"], form, t["arena"], t["offsets"])
    return Call(
        lambda how: (pages.pack(*held, check=False, implementation=how),), pages.choose(device, dtype), t, tolerance=0
    )


def unpack(device, dtype, count=2, size=32, widths=(8, 4)) -> Call:
    form, t = stored(device, dtype, count, size, widths)
    return Call(
        lambda how: pages.unpack(t["arena"], form, t["offsets"], implementation=how),
        pages.choose(device),
        t,
        tolerance=0,
    )


def demote(device, dtype, count=2, size=32) -> Call:
    """8 to 4 bits."""
    form, t = stored(device, dtype, count, size, (8, 8))
    to = PageFormat(size, size, 4, 4, dtype=dtype)
    out = torch.zeros(count * to.bytes, dtype=torch.uint8, device=device)
    places = torch.arange(count, device=device) * (to.bytes // ALIGN)
    held = (t["arena"], form, to, t["offsets"], out, places)
    return Call(lambda how: (pages.demote(*held, implementation=how),), pages.choose(device), t, tolerance=0)


def gather(device, dtype, count=2, size=32, widths=(8, 4)) -> Call:
    """Every slot, in a shuffled order."""
    form, t = stored(device, dtype, count, size, widths)
    order = draw(device, torch.float32, count * SLOTS).argsort()
    held = (t["arena"], form, t["offsets"][order // SLOTS], order % SLOTS)
    return Call(lambda how: pages.gather(*held, implementation=how), pages.choose(device), t, tolerance=0)


def scatter(device, dtype, kv_heads=2, rows=3, size=32) -> Call:
    """Staged rows to the first slots of one page per head."""
    form, t = stored(device, dtype, kv_heads, size)
    pages.blank(t["arena"], t["offsets"], form)
    chosen = torch.arange(rows, device=device)
    slots = chosen.flip(0).expand(kv_heads, rows).contiguous()
    held = (t["k"], t["v"], chosen, chosen, t["offsets"][:, None].expand(kv_heads, rows).contiguous(), slots)
    return Call(
        lambda how: pages.scatter(t["arena"], form, *held, implementation=how),
        pages.choose(device),
        t,
        lambda: (t["arena"],),
        tolerance=0,
    )


def move(device, dtype, count=2, size=32) -> Call:
    """Half of the slots into the evicted half of the next page, and back: two launches."""
    form, t = stored(device, dtype, count, size)
    half = torch.arange(SLOTS // 2, device=device).expand(count, -1).contiguous()
    here = t["offsets"][:, None].expand(count, SLOTS // 2).contiguous()
    there = (here.roll(1, 0), half + SLOTS // 2)
    pages.evict(t["arena"], *there, implementation="torch")

    def run(how: str) -> None:
        pages.move(t["arena"], form, here, half, *there, implementation=how)
        pages.move(t["arena"], form, *there, here, half, implementation=how)

    return Call(run, pages.choose(device), t, lambda: (t["arena"],), tolerance=0)


def compact(device, dtype, count=2, size=32) -> Call:
    """Two half-empty pages of 4-bit codes into one, over and over."""
    form, t = stored(device, dtype, 2 * count, size, (4, 4))
    out = torch.zeros(count * form.bytes, dtype=torch.uint8, device=device)
    arena = torch.cat([t["arena"], out])
    to = len(t["arena"]) // ALIGN + torch.arange(count, device=device, dtype=torch.int32) * (form.bytes // ALIGN)
    offsets = t["offsets"].view(count, 2).repeat_interleave(SLOTS // 2, 1)
    slots = torch.arange(SLOTS, device=device).expand(count, SLOTS).contiguous()
    held = (offsets, slots, t["used"][:count], to)
    return Call(
        lambda how: pages.compact(arena, form, *held, implementation=how),
        pages.choose(device),
        t,
        lambda: (arena,),
        tolerance=0,
    )


def merge_slots(device, dtype, count=2, size=32) -> Call:
    """A quarter of each page's slots into the next quarter; weights keep the values bounded."""
    form, t = stored(device, dtype, count, size)
    quarter = SLOTS // 4
    to_slots = torch.arange(quarter, device=device).repeat(count)
    to = t["offsets"].repeat_interleave(quarter)
    weights = torch.full((len(to), 1), 0.5, device=device)
    held = (to[:, None], to_slots[:, None] + quarter, weights, to, to_slots, weights[:, 0].contiguous())
    return Call(
        lambda how: pages.merge(t["arena"], form, *held, implementation=how),
        pages.choose(device, dtype),
        t,
        lambda: pages.unpack(t["arena"], form, t["offsets"], implementation="torch"),
    )


def evict(device, dtype, count=2, size=32) -> Call:
    """Every other slot of each page."""
    _, t = stored(device, dtype, count, size)
    slots = torch.arange(0, SLOTS, 2, device=device).expand(count, -1).contiguous()
    named = t["offsets"][:, None].expand_as(slots).contiguous()
    return Call(
        lambda how: pages.evict(t["arena"], named, slots, implementation=how),
        pages.choose(device),
        t,
        lambda: (t["arena"],),
        tolerance=0,
    )


def frequencies(device, size) -> torch.Tensor:
    return 10_000 ** -(torch.arange(0, size, 2, device=device) / size)


def rotate(device, dtype, kv_heads=2, keys=40, size=32) -> Call:
    k, origin = draw(device, dtype, kv_heads, keys, size), torch.arange(keys, device=device)
    t = {"k": k, "origin": origin, "target": origin.flip(0).contiguous(), "inv_freq": frequencies(device, size)}
    return Call(lambda how: (pages.rotate(*t.values(), implementation=how),), pages.choose(device, dtype), t)


def rotate_pages(device, dtype, count=2, size=32) -> Call:
    form, t = stored(device, dtype, count, size)
    out = torch.zeros_like(t["arena"])
    turned = (t["positions"].flip(0).contiguous(), frequencies(device, size), t["offsets"], out, t["offsets"])
    return Call(
        lambda how: pages.rotate_pages(t["arena"], form, *turned, implementation=how),
        pages.choose(device, dtype),
        t,
        lambda: pages.unpack(out, form, t["offsets"], implementation="torch"),
    )


# -- laws and trees -----------------------------------------------------------------------------------------------


def statistics(device, dtype, rows=2, vocab=300, k=5) -> Call:
    logits = draw(device, dtype, rows, vocab) * 3
    return Call(
        lambda how: distribution.statistics(logits, k, implementation=how)[:-1],
        distribution.choose(logits),
        {"logits": logits},
    )


def sample(device, dtype, rows=2, vocab=300, temperature=0.8, top_k=40, top_p=0.9, min_p=None) -> Call:
    logits = draw(device, dtype, rows, vocab) * 3
    rules = (temperature, top_k, top_p, min_p)
    return Call(
        lambda how: distribution.sample(logits, *rules, seed=1, implementation=how)[:-1],
        distribution.choose(logits),
        {"logits": logits},
    )


def verify(device, dtype, mode="rejection", nodes=7, vocab=60) -> Call:
    """A binary tree of the likeliest tokens under each node; under rejection drawn from a proposal like the target."""
    logits = draw(device, dtype, 1, nodes, vocab) * 3
    parents = torch.tensor([[(node - 1) // 2 if node else -1 for node in range(nodes)]], device=device)
    depths = torch.tensor([[(node + 1).bit_length() - 1 for node in range(nodes)]], device=device)
    best = logits[0].topk(2).indices[(torch.arange(nodes, device=device) - 1).clamp_min(0) // 2]
    tokens = best.gather(1, (torch.arange(nodes, device=device) - 1).clamp_min(0)[:, None] % 2).T.contiguous()
    proposals = (logits[0].float() + draw(device, torch.float32, nodes, vocab)).log_softmax(-1)
    rows = torch.arange(nodes, device=device)[None] if mode == "rejection" else None
    held = (logits, tokens, parents, depths, torch.full_like(tokens, int(mode == "rejection")))
    t = {"logits": logits, "proposals": proposals}
    drawn = {"proposals": proposals, "rows": rows} if mode == "rejection" else {}
    place = torch.tensor([11], device=device)
    return Call(
        lambda how: verification.verify(*held, place, mode, 1, **drawn, width=2, implementation=how)[:-1],
        verification.choose(logits, drawn.get("proposals")),
        t,
    )


OPERATIONS: dict[str, Callable[..., Call]] = {
    "attention": sdpa,
    "attend_pages": attend_pages,
    "attend_staged": attend_staged,
    "attend_prefix": attend_prefix,
    "attend_live": attend_in_run,
    "merge": merge,
    "page_mass": page_mass,
    "segment_mass": segment_mass,
    "pages.pack": pack,
    "pages.unpack": unpack,
    "pages.demote": demote,
    "pages.gather": gather,
    "pages.scatter": scatter,
    "pages.move": move,
    "pages.compact": compact,
    "pages.merge": merge_slots,
    "pages.evict": evict,
    "pages.rotate": rotate,
    "pages.rotate_pages": rotate_pages,
    "statistics": statistics,
    "sample": sample,
    "verify.greedy": lambda *on, **shape: verify(*on, "greedy", **shape),
    "verify.keyed": lambda *on, **shape: verify(*on, "keyed", **shape),
    "verify.rejection": lambda *on, **shape: verify(*on, "rejection", **shape),
}

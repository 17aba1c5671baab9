"""Attention over segments: softmax does not care how the keys are cut up.

One rectangular run, the common case, is one SDPA call as it is. What several sequences share is read once for all, and
merged with what each has of its own. On a GPU coded pages are read where they lie, by a
kernel of their own, and merged with the run beside them. Anywhere else the segments are put side by side, pages decoded
on the way, and then are one SDPA call too. With WORKBENCH_KERNELS=triton in the environment everything that the Triton
kernels can take goes through them, single runs as well.
"""

import os
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch.nn.attention.bias import causal_lower_right

from workbench.cache.places import index
from workbench.cache.protocol import Dress, Segment
from workbench_kernels import segment_attention
from workbench_kernels.dispatch import VARIABLE

SHORT = 2048  # slots of several runs, up to which they are read in one product
PLAIN = Dress()
FEW = 64  # query rows by heads of a group, up to which a CPU reads the keys of a group once for all its heads


def attend(q: torch.Tensor, segments: Sequence[Segment], scale: float) -> torch.Tensor:
    """q: [1, H, R, D] -> [1, H, R, Dv]; H is a multiple of the segments' KV heads (grouped-query attention)."""
    whole = join(q, segments)
    group = q.shape[1] // len(whole.k)
    alike = not whole.causal and whole.bias is None and (whole.mask is None or whole.mask.ndim == 2)
    if alike and group > 1 and group * q.shape[2] <= FEW and q.is_cpu:
        rows = q.unflatten(1, (-1, group)).flatten(2, 3)  # [1, Hk, G * R, D]
        mask = None if whole.mask is None else whole.mask.repeat(group, 1)
        out = F.scaled_dot_product_attention(rows, whole.k[None], whole.v[None], attn_mask=mask, scale=scale)
        return out.unflatten(2, (group, -1)).flatten(1, 2)
    if whole.bias is not None:
        mask = whole.bias[:, None].to(q.dtype).expand(-1, q.shape[2], -1)
        if whole.mask is not None or whole.causal:
            mask = mask.masked_fill(~_mask(whole, q.shape[2]), -torch.inf)
        whole = Segment(whole.k, whole.v, mask)
    mask, square = whole.mask, whole.causal and q.shape[2] == whole.k.shape[1]
    if whole.causal and not square:
        mask = causal_lower_right(q.shape[2], whole.k.shape[1])
    elif mask is not None and mask.ndim == 3:
        mask = mask.repeat_interleave(q.shape[1] // len(mask), 0)[None]
    return F.scaled_dot_product_attention(
        q, whole.k[None], whole.v[None], attn_mask=mask, is_causal=square, scale=scale, enable_gqa=True
    )


def in_place(q: torch.Tensor, segments: Sequence[Segment]) -> bool:
    """Whether the kernels take these segments as they are: pages and a run, with no page elsewhere; or, where Triton is
    forced, a run alone. Pages that were chosen among others come gathered and decoded, by torch."""
    run = segments[-1]
    if run.page_table or (run.mask is not None and run.mask.ndim == 3) or any(s.bias is not None for s in segments):
        return False
    if len(segments) == 1:
        forced = os.environ.get(VARIABLE) == "triton"
        return forced and segment_attention.choose(q, run.v).name == "triton"
    page_table = segments[0].page_table
    if len(segments) != 2 or not page_table or len(page_table.arenas) != 1 or page_table.offloaded:
        return False
    form, arena = page_table.arenas[0].codec.kernel, page_table.arenas[0].data
    if form is None:
        return False
    of = {"dtypes": [form.dtype], "sizes": [form.value_dim], "slots": form.slots}
    return segment_attention.choose(q, arena=arena, **of).name == "triton"


def attend_in_place(
    q: torch.Tensor, segments: Sequence[Segment], scale: float, rows: Sequence[int] = ()
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Pages and a run, each attended by its kernel and merged: what `attend` and, for `rows`, `column_mass` give."""
    *rest, run = segments
    queries, mask = q[0].transpose(0, 1), "causal" if run.causal else run.mask
    out, lse = segment_attention.attend_staged(queries, run.k, run.v, scale, mask)
    masses = []
    for pages in rest:  # one at most: see `in_place`
        table, form = pages.page_table, pages.page_table.arenas[0].codec.kernel
        where = None
        if pages.window is not None:
            where = index(pages.queries, q.device).int()
        coded = (queries, table.arenas[0].data.flatten(), table.table, table.count, scale)
        facts = {"value_dim": form.value_dim, "group": form.group, "raw": form.dtype, "slots": form.slots}
        facts |= {"positions": where, "window": pages.window}
        part, part_lse = segment_attention.attend_pages(*coded, **facts)
        out, lse = segment_attention.merge((part, out), (part_lse, lse))
        if rows:
            masses.append(segment_attention.page_mass(*coded, lse, **facts).mass.flatten(2))
    out = out.to(q.dtype).transpose(0, 1)[None]
    if not rows:
        return out, None
    masses.append(segment_attention.segment_mass(queries, run.k, scale, lse, mask=mask).mass)
    return out, torch.cat(masses, -1)[index(rows, q.device)] / (q.shape[1] // run.k.shape[0])


def attend_shared(q: torch.Tensor, parts: Sequence[tuple[slice, Sequence[Segment]]], scale: float) -> torch.Tensor:
    """Attention of several sequences, each of rows of its own; keys that more than one has are read once for all.

    q: [1, H, R, D]. parts: the rows of each sequence, and its segments, own run last; the others are plain, and the
    same object where sequences share them. Returns [1, H, rows of all parts, Dv], part behind part. "Hydragen"
    (https://arxiv.org/abs/2402.05099).
    """
    queries, shared = q[0].transpose(0, 1), {}
    order = [row for rows, _ in parts for row in range(*rows.indices(len(queries)))]
    queries = queries if len(order) == len(queries) else queries[index(order, q.device)]
    counts = [len(range(*rows.indices(q.shape[2]))) for rows, _ in parts]
    runs, start = [segments[-1] for _, segments in parts], 0
    for count, (_, segments) in zip(counts, parts, strict=True):
        for segment in segments[:-1]:
            shared.setdefault(id(segment), (segment, []))[1].extend(range(start, start + count))
        start += count
    out, lse = _attend_runs(queries, counts, runs, scale)
    for segment, rows in shared.values():
        at = slice(None) if len(rows) == len(out) else index(rows, q.device)
        part = segment_attention.attend_prefix(queries[at][:, None], segment.k, segment.v, scale)
        pairs = zip(part, (out, lse), strict=True)
        out[at], lse[at] = segment_attention.merge(*([x[:, 0], own[at]] for x, own in pairs))
    return out.to(q.dtype).transpose(0, 1)[None]


def _attend_runs(
    queries: torch.Tensor, counts: Sequence[int], runs: Sequence[Segment], scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each sequence's rows, `counts` of them, over its own run; short ones in one product, the rest masked."""
    lengths = [run.k.shape[1] for run in runs]
    if all(run.mask is None and not run.causal for run in runs) and sum(lengths) <= SHORT:
        k, v = (torch.cat([getattr(run, name) for run in runs], 1) for name in ("k", "v"))
        return segment_attention.attend_staged(queries, k, v, scale, _own(tuple(counts), tuple(lengths), k.device))
    found = [segment_attention.attend_staged(rows, run.k, run.v, scale, "causal" if run.causal else run.mask)
             for rows, run in zip(queries.split(counts), runs, strict=True)]  # fmt: skip
    return tuple(torch.cat(part) for part in zip(*found, strict=True))


@lru_cache(maxsize=4)
def _own(counts: tuple[int, ...], lengths: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """[rows, slots] bool: which slots are of a row's own sequence. The same in all layers."""
    owner = torch.arange(len(counts))
    rows, slots = (owner.repeat_interleave(torch.tensor(n)) for n in (counts, lengths))
    return (rows[:, None] == slots).to(device)


def join(q: torch.Tensor, segments: Sequence[Segment]) -> Segment:
    """The segments as one, in q's dtype, pages decoded."""
    if len(segments) == 2 and segments[0].page_table and segments[0].plain and segments[1].plain:
        pages, run = segments
        if both := pages.page_table.decoded_before(run):
            return Segment(*both)
    dense = [segment.dense(q.dtype) for segment in segments]
    if len(dense) == 1:
        return dense[0]
    k, v = (torch.cat([getattr(segment, name) for segment in dense], 1) for name in ("k", "v"))
    bias = None
    if any(segment.bias is not None for segment in dense):
        zeros = [torch.zeros(segment.k.shape[:2], device=k.device) for segment in dense]
        bias = torch.cat([zero if s.bias is None else s.bias for s, zero in zip(dense, zeros, strict=True)], 1)
    if all(segment.mask is None and not segment.causal for segment in dense):
        return Segment(k, v, bias=bias)
    alike = all(segment.mask is None or segment.mask.ndim == 2 for segment in dense)  # in all heads
    masks = [_mask(segment, q.shape[2]) for segment in dense]
    return Segment(k, v, torch.cat([mask[0] for mask in masks] if alike else masks, -1), bias=bias)


def attend_dressed(q: torch.Tensor, segments: Sequence[Segment], scale: float) -> torch.Tensor:
    """As `attend`, where some segments are dressed: each is scored as it says, and one softmax goes over all of them.

    In float32, or float64 for float64 inputs.
    """
    wide, rows, parts = torch.promote_types(q.dtype, torch.float32), q.shape[2], []
    dense = [segment.dense(q.dtype) for segment in segments]
    for segment, given in zip(dense, segments, strict=True):
        dress, queries = given.dress or PLAIN, q[0]
        if dress.turn is not None:
            queries = dress.rotation.rotation(queries, -dress.turn)
        queries = queries.to(wide).unflatten(0, (len(segment.k), -1))
        scores = queries @ segment.k.to(wide)[:, None].transpose(-1, -2) * (scale / dress.temperature)
        if segment.bias is not None:
            scores = scores + segment.bias[:, None, None].to(wide)
        if segment.mask is not None or segment.causal:
            scores = scores.masked_fill(~_mask(segment, rows)[:, None], -torch.inf)
        if dress.scale != 1:
            lse = scores.logsumexp(-1, keepdim=True)
            scores = scores + ((dress.scale - 1) * lse).masked_fill(lse.isinf(), 0)
        parts.append(scores)
    weights = torch.cat(parts, -1).softmax(-1).split([part.shape[-1] for part in parts], -1)
    out = sum(part @ segment.v.to(wide)[:, None] for part, segment in zip(weights, dense, strict=True))
    return out.flatten(0, 1)[None].to(q.dtype)


def column_mass(q: torch.Tensor, segments: Sequence[Segment], scale: float, rows: Sequence[int]) -> torch.Tensor:
    """Attention probability that each of `rows` puts on every key, [rows, Hk, n]: the mean over each group of heads.

    A second pass over the keys against the log-sum-exp; no values are read. float32, or float64 for float64 inputs.
    """
    whole = join(q, segments)
    kv_heads, n, _ = whole.k.shape
    group = q.shape[1] // kv_heads
    chosen = q[0, :, index(rows, q.device)]
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = chosen.to(wide).unflatten(0, (kv_heads, group)) @ whole.k.to(wide)[:, None].transpose(-1, -2) * scale
    if whole.bias is not None:
        scores = scores + whole.bias[:, None, None].to(wide)
    if whole.mask is not None or whole.causal:
        seen = _mask(whole, q.shape[2])[:, index(rows, q.device)]
        scores = scores.masked_fill(~seen[:, None], -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    return (scores - lse).exp().mean(1).transpose(0, 1)


def _mask(segment: Segment, rows: int) -> torch.Tensor:
    """[Hk, R, n] bool."""
    heads, n, _ = segment.k.shape
    mask = segment.mask
    if mask is None:
        mask = torch.ones(rows, n, dtype=torch.bool, device=segment.k.device)
        mask = mask.tril(n - rows) if segment.causal else mask
    return mask.expand(heads, rows, n)

"""Attention over one segment of keys, the exact merge of segments, and statistics of attention without its matrix.

Attention over a set of keys is a pair (output, log-sum-exp), and the pairs of disjoint sets merge into the pair of
their union. `attend_staged` gives the pair of rows in flight, `attend_pages` that of packed pages, `attend_prefix` that
of a prefix many sequences share, `attend_live` that of a run in place; `merge` puts pairs together. Once the merged
log-sum-exp is known, `page_mass` and `segment_mass` tell how much probability each slot got and each row's entropy.

`choose` says which implementation a call takes and why; a caller that keeps records calls it beside the call. All
raise ValueError where shapes, dtypes or devices do not fit. Where Triton is asked for and cannot run, they raise
RuntimeError with the reason.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workbench_kernels.dispatch import Choice
from workbench_kernels.segment_attention import checks, reference
from workbench_kernels.segment_attention.checks import PageOptions, choose
from workbench_kernels.segment_attention.reference import mask_words, words_mask

__all__ = [
    "Choice", "Mass", "PageOptions", "attend_live", "attend_pages", "attend_prefix", "attend_staged", "choose",
    "mask_words", "merge", "page_mass", "segment_mass", "words_mask",
]  # fmt: skip


class Mass(NamedTuple):
    """What a segment got of its rows' attention.

    Attributes
    ----------
    mass: float32, probability by row and slot; its shape is told by the function that gives it.
    entropy: [R, H] in nats, Σ -p log p over the segment's slots: the shares of all segments add up to the entropy of
        a row's whole attention.
    """

    mass: Tensor
    entropy: Tensor


def attend_staged(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | str | None = None, implementation: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Attention of R rows in flight over the S rows staged beside the cache, themselves included.

    Parameters
    ----------
    q: [R, H, D]; H is a multiple of the KV heads Hk, query head h reads KV head h // (H / Hk).
    k: [Hk, S, D]; v: [Hk, S, Dv], strided views allowed; S may be 0.
    scale: factor on the scores before the softmax, as a rule D ** -0.5.
    mask: None (every row sees all of them), "causal" (the rows are the last R of the S, and see themselves and what
        came before), bool [R, S], or int32 words [R, ceil(S / 32)] as `mask_words` makes them.

    Returns out [R, H, Dv] and lse [R, H] in nats, in float32 (float64 for float64 inputs). A row that sees no key has
    out 0 and lse -inf.
    """
    return _attend_staged("attend_staged", q, k, v, scale, mask, implementation)


def attend_prefix(q: Tensor, k: Tensor, v: Tensor, scale: float, implementation="auto") -> tuple[Tensor, Tensor]:
    """Attention of B sequences' rows over one prefix that all of them share; its keys are read once for all (Hydragen).

    q: [B, R, H, D]; k: [Hk, n, D]; v: [Hk, n, Dv]. Returns out [B, R, H, Dv] and lse [B, R, H], to be merged with each
    sequence's own segments. A prefix in pages is read by `attend_pages` with q.flatten(0, 1).
    """
    if q.ndim != 4:
        raise ValueError(f"attend_prefix: expected q [B, R, H, D], got {list(q.shape)}")
    pair = _attend_staged("attend_prefix", q.flatten(0, 1), k, v, scale, None, implementation)
    return tuple(part.unflatten(0, q.shape[:2]) for part in pair)


def attend_live(
    q: Tensor, k: Tensor, v: Tensor, base: Tensor, words: Tensor, staged: int, scale: float, splits: int | None = None
) -> tuple[Tensor, Tensor]:
    """Attention of R rows over the live slots of a run, in Triton, without asking the device how many there are.

    q: [R, H, D]; k: [Hk, capacity, D]; v: [Hk, capacity, Dv], strided views allowed. base: int32 [1] on the device,
    slots every row sees; base + staged <= capacity is the caller's to keep. words: int32 [R, ceil(staged / 32)], what
    each row sees of the `staged` slots behind them (`mask_words`). splits: into how many parts the keys are cut (None:
    by the capacity). Returns out and lse as `attend_staged` does, in float32. `choose(q, v)` tells beforehand whether
    Triton can run it.
    """
    from workbench_kernels.segment_attention import dense

    checks.check_dense("attend_live", q, k, v)
    checks.check_live(q, base, words, staged, k.shape[1])
    return dense.attend_dense(q, k, v, scale, words, splits, base, staged)


def attend_pages(
    q: Tensor, arena: Tensor, table: Tensor, count: Tensor, scale: float, *, implementation: str = "auto", **options
) -> tuple[Tensor, Tensor]:
    """Attention of R query rows over packed pages of any mixture of widths, in one launch.

    Parameters
    ----------
    q: [R, H, D]; query head h reads KV head h // (H / Hk). Rows of several sequences may share the call.
    arena: uint8 [bytes], where pages of `workbench_kernels.pages.layout` lie.
    table: int32 [Hk, P], where each page of a KV head begins, in units of 16 bytes, in any order.
    count: int32 [Hk], pages of each head, at most P; what the table holds beyond is not read.
    scale: factor on the scores before the softmax.
    options: the fields of `PageOptions`, by name.

    Returns
    -------
    out [R, H, Dv] and lse [R, H] in float32 (float64 for float64 queries), over the slots that are live. A row that
    sees none has out 0 and lse -inf. Reading the header of each page, torch copies its widths to the host; Triton does
    not.
    """
    read, pages = PageOptions(**options).of(q), (arena, table, count)
    checks.check_pages("attend_pages", q, *pages, read)
    of = {"dtypes": [read.raw], "sizes": [read.value_dim], "slots": read.slots}
    chosen = choose(q, arena=arena, **of, implementation=implementation).name
    if chosen == "triton":
        from workbench_kernels.segment_attention import paged

        return paged.attend_pages(q, *pages, scale, read)
    k, v, mask, bias = reference.dense_pages(q, *pages, read)
    return reference.attend(q, k, v, scale, mask, bias)


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor], implementation: str = "auto") -> tuple[Tensor, Tensor]:
    """The pair of the union of disjoint segments, from their pairs.

    outs: tensors [R, H, Dv], or one tensor [segments, R, H, Dv]; lses: tensors [R, H] or one [segments, R, H], -inf
    where a segment is empty for a row. Returns out [R, H, Dv] and lse [R, H] in the widest of the dtypes given, at
    least float32.
    """
    checks.check_merge(outs, lses)
    if choose(*outs, dtypes=[lse.dtype for lse in lses], implementation=implementation).name == "torch":
        return reference.merge(outs, lses)
    from workbench_kernels.segment_attention.merging import merge_stacked

    outs, lses = (t if isinstance(t, Tensor) else torch.stack([x.float() for x in t]) for t in (outs, lses))
    return merge_stacked(outs.contiguous(), lses.contiguous())


def page_mass(q, arena, table, count, scale, lse, *, implementation="auto", **options) -> Mass:
    """Probability that the slots of packed pages got, by a second pass over their keys.

    The other arguments are those the pages were attended with; lse [R, H] is the merged log-sum-exp of all segments,
    and then the masses of all segments sum to R * H. Returns `Mass`: mass [R, Hk, P, slots], the heads of a group
    added, aligned with the table, 0 where a slot is not live or behind a head's last page; entropy [R, H].
    """
    read, pages = PageOptions(**options).of(q), (arena, table, count)
    checks.check_pages("page_mass", q, *pages, read)
    checks.check_mass("page_mass", q, lse)
    of = {"dtypes": [read.raw, lse.dtype], "slots": read.slots}
    if choose(q, arena=arena, **of, implementation=implementation).name == "triton":
        from workbench_kernels.segment_attention import paged

        mass, entropy = paged.attend_pages(q, *pages, scale, read, lse=lse, places=table.shape[1] * read.slots)
    else:
        k, _, mask, bias = reference.dense_pages(q, *pages, read)
        mass, entropy = reference.mass(q, k, scale, lse, mask, bias)
    return Mass(mass.unflatten(-1, (table.shape[1], read.slots)), entropy)


def segment_mass(q: Tensor, k: Tensor, scale: float, lse: Tensor, *, mask=None, implementation="auto") -> Mass:
    """Probability that the keys of a dense or staged segment got; `page_mass` for keys [Hk, n, D].

    mask: as in `attend_staged`. Returns `Mass`: mass [R, Hk, n]; entropy [R, H].
    """
    checks.check_dense("segment_mass", q, k, k)
    checks.check_staged_mask("segment_mass", mask, q.shape[0], k.shape[1])
    checks.check_mass("segment_mass", q, lse)
    if choose(q, dtypes=[lse.dtype], implementation=implementation).name == "triton":
        from workbench_kernels.segment_attention import dense

        return Mass(*dense.attend_dense(q, k, k, scale, _as_words(mask), lse=lse, places=k.shape[1]))
    return Mass(*reference.mass(q, k, scale, lse, _as_bool(mask, q, k)))


def _attend_staged(name: str, q, k, v, scale, mask, implementation) -> tuple[Tensor, Tensor]:
    checks.check_dense(name, q, k, v)
    checks.check_staged_mask(name, mask, q.shape[0], k.shape[1])
    if choose(q, v, implementation=implementation).name == "triton":
        from workbench_kernels.segment_attention import dense

        return dense.attend_dense(q, k, v, scale, _as_words(mask))
    return reference.attend(q, k, v, scale, _as_bool(mask, q, k))


def _as_words(mask: Tensor | str | None) -> Tensor | str | None:
    return mask_words(mask) if isinstance(mask, Tensor) and mask.dtype == torch.bool else mask


def _as_bool(mask: Tensor | str | None, q: Tensor, k: Tensor) -> Tensor | None:
    if isinstance(mask, str):
        return reference.causal(q.shape[0], k.shape[1], q.device)
    return words_mask(mask, k.shape[1]) if mask is not None and mask.dtype == torch.int32 else mask

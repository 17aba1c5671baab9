"""Attention over one segment of keys, the exact merge of segments, and statistics of attention without its matrix.

Attention over a set of keys is a pair (output, log-sum-exp), and the pairs of disjoint sets merge into the pair of
their union. `attend` gives the pair of a dense segment, `attend_pages` that of packed pages, `attend_staged` that of
rows in flight, `attend_prefix` that of a prefix many sequences share; `merge` puts pairs together. Once the merged
log-sum-exp is known, `page_mass` and `segment_mass` tell how much probability each slot got and each row's entropy.

`choose` says which implementation a call takes and why; a caller that keeps records calls it beside the call.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from workbench_kernels.dispatch import Choice
from workbench_kernels.pages.layout import SLOTS
from workbench_kernels.segment_attention import checks, reference
from workbench_kernels.segment_attention.checks import choose
from workbench_kernels.segment_attention.reference import ancestor_words, mask_words, words_mask

__all__ = [
    "Choice", "Mass", "ancestor_words", "attend", "attend_pages", "attend_prefix", "attend_staged", "choose",
    "mask_words", "merge", "normaliser", "page_mass", "segment_mass", "words_mask",
]  # fmt: skip


class Mass(NamedTuple):
    """What a segment got of its rows' attention.

    Attributes
    ----------
    mass: float32, probability by slot; its shape is told by the function that gives it.
    entropy: [R, H] in nats, Σ -p log p over the segment's slots: the shares of all segments add up to the entropy of
        a row's whole attention.
    """

    mass: torch.Tensor
    entropy: torch.Tensor


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Attention of R query rows over the n keys of one segment, in plain torch.

    Parameters
    ----------
    q: [R, H, D]; H is a multiple of the KV heads Hk, query head h reads KV head h // (H / Hk).
    k: [Hk, n, D]; v: [Hk, n, Dv]; n may be 0.
    scale: factor on the scores before the softmax, as a rule D ** -0.5.
    mask: bool [R, n], or [Hk, R, n] where KV heads differ, True where a row may see a key; None lets every row see all.
    bias: [n] or [Hk, n], added to the scaled scores (log m makes a key count m times).

    Returns
    -------
    out [R, H, Dv] and lse [R, H] in nats, in float32 (float64 for float64 inputs). A row that sees no key has out 0
    and lse -inf.

    Raises ValueError where shapes, dtypes or devices do not fit.
    """
    checks.check_dense("attend", q, k, v)
    (rows, n), kv_heads = (q.shape[0], k.shape[1]), k.shape[0]
    if mask is not None and (mask.dtype != torch.bool or mask.shape not in ((rows, n), (kv_heads, rows, n))):
        raise ValueError(
            f"attend: expected a bool mask [{rows}, {n}] or [{kv_heads}, {rows}, {n}], "
            f"got {mask.dtype} {list(mask.shape)}"
        )
    if bias is not None and bias.shape not in ((n,), (kv_heads, n)):
        raise ValueError(f"attend: expected a bias [{n}] or [{kv_heads}, {n}], got {list(bias.shape)}")
    return reference.attend(q, k, v, scale, mask, bias)


def attend_staged(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: torch.Tensor | str | None = None,
    implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Attention of R rows in flight over the S rows staged beside the cache, themselves included.

    q: [R, H, D]; k: [Hk, S, D]; v: [Hk, S, Dv], strided views allowed. mask: None (every row sees all of them),
    "causal" (the rows are the last R of the S, and see themselves and what came before), bool [R, S], or int32 words
    [R, ceil(S / 32)] as `mask_words` and `ancestor_words` make them. Returns out and lse as `attend` does.

    Raises ValueError where shapes, dtypes or devices do not fit, RuntimeError with the reason where Triton is asked for
    and cannot run.
    """
    checks.check_dense("attend_staged", q, k, v)
    checks.check_staged_mask("attend_staged", mask, q.shape[0], k.shape[1])
    if choose(q, v, implementation=implementation).name == "triton":
        from workbench_kernels.segment_attention import dense

        return dense.attend_dense(q, k, v, scale, _as_words(mask))
    return reference.attend(q, k, v, scale, _as_bool(mask, q, k))


def attend_prefix(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, implementation: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of B sequences' rows over one prefix that all of them share; its keys are read once for all (Hydragen).

    q: [B, R, H, D]; k: [Hk, n, D]; v: [Hk, n, Dv]. Returns out [B, R, H, Dv] and lse [B, R, H], to be merged with each
    sequence's own segments. A prefix in pages is read by `attend_pages` with q.flatten(0, 1).

    Raises as `attend_staged` does.
    """
    if q.ndim != 4:
        raise ValueError(f"attend_prefix: expected q [B, R, H, D], got {list(q.shape)}")
    rows = q.flatten(0, 1)
    checks.check_dense("attend_prefix", rows, k, v)
    if choose(q, v, implementation=implementation).name == "triton":
        from workbench_kernels.segment_attention import dense

        out, lse = dense.attend_dense(rows, k, v, scale)
    else:
        out, lse = reference.attend(rows, k, v, scale)
    return out.unflatten(0, q.shape[:2]), lse.unflatten(0, q.shape[:2])


def attend_pages(
    q: torch.Tensor, arena: torch.Tensor, table: torch.Tensor, count: torch.Tensor, scale: float, *,
    value_dim: int | None = None, group: int = 32, raw: torch.dtype | None = None, tau: float = 1.0,
    bias: torch.Tensor | None = None, numbers: torch.Tensor | None = None, positions: torch.Tensor | None = None,
    window: int | None = None, implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Attention of R query rows over packed pages of any mixture of widths, in one launch.

    Parameters
    ----------
    q: [R, H, D]; query head h reads KV head h // (H / Hk). Rows of several sequences may share the call.
    arena: uint8 [bytes], where pages of `workbench_kernels.pages.layout` lie.
    table: int32 [Hk, P], where each page of a KV head begins, in units of 16 bytes, in any order.
    count: int32 [Hk], pages of each head, at most P; what the table holds beyond is not read.
    scale: factor on the scores before the softmax; tau divides the scores further: scale * q·k / tau + bias.
    value_dim, group, raw: Dv (None: D), channels that share a value step, what raw width means (None: q's dtype).
    bias, numbers: float32 [pages, 32] added to the scores of slots, and int32 [Hk, P], the row of it for each entry.
    positions, window: int32 [R] and w; a row sees the slots whose position is more than its own minus w.

    Returns
    -------
    out [R, H, Dv] and lse [R, H] in float32 (float64 for float64 queries), over the slots that are live. A row that
    sees none has out 0 and lse -inf.

    Raises ValueError where shapes, dtypes or devices do not fit, RuntimeError with the reason where Triton is asked for
    and cannot run. Reading the header of each page, torch copies its widths to the host; Triton does not.
    """
    value_dim, raw = value_dim or q.shape[-1], raw or q.dtype
    options = dict(value_dim=value_dim, group=group, raw=raw, bias=bias, numbers=numbers, positions=positions)
    checks.check_pages("attend_pages", q, arena, table, count, tau=tau, window=window, **options)
    if choose(q, arena=arena, dtypes=[raw], sizes=[value_dim], implementation=implementation).name == "triton":
        from workbench_kernels.segment_attention import paged

        return paged.attend_pages(q, arena, table, count, scale / tau, window=window, **options)
    k, v, mask, spread = _dense_pages(q, arena, table, count, window=window, **options)
    return reference.attend(q, k, v, scale / tau, mask, spread)


def merge(
    outs: Sequence[torch.Tensor],
    lses: Sequence[torch.Tensor],
    sigma: Sequence[float] | None = None,
    implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair of the union of disjoint segments, from their pairs.

    Segment j weighs exp(sigma_j * lse_j) in the result; sigma_j = 1 everywhere (None) is exact attention.

    outs: tensors [R, H, Dv], or one tensor [segments, R, H, Dv]; lses: tensors [R, H] or one [segments, R, H], -inf
    where a segment is empty for a row; sigma: one positive number per segment. Returns out [R, H, Dv] and lse [R, H] in
    the widest of the dtypes given, at least float32.

    Raises ValueError where the numbers or shapes of the parts do not fit, RuntimeError with the reason where Triton is
    asked for and cannot run.
    """
    checks.check_merge(outs, lses, sigma)
    if choose(*outs, dtypes=[lse.dtype for lse in lses], implementation=implementation).name == "torch":
        return reference.merge(outs, lses, sigma)
    from workbench_kernels.segment_attention.merging import merge_stacked

    outs, lses = (t if isinstance(t, torch.Tensor) else torch.stack([x.float() for x in t]) for t in (outs, lses))
    sigmas = None if sigma is None else torch.tensor(list(sigma), dtype=torch.float32, device=outs.device)
    return merge_stacked(outs.contiguous(), lses.contiguous(), sigmas)


def page_mass(
    q: torch.Tensor, arena: torch.Tensor, table: torch.Tensor, count: torch.Tensor, scale: float, lse: torch.Tensor, *,
    reduce: str = "sum", last: int | None = None, value_dim: int | None = None, group: int = 32,
    raw: torch.dtype | None = None, tau: float = 1.0, bias: torch.Tensor | None = None,
    numbers: torch.Tensor | None = None, positions: torch.Tensor | None = None, window: int | None = None,
    implementation: str = "auto",
) -> Mass:  # fmt: skip
    """Probability that the slots of packed pages got, by a second pass over their keys.

    The other arguments are those the pages were attended with; lse [R, H] is the merged log-sum-exp of all segments
    (`normaliser` where the segment's sigma is not 1), and then the masses of all segments sum to R * H.

    reduce: over the G query heads that share a KV head. "sum" adds rows and heads; "max" adds the rows and takes the
        largest of the G heads; "row" adds the heads and keeps the rows apart.
    last: count the last `last` rows alone (a row sees what it saw).

    Returns `Mass`: mass [Hk, P, 32], or [R, Hk, P, 32] for "row", aligned with the table, 0 where a slot is not live or
    behind a head's last page; entropy [R, H]; R is `last` where that is given.

    Raises as `attend_pages` does.
    """
    value_dim, raw = value_dim or q.shape[-1], raw or q.dtype
    options = dict(value_dim=value_dim, group=group, raw=raw, bias=bias, numbers=numbers, positions=positions)
    checks.check_pages("page_mass", q, arena, table, count, tau=tau, window=window, **options)
    checks.check_mass("page_mass", q, lse, reduce, last)
    if last is not None:
        q, lse = q[-last:], lse[-last:]
        options["positions"] = None if positions is None else positions[-last:]
    if choose(q, arena=arena, dtypes=[raw, lse.dtype], implementation=implementation).name == "triton":
        from workbench_kernels.segment_attention import paged

        options |= {"window": window, "lse": lse, "reduce": reduce, "places": table.shape[1] * SLOTS}
        mass, entropy = paged.attend_pages(q, arena, table, count, scale / tau, **options)
    else:
        k, _, mask, spread = _dense_pages(q, arena, table, count, window=window, **options)
        mass, entropy = reference.mass(q, k, scale / tau, lse, mask, spread, reduce)
    return Mass(mass.unflatten(-1, (table.shape[1], SLOTS)), entropy)


def segment_mass(
    q: torch.Tensor, k: torch.Tensor, scale: float, lse: torch.Tensor, *, mask: torch.Tensor | str | None = None,
    reduce: str = "sum", last: int | None = None, implementation: str = "auto",
) -> Mass:  # fmt: skip
    """Probability that the keys of a dense or staged segment got; `page_mass` for keys [Hk, n, D].

    mask: as in `attend_staged`. Returns `Mass`: mass [Hk, n], or [R, Hk, n] for reduce="row"; entropy [R, H].

    Raises as `attend_staged` does.
    """
    checks.check_dense("segment_mass", q, k, k)
    checks.check_staged_mask("segment_mass", mask, q.shape[0], k.shape[1])
    checks.check_mass("segment_mass", q, lse, reduce, last)
    if last is not None:
        q, lse = q[-last:], lse[-last:]
        mask = mask[-last:] if isinstance(mask, torch.Tensor) else mask
    if choose(q, dtypes=[lse.dtype], implementation=implementation).name == "triton":
        from workbench_kernels.segment_attention import dense

        given = {"lse": lse, "reduce": reduce, "places": k.shape[1]}
        return Mass(*dense.attend_dense(q, k, k, scale, _as_words(mask), **given))
    return Mass(*reference.mass(q, k, scale, lse, _as_bool(mask, q, k), None, reduce))


def normaliser(lse: torch.Tensor, own: torch.Tensor, sigma: float) -> torch.Tensor:
    """The lse that `page_mass` and `segment_mass` need for a segment merged with sigma other than 1.

    A slot of score s in segment j weighs exp(s - lse_j) * exp(sigma_j * lse_j - lse), so that the normaliser is
    lse + (1 - sigma_j) * lse_j. lse: merged; own: the segment's; both [R, H].
    """
    return torch.where(own == -torch.inf, lse, lse + (1 - sigma) * own)


def _dense_pages(q, arena, table, count, *, value_dim, group, raw, bias, numbers, positions, window):
    """Keys, values, mask and bias of pages as the reference takes them."""
    k, v, slots, live = reference.gather_pages(arena, table, count, q.shape[2], value_dim, group, raw)
    spread = None if bias is None else reference.gather_bias(bias, numbers, count)
    return k, v, reference.visible(slots, live, positions, window), spread


def _as_words(mask: torch.Tensor | str | None) -> torch.Tensor | str | None:
    return mask_words(mask) if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool else mask


def _as_bool(mask: torch.Tensor | str | None, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor | None:
    if isinstance(mask, str):
        return reference.causal(q.shape[0], k.shape[1], q.device)
    return words_mask(mask, k.shape[1]) if mask is not None and mask.dtype == torch.int32 else mask

"""What segment attention means, in plain torch: float32 inside, float64 kept."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench_kernels.pages.layout import ALIGN, PageFormat
from workbench_kernels.pages.reference import KINDS, unpack


def attend(q, k, v, scale, mask=None, bias=None) -> tuple[Tensor, Tensor]:
    """q [R, H, D] over k [Hk, n, D], v [Hk, n, Dv] -> out [R, H, Dv], lse [R, H], as of `attend_staged`.

    mask: bool [R, n], or [Hk, R, n] where KV heads differ; bias: [n] or [Hk, n], added to the scaled scores.
    """
    rows, heads, _ = q.shape
    kv_heads, n, size = v.shape
    if not n:
        wide = _wide(q)
        return wide.new_zeros(rows, heads, size), wide.new_full((rows, heads), -torch.inf)
    scores = _scores(q, k, scale, mask, bias)
    top = _finite(scores.amax(-1, keepdim=True))
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)  # [Hk, G, R, 1]; 0 for a row that sees nothing
    lse = (top + total.log())[..., 0]
    out = weights.flatten(1, 2) @ _wide(v).to(scores.dtype)  # [Hk, G * R, Dv]
    out = out / total.flatten(1, 2).masked_fill(total.flatten(1, 2) == 0, 1)
    out = out.view(kv_heads, -1, rows, size).permute(2, 0, 1, 3).reshape(rows, heads, size)
    return out, lse.permute(2, 0, 1).reshape(rows, heads)


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pairs (out [R, H, Dv], lse [R, H]) -> the pair of the union. See the public function."""
    stacked = torch.stack([_wide(lse) for lse in lses])  # [segments, R, H]
    lse = stacked.logsumexp(0)
    weights = (stacked - _finite(lse)).exp()
    return sum(w[..., None] * _wide(out) for w, out in zip(weights, outs, strict=True)), lse


def mass(q, k, scale, lse, mask=None, bias=None) -> tuple[Tensor, Tensor]:
    """q [R, H, D], k [Hk, n, D], lse [R, H] -> mass [R, Hk, n], entropy [R, H]. See the public functions."""
    rows, heads, _ = q.shape
    scores = _scores(q, k, scale, mask, bias)
    base = lse.to(scores.dtype).view(rows, k.shape[0], -1).permute(1, 2, 0)[..., None]
    p = (scores - _finite(base)).exp()  # [Hk, G, R, n]
    entropy = torch.special.entr(p).sum(-1).permute(2, 0, 1).reshape(rows, heads)
    return p.sum(1).transpose(0, 1), entropy


def gather_pages(arena, table, count, head_dim, value_dim, group, dtype, slots):
    """The pages of a table side by side, unpacked one format at a time.

    Returns k [Hk, P * slots, D], v [Hk, P * slots, Dv], positions int64 and live bool [Hk, P * slots]. Slots that are
    not live, those behind a head's last page included, hold zeros.
    """
    kv_heads, pages = table.shape
    units = arena[: len(arena) // ALIGN * ALIGN].unflatten(0, (-1, ALIGN))
    held = (torch.arange(pages, device=table.device) < count[:, None]).flatten().nonzero()[:, 0]
    places = table.flatten()[held].long()
    widths = units[places][:, [KINDS, KINDS + 2]]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    k = arena.new_zeros(kv_heads * pages, slots, head_dim, dtype=wide)
    v = arena.new_zeros(kv_heads * pages, slots, value_dim, dtype=wide)
    positions = arena.new_zeros(kv_heads * pages, slots, dtype=torch.int64)
    live = arena.new_zeros(kv_heads * pages, slots, dtype=torch.bool)
    for bits_k, bits_v in widths.unique(dim=0).tolist():
        form = PageFormat(head_dim, value_dim, bits_k, bits_v, group, dtype, slots)
        chosen = (widths == widths.new_tensor([bits_k, bits_v])).all(1)
        runs = places[chosen][:, None] + torch.arange(form.bytes // ALIGN, device=places.device)
        keys, values, places_of_slots, alive = unpack(units[runs].flatten(1), form)
        at = held[chosen]
        k[at], v[at] = (x.to(wide).masked_fill(~alive[..., None], 0) for x in (keys, values))
        positions[at], live[at] = places_of_slots, alive
    return tuple(tensor.unflatten(0, (kv_heads, pages)).flatten(1, 2) for tensor in (k, v, positions, live))


def dense_pages(q, arena, table, count, options):
    """Keys, values, mask and bias of pages as `attend` takes them; options: `checks.PageOptions`."""
    size, bias = q.shape[2], options.bias
    kind = (options.value_dim, options.group, options.raw, options.slots)
    k, v, places, live = gather_pages(arena, table, count, size, *kind)
    mask = live[:, None]
    if options.window is not None:
        mask = mask & (options.positions[:, None] - places[:, None] < options.window)
    if bias is not None:  # 0 behind a head's last page
        held = torch.arange(table.shape[1], device=table.device) < count[:, None]
        spread = bias.new_zeros(*table.shape, options.slots)
        spread[held] = bias[options.numbers[held].long()]
        bias = spread.flatten(1)
    return k, v, mask, bias


# -- masks of rows in flight: words hold a bit a pair, bit j % 32 of word j // 32 --------------------------------------


def mask_words(mask: Tensor) -> Tensor:
    """bool [R, S], True where row r sees key j -> int32 words [R, ceil(S / 32)]."""
    bits = F.pad(mask.long(), (0, -mask.shape[1] % 32)).unflatten(1, (-1, 32))
    return (bits << torch.arange(32, device=mask.device)).sum(-1).to(torch.int32)


def words_mask(words: Tensor, keys: int) -> Tensor:
    """The inverse: int32 words [R, ceil(S / 32)] and S -> bool [R, S]."""
    bits = words[..., None] >> torch.arange(32, dtype=torch.int32, device=words.device)
    return (bits & 1).flatten(1)[:, :keys] == 1


def causal(rows: int, keys: int, device) -> Tensor:
    """bool [R, n]: the rows are the last R of the n keys, and each sees itself and what came before."""
    return torch.ones(rows, keys, dtype=torch.bool, device=device).tril(keys - rows)


def _scores(q, k, scale, mask, bias) -> Tensor:
    """[Hk, G, R, n], -inf where the mask, [R, n] or [Hk, R or 1, n], is False."""
    rows, heads, size = q.shape
    kv_heads, n, _ = k.shape
    grouped = _wide(q).view(rows, kv_heads, -1, size).permute(1, 2, 0, 3).reshape(kv_heads, -1, size)
    scores = (grouped @ _wide(k).to(grouped.dtype).transpose(1, 2)).view(kv_heads, heads // kv_heads, rows, n) * scale
    if bias is not None:
        scores = scores + bias.to(scores.dtype).expand(kv_heads, n)[:, None, None]
    if mask is not None:
        scores = scores.masked_fill(~(mask if mask.ndim == 2 else mask[:, None]), -torch.inf)
    return scores


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _finite(lse: Tensor) -> Tensor:
    """-inf, the sign of an empty row, as 0, so that -inf minus -inf never happens."""
    return lse.masked_fill(lse == -torch.inf, 0.0)

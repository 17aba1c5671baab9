"""The exact merge of (output, log-sum-exp) pairs, and the launch of attention kernels, whose splits need it."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from workbench_kernels.dispatch import on_its_device
from workbench_kernels.segment_attention.scores import Queries, Results
from workbench_kernels.segment_attention.tiles import Plan, resident_programs, split_count

_resident: dict[tuple, int] = {}


@triton.jit
def merge_fwd_kernel(
    out_ptr,  # [R * H, Dv] float32
    lse_ptr,  # [R * H] float32
    outs_ptr,  # [S, R * H, Dv]
    lses_ptr,  # [S, R * H]
    n_rows,
    n_segments,
    VALUE_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    channels = tl.arange(0, BLOCK_V)[None, :]
    best = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    acc = tl.zeros((BLOCK_V,), tl.float32)
    for start in range(0, n_segments, BLOCK_S):
        segments = start + tl.arange(0, BLOCK_S)
        inside = segments < n_segments
        place = segments.to(tl.int64) * n_rows + row
        lse = tl.load(lses_ptr + place, mask=inside, other=float("-inf")).to(tl.float32)
        new_best = tl.maximum(best, tl.max(lse, axis=0))
        # -inf minus -inf is NaN: a row that has seen nothing yet has no maximum
        finite = tl.where(new_best == float("-inf"), 0.0, new_best)
        decay = tl.exp(best - finite)
        weight = tl.exp(lse - finite)
        pointers = outs_ptr + place[:, None] * VALUE_DIM + channels
        outs = tl.load(pointers, mask=inside[:, None] & (channels < VALUE_DIM), other=0).to(tl.float32)
        total = total * decay + tl.sum(weight, axis=0)
        acc = acc * decay + tl.sum(weight[:, None] * outs, axis=0)
        best = new_best
    seen = total > 0
    total = tl.where(seen, total, 1.0)
    tl.store(lse_ptr + row, tl.where(seen, best + tl.log(total), float("-inf")))
    channels = tl.arange(0, BLOCK_V)
    tl.store(out_ptr + row * VALUE_DIM + channels, acc / total, mask=channels < VALUE_DIM)


@on_its_device
def merge_stacked(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """outs [S, R, H, Dv], lses [S, R, H], both contiguous. Returns out [R, H, Dv], lse [R, H]."""
    segments, rows, heads, value_dim = outs.shape
    out = torch.empty(rows, heads, value_dim, dtype=torch.float32, device=outs.device)
    lse = torch.empty(rows, heads, dtype=torch.float32, device=outs.device)
    if n_rows := rows * heads:
        sizes = {"VALUE_DIM": value_dim, "BLOCK_V": triton.next_power_of_2(value_dim)}
        sizes |= {"BLOCK_S": min(triton.next_power_of_2(segments), 16), "num_warps": 2}
        merge_fwd_kernel[(n_rows,)](out, lse, outs, lses, n_rows, segments, **sizes)
    return out, lse


@on_its_device
def launch(
    kernel, plan: Plan, steps: int, kv_heads: int, q: Tensor, *arguments, splits=None, lse=None, places=0, **constants
) -> tuple[Tensor, Tensor]:
    """Run an attention kernel over (row blocks, splits, KV heads), and put together what the splits give.

    kernel: takes `Results`, `Queries` of q [R, H, D], then `arguments`; constants: its own, and those of the launch.
    steps: of its loop where nothing is split; splits: into how many parts, where the device is not to decide it.
    Returns out [R, H, Dv] and lse [R, H], merged. With the merged lse given, returns the mass of `places` keys,
    [R, Hk, places], and the entropy [R, H]. These are sums in a fixed order, without atomics: the same figures every
    time.
    """
    rows, heads, _ = q.shape
    constants |= {"MASS": lse is not None, "TILE": plan.tile, "num_warps": plan.num_warps}
    merged = None if lse is None else lse.float().contiguous()
    if splits is None:
        resident = _resident_of(kernel, q, merged, arguments, constants)
        splits = split_count(steps, plan.blocks * kv_heads, resident)
    if merged is None:
        out = torch.empty(splits, rows, heads, plan.tile.value_dim, dtype=torch.float32, device=q.device)
    else:
        out = torch.zeros(rows, kv_heads, places, dtype=torch.float32, device=q.device)
    side = torch.empty(splits, rows, heads, dtype=torch.float32, device=q.device)
    if rows:
        results = Results(out, side, merged)
        queries = Queries(q, *q.stride()[:2], rows)
        kernel[(plan.blocks, splits, kv_heads)](results, queries, *arguments, **constants)
    if merged is not None:
        return out, side.sum(0)
    return (out[0], side[0]) if splits == 1 else merge_stacked(out, side)


def _resident_of(kernel, q: Tensor, merged: Tensor | None, arguments: tuple, constants: dict[str, Any]) -> int:
    """How many programs of a kernel run at once where q lies, by what it is compiled to, which is asked once a kind; 4
    in the interpreter."""
    if not q.is_cuda:
        return 4
    fields = [part for one in arguments for part in (one if isinstance(one, tuple) else (one,))]
    kinds = tuple(part.dtype if isinstance(part, Tensor) else type(part) for part in fields)
    key = (kernel.__name__, q.device, q.dtype, merged is None, kinds, *constants.items())
    if key not in _resident:
        side = torch.empty(1, device=q.device)
        queries = Queries(q, *q.stride()[:2], len(q))
        made = kernel.warmup(Results(side, side, merged), queries, *arguments, grid=(1,), **constants)
        if made is None:  # by the interpreter
            return 4
        _ = made.run  # loads it, and tells its registers
        facts = torch.cuda.get_device_properties(q.device)
        _resident[key] = resident_programs(made.n_regs, made.metadata.shared, made.metadata.num_warps, facts)
    return _resident[key]

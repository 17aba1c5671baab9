"""Tiles and splits: how much of the work one program takes. Plain Python, from shapes alone.

A tile holds query rows times the query heads that share a KV head; heads are padded to a power of two, so that tile row
t is query row t // BLOCK_HEADS and head t % BLOCK_HEADS of its group. Keys are read once per tile.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton

__all__ = ["STAGES", "Tile", "split_count", "tile"]

STAGES = 2  # of dense tiles: a third, in float32, would not fit in shared memory


class Tile(NamedTuple):
    """Constants of a launch, by the kernels' names, and how many row blocks there are."""

    blocks: int
    num_warps: int
    constants: dict


def tile(q: torch.Tensor, kv_heads: int, head_dim: int, value_dim: int) -> Tile:
    """q [R, H, D]. At least 16 tile rows, what a tensor core wants; at most 64 and about 16 KiB of queries, so that the
    float32 tiles of queries, keys and outputs fit in registers and shared memory."""
    rows, group = q.shape[0], q.shape[1] // kv_heads
    block_heads = triton.next_power_of_2(group)
    widest = triton.next_power_of_2(max(head_dim, value_dim))
    row_bytes = widest * q.itemsize
    most = min(64, max(16, 16384 // row_bytes))
    tile_rows = max(16, block_heads, min(most, triton.next_power_of_2(rows) * block_heads))
    block_rows = tile_rows // block_heads
    constants = {
        "GROUP_SIZE": group,
        "BLOCK_ROWS": block_rows,
        "BLOCK_HEADS": block_heads,
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "VALUE_DIM": value_dim,
        "BLOCK_V": triton.next_power_of_2(value_dim),
        # three tf32 products give nearly float32; one holds every float16 and bfloat16 exactly
        "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32",
    }
    return Tile(-(-rows // block_rows), 8 if tile_rows * row_bytes > 8192 else 4, constants)


def split_count(steps: int, programs: int, device: torch.device, least: int = 2) -> int:
    """Into how many parts to cut a loop of `steps` steps that `programs` programs would run: enough for four programs
    a multiprocessor, none shorter than `least` steps."""
    wanted = -(-4 * _multiprocessors(device) // max(programs, 1))
    return max(1, min(wanted, steps // least))


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1

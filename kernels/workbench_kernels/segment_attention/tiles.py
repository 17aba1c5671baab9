"""Tiles and splits: how much of the work one program takes. Plain Python, from shapes alone.

A tile holds query rows times the query heads that share a KV head; heads are padded to a power of two, so that tile row
t is query row t // heads and head t % heads of its group. Keys are read once per tile.
"""

from typing import Any, NamedTuple

import torch
import triton

STAGES = 2  # of dense tiles: a third, in float32, would not fit in shared memory


class Tile(NamedTuple):
    """Constants of a kernel."""

    rows: int
    heads: int  # the group, padded
    group: int
    head_dim: int
    block_d: int
    value_dim: int
    block_v: int
    precision: str  # of products


class Plan(NamedTuple):
    """A tile, how many row blocks there are, and the warps of a program."""

    tile: Tile
    blocks: int
    num_warps: int


def plan(q: torch.Tensor, kv_heads: int, head_dim: int, value_dim: int) -> Plan:
    """q [R, H, D]. At least 16 tile rows, what a tensor core wants; at most 64 and about 16 KiB of queries, so that the
    float32 tiles of queries, keys and outputs fit in registers and shared memory."""
    rows, group = q.shape[0], q.shape[1] // kv_heads
    heads, block_d, block_v = (triton.next_power_of_2(n) for n in (group, head_dim, value_dim))
    row_bytes = max(block_d, block_v) * q.itemsize
    most = min(64, max(16, 16384 // row_bytes))
    tile_rows = max(16, heads, min(most, triton.next_power_of_2(rows) * heads))
    # three tf32 products give nearly float32; one holds every float16 and bfloat16 exactly
    precision = "tf32x3" if q.dtype == torch.float32 else "tf32"
    tile = Tile(tile_rows // heads, heads, group, head_dim, block_d, value_dim, block_v, precision)
    return Plan(tile, -(-rows // tile.rows), 8 if tile_rows * row_bytes > 8192 else 4)


def split_count(steps: int, programs: int, resident: int, least: int = 2) -> int:
    """Into how many parts to cut a loop of `steps` steps that `programs` programs would run: as many as the device runs
    at once, so that there is no second wave, and none shorter than `least` steps."""
    return max(1, min(resident // max(programs, 1), steps // least))


def resident_programs(registers: int, shared: int, warps: int, device: Any) -> int:
    """How many programs of a compiled kernel a GPU runs at once. registers: of a thread; shared: bytes of a program;
    device: as of `torch.cuda.get_device_properties`."""
    of_warp = -(-registers * device.warp_size // 256) * 256  # registers are handed out by 256
    fit = (
        device.regs_per_multiprocessor // (of_warp * warps),
        device.shared_memory_per_multiprocessor // (shared + 1024),  # a KiB of each is the driver's
        device.max_threads_per_multi_processor // (warps * device.warp_size),
    )
    return max(1, min(fit)) * device.multi_processor_count

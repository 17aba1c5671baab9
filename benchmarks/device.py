"""What a device can do at most, and how long a call takes on it."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from workbench.device.graph import Replayed
from workbench.provenance import device_name, versions


class Rates(NamedTuple):
    """Measured here and now: bytes per second of a copy (read and written), operations per second of a product."""

    bytes_per_s: float
    flops_per_s: float
    dtype: str

    def floor_us(self, moved: int, flops: int) -> float:
        """No call that moves these bytes and multiplies this much can be faster, in microseconds."""
        return 1e6 * max(moved / self.bytes_per_s, flops / self.flops_per_s)


class Timing(NamedTuple):
    """Microseconds on the device over many repeats; how: `graph` (CUDA-graph replay) or `eager`, and why the latter."""

    median_us: float
    p20_us: float
    p80_us: float
    how: str
    not_captured: str | None = None


def conditions(device: torch.device) -> dict[str, Any]:
    """Device and versions that a row was measured with."""
    return {"device": device_name(device), "versions": versions()}


def rates(device: torch.device) -> Rates:
    """The best copy bandwidth and matrix product rate of this device, in bfloat16 on a GPU, float32 on a CPU."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a = torch.randn(size, size, device=device).to(dtype)  # a product of ones is quicker than any that is asked for
    product = torch.empty_like(a)
    flops = 2 * size**3 / _best(lambda: torch.mm(a, a, out=product), device)
    return Rates(copy_bandwidth(device), flops, str(dtype).removeprefix("torch."))


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy within the device."""
    source = torch.randn((2**30 if device.type == "cuda" else 2**26) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def _best(run: Callable[[], Any], device: torch.device, repeats: int = 8) -> float:
    """Seconds a call in the fastest of some rounds; a round on a GPU is many calls, so that the host's time fades."""
    calls = 20 if device.type == "cuda" else 1
    found = []
    for _ in range(repeats + 2):  # the first two warm up
        start = clock(device)
        for _ in range(calls):
            run()
        found.append((clock(device) - start) / calls)
    return min(found[2:])


def clock(device: torch.device) -> float:
    """Seconds, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(run: Callable[[], Any], device: torch.device, repeats: int = 50) -> Timing:
    """Device time of a call by events around each replay of its CUDA graph; around the call where none can be captured.

    Before each replay four times the L2 cache is overwritten, so that inputs come from memory; it also keeps the device
    busy until the replay is queued, so that the host's time does not count. An eager call may launch for longer than
    that, and then it counts.
    """
    replayed = Replayed(run, device)
    replayed()
    how, reason = ("graph", None) if replayed.captured else ("eager", replayed.reason)
    flush = torch.empty(4 * torch.cuda.get_device_properties(device).L2_cache_size, dtype=torch.uint8, device=device)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in events:
        flush.zero_()
        start.record()
        replayed()
        end.record()
    torch.cuda.synchronize(device)
    replayed.close()
    times = statistics.quantiles([1000 * start.elapsed_time(end) for start, end in events], n=10)
    return Timing(times[4], times[1], times[7], how, reason)
